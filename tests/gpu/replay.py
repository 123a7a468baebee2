"""Replays kernel vectors on a CUDA device through its driver: PTX, operands, arguments, and what the operands held after the
kernel had run on the emulator. Needs Python alone.

A vector is a file `*.vector`: a line of JSON, then the PTX, then each operand before and after, as the line says how long
they are. `LATHE_VECTORS=FOLDER cargo test -p lathe-kernels --test on_emulator` writes them.

    python3 tests/gpu/replay.py FOLDER [OUT.json]

Integers must be equal. Floats must be within the bound of the line, in the norm of their difference over the norm; how many
vectors are equal to the last bit is said too.
"""

import ctypes
import json
import math
import pathlib
import struct
import sys


class Driver:
    """The calls of the driver that are needed."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", name, 100, device)
        self.name = name.value.decode()

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} gives error {code}")

    def allocate(self, contents):
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(len(contents), 1)))
        self.call("cuMemcpyHtoD_v2", address, contents, ctypes.c_size_t(len(contents)))
        return address

    def run(self, vector):
        """What the operands hold after the kernel."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), vector["ptx"] + b"\0")
        self.call("cuModuleGetFunction", ctypes.byref(function), module, vector["entry"].encode())
        addresses = [self.allocate(operand) for operand in vector["before"]]
        arguments = addresses + [ctypes.c_int64(param) for param in vector["params"]]
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self.call("cuLaunchKernel", function, *vector["grid"], *vector["block"], 0, None, pointers, None)
        self.call("cuCtxSynchronize")
        found = []
        for address, operand in zip(addresses, vector["before"]):
            contents = ctypes.create_string_buffer(max(len(operand), 1))
            self.call("cuMemcpyDtoH_v2", contents, address, ctypes.c_size_t(len(operand)))
            found.append(contents.raw[: len(operand)])
            self.call("cuMemFree_v2", address)
        self.call("cuModuleUnload", module)
        return found


def read(path):
    """A vector from its file."""
    data = path.read_bytes()
    line, rest = data.split(b"\n", 1)
    vector = json.loads(line)
    lengths = [vector["ptx_bytes"]] + vector["operand_bytes"] * 2
    parts = []
    for length in lengths:
        parts.append(rest[:length])
        rest = rest[length:]
    count = len(vector["operand_bytes"])
    return vector | {"ptx": parts[0], "before": parts[1 : 1 + count], "after": parts[1 + count :]}


def relative(found, expected):
    """‖found − expected‖ / ‖expected‖ of f32; what is no number on both sides is left out."""
    floats = lambda data: struct.unpack(f"<{len(data) // 4}f", data[: len(data) // 4 * 4])
    pairs = [(a, b) for a, b in zip(floats(found), floats(expected)) if not (math.isnan(a) and math.isnan(b))]
    norm = math.sqrt(sum(b * b for _, b in pairs))
    difference = math.sqrt(sum((a - b) ** 2 for a, b in pairs))
    return difference / norm if norm > 0 else difference


def main():
    folder, out = pathlib.Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    driver = Driver()
    rows = []
    for path in sorted(folder.glob("*.vector")):
        vector = read(path)
        try:
            found = driver.run(vector)
        except RuntimeError as error:
            rows.append({"kernel": vector["kernel"], "error": str(error)})
            print(f"FAILED {vector['kernel']}: {error}")
            break
        pairs = list(zip(found, vector["after"]))
        exact = all(a == b for a, b in pairs)
        error = 0.0 if exact else max(relative(a, b) for a, b in pairs if a != b)
        rows.append({"kernel": vector["kernel"], "exact": exact, "error": error, "bound": vector["bound"]})
        if not exact:
            verdict = "within" if error <= vector["bound"] else "FAILED"
            print(f"{verdict} {vector['kernel']}: relative error {error:.2e}")
    failed = [row for row in rows if "error" not in row or isinstance(row["error"], str) or row["error"] > row["bound"]]
    exact = sum(row.get("exact", False) for row in rows)
    print(f"{driver.name}: {len(rows)} vectors, {exact} equal to the last bit, {len(failed)} failed")
    if out:
        pathlib.Path(out).write_text(json.dumps({"gpu": driver.name, "rows": rows}, indent=1))
    sys.exit(1 if failed or not rows else 0)


main()
