//! `add`: the elementwise sum.
//!
//! `(a f32[M, K], b f32[M, K]) -> f32[M, K]`, `y = a + b`.
//!
//! In the epilogue of a linear it adds the residual; the running value is operand `a`. A sum does not depend on the
//! order of two operands, so a pass may swap them to fit.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op; it has no attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Add;

impl OpRules for Add {
    const NAME: &'static str = "add";
    const OPERANDS: &'static [&'static str] = &["a", "b"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Add>(inputs)?;
        operands.rows(0)?;
        if inputs[0] != inputs[1] {
            return operands.refuse(1, &inputs[0].to_string());
        }
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn from_attributes(_: &mut Attributes) -> Result<Add, AttributeError> {
        Ok(Add)
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [a, b] = tensors(inputs)?;
        let out = a.as_f32()?.iter().zip(b.as_f32()?).map(|(a, b)| a + b).collect();
        Ok(vec![Tensor::f32(a.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, elements(&results[0], size))
    }
}
