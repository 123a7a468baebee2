//! The Gemma 2 family: norms around both halves of a layer, bounded scores and logits, a window in every other layer,
//! embeddings scaled by the root of their width.
//!
//! Directories store norm weights as their distance from one; converters to GGUF add the one.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{Activation, Layers, Metadata, ModelConfig, NormKind, Norms, RopeLayout, Window};
use crate::error::ModelError;
use crate::layers::decoder::TensorNames;

/// Names of the tensors in directories, of Gemma 3 too.
pub(super) const HF_NAMES: TensorNames = TensorNames {
    attention_out_norm: "model.layers.{}.post_attention_layernorm.weight",
    ffn_norm: "model.layers.{}.pre_feedforward_layernorm.weight",
    ..hf_knobs::NAMES
};

/// Gemma's spelling in directories.
pub(super) const SPELLING: hf_knobs::Spelling = hf_knobs::Spelling {
    activation: "hidden_activation",
    act: Activation::GeluTanh,
    head_dim: 256,
    kv_heads: 4,
    tied: true,
    ..hf_knobs::PLAIN
};

/// What all of Gemma's models have.
pub(super) fn shared(config: &mut ModelConfig) {
    config.knobs.norms = Norms::Around;
    config.knobs.activation = Activation::GeluTanh;
    config.knobs.embedding_scale = Some((config.hidden as f32).sqrt());
}

/// What directories of Gemma 2 and 3 say in one way.
pub(super) fn hf(metadata: &Metadata, config: &mut ModelConfig) -> Result<(), ModelError> {
    let activation = config.knobs.activation;
    shared(config);
    config.knobs.activation = activation;
    hf_knobs::biases(metadata, config)?;
    config.knobs.plus_one = true;
    config.knobs.attention_scale = Some(metadata.optional_f32("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5));
    config.knobs.attention_softcap = metadata.optional_f32("attn_logit_softcapping")?;
    config.knobs.logit_softcap = metadata.optional_f32("final_logit_softcapping")?;
    // The library reads hidden_activation only; older files carry both.
    metadata.get("hidden_act");
    match metadata.optional_bool("use_bidirectional_attention")? {
        Some(true) => metadata.refuse("use_bidirectional_attention", "false: true is not supported"),
        _ => Ok(()),
    }
}

/// The scale of scores in GGUF files, which do not state it: by `head_dim`, but in the largest model of each generation,
/// known by its number of layers, by the width divided by the heads.
pub(super) fn gguf_attention_scale(config: &ModelConfig, largest: usize) -> Option<f32> {
    (config.layers == largest).then(|| 1.0 / ((config.hidden / config.heads) as f32).sqrt())
}

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "gemma2",
    gguf: Some(Layout {
        architecture: "gemma2",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "gemma2", RopeLayout::Halves, NormKind::Rms)?;
            let keys = gguf_knobs::Keys::new(metadata, "gemma2");
            shared(&mut config);
            config.knobs.attention_scale = gguf_attention_scale(&config, 46);
            config.knobs.attention_softcap = Some(keys.number("attn_logit_softcapping")?.unwrap_or(50.0));
            config.knobs.logit_softcap = Some(keys.number("final_logit_softcapping")?.unwrap_or(30.0));
            let positions = keys.size_or_zero("attention.sliding_window")?.unwrap_or(4096);
            config.knobs.window = Some(Window { positions, layers: keys.windowed(2)? });
            Ok(config)
        },
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout {
        architecture: "Gemma2ForCausalLM",
        config: |metadata| {
            let mut config = hf_knobs::decoder(metadata, "gemma2", SPELLING)?;
            hf(metadata, &mut config)?;
            let positions = metadata.optional_size("sliding_window")?.unwrap_or(4096);
            let layers = hf_knobs::layer_types(metadata, config.layers)?.unwrap_or(Layers::ButEach(2));
            config.knobs.window = Some(Window { positions, layers });
            Ok(config)
        },
        names: HF_NAMES,
    }),
};
