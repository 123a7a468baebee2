//! `gelu`: the Gaussian error linear unit (Hendrycks and Gimpel, 2016).
//!
//! `(x f32[M, K]) -> f32[M, K]`, `y = x · Φ(x)` with the normal distribution `Φ(x) = (1 + erf(x / √2)) / 2`. With
//! `tanh` its approximation of the paper, which some models were trained with:
//! `y = x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.

use super::{Operands, elements, streaming_cost, tensors};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, OpError, OpRules, Stage};
use crate::types::{StepSize, Type};

/// The op.
#[derive(Clone, Debug, PartialEq)]
pub struct Gelu {
    /// Whether Φ is approximated by tanh.
    pub tanh: bool,
}

/// `x · Φ(x)`, in f64 and rounded once.
pub(crate) fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)) as f32
}

/// The approximation by tanh, in f64 and rounded once; `(1 + tanh u) / 2` as `1 / (1 + exp(−2u))`, which keeps its digits
/// where tanh is near −1.
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    let x = f64::from(x);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    (x / (1.0 + (-2.0 * inner).exp())) as f32
}

/// The complementary error function `1 − 2/√π ∫₀ˣ exp(−t²) dt`: near zero by the series with positive terms
/// `erf x = 2/√π exp(−x²) Σ 2ⁿ x²ⁿ⁺¹ / (1·3·…·(2n+1))` (Abramowitz and Stegun, 7.1.6), further out by the continued
/// fraction 7.1.14, each to about 1e-14 of its value.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let factor = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let mut term = x;
        let mut sum = x;
        for n in 1..80 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 1.0 - 2.0 * factor * sum;
    }
    let fraction = (1..120).rev().fold(x, |below, n| x + f64::from(n) / 2.0 / below);
    factor / fraction
}

impl OpRules for Gelu {
    const NAME: &'static str = "gelu";
    const OPERANDS: &'static [&'static str] = &["x"];
    const STAGE: Stage = Stage::Epilogue;

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        Operands::of::<Gelu>(inputs)?.rows(0)?;
        Ok(vec![inputs[0].clone()])
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("tanh", self.tanh)
    }

    fn from_attributes(attributes: &mut Attributes) -> Result<Gelu, AttributeError> {
        Ok(Gelu { tanh: attributes.bool("tanh")? })
    }

    fn eval(&self, inputs: &[Tensor], _: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        let [x] = tensors(inputs)?;
        let apply = if self.tanh { gelu_tanh } else { gelu };
        let out = x.as_f32()?.iter().map(|&x| apply(x)).collect();
        Ok(vec![Tensor::f32(x.shape.clone(), out)])
    }

    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        // An exponential and a polynomial count as 20 operations, about what they take.
        streaming_cost(inputs, results, size, 20 * elements(&results[0], size))
    }
}
