//! `glu`: the gated activation of a merged gate and up projection (Shazeer, 2020): silu gives SwiGLU.
//!
//! `(x f32[M, 2F]) -> f32[M, F]`. A row alternates 16 gate values and 16 up values, as
//! [`crate::graph::Arrangement::Interleave`] lays the merged weight out:
//! `y[32b/2 + i] = function(x[32b + i]) · x[32b + 16 + i]` for blocks b and i below 16.

use super::gelu::{gelu, gelu_tanh};
use super::silu::silu;
use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, Op, OpError, OpRules, Stage};
use crate::types::{Dim, StepSize, Type};

/// Values of one kind that stand together in a row: the rows of one weight block.
pub const INTERLEAVE: usize = 16;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Function {
    /// See [`super::silu`].
    Silu,
    /// See [`super::gelu`].
    Gelu,
    /// See [`super::gelu`], approximated by tanh.
    GeluTanh,
}

impl Function {
    /// Every function.
    pub const ALL: [Function; 3] = [Function::Silu, Function::Gelu, Function::GeluTanh];

    /// The spelling in the text IR and in kernel specs.
    pub fn name(self) -> &'static str {
        match self {
            Function::Silu => "silu",
            Function::Gelu => "gelu",
            Function::GeluTanh => "gelu_tanh",
        }
    }

    /// The function that an op applies to each element, if it is one of these.
    pub fn of(op: &Op) -> Option<Function> {
        match op {
            Op::Silu(_) => Some(Function::Silu),
            Op::Gelu(gelu) if gelu.tanh => Some(Function::GeluTanh),
            Op::Gelu(_) => Some(Function::Gelu),
            _ => None,
        }
    }

    /// Its value, in f64 and rounded once.
    pub fn eval(self, x: f32) -> f32 {
        match self {
            Function::Silu => silu(x),
            Function::Gelu => gelu(x),
            Function::GeluTanh => gelu_tanh(x),
        }
    }
}

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct Glu {
    /// What the gate passes through.
    pub function: Function,
}

impl OpRules for Glu {
    const NAME: &'static str = "glu";
    const OPERANDS: &'static [&'static str] = &["x"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        let operands = Operands::of::<Glu>(inputs)?;
        let (m, width) = operands.rows(0)?;
        if width % (2 * INTERLEAVE) != 0 {
            return operands.refuse(0, &format!("columns in blocks of {}", 2 * INTERLEAVE));
        }
        Ok(vec![Type::f32([m, Dim::of(width / 2)])])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("function", self.function.name())
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<Glu, AttributeError> {
        let choices = Function::ALL.map(|function| (function.name(), function));
        Ok(Glu { function: attributes.choice("function", "\"silu\", \"gelu\" or \"gelu_tanh\"", &choices)? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x] = tensors(inputs)?;
        let mut out = Vec::with_capacity(x.rows() * x.cols() / 2);
        for block in x.as_f32()?.chunks(2 * INTERLEAVE) {
            let (gate, up) = block.split_at(INTERLEAVE);
            out.extend(gate.iter().zip(up).map(|(&gate, &up)| self.function.eval(gate) * up));
        }
        Ok(vec![Tensor::f32(vec![x.rows(), x.cols() / 2], out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        // As `silu` or `gelu`, and the product.
        let each = if self.function == Function::Silu { 13 } else { 21 };
        streaming_cost(inputs, results, size, each * elements(&results[0], size))
    }
}
