//! The GPT-2 family: learned positions, layer norms, biases everywhere, a feed-forward network without a gate.
//!
//! Directories store matrices transposed, with queries, keys and values side by side; converters to GGUF turn them.

use lathe_ir::types::DType;

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{Activation, Knobs, Metadata, ModelConfig, NormKind, Rope, RopeLayout, Scaling};
use crate::error::ModelError;
use crate::layers::decoder::TensorNames;

/// Knobs of the family.
fn knobs(activation: Activation) -> Knobs {
    Knobs {
        norm: NormKind::Layer,
        attention_bias: true,
        output_bias: true,
        ffn_bias: true,
        gated: false,
        activation,
        learned_positions: true,
        ..Knobs::default()
    }
}

fn hf(metadata: &Metadata) -> Result<ModelConfig, ModelError> {
    let (hidden, heads) = (metadata.size("n_embd")?, metadata.size("n_head")?);
    if !hidden.is_multiple_of(heads) {
        return metadata.contradicts("n_head", format!("a divisor of the width {hidden}"));
    }
    let expected =
        [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)];
    for (key, known) in expected {
        if metadata.optional_bool(key)?.is_some_and(|value| value != known) {
            return metadata.refuse(key, format!("{known}: other values are not supported"));
        }
    }
    // The order of roundings in half precision, and the older name of the number of positions.
    metadata.optional_bool("reorder_and_upcast_attn")?;
    metadata.optional_size("n_ctx")?;
    let activation = hf_knobs::activation(metadata, "activation_function", Activation::GeluTanh)?;
    Ok(ModelConfig {
        architecture: "gpt2".to_owned(),
        name: "unnamed".to_owned(),
        hidden,
        layers: metadata.size("n_layer")?,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        ffn: metadata.optional_size("n_inner")?.unwrap_or(4 * hidden),
        vocab: metadata.size("vocab_size")?,
        context: metadata.size("n_positions")?,
        longest: None,
        norm_eps: metadata.optional_f32("layer_norm_epsilon")?.unwrap_or(1e-5),
        // Nothing is rotated.
        rope: Rope { theta: 10_000.0, layout: RopeLayout::Halves, partial: None, scaling: Scaling::None },
        knobs: knobs(activation),
        tied_head: metadata.optional_bool("tie_word_embeddings")?.unwrap_or(true),
        cache: DType::F16,
    })
}

/// The names of tensors in directories, behind a prefix.
macro_rules! names {
    ($prefix:literal) => {
        TensorNames {
            embed: concat!($prefix, "wte.weight"),
            positions: concat!($prefix, "wpe.weight"),
            attention_norm: concat!($prefix, "h.{}.ln_1.weight"),
            q: concat!($prefix, "h.{}.attn.c_attn.weight#q^T"),
            k: concat!($prefix, "h.{}.attn.c_attn.weight#k^T"),
            v: concat!($prefix, "h.{}.attn.c_attn.weight#v^T"),
            o: concat!($prefix, "h.{}.attn.c_proj.weight#^T"),
            ffn_norm: concat!($prefix, "h.{}.ln_2.weight"),
            up: concat!($prefix, "h.{}.mlp.c_fc.weight#^T"),
            down: concat!($prefix, "h.{}.mlp.c_proj.weight#^T"),
            final_norm: concat!($prefix, "ln_f.weight"),
            ..hf_knobs::NAMES
        }
    };
}

/// The names in directories that hold the model without its head, as the first ones were published.
pub(super) const BARE_NAMES: TensorNames = names!("");

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "gpt2",
    gguf: Some(Layout {
        architecture: "gpt2",
        config: |metadata| {
            let config = gguf_knobs::decoder(metadata, "gpt2", RopeLayout::Halves, NormKind::Layer)?;
            Ok(ModelConfig { knobs: knobs(Activation::GeluTanh), ..config })
        },
        names: gguf_knobs::FUSED_NAMES,
    }),
    hf: Some(Layout { architecture: "GPT2LMHeadModel", config: hf, names: names!("transformer.") }),
};
