//! `layer_norm`: centres each row, divides it by its standard deviation, scales and shifts it (Ba et al., 2016).
//!
//! `(x f32[M, K], w f32[K], bias f32[K]) -> f32[M, K]`,
//! `y[m, k] = (x[m, k] − mean) / sqrt(mean_k((x[m, k] − mean)²) + eps) · w[k] + bias[k]` with the mean of row m.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
}

impl OpRules for LayerNorm {
    const NAME: &'static str = "layer_norm";
    const OPERANDS: &'static [&'static str] = &["x", "w", "bias"];
    const STAGE: Stage = Stage::Prologue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<LayerNorm>(inputs)?;
        operands.positive("eps", self.eps)?;
        let (_, k) = operands.rows(0)?;
        for slot in [1, 2] {
            if operands.vector(slot)? != k {
                return operands.refuse(slot, &format!("f32[{k}]"));
            }
        }
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("eps", self.eps)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<LayerNorm, AttributeError> {
        Ok(LayerNorm { eps: attributes.float("eps")? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x, w, bias] = tensors(inputs)?;
        let (w, bias, k) = (w.as_f32()?, bias.as_f32()?, x.cols());
        let mut out = x.as_f32()?.to_vec();
        for row in out.chunks_mut(k.max(1)) {
            let mean = row.iter().map(|&value| f64::from(value)).sum::<f64>() / k as f64;
            let squares: f64 = row.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum();
            let scale = 1.0 / (squares / k as f64 + f64::from(self.eps)).sqrt();
            for ((value, &w), &bias) in row.iter_mut().zip(w).zip(bias) {
                *value = ((f64::from(*value) - mean) * scale * f64::from(w) + f64::from(bias)) as f32;
            }
        }
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, 7 * elements(&results[0], size))
    }
}
