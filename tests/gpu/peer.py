"""PyTorch as a peer: the same shapes with random weights in bf16, and the machine's own limits.

A model is the usual decoder (RMSNorm, grouped queries, rotary positions, SwiGLU) with merged projections. Each block is
compiled by `torch.compile`, a whole step is captured in one CUDA graph, attention is torch's own (flash attention or cuDNN),
products are cuBLAS's. Decode steps read a cache of DEPTH positions; prefill takes one prompt and gives its last token's
logits. Times are medians over replays, between events.

    python3 tests/gpu/peer.py OUT.json [--seconds 240] [--shapes llama-3.2-1b,llama-3.1-8b] [--depth 512]
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

SHAPES = {
    "smollm2-135m": dict(layers=30, hidden=576, heads=9, kv=3, dim=64, ffn=1536, vocab=49152),
    "llama-3.2-1b": dict(layers=16, hidden=2048, heads=32, kv=8, dim=64, ffn=8192, vocab=128256),
    "llama-3.1-8b": dict(layers=32, hidden=4096, heads=32, kv=8, dim=128, ffn=14336, vocab=128256),
    "qwen2.5-7b": dict(layers=28, hidden=3584, heads=28, kv=4, dim=128, ffn=18944, vocab=152064),
}
DEVICE, DTYPE = "cuda", torch.bfloat16


def median_ms(run, least=5, most=50, budget=1.0):
    """The median time of a call, in milliseconds."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times, begin = [], time.monotonic()
    while len(times) < least or (len(times) < most and time.monotonic() - begin < budget):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def limits():
    """Copy bandwidth and the rates of products, measured."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = median_ms(lambda: target.copy_(source))
    found = {"copy_gb_s": 2 * source.numel() / copy / 1e6}
    del source, target
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE) for _ in range(2))
    found["bf16_tflop_s"] = 2 * 8192**3 / median_ms(lambda: a @ b) / 1e9
    a8, b8 = (torch.randint(-127, 127, (8192, 8192), device=DEVICE, dtype=torch.int8) for _ in range(2))
    found["int8_top_s"] = 2 * 8192**3 / median_ms(lambda: torch._int_mm(a8, b8.t())) / 1e9
    empty = torch.zeros(1, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    empty.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(1000):
            empty.add_(1)
    found["launch_in_graph_us"] = median_ms(graph.replay)
    return found


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Model:
    """Weights of a shape, and its steps."""

    def __init__(self, shape):
        self.shape = shape
        hidden, dim, ffn = shape["hidden"], shape["dim"], shape["ffn"]
        wide = (shape["heads"] + 2 * shape["kv"]) * dim
        rows = lambda n, k: torch.randn(n, k, device=DEVICE, dtype=DTYPE) / k**0.5
        ones = lambda: torch.ones(hidden, device=DEVICE, dtype=DTYPE)
        self.blocks = [
            [ones(), rows(wide, hidden), rows(hidden, shape["heads"] * dim), ones(), rows(2 * ffn, hidden), rows(hidden, ffn)]
            for _ in range(shape["layers"])
        ]
        self.embed, self.norm = rows(shape["vocab"], hidden), ones()
        self.compiled = torch.compile(self.block, dynamic=False)

    def block(self, x, cos, sin, keys, values, weights, is_prefill):
        """One layer over x [B, T, hidden]; keys and values [B, kv, positions, dim], of which the last T are written."""
        norm1, qkv, out, norm2, gate_up, down = weights
        shape, (batch, tokens, hidden) = self.shape, x.shape
        heads, kv, dim = shape["heads"], shape["kv"], shape["dim"]
        mixed = F.linear(F.rms_norm(x, (hidden,), norm1, 1e-5), qkv).view(batch, tokens, heads + 2 * kv, dim)
        q, k, v = (part.transpose(1, 2) for part in mixed.split([heads, kv, kv], dim=2))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys[:, :, -tokens:] = k
        values[:, :, -tokens:] = v
        mixed = F.scaled_dot_product_attention(q, keys, values, is_causal=is_prefill, enable_gqa=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, tokens, heads * dim), out)
        gate, up = F.linear(F.rms_norm(x, (hidden,), norm2, 1e-5), gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, down)

    def step(self, batch, tokens, depth):
        """A function that computes a step, captured, and what must live as long as it does."""
        shape = self.shape
        room = lambda: torch.randn(batch, shape["kv"], depth + tokens, shape["dim"], device=DEVICE, dtype=DTYPE)
        # One cache for all layers would sit in the chip's own cache: each layer has its own where memory allows.
        caches = [(room(), room()) for _ in range(shape["layers"])]
        ids = torch.randint(0, shape["vocab"], (batch, tokens), device=DEVICE)
        angles = torch.randn(tokens, shape["dim"] // 2, device=DEVICE)
        cos, sin = angles.cos().to(DTYPE), angles.sin().to(DTYPE)

        def run():
            x = F.embedding(ids, self.embed)
            for (keys, values), weights in zip(caches, self.blocks):
                x = self.compiled(x, cos, sin, keys, values, weights, tokens > 1)
            x = F.rms_norm(x[:, -1], (shape["hidden"],), self.norm, 1e-5)
            return F.linear(x, self.embed).argmax(dim=-1)

        with torch.no_grad():
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(2):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
        # The captured graph reads ids and angles where they lie.
        return graph.replay, (caches, ids, cos, sin)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=240.0, help="no new case is begun after these")
    parser.add_argument("--shapes", default="smollm2-135m,llama-3.2-1b,llama-3.1-8b")
    parser.add_argument("--depth", type=int, default=512)
    arguments = parser.parse_args()
    begin = time.monotonic()
    result = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "limits": limits(), "rows": []}
    print(json.dumps(result["limits"]), flush=True)
    for name in arguments.shapes.split(","):
        model = Model(SHAPES[name])
        torch._dynamo.reset()
        cases = [(batch, 1, arguments.depth) for batch in (1, 8, 32)] + [(1, 512, 0), (1, 2048, 0), (1, 1, 8192), (1, 8192, 0)]
        for batch, tokens, depth in cases:
            if time.monotonic() - begin > arguments.seconds:
                break
            try:
                replay, held = model.step(batch, tokens, depth)
                with torch.no_grad():
                    ms = median_ms(replay)
                del replay, held
            except Exception as error:  # a shape that does not fit is a row that says so
                result["rows"].append({"shape": name, "batch": batch, "tokens": tokens, "depth": depth, "error": str(error)[:200]})
                continue
            kind = f"tg @ d{depth} x {batch}" if tokens == 1 else f"pp{tokens}"
            row = {"shape": name, "test": kind, "batch": batch, "tokens": tokens, "depth": depth, "ms": ms}
            row["tokens_per_second"] = batch * tokens / ms * 1e3
            result["rows"].append(row)
            print(f"torch {name} bf16 {kind}: {ms:.3f} ms, {row['tokens_per_second']:.1f} tok/s", flush=True)
            with open(arguments.out, "w") as out:
                json.dump(result, out, indent=1)
        del model
        torch.cuda.empty_cache()
    with open(arguments.out, "w") as out:
        json.dump(result, out, indent=1)


main()
