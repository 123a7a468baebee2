//! `norm_add`: adds a residual to a normed row, as models do that norm the results of their blocks.
//!
//! `(x f32[M, K], w f32[K], residual f32[M, K]) -> f32[M, K]`, `y = rms_norm(x, w) + residual`.

use super::rms_norm::RmsNorm;
use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules};
use crate::types::{StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct NormAdd {
    /// Added to the mean square.
    pub eps: f32,
}

impl OpRules for NormAdd {
    const NAME: &'static str = "norm_add";
    const OPERANDS: &'static [&'static str] = &["x", "w", "residual"];

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<NormAdd>(inputs)?;
        operands.positive("eps", self.eps)?;
        let (_, k) = operands.rows(0)?;
        if operands.vector(1)? != k {
            return operands.refuse(1, &format!("f32[{k}]"));
        }
        if inputs[0] != inputs[2] {
            return operands.refuse(2, &inputs[0].to_string());
        }
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("eps", self.eps)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<NormAdd, AttributeError> {
        Ok(NormAdd { eps: attributes.float("eps")? })
    }

    fn eval(&self, inputs: &[Tensor], context: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x, w, residual] = tensors(inputs)?;
        let normed = RmsNorm { eps: self.eps }.eval(&[x.clone(), w.clone()], context)?;
        let [normed] = tensors(&normed)?;
        let out = normed.as_f32()?.iter().zip(residual.as_f32()?).map(|(a, b)| a + b).collect();
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, 5 * elements(&results[0], size))
    }
}
