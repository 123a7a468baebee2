//! The Qwen 2 family: Qwen 2 and 2.5. As llama, with biases on queries, keys and values, and with an optional window in
//! the upper layers.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{NormKind, RopeLayout};

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "qwen2",
    gguf: Some(Layout {
        architecture: "qwen2",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "qwen2", RopeLayout::Halves, NormKind::Rms)?;
            config.knobs.attention_bias = true;
            Ok(config)
        },
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout {
        architecture: "Qwen2ForCausalLM",
        config: |metadata| {
            let mut config = hf_knobs::decoder(metadata, "qwen2", hf_knobs::PLAIN)?;
            config.knobs.attention_bias = true;
            config.knobs.window = hf_knobs::upper_window(metadata, config.layers)?;
            Ok(config)
        },
        names: hf_knobs::NAMES,
    }),
};
