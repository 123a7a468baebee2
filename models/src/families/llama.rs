//! The llama family: Llama, SmolLM2, Mistral and others that GGUF files call `llama`.
//!
//! Converters to GGUF store the rows of query and key weights so that the two elements of a rotary pair are
//! neighbours; the graph undoes this. Hugging Face directories keep the halves of a head apart, as the graph wants it.

use super::{Family, hf_knobs, knobs};
use crate::config::RopeLayout;
use crate::hf::Layout;

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    architecture: "llama",
    config: |metadata| knobs::decoder(metadata, "llama", RopeLayout::Pairs),
    names: knobs::NAMES,
    hf: Some(Layout {
        architecture: "LlamaForCausalLM",
        config: |metadata| hf_knobs::decoder(metadata, "llama"),
        names: hf_knobs::NAMES,
    }),
};
