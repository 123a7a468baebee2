//! The `OLMo` 2 family: norms behind both halves of a layer instead of before them, and of all query and all key heads as
//! one row.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{ModelConfig, NormKind, Norms, QkNorm, RopeLayout};

fn shared(config: &mut ModelConfig) {
    config.knobs.norms = Norms::After;
    config.knobs.qk_norm = Some(QkNorm::Row);
}

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "olmo2",
    gguf: Some(Layout {
        architecture: "olmo2",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "olmo2", RopeLayout::Halves, NormKind::Rms)?;
            shared(&mut config);
            Ok(config)
        },
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout {
        architecture: "Olmo2ForCausalLM",
        config: |metadata| {
            let mut config = hf_knobs::decoder(metadata, "olmo2", hf_knobs::PLAIN)?;
            hf_knobs::biases(metadata, &mut config)?;
            shared(&mut config);
            Ok(config)
        },
        names: hf_knobs::NAMES,
    }),
};
