//! `append`: stores the keys and values of the step's tokens in a cache.
//!
//! `(k f32[T, KV·D], v f32[T, KV·D], positions i32[T], sequences i32[T], cache) -> cache`. Token t becomes the entry
//! (`sequences[t]`, `positions[t]`), rounded to the cache's element type: to int8
//! codes by [`crate::eval::codes`].

use super::{Operands, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules};
use crate::types::{StepSize, Type};

/// The op; it has no attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Append;

impl OpRules for Append {
    const NAME: &'static str = "append";
    const OPERANDS: &'static [&'static str] = &["k", "v", "positions", "sequences", "cache"];

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Append>(inputs)?;
        let cache = operands.cache(4)?;
        let (t, _) = operands.rows(0)?;
        for slot in [0, 1] {
            if operands.rows_of(slot, t)? != cache.width(cache.heads) {
                return operands.refuse(slot, &format!("{t} rows that fill one entry of {cache}"));
            }
        }
        operands.indices_of(2, t)?;
        operands.indices_of(3, t)?;
        Ok(vec![Type::Cache(cache)])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn from_attributes(_: &mut Attributes) -> Result<Append, AttributeError> {
        Ok(Append)
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [k, v, positions, sequences, cache] = tensors(inputs)?;
        let (width, positions, sequences) = (k.cols().max(1), positions.as_i32()?, sequences.as_i32()?);
        let mut state = cache.as_cache()?.clone();
        let rows = k.as_f32()?.chunks(width).zip(v.as_f32()?.chunks(width));
        for ((key, value), (&position, &sequence)) in rows.zip(positions.iter().zip(sequences)) {
            state.append(sequence, position, key, value);
        }
        Ok(vec![Tensor::cache(state)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, 0)
    }
}
