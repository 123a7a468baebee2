//! Cache pages: how the keys and values of 16 tokens lie in memory.
//!
//! A page holds, per key/value head, keys then values. Floats: keys as `[D, 16]`, so that a score of 16 tokens is one lane
//! value, values as `[16, D]`. Products of bf16 take two at once, so they lie in pairs: keys as `[groups][16 pairs][16
//! tokens][2]`, a pair being an element of a group of 32 and the one 16 further on (zeros after the end of a head), values
//! as `[8 pairs of tokens][D][2]`. Codes of int8: see [`CodePage`].

use lathe_ir::types::{DType, KEY_GROUP};

/// Tokens in a cache page.
pub const PAGE_TOKENS: usize = 16;
/// Bytes of the scale of codes, an f16.
pub const SCALE_BYTES: usize = 2;
/// Pages of codes fill whole cache lines.
const LINE_BYTES: usize = 64;

/// Bytes of one cache page.
pub fn page_bytes(kv_heads: usize, head_dim: usize, dtype: DType) -> usize {
    kv_heads
        * match dtype {
            DType::Int8 => CodePage::new(head_dim).bytes,
            DType::Bf16 => paired_key_bytes(head_dim) + PAGE_TOKENS * head_dim * dtype.bytes(),
            _ => 2 * PAGE_TOKENS * head_dim * dtype.bytes(),
        }
}

/// Bytes of a head's keys of bf16 in a page.
pub fn paired_key_bytes(head_dim: usize) -> usize {
    head_dim.next_multiple_of(KEY_GROUP) * PAGE_TOKENS * DType::Bf16.bytes()
}

/// Where a head's codes and scales lie in its part of a page, in bytes.
///
/// Products take two codes at once, so codes lie in pairs: keys as `[groups][16 pairs][16 tokens][2]`, a pair being an
/// element of a group and the one 16 further on (zeros after the end of a head), values as `[8 pairs of tokens][D][2]`.
/// Scales are f16: of keys `[groups][16 tokens]`, of values `[16 tokens]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePage {
    /// Groups of a key that have a scale each.
    pub groups: usize,
    /// Where codes of values begin.
    pub values: usize,
    /// Where scales of keys begin.
    pub key_scales: usize,
    /// Where scales of values begin.
    pub value_scales: usize,
    /// Bytes of all.
    pub bytes: usize,
}

impl CodePage {
    /// The page of heads with so many elements.
    pub fn new(head_dim: usize) -> CodePage {
        let groups = head_dim.div_ceil(KEY_GROUP);
        let values = groups * KEY_GROUP * PAGE_TOKENS;
        let key_scales = values + head_dim * PAGE_TOKENS;
        let value_scales = key_scales + groups * PAGE_TOKENS * SCALE_BYTES;
        let bytes = (value_scales + PAGE_TOKENS * SCALE_BYTES).next_multiple_of(LINE_BYTES);
        CodePage { groups, values, key_scales, value_scales, bytes }
    }
}
