//! `linear`: a matrix product with a weight, and the ops that passes fused before and after it.
//!
//! `(x [M, K], w weight[N, K], extra operands of the prologue, then of the epilogue) -> results of the last stage`.
//! Without stages the result is f32[M, N] with `y[m, n] = Σ_k x[m, k] · w[n, k]`. x is f32 or `int8[group]`; quantized
//! activations need an integer weight scheme whose groups are no longer than theirs.
//!
//! A stage takes the running value as its first operand and its other operands from the extra ones, in order. In text:
//!
//! ```text
//! %5, $1 = linear %0, @qkv pre [rms_norm(@norm) {eps = 1e-5}, quantize {group = 32}]
//!     post [rope(%1) {head_dim = 64, heads = 12}, append_qkv(%positions, %sequences, $kv.0) {heads = 9}] : …
//! ```
//!
//! Which ops may be stages is each op's [`OpRules::STAGE`]; the verifier checks it. A stage with two results must be last.

use super::{elements, streaming_cost};
use crate::attributes::{AttributeError, Attributes};
use crate::eval::{EvalContext, EvalError, Tensor};
use crate::op::{Cost, Op, OpError, OpRules};
use crate::scheme::Matrix;
use crate::types::{DType, Elem, StepSize, Type};

/// The op. Stages are written outside the attributes, which are empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Linear {
    /// Ops on x before the product.
    pub prologue: Vec<Op>,
    /// Ops on the product.
    pub epilogue: Vec<Op>,
}

impl Linear {
    /// A bare product.
    pub fn new() -> Linear {
        Linear::default()
    }

    /// The operand slots of each stage's extra operands: first the prologue's, then the epilogue's.
    pub fn extra_slots(&self) -> Vec<std::ops::Range<usize>> {
        let mut at = 2;
        let slots = |stage: &Op| {
            let start = at;
            at += stage.arity() - 1;
            start..at
        };
        self.prologue.iter().chain(&self.epilogue).map(slots).collect()
    }

    /// Runs x through the prologue, the product and the epilogue; `apply` does one stage and `product` the core.
    fn run<T: Clone, E>(
        &self,
        operands: &[T],
        mut apply: impl FnMut(&Op, &[T]) -> Result<Vec<T>, E>,
        product: impl FnOnce(&T, &T) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let mut slots = self.extra_slots().into_iter();
        let mut run_stages = |stages: &[Op], mut results: Vec<T>| {
            for (stage, extra) in stages.iter().zip(&mut slots) {
                let mut inputs = vec![results.swap_remove(0)];
                inputs.extend_from_slice(&operands[extra]);
                results = apply(stage, &inputs)?;
            }
            Ok(results)
        };
        let x = run_stages(&self.prologue, vec![operands[0].clone()])?;
        let y = product(&x[0], &operands[1])?;
        run_stages(&self.epilogue, vec![y])
    }
}

impl OpRules for Linear {
    const NAME: &'static str = "linear";
    const OPERANDS: &'static [&'static str] = &["x", "w"];

    fn arity(&self) -> usize {
        self.extra_slots().last().map_or(2, |slots| slots.end)
    }

    fn infer(&self, inputs: &[&Type]) -> Result<Vec<Type>, OpError> {
        if inputs.len() != self.arity() {
            return refuse(format!(
                "expected {} operands (x, w and {} of its stages), found {}",
                self.arity(),
                self.arity() - 2,
                inputs.len()
            ));
        }
        if let Some(stage) = self.prologue.iter().chain(&self.epilogue).find(|stage| stage.arity() == 0) {
            return refuse(format!("stage {} takes no operand", stage.name()));
        }
        let operands: Vec<Type> = inputs.iter().map(|&ty| ty.clone()).collect();
        let mut stages_left = self.prologue.len() + self.epilogue.len();
        let apply = |stage: &Op, inputs: &[Type]| {
            let inputs: Vec<&Type> = inputs.iter().collect();
            let results = stage.infer(&inputs)?;
            stages_left -= 1;
            if results.len() != 1 && stages_left > 0 {
                return refuse(format!("stage {} has {} results and must be last", stage.name(), results.len()));
            }
            Ok(results)
        };
        self.run(&operands, apply, product_type)
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn from_attributes(_: &mut Attributes) -> Result<Linear, AttributeError> {
        Ok(Linear::new())
    }

    fn eval(&self, inputs: &[Tensor], context: &mut EvalContext) -> Result<Vec<Tensor>, EvalError> {
        if inputs.len() != self.arity() {
            return Err(EvalError::Operands { expected: self.arity(), found: inputs.len() });
        }
        let threads = context.threads;
        let product = |x: &Tensor, w: &Tensor| {
            let w = w.as_matrix()?;
            Ok(Tensor::f32(vec![x.rows(), w.rows], multiply(&x.dequantized()?, w, threads)))
        };
        self.run(inputs, |stage, inputs| stage.eval(inputs, context), product)
    }

    /// Operands and results move once; values between stages stay in registers.
    fn cost(&self, inputs: &[&Type], results: &[Type], size: StepSize) -> Cost {
        let mut cost = streaming_cost(inputs, results, size, 0);
        let operands: Vec<Type> = inputs.iter().map(|&ty| ty.clone()).collect();
        if operands.len() != self.arity() {
            return cost;
        }
        let mut flops = 0;
        let apply = |stage: &Op, inputs: &[Type]| {
            let inputs: Vec<&Type> = inputs.iter().collect();
            let results = stage.infer(&inputs)?;
            flops += stage.cost(&inputs, &results, size).flops;
            Ok(results)
        };
        let mut product_flops = 0;
        let product = |x: &Type, w: &Type| {
            let result = product_type(x, w)?;
            let k = w.shape().and_then(|shape| shape.last()).map_or(0, |k| k.eval(size)) as u64;
            product_flops = 2 * elements(&result, size) * k;
            Ok::<Type, OpError>(result)
        };
        if self.run(&operands, apply, product).is_ok() {
            cost.flops = flops + product_flops;
        }
        cost
    }
}

fn refuse<T>(message: String) -> Result<T, OpError> {
    Err(OpError { op: Linear::NAME, message })
}

/// The type of the bare product.
fn product_type(x: &Type, w: &Type) -> Result<Type, OpError> {
    let Type::Tensor { elem: Elem::Weight(scheme), shape: w_shape } = w else {
        return refuse(format!("operand 'w' expects a weight matrix [N, K], found {w}"));
    };
    let Type::Tensor { elem, shape } = x else {
        return refuse(format!("operand 'x' expects f32[M, K] or int8[group][M, K], found {x}"));
    };
    match elem {
        Elem::Dense(DType::F32) => {}
        Elem::Act { group } if scheme.is_integer() && group.is_multiple_of(scheme.group) => {}
        Elem::Act { group } => {
            return refuse(format!(
                "x in groups of {group} needs an integer weight scheme whose groups divide them, found {scheme}"
            ));
        }
        _ => return refuse(format!("operand 'x' expects f32[M, K] or int8[group][M, K], found {x}")),
    }
    let (&[m, k], &[n, weight_k]) = (&shape[..], &w_shape[..]) else {
        return refuse(format!("expected matrices, found x {x} and w {w}"));
    };
    if k != weight_k || k.constant().is_none() || n.constant().is_none() {
        return refuse(format!("x has {k} columns, w expects {weight_k} (x {x}, w {w})"));
    }
    Ok(Type::f32([m, n]))
}

/// `y[m, n] = Σ_k x[m, k] · w[n, k]`: each weight row is dequantized to f32 once, each dot product accumulates in f64 in
/// order of k. Threads take ranges of rows, which changes no result.
fn multiply(x: &[f32], w: &Matrix, threads: usize) -> Vec<f32> {
    let (n, k) = (w.rows, w.cols.max(1));
    let m = x.len() / k;
    let columns = |range: std::ops::Range<usize>| {
        let mut row = vec![0.0f32; w.cols];
        let mut out = Vec::with_capacity(range.len() * m); // [range, M]
        for at in range {
            w.row(at, &mut row);
            out.extend(
                x.chunks_exact(k)
                    .map(|x| x.iter().zip(&row).fold(0.0f64, |sum, (&x, &w)| sum + f64::from(x) * f64::from(w)) as f32),
            );
        }
        out
    };
    let per_thread = n.div_ceil(threads.max(1)).max(64);
    let ranges: Vec<_> = (0..n).step_by(per_thread).map(|start| start..(start + per_thread).min(n)).collect();
    let parts: Vec<Vec<f32>> = std::thread::scope(|scope| {
        let handles: Vec<_> = ranges.iter().map(|range| scope.spawn(|| columns(range.clone()))).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut out = vec![0.0; m * n]; // [M, N]
    for (at, value) in parts.into_iter().flatten().enumerate() {
        out[at % m * n + at / m] = value;
    }
    out
}
