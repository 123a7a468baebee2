//! `scale`: multiplies every element by a constant, as models do with embeddings, residuals or logits.
//!
//! `(x f32[M, K]) -> f32[M, K]`, `y = factor · x`, one rounding of f32. The factor is the f32 that the op holds: a model
//! whose own code rounds it further (to bf16, for example) is built with that value.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// The constant; finite.
    pub factor: f32,
}

impl OpRules for Scale {
    const NAME: &'static str = "scale";
    const OPERANDS: &'static [&'static str] = &["x"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Scale>(inputs)?;
        if !self.factor.is_finite() {
            return operands.fail(format!("attribute 'factor' expects a finite number, found {:?}", self.factor));
        }
        operands.rows(0)?;
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("factor", self.factor)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<Scale, AttributeError> {
        Ok(Scale { factor: attributes.float("factor")? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x] = tensors(inputs)?;
        let out = x.as_f32()?.iter().map(|&x| self.factor * x).collect();
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, elements(&results[0], size))
    }
}
