//! The `StarCoder` 2 family: layer norms, biases everywhere, a feed-forward network without a gate, a window.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{Activation, Layers, Metadata, ModelConfig, NormKind, RopeLayout, Window};
use crate::error::ModelError;
use crate::layers::decoder::TensorNames;

fn shared(config: &mut ModelConfig, biased: bool) {
    let knobs = &mut config.knobs;
    (knobs.norm, knobs.gated) = (NormKind::Layer, false);
    (knobs.attention_bias, knobs.output_bias, knobs.ffn_bias) = (biased, biased, biased);
}

fn hf(metadata: &Metadata) -> Result<ModelConfig, ModelError> {
    let spelling = hf_knobs::Spelling { eps: "norm_epsilon", act: Activation::GeluTanh, tied: true, ..hf_knobs::PLAIN };
    let mut config = hf_knobs::decoder(metadata, "starcoder2", spelling)?;
    shared(&mut config, metadata.optional_bool("use_bias")?.unwrap_or(true));
    for (key, known) in [("norm_type", "layer_norm"), ("mlp_type", "default")] {
        if metadata.optional_text(key)?.is_some_and(|kind| kind != known) {
            return metadata.refuse(key, format!("'{known}'"));
        }
    }
    let positions = metadata.optional_size("sliding_window")?;
    config.knobs.window = positions.map(|positions| Window { positions, layers: Layers::All });
    Ok(config)
}

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "starcoder2",
    gguf: Some(Layout {
        architecture: "starcoder2",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "starcoder2", RopeLayout::Halves, NormKind::Layer)?;
            shared(&mut config, true);
            config.knobs.activation = Activation::GeluTanh;
            Ok(config)
        },
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout {
        architecture: "Starcoder2ForCausalLM",
        config: hf,
        names: TensorNames {
            up: "model.layers.{}.mlp.c_fc.weight",
            down: "model.layers.{}.mlp.c_proj.weight",
            ..hf_knobs::NAMES
        },
    }),
};
