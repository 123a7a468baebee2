//! The families of models that Lathe knows. Adding one is a file here and a line in [`FAMILIES`].

pub mod gemma2;
pub mod gemma3;
mod gguf_knobs;
pub mod gpt2;
pub mod granite;
mod hf_knobs;
pub mod llama;
pub mod mistral;
pub mod olmo2;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
pub mod smollm3;
pub mod stablelm;
pub mod starcoder2;

use crate::checkpoint::Checkpoint;
use crate::config::{Metadata, ModelConfig};
use crate::error::ModelError;
use crate::layers::decoder::TensorNames;
use crate::views;

pub use gguf_knobs::apply_tensors;

/// How one kind of file writes a family.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The architecture's name there: `general.architecture` in GGUF files, where it is also the prefix of metadata keys;
    /// the entry of `architectures` in Hugging Face directories.
    pub architecture: &'static str,
    /// Reads the knobs of the decoder. In GGUF files `tied_head` is set afterwards, from the tensors.
    pub config: fn(&Metadata) -> Result<ModelConfig, ModelError>,
    /// Names of the tensors.
    pub names: TensorNames,
}

/// What sets a family apart, as data.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name in Lathe.
    pub name: &'static str,
    /// How GGUF files write it; `None` where they have no architecture of their own for it.
    pub gguf: Option<Layout>,
    /// How Hugging Face directories write it.
    pub hf: Option<Layout>,
}

/// Every family.
pub const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    phi3::FAMILY,
    olmo2::FAMILY,
    smollm3::FAMILY,
    granite::FAMILY,
    starcoder2::FAMILY,
    gpt2::FAMILY,
    stablelm::FAMILY,
];

/// The layout of an architecture in GGUF files.
pub fn find(architecture: &str) -> Result<Layout, ModelError> {
    find_in(|family| family.gguf, architecture)
}

/// The layout of an architecture in Hugging Face directories.
pub fn find_hf(architecture: &str) -> Result<Layout, ModelError> {
    find_in(|family| family.hf, architecture)
}

/// The names of a layout's tensors in a checkpoint, which may write the family in another known way: queries, keys and
/// values joined in one tensor, or no prefix in front of all names.
pub fn names_in(layout: &Layout, checkpoint: &dyn Checkpoint) -> TensorNames {
    let has = |name: &str| checkpoint.tensor(views::stored(&name.replace("{}", "0"))).is_some();
    let lacks = |name: &str| !has(name);
    let mut names = layout.names;
    if lacks(names.embed) && layout.architecture == "GPT2LMHeadModel" && has(gpt2::BARE_NAMES.embed) {
        return gpt2::BARE_NAMES;
    }
    let fused = gguf_knobs::FUSED_NAMES;
    if names.q == gguf_knobs::NAMES.q && lacks(names.q) && has(fused.q) {
        (names.q, names.k, names.v) = (fused.q, fused.k, fused.v);
    }
    names
}

fn find_in(layout: fn(&Family) -> Option<Layout>, architecture: &str) -> Result<Layout, ModelError> {
    FAMILIES.iter().filter_map(layout).find(|layout| layout.architecture == architecture).ok_or_else(|| {
        let known = FAMILIES.iter().filter_map(layout).map(|layout| layout.architecture.to_owned()).collect();
        ModelError::Architecture { found: architecture.to_owned(), known }
    })
}
