//! `quantize`: turns activations into signed 8-bit codes, one f32 scale per group along a row.
//!
//! `(x f32[M, K]) -> int8[group][M, K]`. Per group: `scale = max|x| / 127` in f32, `inverse = 1 / scale`,
//! `code = round_half_even(x · inverse)`, clamped to -127..=127. A group of zeros has scale 0 and codes 0.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{Data, EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{Elem, StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantize {
    /// Elements that share a scale.
    pub group: usize,
}

impl OpRules for Quantize {
    const NAME: &'static str = "quantize";
    const OPERANDS: &'static [&'static str] = &["x"];
    const STAGE: Stage = Stage::Prologue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Quantize>(inputs)?;
        let (m, k) = operands.rows(0)?;
        if self.group == 0 || k % self.group != 0 {
            return operands.fail(format!("{k} columns are not whole groups of {}", self.group));
        }
        Ok(vec![Type::Tensor { elem: Elem::Act { group: self.group }, shape: vec![m, k.into()] }])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("group", self.group)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<Quantize, AttributeError> {
        Ok(Quantize { group: attributes.count("group")? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x] = tensors(inputs)?;
        let values = x.as_f32()?;
        let mut codes = Vec::with_capacity(values.len());
        let mut scales = Vec::with_capacity(values.len() / self.group.max(1));
        for group in values.chunks(self.group.max(1)) {
            let scale = group.iter().fold(0.0f32, |max, value| max.max(value.abs())) / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            codes.extend(group.iter().map(|value| (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8));
            scales.push(scale);
        }
        Ok(vec![Tensor { shape: x.shape.clone(), data: Data::Act { codes, scales, group: self.group } }])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, 3 * elements(&results[0], size))
    }
}
