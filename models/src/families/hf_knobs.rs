//! What families share in Hugging Face directories: the knobs of `config.json` and the names of tensors.

use lathe_ir::types::DType;

use crate::config::{Metadata, ModelConfig, Rope, RopeLayout};
use crate::error::ModelError;
use crate::layers::decoder::TensorNames;

/// Names of the tensors.
pub const NAMES: TensorNames = TensorNames {
    embed: "model.embed_tokens.weight",
    attention_norm: "model.layers.{}.input_layernorm.weight",
    q: "model.layers.{}.self_attn.q_proj.weight",
    k: "model.layers.{}.self_attn.k_proj.weight",
    v: "model.layers.{}.self_attn.v_proj.weight",
    q_bias: "model.layers.{}.self_attn.q_proj.bias",
    k_bias: "model.layers.{}.self_attn.k_proj.bias",
    v_bias: "model.layers.{}.self_attn.v_proj.bias",
    o: "model.layers.{}.self_attn.o_proj.weight",
    ffn_norm: "model.layers.{}.post_attention_layernorm.weight",
    gate: "model.layers.{}.mlp.gate_proj.weight",
    up: "model.layers.{}.mlp.up_proj.weight",
    down: "model.layers.{}.mlp.down_proj.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
};

/// The base of the rotary angles where the file names none.
const DEFAULT_THETA: f32 = 10_000.0;

/// The knobs of a decoder that has none of its own; `architecture` is the name of the family in Lathe.
pub fn decoder(metadata: &Metadata, architecture: &str) -> Result<ModelConfig, ModelError> {
    let hidden = metadata.size("hidden_size")?;
    let heads = metadata.size("num_attention_heads")?;
    let expect = |key: &str, expected: &str, found: Option<String>| match found {
        None => Ok(()),
        Some(found) => Err(ModelError::Key { key: key.to_owned(), expected: expected.to_owned(), found }),
    };
    for key in ["attention_bias", "mlp_bias", "rope_interleaved"] {
        let set = metadata.optional_bool(key)?.filter(|&set| set);
        expect(key, "false: true is not supported", set.map(|set| set.to_string()))?;
    }
    let activation = metadata.optional_text("hidden_act")?.filter(|&name| name != "silu");
    expect("hidden_act", "'silu'", activation.map(|name| format!("'{name}'")))?;
    for key in ["rope_scaling.rope_type", "rope_scaling.type", "rope_parameters.rope_type"] {
        let kind = metadata.optional_text(key)?.filter(|&kind| kind != "default");
        expect(key, "'default': other rotations are not supported yet", kind.map(|kind| format!("'{kind}'")))?;
    }
    let head_dim = metadata.optional_size("head_dim")?;
    let uneven = head_dim.is_none() && !hidden.is_multiple_of(heads);
    let expected = format!("a divisor of the width {hidden}, or head_dim beside it");
    expect("num_attention_heads", &expected, uneven.then(|| heads.to_string()))?;
    let theta = metadata.optional_f32("rope_theta")?;
    let theta = metadata.optional_f32("rope_parameters.rope_theta")?.or(theta).unwrap_or(DEFAULT_THETA);
    Ok(ModelConfig {
        architecture: architecture.to_owned(),
        name: "unnamed".to_owned(),
        hidden,
        layers: metadata.size("num_hidden_layers")?,
        heads,
        kv_heads: metadata.optional_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: head_dim.unwrap_or(hidden / heads),
        ffn: metadata.size("intermediate_size")?,
        vocab: metadata.size("vocab_size")?,
        context: metadata.size("max_position_embeddings")?,
        rms_eps: metadata.f32("rms_norm_eps")?,
        rope: Rope { theta, layout: RopeLayout::Halves },
        attention_bias: false,
        tied_head: metadata.optional_bool("tie_word_embeddings")?.unwrap_or(false),
        cache: DType::F16,
    })
}
