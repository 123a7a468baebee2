//! `softcap`: bounds every element smoothly, as Gemma 2 does with its logits (Gemma Team, 2024).
//!
//! `(x f32[M, K]) -> f32[M, K]`, `y = cap · tanh(x / cap)`.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct Softcap {
    /// The bound; positive.
    pub cap: f32,
}

/// `cap · tanh(x / cap)` in f64.
pub(crate) fn softcap(x: f64, cap: f32) -> f64 {
    let cap = f64::from(cap);
    cap * (x / cap).tanh()
}

impl OpRules for Softcap {
    const NAME: &'static str = "softcap";
    const OPERANDS: &'static [&'static str] = &["x"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Softcap>(inputs)?;
        operands.positive("cap", self.cap)?;
        operands.rows(0)?;
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("cap", self.cap)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<Softcap, AttributeError> {
        Ok(Softcap { cap: attributes.float("cap")? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x] = tensors(inputs)?;
        let out = x.as_f32()?.iter().map(|&x| softcap(f64::from(x), self.cap) as f32).collect();
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        // An exponential, a division and a polynomial count as 20 operations.
        streaming_cost(inputs, results, size, 20 * elements(&results[0], size))
    }
}
