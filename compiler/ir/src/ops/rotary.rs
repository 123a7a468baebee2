//! `rotary`: the rotation of each position, computed once and shared by every `rope` of a step (Su et al., 2021).
//!
//! `(positions i32[T]) -> f32[T, D]` with D = `head_dim`: the cosines of the D/2 angles, then their sines.
//! `angle[t, i] = positions[t] · theta^(-2i/D)`, computed in f64 and rounded to f32 once.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules};
use crate::types::{Dim, StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Elements per head, D; even.
    pub head_dim: usize,
    /// The base of the frequencies.
    pub theta: f32,
}

impl OpRules for Rotary {
    const NAME: &'static str = "rotary";
    const OPERANDS: &'static [&'static str] = &["positions"];

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Rotary>(inputs)?;
        operands.positive("theta", self.theta)?;
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return operands.fail(format!("attribute 'head_dim' expects an even number, found {}", self.head_dim));
        }
        Ok(vec![Type::f32([operands.indices(0)?, Dim::of(self.head_dim)])])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("head_dim", self.head_dim).with("theta", self.theta)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<Rotary, AttributeError> {
        Ok(Rotary { head_dim: attributes.count("head_dim")?, theta: attributes.float("theta")? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [positions] = tensors(inputs)?;
        let positions = positions.as_i32()?;
        let d = self.head_dim;
        let mut out = Vec::with_capacity(positions.len() * d);
        for &position in positions {
            let angle = |i: usize| f64::from(position) * f64::from(self.theta).powf(-2.0 * i as f64 / d as f64);
            out.extend((0..d / 2).map(|i| angle(i).cos() as f32));
            out.extend((0..d / 2).map(|i| angle(i).sin() as f32));
        }
        Ok(vec![Tensor::f32(vec![positions.len(), d], out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        // A cosine or sine counts as 20 operations, about what its polynomial takes.
        streaming_cost(inputs, results, size, 20 * elements(&results[0], size))
    }
}
