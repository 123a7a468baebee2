//! The Phi 3 family: Phi 3, 3.5 and 4. As llama, with fused projections, partial rotation, `LongRoPE` and a window.

use super::{Family, Layout, gguf_knobs, hf_knobs};
use crate::config::{Layers, Metadata, ModelConfig, NormKind, RopeLayout, Window};
use crate::error::ModelError;
use crate::layers::decoder::TensorNames;

fn window(positions: Option<usize>) -> Option<Window> {
    positions.map(|positions| Window { positions, layers: Layers::All })
}

fn hf(metadata: &Metadata) -> Result<ModelConfig, ModelError> {
    let mut config = hf_knobs::decoder(metadata, "phi3", hf_knobs::PLAIN)?;
    config.knobs.window = window(metadata.optional_size("sliding_window")?);
    for key in ["lm_head_bias", "attention_bias", "mlp_bias"] {
        if metadata.optional_bool(key)? == Some(true) {
            return metadata.refuse(key, "false: true is not supported");
        }
    }
    for key in ["full_attn_mod", "interpolate_factor"] {
        if metadata.optional_index(key)?.is_some_and(|value| value != 1) {
            return metadata.refuse(key, "1: other values are not supported");
        }
    }
    Ok(config)
}

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    name: "phi3",
    gguf: Some(Layout {
        architecture: "phi3",
        config: |metadata| {
            let mut config = gguf_knobs::decoder(metadata, "phi3", RopeLayout::Halves, NormKind::Rms)?;
            let keys = gguf_knobs::Keys::new(metadata, "phi3");
            config.knobs.window = window(keys.size_or_zero("attention.sliding_window")?);
            Ok(config)
        },
        names: TensorNames {
            gate: "blk.{}.ffn_up.weight#gate",
            up: "blk.{}.ffn_up.weight#up",
            ..gguf_knobs::FUSED_NAMES
        },
    }),
    hf: Some(Layout {
        architecture: "Phi3ForCausalLM",
        config: hf,
        names: TensorNames {
            q: "model.layers.{}.self_attn.qkv_proj.weight#q",
            k: "model.layers.{}.self_attn.qkv_proj.weight#k",
            v: "model.layers.{}.self_attn.qkv_proj.weight#v",
            gate: "model.layers.{}.mlp.gate_up_proj.weight#gate",
            up: "model.layers.{}.mlp.gate_up_proj.weight#up",
            ..hf_knobs::NAMES
        },
    }),
};
