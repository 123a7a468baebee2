"""Makes a Hugging Face directory of a llama GGUF file, so that both kinds of input can be compared on real weights.

Nothing here is shared with Lathe. Weights are dequantized by the `gguf` package; the rows of query and key weights go
from GGUF's order (the two elements of a rotary pair are neighbours) back to halves, as the public checkpoints keep
them. Matrices are written as bfloat16 (or with --dtype float32 as they are), vectors as float32.

    hf_directory.py MODEL.gguf DIRECTORY [--dtype float32] [--shards N]
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL, USER_DEFINED = 3, 4


def public_name(name):
    if name in NAMES:
        return NAMES[name]
    _, layer, role, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[role]}.{kind}"


def to_halves(rows, heads):
    """Rows [H * D, K] whose pairs are neighbours, as the first elements of all pairs of a head, then the second."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])  # [H, D/2, 2, K]
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def to_bfloat16(values):
    """The upper halves of float32, rounded to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def tensors(reader, heads, kv_heads, dtype):
    """Name, type, shape and bytes of each tensor."""
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            values = to_halves(values, heads if ".attn_q." in tensor.name else kv_heads)
        values = np.ascontiguousarray(values)
        name, shape = public_name(tensor.name), list(values.shape)
        if dtype == "bfloat16" and values.ndim == 2:
            yield name, "BF16", shape, to_bfloat16(values).tobytes()
        else:
            yield name, "F32", shape, values.astype("<f4").tobytes()


def write_safetensors(path, content):
    """The format's own words: length of the header, header in JSON, bytes without holes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, data in content:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(data for _, _, _, data in content)


def write_weights(folder, content, shards):
    if shards == 1:
        write_safetensors(folder / "model.safetensors", content)
        return
    places = {}
    for shard in range(shards):
        part = content[shard::shards]
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / name, part)
        places |= {tensor: name for tensor, *_ in part}
    size = sum(len(data) for *_, data in content)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def tokenizer(value):
    """A tokenizer.json for the pre-tokenizer `smollm`: single digits, then GPT-2's pattern."""
    pre = value("tokenizer.ggml.pre")
    if pre != "smollm":
        raise SystemExit(f"the pre-tokenizer is `{pre}`, and this tool writes `smollm` only")
    texts, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    added = [
        {"id": i, "content": texts[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == CONTROL}
        for i, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": value("tokenizer.ggml.merges"),
        },
    }


def config(value, tied):
    heads = value("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": value("llama.feed_forward_length"),
        "max_position_embeddings": value("llama.context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": value("llama.block_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "pretraining_tp": 1,
        # The file keeps single precision; the shortest text that rounds back to it is what people write.
        "rms_norm_eps": float(str(np.float32(value("llama.attention.layer_norm_rms_epsilon")))),
        "rope_scaling": None,
        "rope_theta": float(value("llama.rope.freq_base")),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(value("tokenizer.ggml.tokens")),
    }


def main():
    parser = argparse.ArgumentParser(description="Makes a Hugging Face directory of a llama GGUF file.")
    parser.add_argument("model", type=Path, help="a GGUF file of the llama architecture")
    parser.add_argument("directory", type=Path, help="where to write; made when it is not there")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of matrices")
    parser.add_argument("--shards", type=int, default=1, help="how many safetensors files (default 1)")
    options = parser.parse_args()

    reader = gguf.GGUFReader(options.model)
    names = {tensor.name for tensor in reader.tensors}

    def value(key):
        return reader.get_field(key).contents()

    if value("general.architecture") != "llama":
        raise SystemExit(f"{options.model}: this tool writes llama models only")
    folder = options.directory
    folder.mkdir(parents=True, exist_ok=True)
    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    write_weights(folder, list(tensors(reader, heads, kv_heads, options.dtype)), options.shards)
    knobs = config(value, "output.weight" not in names)
    write_json(folder / "config.json", knobs)
    write_json(folder / "generation_config.json", {key: knobs[key] for key in ("bos_token_id", "eos_token_id")})
    write_json(folder / "tokenizer.json", tokenizer(value))
    texts = value("tokenizer.ggml.tokens")
    special = {
        f"{role}_token": texts[value(f"tokenizer.ggml.{name}_token_id")]
        for role, name in [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")]
        if reader.get_field(f"tokenizer.ggml.{name}_token_id")
    }
    write_json(folder / "tokenizer_config.json", special | {"add_prefix_space": False})
    (folder / "chat_template.jinja").write_text(value("tokenizer.chat_template"), encoding="utf-8")


if __name__ == "__main__":
    main()
