"""The forward passes of llama, Qwen 2 and Gemma 3 in NumPy: what Lathe's logits are judged by.

It shares no code with Lathe. Weights come from a GGUF file through the `gguf` package, and the arithmetic below was
written from the papers: RMS norm (arXiv 1910.07467), rotary positions (2104.09864), grouped-query attention
(2305.13245), SwiGLU and GeGLU (2002.05202), and the report on Gemma 3 (2503.19786): normed queries and keys, norms behind
each half of a layer, five layers of six that see a window. Everything is computed for whole sequences at once, without a
cache.

    reference.py logits --model M.gguf --tokens T.json --out L.f32
    reference.py perplexity --model M.gguf --tokens T.json --context 512

A token file is a JSON list of ids (one sequence), a JSON list of such lists, or raw little-endian int32 (one
sequence, any other suffix than .json). Logits are written as little-endian float32, or as .npy by suffix: one row of
the vocabulary per token, sequences one after the other.
"""

import argparse
import json
import sys
from pathlib import Path

import gguf
import numpy as np


class Weights:
    """A file's tensors as arrays of one float type, dequantized when they are asked for, and kept if they are few."""

    MOST_KEPT = 1 << 30  # elements

    def __init__(self, tensors, dtype):
        self.tensors = {t.name: t for t in tensors}
        self.dtype = dtype
        self.keeps = sum(int(t.n_elements) for t in tensors) <= self.MOST_KEPT
        self.kept = {}

    def __contains__(self, name):
        return name in self.tensors

    def __getitem__(self, name):
        if name in self.kept:
            return self.kept[name]
        tensor = self.tensors[name]
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(self.dtype, copy=False)
        if self.keeps:
            self.kept[name] = value
        return value

    def get(self, name, default):
        return self[name] if name in self else default


class Llama:
    """A model of the llama, qwen2 or gemma3 architecture."""

    def __init__(self, path, dtype):
        reader = gguf.GGUFReader(path)
        architecture = self._value(reader, "general.architecture")
        if architecture not in ("llama", "qwen2", "gemma3"):
            raise SystemExit(f"{path}: the reference knows llama, qwen2 and gemma3, and this is `{architecture}`")
        self.gemma = architecture == "gemma3"
        self.window = int(self._value(reader, f"{architecture}.attention.sliding_window", 0))
        # Files keep llama's heads as neighbours to be rotated, and those of Qwen 2 as halves.
        self.neighbours = architecture == "llama"
        self.layers = int(self._value(reader, f"{architecture}.block_count"))
        self.heads = int(self._value(reader, f"{architecture}.attention.head_count"))
        self.kv_heads = int(self._value(reader, f"{architecture}.attention.head_count_kv", self.heads))
        self.epsilon = float(self._value(reader, f"{architecture}.attention.layer_norm_rms_epsilon"))
        self.theta = float(self._value(reader, f"{architecture}.rope.freq_base", 10000.0))
        self.bos = self._value(reader, "tokenizer.ggml.bos_token_id")
        self.add_bos = bool(self._value(reader, "tokenizer.ggml.add_bos_token", False))
        self.dtype = dtype
        self.weights = Weights(reader.tensors, dtype)
        self.head = "output.weight" if "output.weight" in self.weights else "token_embd.weight"  # [V, K]

    @staticmethod
    def _value(reader, key, default=None):
        field = reader.get_field(key)
        return default if field is None else field.contents()

    def logits(self, tokens, rows=slice(None)):
        """Logits [rows, V] of one sequence of ids [T], for all its positions or some."""
        x = self.weights["token_embd.weight"][tokens]  # [T, K]
        if self.gemma:
            x = x * self.dtype(np.sqrt(x.shape[1]))
        everywhere, nearby = self._angles(len(tokens), self.theta), self._angles(len(tokens), 10000.0)
        for layer in range(self.layers):
            windowed = self.gemma and self.window > 0 and (layer + 1) % 6 != 0
            cosines, sines = nearby if windowed else everywhere
            attended = self._attention(layer, self._norm(x, f"blk.{layer}.attn_norm"), cosines, sines, windowed)
            x = x + self._norm_behind(attended, f"blk.{layer}.post_attention_norm")
            computed = self._feed_forward(layer, self._norm(x, f"blk.{layer}.ffn_norm"))
            x = x + self._norm_behind(computed, f"blk.{layer}.post_ffw_norm")
        return self._norm(x[rows], "output_norm") @ self.weights[self.head].T

    def _norm(self, x, name):
        scale = 1.0 / np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True) + self.epsilon)
        return x * scale.astype(self.dtype) * self.weights[f"{name}.weight"]

    def _norm_behind(self, x, name):
        return self._norm(x, name) if self.gemma else x

    def _angles(self, length, theta):
        size = int(self.weights.tensors["blk.0.attn_q.weight"].shape[1]) // self.heads
        frequencies = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)  # [D/2]
        angles = np.arange(length, dtype=np.float64)[:, None] * frequencies  # [T, D/2]
        return np.cos(angles).astype(self.dtype), np.sin(angles).astype(self.dtype)

    def _rotate(self, x, cosines, sines):
        """Rotates neighbours (2i, 2i+1) or halves (i, i + D/2) of each head: x [T, H, D]."""
        half = x.shape[-1] // 2
        first, second = (np.s_[..., 0::2], np.s_[..., 1::2]) if self.neighbours else (np.s_[..., :half], np.s_[..., half:])
        cosines, sines = cosines[:, None, :], sines[:, None, :]
        out = np.empty_like(x)
        out[first] = x[first] * cosines - x[second] * sines
        out[second] = x[first] * sines + x[second] * cosines
        return out

    def _attention(self, layer, x, cosines, sines, windowed):
        def project(name, heads):
            bias = self.weights.get(f"blk.{layer}.attn_{name}.bias", self.dtype(0))
            heads = (x @ self.weights[f"blk.{layer}.attn_{name}.weight"].T + bias).reshape(len(x), heads, -1)
            return self._norm(heads, f"blk.{layer}.attn_{name}_norm") if self.gemma and name != "v" else heads

        query = self._rotate(project("q", self.heads), cosines, sines)  # [T, H, D]
        key = self._rotate(project("k", self.kv_heads), cosines, sines)  # [T, H_kv, D]
        value = project("v", self.kv_heads)
        future = np.triu(np.full((len(x), len(x)), -np.inf, dtype=self.dtype), k=1)
        if windowed:
            future += np.tril(np.full((len(x), len(x)), -np.inf, dtype=self.dtype), k=-self.window)
        out = np.empty_like(query)
        for head in range(self.heads):
            shared = head // (self.heads // self.kv_heads)
            scores = query[:, head] @ key[:, shared].T / np.sqrt(self.dtype(query.shape[-1])) + future
            out[:, head] = softmax(scores) @ value[:, shared]
        return out.reshape(len(x), -1) @ self.weights[f"blk.{layer}.attn_output.weight"].T

    def _feed_forward(self, layer, x):
        gate = x @ self.weights[f"blk.{layer}.ffn_gate.weight"].T
        up = x @ self.weights[f"blk.{layer}.ffn_up.weight"].T
        if self.gemma:
            activated = gate / 2 * (1.0 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            activated = gate / (1.0 + np.exp(-gate))
        return (activated.astype(self.dtype) * up) @ self.weights[f"blk.{layer}.ffn_down.weight"].T


def softmax(scores):
    """Softmax of each row, shifted by its maximum."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def log_likelihood(logits, targets):
    """Natural log of each row's probability of its target, summed in f64: logits [T, V], targets [T]."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = shifted[np.arange(len(targets)), targets]
    return chosen - np.log(np.exp(shifted).sum(axis=-1))


def perplexity(model, tokens, context):
    """llama.cpp's perplexity: whole chunks of `context` tokens, the second half of each is scored."""
    chunks = len(tokens) // context
    if chunks == 0:
        raise SystemExit(f"the text has {len(tokens)} tokens, and one chunk needs {context}: choose a shorter --context")
    total, count, first = 0.0, 0, context // 2
    for chunk in range(chunks):
        ids = np.array(tokens[chunk * context : (chunk + 1) * context])
        targets = ids[first + 1 :]
        if model.add_bos:
            ids[0] = model.bos
        total -= log_likelihood(model.logits(ids, slice(first, -1)), targets).sum()
        count += len(targets)
        print(f"chunk {chunk + 1} of {chunks}: {np.exp(total / count):.4f}", file=sys.stderr)
    return {"perplexity": float(np.exp(total / count)), "chunks": chunks, "tokens": count, "context": context}


def read_sequences(path):
    """The sequences of ids in a token file."""
    if path.suffix != ".json":
        return [np.fromfile(path, dtype="<i4")]
    content = json.loads(path.read_text())
    return [np.array(s, dtype=np.int64) for s in (content if content and isinstance(content[0], list) else [content])]


def main():
    parser = argparse.ArgumentParser(description="The llama forward pass in NumPy, sharing no code with Lathe.")
    parser.add_argument("command", choices=["logits", "perplexity"])
    known = "a GGUF file of the llama, qwen2 or gemma3 architecture"
    parser.add_argument("--model", type=Path, required=True, help=known)
    parser.add_argument("--tokens", type=Path, required=True, help="ids: .json list(s), or raw int32")
    parser.add_argument("--out", type=Path, help="where `logits` writes: .f32 raw, or .npy")
    parser.add_argument("--context", type=int, default=512, help="tokens a chunk of `perplexity` (default 512)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="default float32")
    options = parser.parse_args()

    sequences = read_sequences(options.tokens)
    if not all(len(s) for s in sequences):
        raise SystemExit(f"{options.tokens}: a sequence needs at least one token")
    model = Llama(options.model, getattr(np, options.dtype))
    if options.command == "perplexity":
        print(json.dumps(perplexity(model, np.concatenate(sequences), options.context)))
        return
    if options.out is None:
        raise SystemExit("`logits` needs --out FILE.f32 or FILE.npy")
    logits = np.concatenate([model.logits(s) for s in sequences]).astype("<f4")
    if options.out.suffix == ".npy":
        np.save(options.out, logits)
    else:
        logits.tofile(options.out)
    print(json.dumps({"rows": logits.shape[0], "vocabulary": logits.shape[1]}))


if __name__ == "__main__":
    main()
