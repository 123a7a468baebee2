//! The llama family: Llama, SmolLM2 and others that call themselves so, among them Mistral's models in GGUF files.
//!
//! Converters to GGUF store the rows of query and key weights so that the two elements of a rotary pair are
//! neighbours; the graph undoes this. Hugging Face directories keep the halves of a head apart, as the graph wants it.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{NormKind, RopeLayout};

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "llama",
    gguf: Some(Layout {
        architecture: "llama",
        config: |metadata| gguf_knobs::decoder(metadata, "llama", RopeLayout::Pairs, NormKind::Rms),
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout {
        architecture: "LlamaForCausalLM",
        config: |metadata| {
            let mut config = hf_knobs::decoder(metadata, "llama", hf_knobs::PLAIN)?;
            hf_knobs::biases(metadata, &mut config)?;
            Ok(config)
        },
        names: hf_knobs::NAMES,
    }),
};
