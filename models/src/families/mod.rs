//! The families of models that Lathe knows. Adding one is a file here and a line in [`FAMILIES`].

mod hf_knobs;
mod knobs;
pub mod llama;
pub mod qwen2;

use crate::config::{Metadata, ModelConfig};
use crate::error::ModelError;
use crate::hf::Layout;
use crate::layers::decoder::TensorNames;

/// What sets a family apart, as data.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name in `general.architecture`, which is also the prefix of its metadata keys.
    pub architecture: &'static str,
    /// Reads the knobs of the decoder. `tied_head` is set afterwards, from the tensors.
    pub config: fn(&Metadata) -> Result<ModelConfig, ModelError>,
    /// Names of the tensors.
    pub names: TensorNames,
    /// How Hugging Face directories write it; `None` where they are not read yet.
    pub hf: Option<Layout>,
}

/// Every family.
pub const FAMILIES: &[Family] = &[llama::FAMILY, qwen2::FAMILY];

/// The family of an architecture.
pub fn find(architecture: &str) -> Result<Family, ModelError> {
    FAMILIES.iter().find(|family| family.architecture == architecture).copied().ok_or_else(|| {
        let known = FAMILIES.iter().map(|family| family.architecture.to_owned()).collect();
        ModelError::Architecture { found: architecture.to_owned(), known }
    })
}

/// How the family of an architecture is written in Hugging Face directories.
pub fn find_hf(architecture: &str) -> Result<Layout, ModelError> {
    FAMILIES.iter().filter_map(|family| family.hf).find(|hf| hf.architecture == architecture).ok_or_else(|| {
        let known = FAMILIES.iter().filter_map(|family| family.hf).map(|hf| hf.architecture.to_owned()).collect();
        ModelError::Architecture { found: architecture.to_owned(), known }
    })
}
