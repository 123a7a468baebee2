//! `bias`: adds one vector to every row.
//!
//! `(x f32[M, K], bias f32[K]) -> f32[M, K]`, `y[m, k] = x[m, k] + bias[k]`.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op; it has no attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Bias;

impl OpRules for Bias {
    const NAME: &'static str = "bias";
    const OPERANDS: &'static [&'static str] = &["x", "bias"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Bias>(inputs)?;
        let (_, k) = operands.rows(0)?;
        if operands.vector(1)? != k {
            return operands.refuse(1, &format!("f32[{k}]"));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn from_attributes(_: &mut Attributes) -> Result<Bias, AttributeError> {
        Ok(Bias)
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x, bias] = tensors(inputs)?;
        let bias = bias.as_f32()?;
        let out =
            x.as_f32()?.chunks(bias.len().max(1)).flat_map(|row| row.iter().zip(bias).map(|(x, b)| x + b)).collect();
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        streaming_cost(inputs, results, size, elements(&results[0], size))
    }
}
