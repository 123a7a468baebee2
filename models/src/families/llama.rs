//! The llama family: Llama, SmolLM2, Mistral and others that GGUF files call `llama`.
//!
//! Converters to GGUF store the rows of query and key weights so that the two elements of a rotary pair are
//! neighbours; the graph undoes this. Hugging Face directories keep the halves of a head apart, as the graph wants it.

use lathe_ir::types::DType;

use super::{Family, hf_knobs};
use crate::config::{Metadata, ModelConfig, Rope, RopeLayout};
use crate::error::ModelError;
use crate::hf::Layout;
use crate::layers::decoder::TensorNames;

/// The family's entry in the registry.
pub const FAMILY: Family = Family {
    architecture: "llama",
    config,
    names: TensorNames {
        embed: "token_embd.weight",
        attention_norm: "blk.{}.attn_norm.weight",
        q: "blk.{}.attn_q.weight",
        k: "blk.{}.attn_k.weight",
        v: "blk.{}.attn_v.weight",
        o: "blk.{}.attn_output.weight",
        ffn_norm: "blk.{}.ffn_norm.weight",
        gate: "blk.{}.ffn_gate.weight",
        up: "blk.{}.ffn_up.weight",
        down: "blk.{}.ffn_down.weight",
        final_norm: "output_norm.weight",
        head: "output.weight",
    },
    hf: Some(Layout {
        architecture: "LlamaForCausalLM",
        config: |metadata| hf_knobs::decoder(metadata, "llama"),
        names: hf_knobs::NAMES,
    }),
};

/// The base of the rotary angles where the file names none.
const DEFAULT_THETA: f32 = 10_000.0;

fn config(metadata: &Metadata) -> Result<ModelConfig, ModelError> {
    let hidden = metadata.size("llama.embedding_length")?;
    let heads = metadata.size("llama.attention.head_count")?;
    let head_dim = head_dim(metadata, hidden, heads)?;
    Ok(ModelConfig {
        architecture: "llama".to_owned(),
        name: metadata.optional_text("general.name")?.unwrap_or("unnamed").to_owned(),
        hidden,
        layers: metadata.size("llama.block_count")?,
        heads,
        kv_heads: metadata.optional_size("llama.attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: metadata.size("llama.feed_forward_length")?,
        vocab: vocab(metadata)?,
        context: metadata.size("llama.context_length")?,
        rms_eps: metadata.f32("llama.attention.layer_norm_rms_epsilon")?,
        rope: Rope {
            theta: metadata.optional_f32("llama.rope.freq_base")?.unwrap_or(DEFAULT_THETA),
            layout: RopeLayout::Pairs,
        },
        tied_head: false,
        cache: DType::F16,
    })
}

/// Elements per head: of keys, values and the rotation alike.
fn head_dim(metadata: &Metadata, hidden: usize, heads: usize) -> Result<usize, ModelError> {
    let head_dim = match metadata.optional_size("llama.attention.key_length")? {
        Some(length) => length,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(ModelError::Key {
                key: "llama.attention.head_count".to_owned(),
                expected: format!("a divisor of the width {hidden}, or llama.attention.key_length beside it"),
                found: heads.to_string(),
            });
        }
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(length) = metadata.optional_size(key)?.filter(|&length| length != head_dim) {
            let expected = format!("the {head_dim} elements of a key: other sizes are not supported");
            return Err(ModelError::Key { key: key.to_owned(), expected, found: length.to_string() });
        }
    }
    Ok(head_dim)
}

/// The number of tokens, which the vocabulary itself decides.
fn vocab(metadata: &Metadata) -> Result<usize, ModelError> {
    let tokens = metadata.texts("tokenizer.ggml.tokens")?.len();
    match metadata.optional_size("llama.vocab_size")?.filter(|&size| size != tokens) {
        None => Ok(tokens),
        Some(size) => Err(ModelError::Key {
            key: "llama.vocab_size".to_owned(),
            expected: format!("the {tokens} tokens of tokenizer.ggml.tokens"),
            found: size.to_string(),
        }),
    }
}
