//! The `StableLM` family: layer norms, partial rotation, and in some models a feed-forward network beside attention.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{Metadata, ModelConfig, NormKind, RopeLayout};
use crate::error::ModelError;

fn hf(metadata: &Metadata) -> Result<ModelConfig, ModelError> {
    let spelling = hf_knobs::Spelling { eps: "layer_norm_eps", partial: 0.25, ..hf_knobs::PLAIN };
    let mut config = hf_knobs::decoder(metadata, "stablelm", spelling)?;
    config.knobs.norm = NormKind::Layer;
    config.knobs.attention_bias = metadata.optional_bool("use_qkv_bias")?.unwrap_or(false);
    config.knobs.parallel = metadata.optional_bool("use_parallel_residual")?.unwrap_or(false);
    match metadata.optional_bool("qk_layernorm")? {
        Some(true) => metadata.refuse("qk_layernorm", "false: true is not supported"),
        _ => Ok(config),
    }
}

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "stablelm",
    gguf: Some(Layout {
        architecture: "stablelm",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "stablelm", RopeLayout::Halves, NormKind::Layer)?;
            // Converters write true where the checkpoint says nothing; the tensors tell, see `apply_tensors`.
            let parallel = metadata.optional_bool("stablelm.use_parallel_residual")?;
            config.knobs.parallel = parallel.unwrap_or(true);
            Ok(config)
        },
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout { architecture: "StableLmForCausalLM", config: hf, names: hf_knobs::NAMES }),
};
