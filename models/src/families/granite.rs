//! The Granite family (dense). As llama, with factors of embeddings, scores, residuals and logits.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{ModelConfig, NormKind, RopeLayout};

/// The four factors as files state them: logits are divided by theirs.
fn scale(config: &mut ModelConfig, [embedding, attention, residual, logits]: [Option<f32>; 4]) {
    config.knobs.embedding_scale = embedding;
    config.knobs.attention_scale = Some(attention.unwrap_or(1.0));
    config.knobs.residual_scale = residual;
    config.knobs.logit_scale = logits.map(|divisor| 1.0 / divisor);
}

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "granite",
    gguf: Some(Layout {
        architecture: "granite",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "granite", RopeLayout::Pairs, NormKind::Rms)?;
            let keys = gguf_knobs::Keys::new(metadata, "granite");
            let attention = keys.number("attention.scale")?.unwrap_or(1.0 / (config.head_dim as f32).sqrt());
            let [embedding, residual, logits] = ["embedding_scale", "residual_scale", "logit_scale"];
            let factors = [keys.number(embedding)?, Some(attention), keys.number(residual)?, keys.number(logits)?];
            scale(&mut config, factors);
            Ok(config)
        },
        names: gguf_knobs::NAMES,
    }),
    hf: Some(Layout {
        architecture: "GraniteForCausalLM",
        config: |metadata| {
            let mut config = hf_knobs::decoder(metadata, "granite", hf_knobs::PLAIN)?;
            hf_knobs::biases(metadata, &mut config)?;
            let factors = [
                metadata.optional_f32("embedding_multiplier")?,
                metadata.optional_f32("attention_multiplier")?,
                metadata.optional_f32("residual_multiplier")?,
                metadata.optional_f32("logits_scaling")?,
            ];
            scale(&mut config, factors);
            Ok(config)
        },
        names: hf_knobs::NAMES,
    }),
};
