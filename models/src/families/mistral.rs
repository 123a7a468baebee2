//! The Mistral family. As llama, with a window over the latest positions in the first generation. GGUF files call it
//! `llama`.

use super::{Family, Layout, hf_knobs};
use crate::config::{Layers, Window};

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "mistral",
    gguf: None,
    hf: Some(Layout {
        architecture: "MistralForCausalLM",
        config: |metadata| {
            let mut config = hf_knobs::decoder(metadata, "mistral", hf_knobs::PLAIN)?;
            let positions = metadata.optional_size("sliding_window")?;
            config.knobs.window = positions.map(|positions| Window { positions, layers: Layers::All });
            Ok(config)
        },
        names: hf_knobs::NAMES,
    }),
};
