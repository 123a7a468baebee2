//! `silu`: the sigmoid-weighted linear unit (Elfwing et al., 2017).
//!
//! `(x f32[M, K]) -> f32[M, K]`, `y = x · sigmoid(x) = x / (1 + exp(-x))`.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op; it has no attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Silu;

/// `x · sigmoid(x)`, in f64 and rounded once.
pub(crate) fn silu(x: f32) -> f32 {
    let x = f64::from(x);
    (x / (1.0 + (-x).exp())) as f32
}

impl OpRules for Silu {
    const NAME: &'static str = "silu";
    const OPERANDS: &'static [&'static str] = &["x"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        Operands::of::<Silu>(inputs)?.rows(0)?;
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn from_attributes(_: &mut Attributes) -> Result<Silu, AttributeError> {
        Ok(Silu)
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x] = tensors(inputs)?;
        let out = x.as_f32()?.iter().map(|&x| silu(x)).collect();
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        // An exponential counts as 10 operations, about what its polynomial takes.
        streaming_cost(inputs, results, size, 12 * elements(&results[0], size))
    }
}
