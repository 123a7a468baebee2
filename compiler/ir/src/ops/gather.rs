//! `gather`: picks rows by index.
//!
//! `(x f32[T, K], rows i32[R]) -> f32[R, K]`, `y[r, k] = x[rows[r], k]`.

use super::{Operands, bytes, index, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{Dim, StepSize, Type};

/// The op; it has no attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather;

impl OpRules for Gather {
    const NAME: &'static str = "gather";
    const OPERANDS: &'static [&'static str] = &["x", "rows"];
    const STAGE: Stage = Stage::Prologue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Gather>(inputs)?;
        let (_, k) = operands.rows(0)?;
        let r = operands.indices(1)?;
        Ok(vec![Type::f32([r, Dim::of(k)])])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn from_attributes(_: &mut Attributes) -> Result<Gather, AttributeError> {
        Ok(Gather)
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x, rows] = tensors(inputs)?;
        let (values, wanted, k) = (x.as_f32()?, rows.as_i32()?, x.cols());
        let mut out = Vec::with_capacity(wanted.len() * k);
        for &row in wanted {
            let at = index("row", row, x.rows())?;
            out.extend_from_slice(&values[at * k..(at + 1) * k]);
        }
        Ok(vec![Tensor::f32(vec![wanted.len(), k], out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        let rows = inputs.get(1).map_or(0, |rows| bytes(rows, size));
        Cost { flops: 0, bytes: rows + 2 * bytes(&results[0], size) }
    }
}
