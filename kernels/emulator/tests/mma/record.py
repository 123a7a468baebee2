"""Records what MMA-Sim, the published bit-accurate model of tensor cores, makes of chosen inputs.

    pip install mmasim==2.1.1 torch numpy setuptools ninja
    python record.py [--cases N] [--out FOLDER]

A file is named for the shape and the types of one `mma.sync` (`m16n8k16.f32.f16.f16.f32.bin`: result, A, B, accumulator) and
holds cases one after another. A case is A (m x k), the transposed B (n x k), C (m x n), then a result (m x n) for each chip
that the file's line in `chips` names, all row-major and little-endian; elements of four bits and of one lie two or eight to
a byte, the first lowest. `tests/mma.rs` reads them. Integer results are not in MMA-Sim, for they are exact; NumPy computes them.
"""

import argparse
import pathlib

import numpy as np

CHIPS = {"sm_80": "Ampere", "sm_89": "Ada Lovelace", "sm_90": "Hopper"}

# Type: bits, exponent bits, mantissa bits.
FLOATS = {
    "f16": (16, 5, 10),
    "bf16": (16, 8, 7),
    "tf32": (32, 8, 23),
    "f32": (32, 8, 23),
    "e4m3": (8, 4, 3),
    "e5m2": (8, 5, 2),
}
INTEGERS = {"s8": (-128, 127), "u8": (0, 255), "s4": (-8, 7), "u4": (0, 15)}

SHAPES = [
    ("m16n8k16.f32.f16.f16.f32", ["sm_80", "sm_90"]),
    ("m16n8k16.f16.f16.f16.f16", ["sm_80", "sm_90"]),
    ("m16n8k8.f32.f16.f16.f32", ["sm_80", "sm_90"]),
    ("m16n8k16.f32.bf16.bf16.f32", ["sm_80", "sm_90"]),
    ("m16n8k8.f32.tf32.tf32.f32", ["sm_80", "sm_90"]),
    ("m16n8k32.f32.e4m3.e5m2.f32", ["sm_89"]),
    ("m16n8k32.f16.e4m3.e4m3.f16", ["sm_89"]),
    ("m16n8k32.s32.s8.u8.s32", ["sm_80", "sm_90"]),
    ("m16n8k32.s32.s8.s8.s32", ["sm_80", "sm_90"]),
    ("m16n8k64.s32.s4.u4.s32", ["sm_80", "sm_90"]),
    ("m16n8k256.s32.b1.b1.s32", ["sm_80", "sm_90"]),
]


def compose(rng, ty, exponents, count, negative=0.5):
    """Values with random mantissas and exponent fields drawn from a list."""
    bits, _, mantissa = FLOATS[ty]
    field = rng.choice(exponents, count).astype(np.uint64)
    out = field << np.uint64(mantissa) | rng.integers(0, 1 << mantissa, count, dtype=np.uint64)
    return out | (rng.random(count) < negative).astype(np.uint64) << np.uint64(bits - 1)


def specials(ty):
    """Zeros, infinities, NaNs, the largest and the smallest values, as bits."""
    bits, exponent, mantissa = FLOATS[ty]
    top, sign = ((1 << exponent) - 1) << mantissa, 1 << (bits - 1)
    largest = (sign - 1) - 1 if ty == "e4m3" else top - 1
    # The last one has a mantissa that a cut to tf32 loses.
    found = [0, sign, top, top | sign, top + 1, sign - 1, 1, sign | 1, largest, sign | largest, 1 << mantissa, top + 1]
    return np.array(found, dtype=np.uint64)


def values(rng, ty, shape, mode):
    """A matrix of a type in one of eight kinds of cases, as bits."""
    bits, exponent, mantissa = FLOATS[ty]
    count, bias, fields = shape[0] * shape[1], (1 << (exponent - 1)) - 1, 1 << exponent
    near = np.arange(max(bias - 4, 0), min(bias + 4, fields - 1))
    wide = np.arange(max(bias - 20, 0), min(bias + 20, fields - 1))
    if mode == "near":
        out = compose(rng, ty, near, count)
    elif mode == "wide":
        out = compose(rng, ty, wide, count)
    elif mode == "finite":
        out = compose(rng, ty, np.arange(fields - 1), count)
    elif mode == "small":
        out = compose(rng, ty, np.arange(min(3, bias)), count)
    elif mode == "large":
        out = compose(rng, ty, np.arange(fields - 4, fields - 1), count)
    elif mode == "positive":
        out = compose(rng, ty, near, count, negative=0)
    elif mode == "special":
        out = compose(rng, ty, near, count)
    else:
        out = compose(rng, ty, near, count)
        out[rng.random(count) < 0.7] = 0
    out = out.reshape(shape)
    if mode == "special":
        # In one element of some rows, so that most results stay finite.
        for row in range(0, shape[0], 3):
            out[row, rng.integers(shape[1])] = rng.choice(specials(ty))
    if mode == "near" and shape[1] > 1:
        # Neighbours that cancel where the other matrix is the same in both.
        half = shape[1] // 2 * 2
        out[::2, 1:half:2] = out[::2, 0:half:2] ^ np.uint64(1 << (bits - 1))
    return out


# For A, B and C of each case.
MODES = [
    ("near", "near", "near"),
    ("wide", "wide", "wide"),
    ("finite", "finite", "finite"),
    ("special", "special", "special"),
    ("small", "wide", "small"),
    ("large", "large", "large"),
    ("positive", "positive", "wide"),
    ("sparse", "near", "sparse"),
]


def to_bytes(ty, bits):
    flat = bits.reshape(-1)
    if ty in ("s4", "u4"):
        low, high = (flat[0::2].astype(np.int64) & 15), (flat[1::2].astype(np.int64) & 15)
        return (low | high << 4).astype(np.uint8).tobytes()
    if ty == "b1":
        return np.packbits(flat.astype(np.uint8), bitorder="little").tobytes()
    size = {"s8": 1, "u8": 1, "s32": 4}.get(ty) or FLOATS[ty][0] // 8
    return (flat.astype(np.int64) & ((1 << 8 * size) - 1)).astype(f"<u{size}").tobytes()


def float_case(rng, name, chips, mode):
    import torch
    from mmasim.nv_ptx import MMA

    views = {
        "f16": (np.uint16, torch.int16, torch.float16),
        "bf16": (np.uint16, torch.int16, torch.bfloat16),
        "tf32": (np.uint32, torch.int32, torch.float32),
        "f32": (np.uint32, torch.int32, torch.float32),
        "e4m3": (np.uint8, torch.uint8, torch.float8_e4m3fn),
        "e5m2": (np.uint8, torch.uint8, torch.float8_e5m2),
    }

    def tensor(ty, bits):
        narrow, integer, real = views[ty]
        signed = bits.astype(narrow) if integer == torch.uint8 else bits.astype(narrow).view(f"i{narrow().itemsize}")
        return torch.from_numpy(np.ascontiguousarray(signed)).to(integer).view(real)

    op = MMA(CHIPS[chips[0]], name)
    _, d_ty, a_ty, b_ty, c_ty = name.split(".")
    a = values(rng, a_ty, (op.m, op.k), mode[0])
    b = values(rng, b_ty, (op.n, op.k), mode[1])
    c = values(rng, c_ty, (op.m, op.n), mode[2])
    out = to_bytes(a_ty, a) + to_bytes(b_ty, b) + to_bytes(c_ty, c)
    for chip in chips:
        d = MMA(CHIPS[chip], name)(tensor(a_ty, a), tensor(b_ty, b).T, tensor(c_ty, c))
        _, integer, _ = views[d_ty]
        out += to_bytes(d_ty, d.contiguous().view(integer).numpy())
    return out


def integer_case(rng, name, chips):
    shape, _, a_ty, b_ty, _ = name.split(".")
    m, rest = shape[1:].split("n")
    n, k = rest.split("k")
    m, n, k = int(m), int(n), int(k)
    low, high = INTEGERS.get(a_ty, (0, 1))
    a = rng.integers(low, high + 1, (m, k))
    low, high = INTEGERS.get(b_ty, (0, 1))
    b = rng.integers(low, high + 1, (k, n))
    c = rng.integers(-(1 << 31), 1 << 31, (m, n))
    # Bits are combined by `and`, then counted: the same as a product.
    d = (a @ b + c + (1 << 31)) % (1 << 32) - (1 << 31)
    return to_bytes(a_ty, a) + to_bytes(b_ty, b.T) + to_bytes("s32", c) + to_bytes("s32", d) * len(chips)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cases", type=int, default=len(MODES), help="cases of each shape in floating point")
    arguments.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent, help="folder to write to")
    arguments.add_argument("--seed", type=int, default=1)
    arguments = arguments.parse_args()
    lines = []
    for index, (name, chips) in enumerate(SHAPES):
        rng = np.random.default_rng([arguments.seed, index])
        if ".s32" in name:
            cases = [integer_case(rng, name, chips) for _ in range(2)]
        else:
            cases = [float_case(rng, name, chips, MODES[i % len(MODES)]) for i in range(arguments.cases)]
        (arguments.out / f"{name}.bin").write_bytes(b"".join(cases))
        lines.append(f"{name} {' '.join(chips)}\n")
    (arguments.out / "chips").write_text("".join(lines))


if __name__ == "__main__":
    main()
