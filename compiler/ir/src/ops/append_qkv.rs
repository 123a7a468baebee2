//! `append_qkv`: splits a merged projection: keys and values go to the cache, queries pass on.
//!
//! `(qkv f32[T, (heads + 2·KV)·D], positions i32[T], sequences i32[T], cache) -> (q f32[T, heads·D], cache)`. A row
//! holds the query heads, then KV key heads, then KV value heads; keys and values are stored as by `append`.

use super::{Operands, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{Dim, StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct AppendQkv {
    /// Query heads.
    pub heads: usize,
}

impl OpRules for AppendQkv {
    const NAME: &'static str = "append_qkv";
    const OPERANDS: &'static [&'static str] = &["qkv", "positions", "sequences", "cache"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<AppendQkv>(inputs)?;
        let cache = operands.cache(3)?;
        let (t, width) = operands.rows(0)?;
        if width != cache.width(self.heads.saturating_add(cache.heads.saturating_mul(2))) {
            let expected = format!("({} + 2·{})·{} columns", self.heads, cache.heads, cache.head_dim);
            return operands.refuse(0, &expected);
        }
        operands.indices_of(1, t)?;
        operands.indices_of(2, t)?;
        Ok(vec![Type::f32([t, Dim::of(cache.width(self.heads))]), Type::Cache(cache)])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("heads", self.heads)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<AppendQkv, AttributeError> {
        Ok(AppendQkv { heads: attributes.count("heads")? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [qkv, positions, sequences, cache] = tensors(inputs)?;
        let (positions, sequences) = (positions.as_i32()?, sequences.as_i32()?);
        let mut state = cache.as_cache()?.clone();
        let q_width = self.heads * state.ty().head_dim;
        let kv_width = state.ty().heads * state.ty().head_dim;
        let mut q = Vec::with_capacity(qkv.rows() * q_width);
        let rows = qkv.as_f32()?.chunks(qkv.cols().max(1));
        for (row, (&position, &sequence)) in rows.zip(positions.iter().zip(sequences)) {
            let (query, kv) = row.split_at(q_width);
            let (key, value) = kv.split_at(kv_width);
            q.extend_from_slice(query);
            state.append(sequence, position, key, value);
        }
        Ok(vec![Tensor::f32(vec![qkv.rows(), q_width], q), Tensor::cache(state)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, 0)
    }
}
