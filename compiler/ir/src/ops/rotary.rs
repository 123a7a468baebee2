//! `rotary`: the rotation of each position, computed once and shared by every `rope` of a step (Su et al., 2021).
//!
//! `(positions i32[T]) -> f32[T, D]` with D = `dim` rotating elements, all of a head or its first ones: the cosines of
//! the D/2 angles, then their sines. `angle[t, i] = positions[t] · theta^(-2i/D)`, where a [`Scaling`] changes the
//! frequencies and may multiply cosines and sines by a factor. Computed in f64 and rounded to f32 once.

pub mod scaling;

pub use scaling::Scaling;

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules};
use crate::types::{Dim, StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Elements that rotate, D; even.
    pub dim: usize,
    /// The base of the frequencies.
    pub theta: f32,
    /// What changes the frequencies.
    pub scaling: Scaling,
}

impl OpRules for Rotary {
    const NAME: &'static str = "rotary";
    const OPERANDS: &'static [&'static str] = &["positions"];

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Rotary>(inputs)?;
        operands.positive("theta", self.theta)?;
        if self.dim == 0 || !self.dim.is_multiple_of(2) {
            return operands.fail(format!("attribute 'dim' expects an even number, found {}", self.dim));
        }
        if let Some(fault) = self.scaling.fault(self.dim) {
            return operands.fail(fault);
        }
        Ok(vec![Type::f32([operands.indices(0)?, Dim::of(self.dim)])])
    }

    fn attributes(&self) -> Attributes {
        self.scaling.attributes(Attributes::new().with("dim", self.dim).with("theta", self.theta))
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<Rotary, AttributeError> {
        let (dim, theta) = (attributes.count("dim")?, attributes.float("theta")?);
        Ok(Rotary { dim, theta, scaling: Scaling::from_attributes(attributes)? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [positions] = tensors(inputs)?;
        let positions = positions.as_i32()?;
        let factor = f64::from(self.scaling.attention_factor());
        let mut out = Vec::with_capacity(positions.len() * self.dim);
        for &position in positions {
            let length = usize::try_from(position).map_or(0, |position| position + 1);
            let frequencies = self.scaling.frequencies(self.dim, self.theta, length);
            let angles = || frequencies.iter().map(|frequency| f64::from(position) * frequency);
            out.extend(angles().map(|angle| (factor * angle.cos()) as f32));
            out.extend(angles().map(|angle| (factor * angle.sin()) as f32));
        }
        Ok(vec![Tensor::f32(vec![positions.len(), self.dim], out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        // A cosine or sine counts as 20 operations, about what its polynomial takes.
        streaming_cost(inputs, results, size, 20 * elements(&results[0], size))
    }
}
