"""Records the logits of small seeded models, one or more of each family, as the `transformers` package computes them.

Nothing here is shared with Lathe. For each entry of CASES a folder of weights is made up from the names of its tensors (see
`weights`, which tests/src/recorded.rs repeats), the package's own model runs once over TOKENS in float32, and two
files are written to tests/data/recorded: NAME.json (config.json, shapes of the tensors, tokens, rows) and NAME.f32
(the logits of those rows). Run it again only to add a case; it needs `pip install torch transformers`.

    record_logits.py [NAME ...]
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).parent.parent / "data" / "recorded"
VOCABULARY = 128
TOKENS = [(31 * i + 5) % VOCABULARY for i in range(40)]
ROWS = list(range(0, 40, 3))

# Heads of 32 in a stream of 64, two query heads to a key: no size follows from another one.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
    "torch_dtype": "float32",
}


def like(base, **changes):
    """`base` with some keys changed; None removes one."""
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


QWEN2 = like(
    LLAMA, architectures=["Qwen2ForCausalLM"], model_type="qwen2", head_dim=None, num_attention_heads=2,
    num_key_value_heads=1, rms_norm_eps=1e-6, rope_theta=1000000.0, sliding_window=None, use_sliding_window=False,
    max_window_layers=2,
)  # fmt: skip
PHI3 = like(
    LLAMA, architectures=["Phi3ForCausalLM"], model_type="phi3", head_dim=None, num_attention_heads=2,
    num_key_value_heads=1, original_max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
LONG_FACTORS = {
    "type": "longrope",
    "short_factor": [1.0 + 0.05 * i for i in range(16)],
    "long_factor": [1.0 + 0.75 * i for i in range(16)],
}
GEMMA3 = like(
    LLAMA, architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", hidden_act=None, query_pre_attn_scalar=48,
    hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, rope_theta=1000000.0, rope_local_base_freq=10000.0,
    sliding_window=8, attention_bias=False, tie_word_embeddings=None, num_hidden_layers=3,
)  # fmt: skip

CASES = {
    "llama-llama3": like(
        LLAMA,
        max_position_embeddings=256,
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "llama-linear": like(LLAMA, rope_scaling={"type": "linear", "factor": 4.0}, tie_word_embeddings=True),
    "llama-dynamic": like(LLAMA, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "llama-biases": like(LLAMA, attention_bias=True, mlp_bias=True),
    "mistral": like(LLAMA, architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=8),
    "qwen2": QWEN2,
    "qwen2-window": like(QWEN2, use_sliding_window=True, sliding_window=8, max_window_layers=1, num_hidden_layers=3),
    "qwen2-yarn": like(
        QWEN2,
        max_position_embeddings=128,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "qwen3": like(
        LLAMA, architectures=["Qwen3ForCausalLM"], model_type="qwen3", rms_norm_eps=1e-6, attention_bias=False,
        rope_theta=1000000.0, use_sliding_window=False, max_window_layers=2,
    ),
    "gemma2": like(
        LLAMA, architectures=["Gemma2ForCausalLM"], model_type="gemma2", hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=48, sliding_window=8, rms_norm_eps=1e-6,
        attn_logit_softcapping=1.5, final_logit_softcapping=2.0, tie_word_embeddings=None,
    ),
    "gemma3": like(GEMMA3, sliding_window_pattern=2),
    "gemma3-linear": like(
        GEMMA3,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3-window": like(PHI3, sliding_window=8),
    "phi3-short": like(PHI3, rope_scaling=LONG_FACTORS),
    "phi3-long": like(PHI3, rope_scaling=LONG_FACTORS, original_max_position_embeddings=16),
    "phi3-partial": like(PHI3, partial_rotary_factor=0.75, tie_word_embeddings=True),
    "olmo2": like(
        LLAMA, architectures=["Olmo2ForCausalLM"], model_type="olmo2", head_dim=None, num_attention_heads=2,
        num_key_value_heads=1, rms_norm_eps=1e-6, rope_theta=500000.0, attention_bias=False,
    ),
    "smollm3": like(
        LLAMA, architectures=["SmolLM3ForCausalLM"], model_type="smollm3", head_dim=None, num_attention_heads=2,
        num_key_value_heads=1, rope_theta=5000000.0, no_rope_layers=[1, 0], no_rope_layer_interval=2, mlp_bias=False,
        tie_word_embeddings=True, attention_bias=False, use_sliding_window=False, pad_token_id=0,
    ),
    "granite": like(
        LLAMA, architectures=["GraniteForCausalLM"], model_type="granite", head_dim=None, num_attention_heads=2,
        num_key_value_heads=1, embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.05,
        logits_scaling=8.0, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
    ),
    "starcoder2": like(
        LLAMA, architectures=["Starcoder2ForCausalLM"], model_type="starcoder2", head_dim=None, num_attention_heads=2,
        num_key_value_heads=1, rms_norm_eps=None, norm_epsilon=1e-5, norm_type="layer_norm", use_bias=True,
        hidden_act="gelu_pytorch_tanh", sliding_window=8, mlp_type="default", tie_word_embeddings=True,
    ),
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_ctx": 64,
        "n_embd": 64,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 64,
        "vocab_size": VOCABULARY,
    },
    "stablelm": like(
        LLAMA, architectures=["StableLmForCausalLM"], model_type="stablelm", head_dim=None, num_attention_heads=2,
        num_key_value_heads=1, rms_norm_eps=None, layer_norm_eps=1e-5, partial_rotary_factor=0.25, use_qkv_bias=True,
    ),
    "stablelm-parallel": like(
        LLAMA, architectures=["StableLmForCausalLM"], model_type="stablelm", head_dim=None, num_attention_heads=2,
        num_key_value_heads=1, rms_norm_eps=None, layer_norm_eps=1e-5, partial_rotary_factor=0.5,
        use_parallel_residual=True,
    ),
}  # fmt: skip


def weights(name, shape):
    """A tensor's numbers by its name alone: SplitMix64 from the FNV-1a hash of the name, eight bits of each output as
    an odd integer over 1024, so that every float type holds them exactly. A vector that scales lies around one."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    count = int(np.prod(shape))
    mixed = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    values = ((mixed >> np.uint64(56)).astype(np.float32) * 2 - 255) / 1024
    return (values + (len(shape) == 1 and name.endswith(".weight"))).astype(np.float32).reshape(shape)


def record(name, config):
    knobs = {key: value for key, value in config.items() if key not in ("model_type", "architectures", "torch_dtype")}
    parsed = AutoConfig.for_model(config["model_type"], **json.loads(json.dumps(knobs)))
    model = AutoModelForCausalLM.from_config(parsed, attn_implementation="eager", dtype=torch.float32).eval()
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    shapes = {
        key: list(value.shape) for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")
    }
    state = {key: torch.from_numpy(weights(key, shape)) for key, shape in shapes.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].float().numpy()  # [T, V]
    content = {"config": config, "tensors": shapes, "tokens": TOKENS, "rows": ROWS}
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    logits[ROWS].astype("<f4").tofile(FOLDER / f"{name}.f32")
    print(f"{name}: logits of size {np.sqrt(np.mean(np.square(logits))):.3f}", type(model).__name__)


def main():
    torch.manual_seed(0)
    for name in sys.argv[1:] or CASES:
        record(name, CASES[name])


if __name__ == "__main__":
    main()
