//! `swiglu`: the gated activation of a merged gate and up projection (Shazeer, 2020).
//!
//! `(x f32[M, 2F]) -> f32[M, F]`. A row alternates 16 gate values and 16 up values, as
//! [`crate::graph::Arrangement::Interleave`] lays the merged weight out: `y[32b/2 + i] = silu(x[32b + i]) · x[32b + 16 + i]`
//! for blocks b and i below 16.

use super::silu::silu;
use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{Dim, StepSize, Type};

/// Values of one kind that stand together in a row: the rows of one weight block.
pub const INTERLEAVE: usize = 16;

/// The op; it has no attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct SwiGlu;

impl OpRules for SwiGlu {
    const NAME: &'static str = "swiglu";
    const OPERANDS: &'static [&'static str] = &["x"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<SwiGlu>(inputs)?;
        let (m, width) = operands.rows(0)?;
        if width % (2 * INTERLEAVE) != 0 {
            return operands.refuse(0, &format!("columns in blocks of {}", 2 * INTERLEAVE));
        }
        Ok(vec![Type::f32([m, Dim::of(width / 2)])])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn from_attributes(_: &mut Attributes) -> Result<SwiGlu, AttributeError> {
        Ok(SwiGlu)
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x] = tensors(inputs)?;
        let mut out = Vec::with_capacity(x.rows() * x.cols() / 2);
        for block in x.as_f32()?.chunks(2 * INTERLEAVE) {
            let (gate, up) = block.split_at(INTERLEAVE);
            out.extend(gate.iter().zip(up).map(|(&gate, &up)| silu(gate) * up));
        }
        Ok(vec![Tensor::f32(vec![x.rows(), x.cols() / 2], out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        // As `silu`, and the product.
        streaming_cost(inputs, results, size, 13 * elements(&results[0], size))
    }
}
