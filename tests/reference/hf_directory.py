"""Makes a Hugging Face directory of a GGUF file of the llama, qwen2 or gemma3 architecture, so that both kinds of input
can be compared on real weights.

Nothing here is shared with Lathe. Weights are dequantized by the `gguf` package. What the architectures' converters
changed is undone: the rows of a llama's query and key weights go from GGUF's order (the two elements of a rotary pair are
neighbours) back to halves, and the weights of Gemma's norms lose the one that was added. Matrices are written as bfloat16
(or with --dtype float32 as they are), vectors as float32.

    hf_directory.py MODEL.gguf DIRECTORY [--dtype float32] [--shards N]
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

import hf_tokenizer

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
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma has norms before and after each half of a layer.
GEMMA_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def public_name(architecture, name):
    if name in NAMES:
        return NAMES[name]
    _, layer, role, kind = name.split(".")
    roles = GEMMA_NAMES if architecture == "gemma3" else LAYER_NAMES
    return f"model.layers.{layer}.{roles[role]}.{kind}"


def to_halves(rows, heads):
    """Rows [H * D, K] whose pairs are neighbours, as the first elements of all pairs of a head, then the second."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])  # [H, D/2, 2, K]
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def as_published(architecture, name, values, heads, kv_heads):
    """The values before a converter changed them."""
    if architecture == "llama" and ".attn_q." in name:
        return to_halves(values, heads)
    if architecture == "llama" and ".attn_k." in name:
        return to_halves(values, kv_heads)
    if architecture == "gemma3" and "norm" in name:
        return values - np.float32(1)
    return values


def to_bfloat16(values):
    """The upper halves of float32, rounded to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def tensors(reader, architecture, heads, kv_heads, dtype):
    """Name, type, shape and bytes of each tensor."""
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = np.ascontiguousarray(as_published(architecture, tensor.name, values, heads, kv_heads))
        name, shape = public_name(architecture, tensor.name), list(values.shape)
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


def config(value, architecture, tied):
    def knob(key, default=None):
        return value(f"{architecture}.{key}", default)

    def number(key):
        # The file keeps single precision; the shortest text that rounds back to it is what people write.
        return float(str(np.float32(knob(key))))

    heads = knob("attention.head_count")
    knobs = {
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "hidden_size": knob("embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": knob("feed_forward_length"),
        "max_position_embeddings": knob("context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": knob("block_count"),
        "num_key_value_heads": knob("attention.head_count_kv"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_scaling": None,
        "rope_theta": float(knob("rope.freq_base")),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(value("tokenizer.ggml.tokens")),
        "attention_dropout": 0.0,
    }
    if architecture == "gemma3":
        head_dim = knob("attention.key_length")
        return knobs | {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "attention_bias": False,
            "head_dim": head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": head_dim,
            "rope_local_base_freq": 10000.0,
            "sliding_window": knob("attention.sliding_window"),
            "sliding_window_pattern": 6,
        }
    if architecture == "qwen2":
        return knobs | {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "max_window_layers": knob("block_count"),
            "sliding_window": knob("context_length"),
            "use_sliding_window": False,
        }
    return knobs | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "hidden_act": "silu",
        "pretraining_tp": 1,
    }


def main():
    parser = argparse.ArgumentParser(description="Makes a Hugging Face directory of a GGUF file.")
    parser.add_argument("model", type=Path, help="a GGUF file of the llama, qwen2 or gemma3 architecture")
    parser.add_argument("directory", type=Path, help="where to write; made when it is not there")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of matrices")
    parser.add_argument("--shards", type=int, default=1, help="how many safetensors files (default 1)")
    options = parser.parse_args()

    reader = gguf.GGUFReader(options.model)
    names = {tensor.name for tensor in reader.tensors}

    def value(key, default=None):
        field = reader.get_field(key)
        return default if field is None else field.contents()

    architecture = value("general.architecture")
    if architecture not in ("llama", "qwen2", "gemma3"):
        raise SystemExit(f"{options.model}: this tool writes llama, qwen2 and gemma3, found {architecture}")
    folder = options.directory
    folder.mkdir(parents=True, exist_ok=True)
    heads, kv_heads = (value(f"{architecture}.attention.{key}") for key in ("head_count", "head_count_kv"))
    write_weights(folder, list(tensors(reader, architecture, heads, kv_heads, options.dtype)), options.shards)
    knobs = config(value, architecture, "output.weight" not in names)
    write_json(folder / "config.json", knobs)
    ends = {"bos_token_id": knobs["bos_token_id"], "eos_token_id": hf_tokenizer.ends(value)}
    write_json(folder / "generation_config.json", ends)
    write_json(folder / "tokenizer.json", hf_tokenizer.tokenizer(value))
    write_json(folder / "tokenizer_config.json", hf_tokenizer.settings(value))
    template = value("tokenizer.chat_template")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


if __name__ == "__main__":
    main()
