//! The Gemma 3 family (text): as Gemma 2 without bounds, with normed heads, a window in all but every sixth layer, and a
//! rotation of its own in the layers with a window.

use lathe_ir::ops::rotary::Scaling;

use super::{Family, Layout, gemma2, gguf_knobs, hf_knobs};
use crate::config::{Layers, Metadata, ModelConfig, NormKind, QkNorm, Rope, RopeLayout, Window};
use crate::error::ModelError;

/// Base of the angles in layers with a window.
const LOCAL_THETA: f32 = 10_000.0;
/// Every so-manieth layer has no window.
const PATTERN: usize = 6;

/// Adds the layers with a window, and their rotation.
fn local(config: &mut ModelConfig, window: Option<Window>, theta: f32) {
    config.knobs.qk_norm = Some(QkNorm::Heads);
    config.knobs.window = window;
    config.knobs.local_rope = Some(Rope { theta, scaling: Scaling::None, ..config.rope.clone() });
}

fn hf(metadata: &Metadata) -> Result<ModelConfig, ModelError> {
    let spelling = hf_knobs::Spelling {
        theta: 1_000_000.0,
        rope: "rope_parameters.full_attention.",
        context: 131_072,
        eps_default: 1e-6,
        heads: 8,
        vocab: 262_208,
        ..gemma2::SPELLING
    };
    let mut config = hf_knobs::decoder(metadata, "gemma3", spelling)?;
    gemma2::hf(metadata, &mut config)?;
    let positions = metadata.optional_size("sliding_window")?.unwrap_or(4096);
    let old = metadata.optional_size("_sliding_window_pattern")?;
    let pattern = metadata.optional_size("sliding_window_pattern")?.or(old).unwrap_or(PATTERN);
    let layers = hf_knobs::layer_types(metadata, config.layers)?.unwrap_or(Layers::ButEach(pattern));
    let old = metadata.optional_f32("rope_local_base_freq")?;
    let theta = metadata.optional_f32("rope_parameters.sliding_attention.rope_theta")?.or(old).unwrap_or(LOCAL_THETA);
    let kind = "rope_parameters.sliding_attention.rope_type";
    if metadata.optional_text(kind)?.is_some_and(|kind| kind != "default") {
        return metadata.refuse(kind, "'default'");
    }
    local(&mut config, Some(Window { positions, layers }), theta);
    Ok(config)
}

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "gemma3",
    gguf: Some(Layout {
        architecture: "gemma3",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "gemma3", RopeLayout::Halves, NormKind::Rms)?;
            let keys = gguf_knobs::Keys::new(metadata, "gemma3");
            gemma2::shared(&mut config);
            config.knobs.attention_scale = gemma2::gguf_attention_scale(&config, 62);
            config.knobs.logit_softcap = keys.number("final_logit_softcapping")?;
            let window = keys.size_or_zero("attention.sliding_window")?;
            let layers = keys.windowed(PATTERN)?;
            let window = window.map(|positions| Window { positions, layers });
            let theta = keys.number("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA);
            local(&mut config, window, theta);
            Ok(config)
        },
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout { architecture: "Gemma3ForCausalLM", config: hf, names: gemma2::HF_NAMES }),
};
