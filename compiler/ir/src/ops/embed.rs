//! `embed`: looks up the rows of tokens in a table.
//!
//! `(tokens i32[T], table weight[V, K]) -> f32[T, K]`, `y[t, k] = table[tokens[t], k]`.

use super::{Operands, bytes, index, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules};
use crate::types::{Dim, StepSize, Type};

/// The op; it has no attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Embed;

impl OpRules for Embed {
    const NAME: &'static str = "embed";
    const OPERANDS: &'static [&'static str] = &["tokens", "table"];

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Embed>(inputs)?;
        let m = operands.indices(0)?;
        let (_, _, k) = operands.weight(1)?;
        Ok(vec![Type::f32([m, Dim::of(k)])])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn from_attributes(_: &mut Attributes) -> Result<Embed, AttributeError> {
        Ok(Embed)
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [tokens, table] = tensors(inputs)?;
        let (tokens, table) = (tokens.as_i32()?, table.as_matrix()?);
        let mut out = vec![0.0; tokens.len() * table.cols];
        for (&token, row) in tokens.iter().zip(out.chunks_mut(table.cols.max(1))) {
            table.row(index("token", token, table.rows)?, row);
        }
        Ok(vec![Tensor::f32(vec![tokens.len(), table.cols], out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        let [tokens, table] = inputs else { return Cost::default() };
        let rows = results[0].shape().map_or(0, |shape| shape[0].eval(size)) as u64;
        let row_bytes = match table.shape().map(|shape| shape[0].eval(size) as u64) {
            Some(v) if v > 0 => bytes(table, size) / v,
            _ => 0,
        };
        Cost { flops: 0, bytes: bytes(tokens, size) + rows * row_bytes + bytes(&results[0], size) }
    }
}
