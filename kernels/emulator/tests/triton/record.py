"""Compiles the kernels of kernels.py to PTX, without a GPU, and records what NumPy makes of their inputs.

    pip install triton==3.9.0 numpy
    TRITON_DISABLE_LINE_INFO=1 python record.py

For each case there are NAME.ptx and NAME.bin, and a paragraph in `cases`: the kernel's name, grid, threads and shared memory,
then its arguments in order. `value TYPE BITS` is a scalar; `buffer TYPE COUNT [in] [out TOLERANCE]` an array whose contents
before (`in`) and expected contents after (`out`) lie in NAME.bin one after another; what is not `in` is never written
before. `tests/triton.rs` reads them.
"""

import pathlib

import numpy as np
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import kernels

FOLDER = pathlib.Path(__file__).parent
RNG = np.random.default_rng(7)
TARGET = GPUTarget("cuda", 80, 32)


class Bf16:
    """bfloat16 as its upper 16 bits."""

    @staticmethod
    def cut(values):
        bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

    @staticmethod
    def widen(bits):
        return (bits.astype(np.uint32) << 16).view(np.float32)


POINTERS = {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16", "i32": "*i32", "s8": "*i8"}


def compile_kernel(kernel, arguments, constants, options):
    signature, attributes = {}, {}
    names = kernel.arg_names
    for index, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        argument = arguments[name]
        if argument[0] == "value":
            signature[name] = {"i32": "i32", "f32": "fp32"}[argument[1]]
            aligned = argument[1] == "i32" and argument[2] % 16 == 0
        else:
            signature[name] = POINTERS[argument[1]]
            aligned = True
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=TARGET, options=options)


def to_bytes(values):
    return np.ascontiguousarray(values).tobytes()


def case(name, kernel, grid, arguments, constants, **options):
    """Arguments by name: ("value", type, value) or ("buffer", type, before or None, after or None, tolerance)."""
    # The PTX of CUDA 12.0. Fused, `fma(a, b, shuffle(a * b))` rounds differently in the lanes that hold one sum, and they
    # write it to one place: the emulator calls that a race, for which of them wins is not defined.
    options = {"num_warps": 4, "ptx_version": 80, "enable_fp_fusion": False} | options
    compiled = compile_kernel(kernel, arguments, constants, options)
    (FOLDER / f"{name}.ptx").write_text("\n".join(line.rstrip() for line in compiled.asm["ptx"].strip().splitlines()) + "\n")
    meta, contents = compiled.metadata, b""
    lines = [f"case {name} {meta.name} {' '.join(map(str, grid))} {32 * meta.num_warps} {meta.shared}"]
    for argument in (arguments[name] for name in kernel.arg_names if name not in constants):
        if argument[0] == "value":
            dtype = {"i32": np.int32, "f32": np.float32}[argument[1]]
            lines.append(f"value {argument[1]} {int(np.array(argument[2], dtype).view(np.uint32))}")
            continue
        _, ty, before, after, tolerance = argument
        count = (before if before is not None else after).size
        line = f"buffer {ty} {count}"
        if before is not None:
            line, contents = line + " in", contents + to_bytes(before)
        if after is not None:
            line, contents = line + f" out {tolerance}", contents + to_bytes(after)
        lines.append(line)
    # Triton's own scratch memory, of which these kernels need none.
    lines += ["null"] * (compiled.asm["ptx"].split(".entry")[1].split(")")[0].count(".param") - len(lines) + 1)
    (FOLDER / f"{name}.bin").write_bytes(contents)
    return "\n".join(lines) + "\n"


def given(ty, values):
    return ("buffer", ty, values, None, 0)


def result(ty, values, tolerance=0, before=None):
    return ("buffer", ty, before, values, tolerance)


def integer(value):
    return ("value", "i32", value)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*shape):
    """Small whole numbers: every order of adding gives the same bits."""
    return RNG.integers(-4, 5, shape).astype(np.float32)


def philox_uniform(seed, offsets):
    """Triton's `rand`: Philox 4x32-10 of the counter (offset, 0, 0, 0), its first word folded to [0, 1)."""
    c = [offsets.astype(np.uint64)] + [np.zeros_like(offsets, dtype=np.uint64) for _ in range(3)]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            b & low,
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            a & low,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    signed = c[0].astype(np.uint32).view(np.int32)
    folded = np.where(signed < 0, -signed.astype(np.int64) - 1, signed)
    return folded.astype(np.float32) * np.float32(4.6566127342e-10)


def elementwise_cases():
    x = Bf16.cut(normal(500))
    wide = Bf16.widen(x).astype(np.float64)
    inner = 0.7978845608 * (wide + 0.044715 * wide**3)
    y = Bf16.cut((wide / (1 + np.exp(-2 * inner))).astype(np.float32))
    yield case("gelu", kernels.gelu, (2, 1, 1),
               {"x": given("bf16", x), "y": result("bf16", y, 0.01), "n": integer(500)}, {"BLOCK": 256})
    x = normal(600)
    kept = philox_uniform(42, np.arange(600)) > 0.25
    y = np.where(kept, x / np.float32(0.75), np.float32(0))
    yield case("dropout", kernels.dropout, (3, 1, 1),
               {"x": given("f32", x), "y": result("f32", y, 1e-6), "n": integer(600), "seed": integer(42)}, {"BLOCK": 256})
    x, positions = normal(5, 64), np.array([0, 1, 7, 100, 999], np.int32)
    angle = positions[:, None] * 10000.0 ** (-np.arange(32) / 32)
    first, second = x[:, :32], x[:, 32:]
    y = np.hstack([first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)])
    yield case("rope", kernels.rope, (5, 1, 1),
               {"x": given("f32", x), "positions": given("i32", positions), "y": result("f32", y.astype(np.float32), 2e-3)},
               {"HALF": 32}, num_warps=1)


def row_cases():
    x = normal(4, 300)
    power = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    y = (power / power.sum(axis=1, keepdims=True)).astype(np.float32)
    yield case("softmax", kernels.softmax, (4, 1, 1),
               {"x": given("f32", x), "y": result("f32", y, 1e-5), "width": integer(300)}, {"BLOCK": 512})
    x, w, b = normal(3, 200), normal(200), normal(200)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * w + b
    yield case("layer_norm", kernels.layer_norm, (3, 1, 1),
               {"x": given("f32", x), "w": given("f32", w), "b": given("f32", b), "y": result("f32", y.astype(np.float32), 1e-4),
                "width": integer(200)}, {"BLOCK": 256})
    x, gate, w = (normal(*shape).astype(np.float16) for shape in ((3, 256), (3, 256), (256,)))
    wide, gated = x.astype(np.float64), gate.astype(np.float64)
    y = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-6) * w * (gated / (1 + np.exp(-gated)))
    yield case("rms_norm_silu", kernels.rms_norm_silu, (3, 1, 1),
               {"x": given("f16", x), "gate": given("f16", gate), "w": given("f16", w), "y": result("f16", y.astype(np.float16), 4e-3),
                "width": integer(256)}, {"BLOCK": 256})
    x = RNG.integers(-50, 50, (3, 120)).astype(np.int32)
    yield case("scan", kernels.scan, (3, 1, 1),
               {"x": given("i32", x), "y": result("i32", np.cumsum(x, axis=1).astype(np.int32)), "width": integer(120)}, {"BLOCK": 128})
    x = RNG.permutation(4 * 128).reshape(4, 128).astype(np.float32)
    yield case("top_k", kernels.top_k, (4, 1, 1),
               {"x": given("f32", x), "y": result("f32", -np.sort(-x, axis=1)[:, :8])}, {"WIDTH": 128, "K": 8})
    yield case("argmax", kernels.argmax, (4, 1, 1),
               {"x": given("f32", x), "values": result("f32", x.max(axis=1)),
                "places": result("i32", x.argmax(axis=1).astype(np.int32)), "width": integer(128)}, {"BLOCK": 128})


def shared_cases():
    x = normal(50, 70)
    yield case("transpose", kernels.transpose, (2, 3, 1),
               {"x": given("f32", x), "y": result("f32", x.T), "rows": integer(50), "columns": integer(70)}, {"BLOCK": 32})
    x = RNG.integers(0, 64, 1000).astype(np.int32)
    bins = np.bincount(x, minlength=64).astype(np.int32)
    yield case("histogram", kernels.histogram, (4, 1, 1),
               {"x": given("i32", x), "bins": result("i32", bins, before=np.zeros(64, np.int32)), "n": integer(1000)},
               {"BLOCK": 256, "BINS": 64})
    x = whole(1000)
    yield case("counters", kernels.counters, (8, 1, 1),
               {"x": given("f32", x), "parts": ("buffer", "f32", np.zeros(8, np.float32), None, 0),
                "arrived": result("i32", np.array([8], np.int32), before=np.zeros(1, np.int32)),
                "y": result("f32", np.array([x.sum()], np.float32)), "n": integer(1000)}, {"BLOCK": 128, "PROGRAMS": 8})


def matrix_cases():
    import triton.language as tl

    m, n, k = 64, 64, 160
    sizes = {"m": integer(m), "n": integer(n), "k": integer(k)}
    blocks = {"BM": 32, "BN": 32, "BK": 32}
    a, b = whole(m, k), whole(k, n)
    c = a @ b
    half = {"f16": lambda v: v.astype(np.float16), "bf16": Bf16.cut, "tf32": lambda v: v}
    for ty, cut in half.items():
        stored = "f32" if ty == "tf32" else ty
        yield case(f"matmul_{ty}", kernels.matmul, (2, 2, 1),
                   {"a": given(stored, cut(a)), "b": given(stored, cut(b)), "c": result("f32", c)} | sizes,
                   blocks | {"TYPE": tl.float32}, num_stages=3)
    a, b = RNG.integers(-128, 128, (m, k)).astype(np.int8), RNG.integers(-128, 128, (k, n)).astype(np.int8)
    yield case("matmul_s8", kernels.matmul, (2, 2, 1),
               {"a": given("s8", a), "b": given("s8", b), "c": result("i32", a.astype(np.int32) @ b.astype(np.int32))} | sizes,
               blocks | {"TYPE": tl.int32}, num_stages=3)
    heads, length, d = 2, 64, 32
    q, k, v = (normal(heads, length, d).astype(np.float16) for _ in range(3))
    scores = q.astype(np.float64) @ k.astype(np.float64).transpose(0, 2, 1) / np.sqrt(d)
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    y = weights / weights.sum(axis=2, keepdims=True) @ v.astype(np.float64)
    yield case("flash_attention", kernels.flash_attention, (2, heads, 1),
               {"q": given("f16", q), "k": given("f16", k), "v": given("f16", v), "y": result("f16", y.astype(np.float16), 4e-3),
                "length": integer(length), "scale": ("value", "f32", 1 / np.sqrt(d))}, {"BQ": 32, "BK": 32, "D": d}, num_stages=2)
    x, k = normal(256), 256
    codes, scales = RNG.integers(0, 16, (16, k)), np.abs(normal(16, k // 64)).astype(np.float16)
    packed = sum(codes[:, i::8].astype(np.uint32) << np.uint32(4 * i) for i in range(8)).astype(np.uint32).view(np.int32)
    weights = (codes - 8) * np.repeat(scales.astype(np.float64), 64, axis=1)
    yield case("int4_gemv", kernels.int4_gemv, (2, 1, 1),
               {"x": given("f32", x), "packed": given("i32", packed), "scales": given("f16", scales),
                "y": result("f32", (weights @ x).astype(np.float32), 1e-4), "k": integer(k)}, {"GROUP": 64, "ROWS": 8})


def main():
    paragraphs = [*elementwise_cases(), *row_cases(), *shared_cases(), *matrix_cases()]
    (FOLDER / "cases").write_text("\n".join(paragraphs))


if __name__ == "__main__":
    main()
