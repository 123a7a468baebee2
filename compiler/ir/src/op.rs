//! The registry of ops. An op owns everything about itself in one file under `ops/`: operands and results, attributes
//! and their text form, reference evaluation and cost. Adding one is that file and one line in the registry below.

use std::fmt;

use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::types::{StepSize, Type};

/// Why an op refuses its operands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {message}")]
pub struct OpError {
    /// Name of the op.
    pub op: &'static str,
    /// What was expected and what was found.
    pub message: String,
}

/// Work of one launch: floating-point or integer operations, and bytes moved from and to memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Operations (a multiply-add counts as two).
    pub flops: u64,
    /// Bytes read and written, weights included.
    pub bytes: u64,
}

/// Where an op may stand besides on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Only as a node.
    Alone,
    /// Also before the product of a [`crate::ops::linear::Linear`].
    Prologue,
    /// Also after the product of a [`crate::ops::linear::Linear`].
    Epilogue,
}

/// What each op says of itself.
pub trait OpRules: Sized + Clone + fmt::Debug + PartialEq {
    /// The name in the text IR.
    const NAME: &'static str;

    /// Names of the operands, in order. As a stage the op takes the running value as the first one.
    const OPERANDS: &'static [&'static str];

    /// Where the op may stand.
    const STAGE: Stage = Stage::Alone;

    /// How many operands it takes.
    fn arity(&self) -> usize {
        Self::OPERANDS.len()
    }

    /// Result types from operand types.
    ///
    /// # Errors
    /// A sentence naming the operand that does not fit, what was expected and what was found.
    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError>;

    /// Attributes in canonical order; those at their default are left out.
    fn attributes(&self) -> Attributes;

    /// The op back from its attributes.
    ///
    /// # Errors
    /// A sentence naming the attribute that is missing, unknown or malformed.
    fn from_attributes(attributes: &mut Attributes) -> Result<Self, AttributeError>;

    /// Slow, obvious evaluation in f32: the oracle for passes and kernels.
    ///
    /// # Errors
    /// When an operand's data contradicts its type (an index out of range). Operands are of types that
    /// [`OpRules::infer`] accepts.
    fn eval(&self, inputs: &[Tensor], context: &mut EvalContext) -> Result<Vec<Tensor>, EvalError>;

    /// Work at a step size.
    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost;
}

macro_rules! registry {
    ($($variant:ident($module:ident)),+ $(,)?) => {
        /// An op of the graph.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            $(#[doc = concat!("See [`crate::ops::", stringify!($module), "`].")]
            $variant(crate::ops::$module::$variant),)+
        }

        $(impl From<crate::ops::$module::$variant> for Op {
            fn from(op: crate::ops::$module::$variant) -> Op {
                Op::$variant(op)
            }
        })+

        impl Op {
            /// Names of all ops.
            pub const NAMES: &'static [&'static str] = &[$(<crate::ops::$module::$variant as OpRules>::NAME),+];

            /// The name in the text IR.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$variant(_) => <crate::ops::$module::$variant as OpRules>::NAME,)+ }
            }

            /// See [`OpRules::STAGE`].
            pub fn stage(&self) -> Stage {
                match self { $(Op::$variant(_) => <crate::ops::$module::$variant as OpRules>::STAGE,)+ }
            }

            /// See [`OpRules::arity`].
            pub fn arity(&self) -> usize {
                match self { $(Op::$variant(op) => op.arity(),)+ }
            }

            /// See [`OpRules::infer`].
            pub fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
                match self { $(Op::$variant(op) => op.infer(inputs),)+ }
            }

            /// See [`OpRules::attributes`].
            pub fn attributes(&self) -> Attributes {
                match self { $(Op::$variant(op) => op.attributes(),)+ }
            }

            /// The op of this name from its attributes, all of which it must know; `None` when there is no such op.
            pub fn from_attributes(name: &str, attributes: &mut Attributes) -> Option<Result<Op, AttributeError>> {
                $(if name == <crate::ops::$module::$variant as OpRules>::NAME {
                    let op = crate::ops::$module::$variant::from_attributes(attributes).map(Op::$variant);
                    return Some(op.and_then(|op| attributes.finish().map(|()| op)));
                })+
                None
            }

            /// See [`OpRules::eval`].
            pub fn eval(&self, inputs: &[Tensor], context: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
                match self { $(Op::$variant(op) => op.eval(inputs, context),)+ }
            }

            /// See [`OpRules::cost`].
            pub fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
                match self { $(Op::$variant(op) => op.cost(inputs, results, size),)+ }
            }
        }
    };
}

registry! {
    Embed(embed),
    RmsNorm(rms_norm),
    LayerNorm(layer_norm),
    HeadNorm(head_norm),
    NormAdd(norm_add),
    Quantize(quantize),
    Linear(linear),
    Rotary(rotary),
    Rope(rope),
    Append(append),
    AppendQkv(append_qkv),
    Attention(attention),
    Silu(silu),
    Gelu(gelu),
    Mul(mul),
    Glu(glu),
    Scale(scale),
    Softcap(softcap),
    Add(add),
    Bias(bias),
    Gather(gather),
}
