//! `rms_norm`: divides each row by its root mean square and scales it (Zhang and Sennrich, 2019).
//!
//! `(x f32[M, K], w f32[K]) -> f32[M, K]`, `y[m, k] = x[m, k] / sqrt(mean_k(x[m, k]²) + eps) · w[k]`.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

impl OpRules for RmsNorm {
    const NAME: &'static str = "rms_norm";
    const OPERANDS: &'static [&'static str] = &["x", "w"];
    const STAGE: Stage = Stage::Prologue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<RmsNorm>(inputs)?;
        operands.positive("eps", self.eps)?;
        let (_, k) = operands.rows(0)?;
        if operands.vector(1)? != k {
            return operands.refuse(1, &format!("f32[{k}]"));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("eps", self.eps)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<RmsNorm, AttributeError> {
        Ok(RmsNorm { eps: attributes.float("eps")? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x, w] = tensors(inputs)?;
        let (w, k) = (w.as_f32()?, x.cols());
        let mut out = x.as_f32()?.to_vec();
        for row in out.chunks_mut(k.max(1)) {
            let squares: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
            let scale = 1.0 / (squares / k as f64 + f64::from(self.eps)).sqrt();
            for (value, &w) in row.iter_mut().zip(w) {
                *value = (f64::from(*value) * scale * f64::from(w)) as f32;
            }
        }
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, 4 * elements(&results[0], size))
    }
}
