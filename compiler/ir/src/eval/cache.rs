//! The key/value cache of the reference evaluation: a map from (sequence, position) to one row of keys and values.

use std::collections::BTreeMap;

use half::{bf16, f16};

use super::EvalError;
use crate::types::{CacheType, DType, KEY_GROUP};

/// The largest magnitude of a code.
const MAX_CODE: f32 = 127.0;

/// What one token left in a cache.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheRow {
    /// Keys of all heads.
    pub key: Vec<f32>, // [KV, D]
    /// Values of all heads.
    pub value: Vec<f32>, // [KV, D]
}

/// The state of one cache. Appending gives the next state; a position appended again is overwritten.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheState {
    ty: CacheType,
    rows: BTreeMap<(i32, i32), CacheRow>,
}

impl CacheState {
    /// An empty cache.
    pub fn new(ty: CacheType) -> CacheState {
        CacheState { ty, rows: BTreeMap::new() }
    }

    /// Its type.
    pub fn ty(&self) -> CacheType {
        self.ty
    }

    /// Stores one token's keys and values, [KV, D] each, rounded to the cache's element type.
    pub fn append(&mut self, sequence: i32, position: i32, key: &[f32], value: &[f32]) {
        let CacheType { dtype, head_dim, .. } = self.ty;
        let round = |values: &[f32], group: usize| -> Vec<f32> {
            if dtype == DType::Int8 {
                let groups = values.chunks(head_dim.max(1)).flat_map(|head| head.chunks(group));
                return groups.flat_map(codes).collect();
            }
            values.iter().map(|&value| round_to(dtype, value)).collect()
        };
        let row = CacheRow { key: round(key, KEY_GROUP), value: round(value, head_dim.max(1)) };
        self.rows.insert((sequence, position), row);
    }

    /// The rows of a sequence at positions `0..=position`, in order; with a window only the last ones of them.
    ///
    /// # Errors
    /// When one of them was never appended.
    pub fn visible(&self, sequence: i32, position: i32, window: Option<usize>) -> Result<Vec<&CacheRow>, EvalError> {
        if position < 0 {
            return Err(EvalError::NotCached { sequence, position });
        }
        let row = |position| self.rows.get(&(sequence, position)).ok_or(EvalError::NotCached { sequence, position });
        let window = window.and_then(|window| i32::try_from(window).ok()).unwrap_or(i32::MAX);
        (position.saturating_sub(window - 1).max(0)..=position).map(row).collect()
    }

    /// Forgets a sequence.
    pub fn remove_sequence(&mut self, sequence: i32) {
        self.rows.retain(|&(other, _), _| other != sequence);
    }
}

/// Values rounded to codes that share a scale, and multiplied by it again. The scale is the largest magnitude over 127,
/// rounded to f16; a code is the value times the scale's inverse, rounded to even, and at most 127 in magnitude.
pub fn codes(values: &[f32]) -> Vec<f32> {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / MAX_CODE).to_f32();
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let code = |value: f32| (value * inverse).round_ties_even().clamp(-MAX_CODE, MAX_CODE);
    values.iter().map(|&value| code(value) * scale).collect()
}

fn round_to(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        DType::F32 | DType::I32 | DType::Int8 => value,
    }
}
