//! The Qwen 2 family: Qwen 2 and 2.5. As llama, with biases on queries, keys and values.

use super::{Family, knobs};
use crate::config::{ModelConfig, RopeLayout};

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    architecture: "qwen2",
    config: |metadata| {
        let config = knobs::decoder(metadata, "qwen2", RopeLayout::Halves)?;
        Ok(ModelConfig { attention_bias: true, ..config })
    },
    names: knobs::NAMES,
    hf: None,
};
