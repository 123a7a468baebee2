//! The knobs of a decoder as GGUF files write them: under keys that begin with the family's name.

use lathe_ir::types::DType;

use crate::config::{Metadata, ModelConfig, Rope, RopeLayout};
use crate::error::ModelError;
use crate::layers::decoder::TensorNames;

/// Names of the tensors, which all families share.
pub const NAMES: TensorNames = TensorNames {
    embed: "token_embd.weight",
    attention_norm: "blk.{}.attn_norm.weight",
    q: "blk.{}.attn_q.weight",
    k: "blk.{}.attn_k.weight",
    v: "blk.{}.attn_v.weight",
    q_bias: "blk.{}.attn_q.bias",
    k_bias: "blk.{}.attn_k.bias",
    v_bias: "blk.{}.attn_v.bias",
    o: "blk.{}.attn_output.weight",
    ffn_norm: "blk.{}.ffn_norm.weight",
    gate: "blk.{}.ffn_gate.weight",
    up: "blk.{}.ffn_up.weight",
    down: "blk.{}.ffn_down.weight",
    final_norm: "output_norm.weight",
    head: "output.weight",
};

/// The base of the rotary angles where the file names none.
const DEFAULT_THETA: f32 = 10_000.0;

/// What the file says, without what its family adds. `layout` is that of its query and key rows.
pub fn decoder(metadata: &Metadata, architecture: &str, layout: RopeLayout) -> Result<ModelConfig, ModelError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let hidden = metadata.size(&key("embedding_length"))?;
    let heads = metadata.size(&key("attention.head_count"))?;
    Ok(ModelConfig {
        architecture: architecture.to_owned(),
        name: metadata.optional_text("general.name")?.unwrap_or("unnamed").to_owned(),
        hidden,
        layers: metadata.size(&key("block_count"))?,
        heads,
        kv_heads: metadata.optional_size(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim: head_dim(metadata, &key, hidden, heads)?,
        ffn: metadata.size(&key("feed_forward_length"))?,
        vocab: vocab(metadata, &key("vocab_size"))?,
        context: metadata.size(&key("context_length"))?,
        rms_eps: metadata.f32(&key("attention.layer_norm_rms_epsilon"))?,
        rope: Rope { theta: metadata.optional_f32(&key("rope.freq_base"))?.unwrap_or(DEFAULT_THETA), layout },
        attention_bias: false,
        tied_head: false,
        cache: DType::F16,
    })
}

/// Elements per head: of keys, values and the rotation alike.
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
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(length) = metadata.optional_size(&key(name))?.filter(|&length| length != head_dim) {
            let expected = format!("the {head_dim} elements of a key: other sizes are not supported");
            return Err(ModelError::Key { key: key(name), expected, found: length.to_string() });
        }
    }
    Ok(head_dim)
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
