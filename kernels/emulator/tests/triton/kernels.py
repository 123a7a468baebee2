"""Triton kernels for the emulator's tests, written for this purpose: each one exercises what real kernels use."""

import triton
import triton.language as tl


@triton.jit
def gelu(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n).to(tl.float32)
    inner = 0.7978845608 * (value + 0.044715 * value * value * value)
    # tanh of `inner` by an exponential.
    result = value / (1 + tl.exp(-2 * inner))
    tl.store(y + at, result.to(tl.bfloat16), mask=at < n)


@triton.jit
def softmax(x, y, width, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    value = tl.load(x + row * width + at, mask=at < width, other=float("-inf"))
    value = tl.exp(value - tl.max(value, axis=0))
    tl.store(y + row * width + at, value / tl.sum(value, axis=0), mask=at < width)


@triton.jit
def layer_norm(x, w, b, y, width, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=0)
    mean = tl.sum(value, axis=0) / width
    centred = tl.where(inside, value - mean, 0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + 1e-5)
    weight, bias = tl.load(w + at, mask=inside), tl.load(b + at, mask=inside)
    tl.store(y + row * width + at, centred * scale * weight + bias, mask=inside)


@triton.jit
def rms_norm_silu(x, gate, w, y, width, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + 1e-6)
    gated = tl.load(gate + row * width + at, mask=inside, other=0).to(tl.float32)
    gated = gated * tl.sigmoid(gated)
    result = value * scale * tl.load(w + at, mask=inside, other=0).to(tl.float32) * gated
    tl.store(y + row * width + at, result.to(tl.float16), mask=inside)


@triton.jit
def transpose(x, y, rows, columns, BLOCK: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tile = tl.load(x + r[:, None] * columns + c[None, :], mask=(r[:, None] < rows) & (c[None, :] < columns), other=0)
    tl.store(y + c[:, None] * rows + r[None, :], tl.trans(tile), mask=(c[:, None] < columns) & (r[None, :] < rows))


@triton.jit
def histogram(x, bins, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0)
    own = tl.histogram(value, BINS, mask=at < n)
    tl.atomic_add(bins + tl.arange(0, BINS), own, sem="relaxed")


@triton.jit
def scan(x, y, width, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    value = tl.load(x + row * width + at, mask=at < width, other=0)
    tl.store(y + row * width + at, tl.cumsum(value, axis=0), mask=at < width)


@triton.jit
def top_k(x, y, WIDTH: tl.constexpr, K: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, WIDTH)
    value = tl.load(x + row * WIDTH + at)
    tl.store(y + row * K + tl.arange(0, K), tl.topk(value, K))


@triton.jit
def argmax(x, values, places, width, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    value = tl.load(x + row * width + at, mask=at < width, other=float("-inf"))
    best, place = tl.max(value, axis=0, return_indices=True)
    tl.store(values + row, best)
    tl.store(places + row, place)


@triton.jit
def dropout(x, y, n, seed, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = tl.rand(seed, at) > 0.25
    value = tl.load(x + at, mask=at < n)
    tl.store(y + at, tl.where(keep, value / 0.75, 0.0), mask=at < n)


@triton.jit
def matmul(a, b, c, m, n, k, TYPE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    a_at, b_at = a + rows[:, None] * k + depth[None, :], b + depth[:, None] * n + columns[None, :]
    total = tl.zeros((BM, BN), dtype=TYPE)
    for first in range(0, k, BK):
        left = tl.load(a_at, mask=depth[None, :] < k - first, other=0)
        right = tl.load(b_at, mask=depth[:, None] < k - first, other=0)
        total = tl.dot(left, right, total, out_dtype=TYPE)
        a_at += BK
        b_at += BK * n
    tl.store(c + rows[:, None] * n + columns[None, :], total)


@triton.jit
def flash_attention(q, k, v, y, length, scale, BQ: tl.constexpr, BK: tl.constexpr, D: tl.constexpr):
    rows, d = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, D)
    head = tl.program_id(1) * length * D
    query = tl.load(q + head + rows[:, None] * D + d[None, :])
    highest = tl.full((BQ,), float("-inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    sums = tl.zeros((BQ, D), tl.float32)
    for first in range(0, (tl.program_id(0) + 1) * BQ, BK):
        keys = first + tl.arange(0, BK)
        key = tl.load(k + head + keys[:, None] * D + d[None, :])
        value = tl.load(v + head + keys[:, None] * D + d[None, :])
        scores = tl.dot(query, tl.trans(key)) * (scale * 1.44269504)
        scores = tl.where(rows[:, None] >= keys[None, :], scores, float("-inf"))
        now = tl.maximum(highest, tl.max(scores, axis=1))
        weights, before = tl.exp2(scores - now[:, None]), tl.exp2(highest - now)
        total = total * before + tl.sum(weights, axis=1)
        sums = tl.dot(weights.to(tl.float16), value, sums * before[:, None])
        highest = now
    tl.store(y + head + rows[:, None] * D + d[None, :], (sums / total[:, None]).to(tl.float16))


@triton.jit
def counters(x, parts, arrived, y, n, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    """Each program leaves a sum and counts itself; the first one waits for all and adds up."""
    me = tl.program_id(0)
    at = me * BLOCK + tl.arange(0, BLOCK)
    tl.store(parts + me, tl.sum(tl.load(x + at, mask=at < n, other=0), axis=0))
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem="release")
    if me == 0:
        while tl.atomic_add(arrived, 0, sem="acquire") < PROGRAMS:
            pass
        tl.debug_barrier()
        tl.store(y, tl.sum(tl.load(parts + tl.arange(0, PROGRAMS)), axis=0))


@triton.jit
def int4_gemv(x, packed, scales, y, k, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """Eight numbers of four bits to a word, each less eight, with a scale for a group."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word, bit = tl.arange(0, GROUP // 8), tl.arange(0, 8)
    total = tl.zeros((ROWS,), tl.float32)
    for group in range(0, k // GROUP):
        words = tl.load(packed + rows[:, None] * (k // 8) + group * (GROUP // 8) + word[None, :])
        code = ((words[:, :, None] >> (4 * bit)[None, None, :]) & 15) - 8
        value = tl.load(x + group * GROUP + word[:, None] * 8 + bit[None, :])
        dots = tl.sum(tl.sum(code.to(tl.float32) * value[None, :, :], axis=2), axis=1)
        total += dots * tl.load(scales + rows * (k // GROUP) + group).to(tl.float32)
    tl.store(y + rows, total)


@triton.jit
def rope(x, positions, y, HALF: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, HALF)
    angle = tl.load(positions + row).to(tl.float32) * tl.exp2(-13.287712379549449 / HALF * at)
    sine, cosine = tl.sin(angle), tl.cos(angle)
    first, second = tl.load(x + row * 2 * HALF + at), tl.load(x + row * 2 * HALF + HALF + at)
    tl.store(y + row * 2 * HALF + at, first * cosine - second * sine)
    tl.store(y + row * 2 * HALF + HALF + at, second * cosine + first * sine)
