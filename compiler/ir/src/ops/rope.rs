//! `rope`: rotates heads by position, in halves layout (Su et al., 2021).
//!
//! `(x f32[T, H·D], rotary f32[T, R]) -> f32[T, H·D]`, D = `head_dim`, R at most D. In each of the first `heads` heads,
//! with `c` and `s` the halves of `rotary`: `y[i] = x[i]·c[i] − x[i+R/2]·s[i]` and `y[i+R/2] = x[i+R/2]·c[i] + x[i]·s[i]`
//! for i below R/2; the elements from R on pass unchanged (partial rotation). Other heads pass unchanged, so one op
//! rotates the queries and keys of a merged projection.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Elements per head, D.
    pub head_dim: usize,
    /// Heads to rotate, the first ones of each row.
    pub heads: usize,
}

impl OpRules for Rope {
    const NAME: &'static str = "rope";
    const OPERANDS: &'static [&'static str] = &["x", "rotary"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Rope>(inputs)?;
        let (t, width) = operands.rows(0)?;
        let d = self.head_dim;
        let turning = operands.rows_of(1, t)?;
        if d == 0 || turning > d || !turning.is_multiple_of(2) {
            return operands.refuse(1, &format!("f32[{t}, R] with an even R of at most {d}"));
        }
        if width % d != 0 || self.heads > width / d {
            return operands.refuse(0, &format!("whole heads of {d}, at least {} of them", self.heads));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("head_dim", self.head_dim).with("heads", self.heads)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<Rope, AttributeError> {
        Ok(Rope { head_dim: attributes.count("head_dim")?, heads: attributes.count("heads")? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x, rotary] = tensors(inputs)?;
        let half = rotary.cols() / 2;
        let mut out = x.as_f32()?.to_vec();
        let rotations = rotary.as_f32()?.chunks(rotary.cols().max(1));
        for (row, rotation) in out.chunks_mut(x.cols().max(1)).zip(rotations) {
            let (cos, sin) = rotation.split_at(half);
            for head in row.chunks_mut(self.head_dim).take(self.heads) {
                for i in 0..half {
                    let (a, b) = (head[i], head[i + half]);
                    head[i] = a * cos[i] - b * sin[i];
                    head[i + half] = b * cos[i] + a * sin[i];
                }
            }
        }
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, 3 * elements(&results[0], size))
    }
}
