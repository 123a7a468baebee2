//! The Qwen 3 family (dense). As llama, with a norm of each query and key head and an optional window in the upper
//! layers.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{NormKind, QkNorm, RopeLayout};

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "qwen3",
    gguf: Some(Layout {
        architecture: "qwen3",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "qwen3", RopeLayout::Halves, NormKind::Rms)?;
            config.knobs.qk_norm = Some(QkNorm::Heads);
            Ok(config)
        },
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout {
        architecture: "Qwen3ForCausalLM",
        config: |metadata| {
            let spelling = hf_knobs::Spelling { head_dim: 128, ..hf_knobs::PLAIN };
            let mut config = hf_knobs::decoder(metadata, "qwen3", spelling)?;
            hf_knobs::biases(metadata, &mut config)?;
            config.knobs.qk_norm = Some(QkNorm::Heads);
            config.knobs.window = hf_knobs::upper_window(metadata, config.layers)?;
            Ok(config)
        },
        names: hf_knobs::NAMES,
    }),
};
