//! The knobs of a decoder as GGUF files write them: under keys that begin with the architecture's name.

use std::collections::BTreeSet;

use lathe_ir::ops::rotary::scaling::{longrope_attention_factor, yarn_attention_factor};
use lathe_ir::types::DType;

use crate::checkpoint::Checkpoint;
use crate::config::{Knobs, Layers, Metadata, ModelConfig, NormKind, Rope, RopeLayout, Scaling};
use crate::error::ModelError;
use crate::gguf::{Value, ValueType};
use crate::layers::decoder::TensorNames;
use crate::views;

/// Names of the tensors, which the families share.
pub const NAMES: TensorNames = TensorNames {
    embed: "token_embd.weight",
    positions: "position_embd.weight",
    attention_norm: "blk.{}.attn_norm.weight",
    q: "blk.{}.attn_q.weight",
    k: "blk.{}.attn_k.weight",
    v: "blk.{}.attn_v.weight",
    q_norm: "blk.{}.attn_q_norm.weight",
    k_norm: "blk.{}.attn_k_norm.weight",
    o: "blk.{}.attn_output.weight",
    attention_out_norm: "blk.{}.post_attention_norm.weight",
    ffn_norm: "blk.{}.ffn_norm.weight",
    gate: "blk.{}.ffn_gate.weight",
    up: "blk.{}.ffn_up.weight",
    down: "blk.{}.ffn_down.weight",
    ffn_out_norm: "blk.{}.post_ffw_norm.weight",
    final_norm: "output_norm.weight",
    head: "output.weight",
};

/// The names in files whose converter joined queries, keys and values.
pub const FUSED_NAMES: TensorNames = TensorNames {
    q: "blk.{}.attn_qkv.weight#q",
    k: "blk.{}.attn_qkv.weight#k",
    v: "blk.{}.attn_qkv.weight#v",
    ..NAMES
};

/// The base of the rotary angles where the file names none.
const DEFAULT_THETA: f32 = 10_000.0;

/// A family's keys: its name, and what stands behind it.
pub struct Keys<'a, 'm> {
    metadata: &'a Metadata<'m>,
    architecture: &'static str,
}

impl<'a, 'm> Keys<'a, 'm> {
    /// The keys of an architecture.
    pub fn new(metadata: &'a Metadata<'m>, architecture: &'static str) -> Keys<'a, 'm> {
        Keys { metadata, architecture }
    }

    /// A whole key.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A number that may be absent.
    pub fn number(&self, name: &str) -> Result<Option<f32>, ModelError> {
        self.metadata.optional_f32(&self.key(name))
    }

    /// The layers with a window: as the file lists them or by the number after which one has none, else by `pattern`.
    pub fn windowed(&self, pattern: usize) -> Result<Layers, ModelError> {
        let key = self.key("attention.sliding_window_pattern");
        match self.metadata.get(&key) {
            Some(Value::Scalars { element: ValueType::Bool, bytes }) => {
                Ok(Layers::Marked(bytes.iter().map(|&mark| mark != 0).collect()))
            }
            _ => Ok(Layers::ButEach(self.metadata.optional_size(&key)?.unwrap_or(pattern))),
        }
    }

    /// A size that may be absent, or 0 for none.
    pub fn size_or_zero(&self, name: &str) -> Result<Option<usize>, ModelError> {
        match self.metadata.optional_index(&self.key(name))? {
            Some(0) => Ok(None),
            _ => self.metadata.optional_size(&self.key(name)),
        }
    }
}

/// What the file says, without what its family adds. `layout` is that of its query and key rows, `norm` decides under
/// which key the addend of norms stands.
pub fn decoder(
    metadata: &Metadata,
    architecture: &'static str,
    layout: RopeLayout,
    norm: NormKind,
) -> Result<ModelConfig, ModelError> {
    let keys = Keys::new(metadata, architecture);
    let key = |name: &str| keys.key(name);
    let hidden = metadata.size(&key("embedding_length"))?;
    let heads = metadata.size(&key("attention.head_count"))?;
    let head_dim = head_dim(metadata, &key, hidden, heads)?;
    let partial = metadata.optional_size(&key("rope.dimension_count"))?.filter(|&dims| dims != head_dim);
    let eps = match norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer => "attention.layer_norm_epsilon",
    };
    let theta = metadata.optional_f32(&key("rope.freq_base"))?.unwrap_or(DEFAULT_THETA);
    Ok(ModelConfig {
        architecture: architecture.to_owned(),
        name: metadata.optional_text("general.name")?.unwrap_or("unnamed").to_owned(),
        hidden,
        layers: metadata.size(&key("block_count"))?,
        heads,
        kv_heads: metadata.optional_size(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
        ffn: metadata.size(&key("feed_forward_length"))?,
        vocab: vocab(metadata, &key("vocab_size"))?,
        context: metadata.size(&key("context_length"))?,
        longest: None,
        norm_eps: metadata.f32(&key(eps))?,
        rope: Rope { theta, layout, partial, scaling: scaling(metadata, &keys)? },
        knobs: Knobs { norm, ..Knobs::default() },
        tied_head: false,
        cache: DType::F16,
    })
}

/// Elements per head: of keys and values alike.
fn head_dim(
    metadata: &Metadata,
    key: &dyn Fn(&str) -> String,
    hidden: usize,
    heads: usize,
) -> Result<usize, ModelError> {
    let head_dim = match metadata.optional_size(&key("attention.key_length"))? {
        Some(length) => length,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(ModelError::Key {
                key: key("attention.head_count"),
                expected: format!("a divisor of the width {hidden}, or {} beside it", key("attention.key_length")),
                found: heads.to_string(),
            });
        }
    };
    let name = key("attention.value_length");
    match metadata.optional_size(&name)?.filter(|&length| length != head_dim) {
        None => Ok(head_dim),
        Some(_) => metadata.refuse(&name, format!("the {head_dim} elements of a key: other sizes are not supported")),
    }
}

/// The kind of rotation. Llama 3's and `LongRoPE`'s divisors stand in tensors, see [`apply_tensors`].
fn scaling(metadata: &Metadata, keys: &Keys<'_, '_>) -> Result<Scaling, ModelError> {
    let key = keys.key("rope.scaling.type");
    let kind = match metadata.optional_text(&key)? {
        None if metadata.has_prefix(&keys.key("rope.scale_linear")) => "linear",
        None => "none",
        Some(kind) => kind,
    };
    let factor = || match keys.number("rope.scaling.factor")? {
        Some(factor) => Ok(factor),
        None => metadata.f32(&keys.key("rope.scale_linear")),
    };
    match kind {
        // Converters leave it out of files whose divisors stand in tensors.
        "none" | "longrope" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: factor()? }),
        "yarn" => Ok(Scaling::Yarn {
            factor: factor()?,
            attention_factor: yarn_attention_factor(factor()?),
            original: metadata.size(&keys.key("rope.scaling.original_context_length"))?,
            beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        }),
        _ => metadata.refuse(&key, "'none', 'linear', 'yarn' or 'longrope'"),
    }
}

/// Reads what only the tensors of a file tell: whether there are biases, whether the feed-forward network has a norm of
/// its own, and the divisors of rotary frequencies. Gives the names of tensors that are no weights.
///
/// # Errors
/// When only one of the two lists of `LongRoPE` is there.
pub fn apply_tensors(
    metadata: &Metadata,
    checkpoint: &dyn Checkpoint,
    names: &TensorNames,
    config: &mut ModelConfig,
) -> Result<BTreeSet<String>, ModelError> {
    const LLAMA3: &str = "rope_freqs.weight";
    const SHORT: &str = "rope_factors_short.weight";
    const LONG: &str = "rope_factors_long.weight";
    let key = |name: &str| format!("{}.rope.scaling.{name}", config.architecture);
    let has = |name: &str| checkpoint.tensor(name).is_some();
    let first = |template: &str| template.replace("{}", "0");
    let has_bias = |weight: &str| has(views::stored(&views::bias(&first(weight))));
    config.knobs.attention_bias |= has_bias(names.q);
    config.knobs.output_bias |= has_bias(names.o);
    config.knobs.ffn_bias |= has_bias(names.up);
    config.knobs.parallel &= !has(&first(names.ffn_norm));
    // What files of models with long contexts say beside the tensors.
    let original = metadata.optional_size(&key("original_context_length"))?;
    if has(SHORT) || has(LONG) {
        let original = match original {
            Some(original) => original,
            None => metadata.size(&key("original_context_length"))?,
        };
        let computed = longrope_attention_factor(config.context, original);
        config.rope.scaling = Scaling::LongRope {
            short: checkpoint.load(SHORT)?.to_f32(),
            long: checkpoint.load(LONG)?.to_f32(),
            original,
            attention_factor: metadata.optional_f32(&key("attn_factor"))?.unwrap_or(computed),
        };
        return Ok([SHORT, LONG].map(str::to_owned).into());
    }
    if has(LLAMA3) {
        // Fixed divisors are those of short and long sequences alike.
        let list = checkpoint.load(LLAMA3)?.to_f32();
        config.rope.scaling =
            Scaling::LongRope { original: config.context, attention_factor: 1.0, short: list.clone(), long: list };
        return Ok([LLAMA3.to_owned()].into());
    }
    Ok(BTreeSet::new())
}

/// The number of tokens, which the vocabulary itself decides.
fn vocab(metadata: &Metadata, key: &str) -> Result<usize, ModelError> {
    let tokens = metadata.texts("tokenizer.ggml.tokens")?.len();
    match metadata.optional_size(key)?.filter(|&size| size != tokens) {
        None => Ok(tokens),
        Some(size) => Err(ModelError::Key {
            key: key.to_owned(),
            expected: format!("the {tokens} tokens of tokenizer.ggml.tokens"),
            found: size.to_string(),
        }),
    }
}
