//! A linear with stages gives what the ops give one after the other.

use lathe_ir::eval::{Caches, EvalContext, StepInputs, Tensor};
use lathe_ir::op::Op;
use lathe_ir::ops::add::Add;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::mul::Mul;
use lathe_ir::ops::quantize::Quantize;
use lathe_ir::ops::rms_norm::RmsNorm;
use lathe_ir::ops::silu::Silu;
use lathe_ir::parse::parse;
use lathe_ir::scheme::Scheme;

use crate::fixtures::{Numbers, decoder, fused, logits, random_matrix, relative_error, schemes};

/// int8 activations in groups of 32 err by 1/254 of a group's largest value; over a layer that stays below this.
const INT8_BOUND: f64 = 0.03;

#[test]
fn stages_run_in_order_with_their_operands() {
    let mut numbers = Numbers::of("stages");
    let mut tensor = |rows: usize, cols: usize| Tensor::f32(vec![rows, cols], numbers.take(rows * cols));
    let (x, gate, residual) = (tensor(3, 64), tensor(3, 16), tensor(3, 16));
    let norm = Tensor::f32(vec![64], numbers.take(64));
    let w = Tensor::matrix(random_matrix("w", Scheme::INT4, 16, 64));
    let apply = |op: Op, inputs: &[&Tensor]| {
        let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
        op.eval(&inputs, &mut EvalContext::default()).unwrap().remove(0)
    };
    let (rms_norm, quantize) = (RmsNorm { eps: 1e-5 }, Quantize { group: 32 });
    let mut expected = apply(rms_norm.clone().into(), &[&x, &norm]);
    expected = apply(quantize.clone().into(), &[&expected]);
    expected = apply(Linear::new().into(), &[&expected, &w]);
    expected = apply(Silu.into(), &[&expected]);
    expected = apply(Mul.into(), &[&expected, &gate]);
    expected = apply(Add.into(), &[&expected, &residual]);
    let linear = Linear {
        prologue: vec![rms_norm.into(), quantize.into()],
        epilogue: vec![Silu.into(), Mul.into(), Add.into()],
    };
    assert_eq!(linear.extra_slots(), [2..3, 3..3, 3..3, 3..4, 4..5]);
    assert_eq!(apply(linear.into(), &[&x, &w, &norm, &gate, &residual]), expected);
}

#[test]
fn the_fused_decoder_gives_the_same_bits() {
    let step = StepInputs::sequence(0, 0, &[3, 1, 4, 1, 5, 9, 2, 6]);
    for scheme in schemes() {
        let plain = logits(&decoder(1, scheme), &step, &mut Caches::new());
        let merged = logits(&parse(&fused(scheme, false)).unwrap(), &step, &mut Caches::new());
        assert_eq!(plain, merged, "{scheme}");
    }
}

#[test]
fn int8_activations_stay_within_their_bound() {
    let step = StepInputs::sequence(0, 0, &[3, 1, 4, 1, 5, 9, 2, 6]);
    for scheme in [Scheme::INT8, Scheme::INT4] {
        let plain = logits(&decoder(1, scheme), &step, &mut Caches::new());
        let quantized = logits(&parse(&fused(scheme, true)).unwrap(), &step, &mut Caches::new());
        let error = relative_error(&quantized, &plain);
        assert!(error > 0.0 && error < INT8_BOUND, "{scheme}: {error}");
    }
}
