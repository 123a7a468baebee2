//! What families share in Hugging Face directories: the knobs of `config.json` and the names of tensors.

use lathe_ir::ops::rotary::scaling::{longrope_attention_factor, yarn_attention_factor};
use lathe_ir::types::DType;

use crate::config::{Activation, Knobs, Layers, Metadata, ModelConfig, Rope, RopeLayout, Scaling, Window};
use crate::error::ModelError;
use crate::layers::decoder::TensorNames;

/// Names of the tensors of most families.
pub const NAMES: TensorNames = TensorNames {
    embed: "model.embed_tokens.weight",
    positions: "model.embed_positions.weight",
    attention_norm: "model.layers.{}.input_layernorm.weight",
    q: "model.layers.{}.self_attn.q_proj.weight",
    k: "model.layers.{}.self_attn.k_proj.weight",
    v: "model.layers.{}.self_attn.v_proj.weight",
    q_norm: "model.layers.{}.self_attn.q_norm.weight",
    k_norm: "model.layers.{}.self_attn.k_norm.weight",
    o: "model.layers.{}.self_attn.o_proj.weight",
    attention_out_norm: "model.layers.{}.post_attention_layernorm.weight",
    ffn_norm: "model.layers.{}.post_attention_layernorm.weight",
    gate: "model.layers.{}.mlp.gate_proj.weight",
    up: "model.layers.{}.mlp.up_proj.weight",
    down: "model.layers.{}.mlp.down_proj.weight",
    ffn_out_norm: "model.layers.{}.post_feedforward_layernorm.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
};

/// How a family spells knobs that most have, and what it takes for those that its files may leave out.
#[derive(Clone, Copy, Debug)]
pub struct Spelling {
    /// Key of the addend of norms.
    pub eps: &'static str,
    /// The addend of norms where the file does not say; 0 where it has to.
    pub eps_default: f32,
    /// Key of the activation.
    pub activation: &'static str,
    /// The activation where the file does not say.
    pub act: Activation,
    /// Prefix of the rotation's knobs in newer files.
    pub rope: &'static str,
    /// Query heads where the file does not say; 0 where it has to. Likewise tokens and positions.
    pub heads: usize,
    /// See `heads`.
    pub vocab: usize,
    /// See `heads`.
    pub context: usize,
    /// Elements per head where the file does not say; 0 for the width divided by the heads.
    pub head_dim: usize,
    /// Key/value heads where the file does not say; 0 for as many as there are query heads.
    pub kv_heads: usize,
    /// Base of the rotary angles.
    pub theta: f32,
    /// The part of a head that rotates.
    pub partial: f32,
    /// Whether the head is the embedding table.
    pub tied: bool,
}

/// Llama's spelling.
pub const PLAIN: Spelling = Spelling {
    eps: "rms_norm_eps",
    eps_default: 0.0,
    activation: "hidden_act",
    act: Activation::Silu,
    rope: "rope_parameters.",
    heads: 0,
    vocab: 0,
    context: 0,
    head_dim: 0,
    kv_heads: 0,
    theta: 10_000.0,
    partial: 1.0,
    tied: false,
};

/// The knobs of a decoder that has none of its own; `architecture` is the name of the family in Lathe.
pub fn decoder(metadata: &Metadata, architecture: &str, spelling: Spelling) -> Result<ModelConfig, ModelError> {
    let hidden = metadata.size("hidden_size")?;
    let size = |key: &str, default: usize| match metadata.optional_size(key)? {
        None if default > 0 => Ok(default),
        _ => metadata.size(key),
    };
    let heads = size("num_attention_heads", spelling.heads)?;
    if metadata.optional_bool("rope_interleaved")? == Some(true) {
        return metadata.refuse("rope_interleaved", "false: true is not supported");
    }
    let head_dim = metadata.optional_size("head_dim")?.or((spelling.head_dim > 0).then_some(spelling.head_dim));
    if head_dim.is_none() && !hidden.is_multiple_of(heads) {
        let expected = format!("a divisor of the width {hidden}, or head_dim beside it");
        return metadata.contradicts("num_attention_heads", expected);
    }
    let head_dim = head_dim.unwrap_or(hidden / heads);
    let kv_heads = if spelling.kv_heads > 0 { spelling.kv_heads } else { heads };
    let context = size("max_position_embeddings", spelling.context)?;
    let eps = metadata.optional_f32(spelling.eps)?.filter(|_| spelling.eps_default > 0.0);
    Ok(ModelConfig {
        architecture: architecture.to_owned(),
        name: "unnamed".to_owned(),
        hidden,
        layers: metadata.size("num_hidden_layers")?,
        heads,
        kv_heads: metadata.optional_size("num_key_value_heads")?.unwrap_or(kv_heads),
        head_dim,
        ffn: metadata.size("intermediate_size")?,
        vocab: size("vocab_size", spelling.vocab)?,
        context,
        longest: None,
        norm_eps: if spelling.eps_default > 0.0 {
            eps.unwrap_or(spelling.eps_default)
        } else {
            metadata.f32(spelling.eps)?
        },
        rope: rope(metadata, spelling, head_dim, context)?,
        knobs: Knobs { activation: activation(metadata, spelling.activation, spelling.act)?, ..Knobs::default() },
        tied_head: metadata.optional_bool("tie_word_embeddings")?.unwrap_or(spelling.tied),
        cache: DType::F16,
    })
}

/// The function of the feed-forward network.
pub fn activation(metadata: &Metadata, key: &str, default: Activation) -> Result<Activation, ModelError> {
    match metadata.optional_text(key)? {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some(_) => metadata.refuse(key, "'silu', 'gelu', 'gelu_pytorch_tanh' or 'gelu_new'"),
    }
}

/// Biases of all projections of attention, and of all of the feed-forward network.
pub fn biases(metadata: &Metadata, config: &mut ModelConfig) -> Result<(), ModelError> {
    let attention = metadata.optional_bool("attention_bias")?.unwrap_or(false);
    (config.knobs.attention_bias, config.knobs.output_bias) = (attention, attention);
    config.knobs.ffn_bias = metadata.optional_bool("mlp_bias")?.unwrap_or(false);
    Ok(())
}

/// Which layers have a window, where the file lists the kind of each.
pub fn layer_types(metadata: &Metadata, layers: usize) -> Result<Option<Layers>, ModelError> {
    const KEY: &str = "layer_types";
    let Some(kinds) = metadata.optional_texts(KEY)? else { return Ok(None) };
    let windowed = |kind: &String| match kind.as_str() {
        "sliding_attention" => Some(true),
        "full_attention" => Some(false),
        _ => None,
    };
    let marks: Option<Vec<bool>> = kinds.iter().map(windowed).collect();
    match marks {
        Some(marks) if marks.len() == layers => Ok(Some(Layers::Marked(marks))),
        _ => {
            let expected = format!("'full_attention' or 'sliding_attention' for each of {layers} layers");
            let found = kinds.join(", ");
            Err(ModelError::Key { key: KEY.to_owned(), expected, found })
        }
    }
}

/// Qwen's window: in the layers from `max_window_layers` on.
pub fn upper_window(metadata: &Metadata, layers: usize) -> Result<Option<Window>, ModelError> {
    let first = metadata.optional_index("max_window_layers")?;
    used_window(metadata, layers, Layers::From(first.map_or(28, |first| first as usize)))
}

/// A window that is there only where `use_sliding_window` says so; in which layers where the file does not list them.
pub fn used_window(metadata: &Metadata, layers: usize, unlisted: Layers) -> Result<Option<Window>, ModelError> {
    let used = metadata.optional_bool("use_sliding_window")?.unwrap_or(false);
    let positions = metadata.optional_size("sliding_window")?;
    let listed = layer_types(metadata, layers)?;
    match positions.filter(|_| used) {
        // A file whose window is off lists its layers as full.
        None => match listed {
            Some(Layers::Marked(marks)) if marks.contains(&true) => {
                metadata.contradicts("use_sliding_window", "true and a sliding_window, since layer_types has windows")
            }
            _ => Ok(None),
        },
        Some(positions) => Ok(Some(Window { positions, layers: listed.unwrap_or(unlisted) })),
    }
}

/// The rotation by `rope_parameters`, or by the older `rope_theta` and `rope_scaling`.
fn rope(metadata: &Metadata, spelling: Spelling, head_dim: usize, context: usize) -> Result<Rope, ModelError> {
    let prefix = if metadata.has_prefix(spelling.rope) { spelling.rope } else { "rope_scaling." };
    let outer = metadata.optional_f32("rope_theta")?;
    let theta = metadata.optional_f32(&format!("{prefix}rope_theta"))?.or(outer).unwrap_or(spelling.theta);
    let outer = metadata.optional_f32("partial_rotary_factor")?;
    let part = metadata.optional_f32(&format!("{prefix}partial_rotary_factor"))?.or(outer).unwrap_or(spelling.partial);
    let dims = (head_dim as f32 * part) as usize;
    let scaling = scaling(metadata, prefix, context)?;
    Ok(Rope { theta, layout: RopeLayout::Halves, partial: (dims != head_dim).then_some(dims), scaling })
}

/// The kind of rotation, whose knobs stand under `prefix`.
fn scaling(metadata: &Metadata, prefix: &str, context: usize) -> Result<Scaling, ModelError> {
    let key = |name: &str| format!("{prefix}{name}");
    let old = metadata.optional_text(&key("type"))?;
    let (kind, named) = match metadata.optional_text(&key("rope_type"))? {
        Some(kind) => (kind, "rope_type"),
        None => (old.unwrap_or("default"), "type"),
    };
    let number = |name: &str| metadata.optional_f32(&key(name));
    let factor = || metadata.f32(&key("factor"));
    // Phi keeps the original positions beside the other knobs.
    let outer = metadata.optional_size("original_max_position_embeddings")?;
    let original = || Ok::<_, ModelError>(metadata.optional_size(&key("original_max_position_embeddings"))?.or(outer));
    match kind {
        "default" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: factor()? }),
        "dynamic" => Ok(Scaling::Dynamic { factor: factor()?, original: original()?.unwrap_or(context) }),
        "llama3" => Ok(Scaling::Llama3 {
            factor: factor()?,
            low: metadata.f32(&key("low_freq_factor"))?,
            high: metadata.f32(&key("high_freq_factor"))?,
            original: original()?.unwrap_or(context),
        }),
        "yarn" => {
            let factor = factor()?;
            if metadata.optional_bool(&key("truncate"))? == Some(false) {
                return metadata.refuse(&key("truncate"), "true: false is not supported");
            }
            let ratio = match (number("mscale")?, number("mscale_all_dim")?) {
                (Some(scale), Some(all)) if factor > 1.0 => {
                    Some((0.1 * scale * factor.ln() + 1.0) / (0.1 * all * factor.ln() + 1.0))
                }
                _ => None,
            };
            Ok(Scaling::Yarn {
                factor,
                original: original()?.unwrap_or(context),
                beta_fast: number("beta_fast")?.unwrap_or(32.0),
                beta_slow: number("beta_slow")?.unwrap_or(1.0),
                attention_factor: number("attention_factor")?.or(ratio).unwrap_or(yarn_attention_factor(factor)),
            })
        }
        "longrope" | "su" => {
            let original = original()?.unwrap_or(context);
            let by_factor = |factor: f32| (1.0 + factor.ln() / (original as f32).ln()).sqrt();
            let factor = number("factor")?.map(|factor| if factor > 1.0 { by_factor(factor) } else { 1.0 });
            let computed = factor.unwrap_or(longrope_attention_factor(context, original));
            Ok(Scaling::LongRope {
                short: metadata.numbers(&key("short_factor"))?,
                long: metadata.numbers(&key("long_factor"))?,
                original,
                attention_factor: number("attention_factor")?.unwrap_or(computed),
            })
        }
        _ => metadata.refuse(&key(named), "'default', 'linear', 'dynamic', 'yarn', 'llama3' or 'longrope'"),
    }
}
