//! `head_norm`: divides each head by its root mean square and scales it, as Qwen 3 and Gemma 3 do with queries and keys.
//!
//! `(x f32[M, H·D], w f32[D]) -> f32[M, H·D]` with D = `head_dim`. The heads `first .. first + heads` of a row are normed
//! as by `rms_norm`, all with the same w; other heads pass unchanged, so that two ops norm the queries and the keys of a
//! merged projection. `first` is left out of the text where it is 0.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadNorm {
    /// Elements per head, D.
    pub head_dim: usize,
    /// The first head to norm.
    pub first: usize,
    /// How many heads to norm.
    pub heads: usize,
    /// Added to the mean square.
    pub eps: f32,
}

impl OpRules for HeadNorm {
    const NAME: &'static str = "head_norm";
    const OPERANDS: &'static [&'static str] = &["x", "w"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<HeadNorm>(inputs)?;
        operands.positive("eps", self.eps)?;
        let (_, width) = operands.rows(0)?;
        let d = self.head_dim;
        if d == 0 || operands.vector(1)? != d {
            return operands.refuse(1, &format!("f32[{d}] with a head_dim above 0"));
        }
        let end = self.first.saturating_add(self.heads);
        if width % d != 0 || end > width / d {
            return operands.refuse(0, &format!("whole heads of {d}, at least {end} of them"));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        let first = (self.first > 0).then_some(self.first);
        let heads = Attributes::new().with("head_dim", self.head_dim).with_some("first", first);
        heads.with("heads", self.heads).with("eps", self.eps)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<HeadNorm, AttributeError> {
        Ok(HeadNorm {
            head_dim: attributes.count("head_dim")?,
            first: attributes.optional_count("first")?.unwrap_or(0),
            heads: attributes.count("heads")?,
            eps: attributes.float("eps")?,
        })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x, w] = tensors(inputs)?;
        let w = w.as_f32()?;
        let mut out = x.as_f32()?.to_vec();
        for row in out.chunks_mut(x.cols().max(1)) {
            for head in row.chunks_mut(self.head_dim).skip(self.first).take(self.heads) {
                let squares: f64 = head.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
                let scale = 1.0 / (squares / self.head_dim as f64 + f64::from(self.eps)).sqrt();
                for (value, &w) in head.iter_mut().zip(w) {
                    *value = (f64::from(*value) * scale * f64::from(w)) as f32;
                }
            }
        }
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, 4 * elements(&results[0], size))
    }
}
