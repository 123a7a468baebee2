//! The llama family: Llama, SmolLM2, Mistral and others that GGUF files call `llama`.
//!
//! Converters to GGUF store the rows of query and key weights so that the two elements of a rotary pair are
//! neighbours; the graph undoes this.

use super::{Family, knobs};
use crate::config::RopeLayout;

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    architecture: "llama",
    config: |metadata| knobs::decoder(metadata, "llama", RopeLayout::Pairs),
    names: knobs::NAMES,
};
