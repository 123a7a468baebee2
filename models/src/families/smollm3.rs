//! The SmolLM 3 family. As llama, with layers that rotate nothing: every fourth one, unless the file lists them.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{Layers, Metadata, ModelConfig, NormKind, RopeLayout};
use crate::error::ModelError;

/// Every so-manieth layer rotates nothing.
const INTERVAL: usize = 4;

fn hf(metadata: &Metadata) -> Result<ModelConfig, ModelError> {
    const LIST: &str = "no_rope_layers";
    let spelling = hf_knobs::Spelling { tied: true, kv_heads: 4, ..hf_knobs::PLAIN };
    let mut config = hf_knobs::decoder(metadata, "smollm3", spelling)?;
    hf_knobs::biases(metadata, &mut config)?;
    let interval = metadata.optional_size("no_rope_layer_interval")?.unwrap_or(INTERVAL);
    config.knobs.unrotated = match metadata.get(LIST) {
        None => Layers::Each(interval),
        // A one stands for a layer that rotates.
        Some(_) => Layers::Marked(metadata.integers(LIST)?.iter().map(|&rotates| rotates == 0).collect()),
    };
    metadata.optional_index("max_window_layers")?;
    config.knobs.window = hf_knobs::used_window(metadata, config.layers, config.knobs.unrotated.clone())?;
    Ok(config)
}

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "smollm3",
    gguf: Some(Layout {
        architecture: "smollm3",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "smollm3", RopeLayout::Pairs, NormKind::Rms)?;
            config.knobs.unrotated = Layers::Each(INTERVAL);
            Ok(config)
        },
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout { architecture: "SmolLM3ForCausalLM", config: hf, names: hf_knobs::NAMES }),
};
