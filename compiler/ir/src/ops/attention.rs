//! `attention`: causal softmax attention over the cache (Vaswani et al., 2017), with grouped queries.
//!
//! `(q f32[T, heads·D], positions i32[T], sequences i32[T], cache) -> f32[T, heads·D]`. The token at position p sees the
//! cached positions `0..=p` of its sequence, with a `window` of W tokens only the last W of them. Query head h reads kv head `h / (heads / KV)`. Per head:
//! `weights = softmax_j(cap(scale · q · k[j]))`, `y = Σ_j weights[j] · v[j]`, where cap is that of `softcap` (Gemma 2) or,
//! without one, nothing.

use super::softcap::softcap;
use super::{Operands, bytes, cache_row_bytes, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{CacheRow, EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules};
use crate::types::{StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads, a multiple of the cache's heads.
    pub heads: usize,
    /// Factor of the scores, as a rule `1 / sqrt(D)`.
    pub scale: f32,
    /// Tokens that a token sees, itself included; all before it where there is none.
    pub window: Option<usize>,
    /// Bound of the scores, see [`super::softcap`].
    pub softcap: Option<f32>,
}

impl OpRules for Attention {
    const NAME: &'static str = "attention";
    const OPERANDS: &'static [&'static str] = &["q", "positions", "sequences", "cache"];

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Attention>(inputs)?;
        operands.positive("scale", self.scale)?;
        if let Some(cap) = self.softcap {
            operands.positive("softcap", cap)?;
        }
        if self.window == Some(0) {
            return operands.fail("attribute 'window' expects at least 1 token, found 0");
        }
        let cache = operands.cache(3)?;
        let (t, width) = operands.rows(0)?;
        if width != cache.width(self.heads) {
            return operands.refuse(0, &format!("{}·{} columns", self.heads, cache.head_dim));
        }
        if cache.heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(cache.heads) {
            return operands.refuse(3, &format!("a number of heads that divides {}", self.heads));
        }
        operands.indices_of(1, t)?;
        operands.indices_of(2, t)?;
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        let always = Attributes::new().with("heads", self.heads).with("scale", self.scale);
        always.with_some("window", self.window).with_some("softcap", self.softcap)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<Attention, AttributeError> {
        Ok(Attention {
            heads: attributes.count("heads")?,
            scale: attributes.float("scale")?,
            window: attributes.optional_count("window")?,
            softcap: attributes.optional_float("softcap")?,
        })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [q, positions, sequences, cache] = tensors(inputs)?;
        let (positions, sequences, state) = (positions.as_i32()?, sequences.as_i32()?, cache.as_cache()?);
        let d = state.ty().head_dim;
        let group = self.heads / state.ty().heads;
        let mut out = Vec::with_capacity(q.rows() * q.cols());
        let rows = q.as_f32()?.chunks(q.cols().max(1));
        for (row, (&position, &sequence)) in rows.zip(positions.iter().zip(sequences)) {
            let visible = state.visible(sequence, position, self.window)?;
            for (h, query) in row.chunks(d).enumerate() {
                let at = h / group * d;
                out.extend(self.attend(query, &visible, at..at + d));
            }
        }
        Ok(vec![Tensor::f32(q.shape.clone(), out)])
    }

    /// `StepSize` does not say how much is cached, so this counts a prefill into an empty cache: a token sees on average
    /// half of its sequence's tokens, and its window at most. The keys and values of the step are read once.
    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        let (tokens, sequences) = (size.tokens as u64, size.sequences.max(1) as u64);
        let window = self.window.map_or(u64::MAX, |window| window as u64);
        let pairs = (tokens * (tokens / sequences + 1) / 2).min(tokens.saturating_mul(window));
        let width = results[0].shape().map_or(0, |shape| shape[1].eval(size)) as u64;
        let cached = match inputs.get(3) {
            Some(Type::Cache(cache)) => tokens * cache_row_bytes(*cache),
            _ => 0,
        };
        let dense: u64 = inputs.iter().map(|ty| bytes(ty, size)).sum();
        Cost { flops: 4 * pairs * width, bytes: dense + cached + bytes(&results[0], size) }
    }
}

impl Attention {
    /// One query head, [D], over the visible rows' head at `at`, in f64.
    fn attend(&self, query: &[f32], visible: &[&CacheRow], at: std::ops::Range<usize>) -> Vec<f32> {
        let dot = |key: &[f32]| query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
        let cap = |score: f64| self.softcap.map_or(score, |cap| softcap(score, cap));
        let score = |row: &&CacheRow| cap(f64::from(self.scale) * dot(&row.key[at.clone()]));
        let scores: Vec<f64> = visible.iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sums = vec![0.0f64; query.len()];
        for (weight, row) in weights.iter().zip(visible) {
            for (sum, &value) in sums.iter_mut().zip(&row.value[at.clone()]) {
                *sum += weight * f64::from(value);
            }
        }
        sums.into_iter().map(|sum| (sum / total) as f32).collect()
    }
}
