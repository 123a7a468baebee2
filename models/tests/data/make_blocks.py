"""Writes blocks.bin: random blocks of every quantized GGUF type, and their values as the `gguf` package reads them.

Run by hand when a type is added: python make_blocks.py (needs numpy and gguf). A record is the type's number, the
number of bytes and of values as 32-bit integers, the bytes, and the values as f32; all little-endian.
"""

import struct
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Where the f16 scales lie in a block: random bits there could be infinite or not a number.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0], "IQ4_XS": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip

random = np.random.default_rng(1)
out = bytearray()
for name, places in SCALES.items():
    ty = GGMLQuantizationType[name]
    blocks = random.integers(0, 256, (2, GGML_QUANT_SIZES[ty][1]), dtype=np.uint8)
    for at in places:
        blocks[:, at : at + 2] = random.uniform(-1, 1, (2, 1)).astype(np.float16).view(np.uint8)
    values = dequantize(blocks, ty).astype(np.float32)
    out += struct.pack("<3I", int(ty), blocks.size, values.size) + blocks.tobytes() + values.tobytes()
Path(__file__).with_name("blocks.bin").write_bytes(out)
