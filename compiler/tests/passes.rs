//! Every pass keeps what the graph computes, by the reference evaluation of a seeded model over a ragged prefill and a
//! decode step.

use lathe_compiler::pass::{PASSES, PassContext, PassOptions};
use lathe_ir::eval::{Caches, StepInputs, evaluate};
use lathe_ir::graph::Graph;
use lathe_ir::scheme::Scheme;
use lathe_ir::verify::verify;
use lathe_kernels::targets::TARGETS;
use lathe_models::Model;

/// Passes that move or merge ops do the same operations in the same order.
const EXACT: f64 = 0.0;
/// bfloat16 keeps 8 bits: each weight is off by at most 2⁻⁹ of itself, and errors of a product's terms partly cancel.
const BF16_WEIGHTS: f64 = 1e-2;
/// 8 bits per group of 32: a step is 1/127 of the group's largest value, over the products of two layers and the head.
const INT8_ACTIVATIONS: f64 = 3e-2;

/// How far a pass may move the logits, as ‖after − before‖ / ‖before‖.
fn bound(pass: &str, scheme: Scheme) -> f64 {
    match pass {
        "choose_weight_format" if scheme == Scheme::F32 => BF16_WEIGHTS,
        "quantize_activations" if scheme.is_integer() => INT8_ACTIVATIONS,
        _ => EXACT,
    }
}

/// Logits of a prefill of two interleaved sequences, then of a decode step.
fn logits(model: &Model, graph: &Graph) -> Vec<f32> {
    let weights = |weight: &_, ty: &_| crate::common::weight(&*model.checkpoint, weight, ty);
    let vocabulary = model.config.vocab as i32;
    let token = |at: i32| (at * 37 + 11) % vocabulary;
    let prefill = StepInputs {
        tokens: (0..9).map(token).collect(),
        positions: vec![0, 1, 0, 2, 3, 1, 4, 2, 5],
        sequences: vec![0, 0, 1, 0, 0, 1, 0, 1, 0],
        rows: vec![8, 7, 3],
    };
    let decode = StepInputs {
        tokens: vec![token(20), token(21)],
        positions: vec![3, 6],
        sequences: vec![1, 0],
        rows: vec![0, 1],
    };
    let mut caches = Caches::new();
    let mut logits = Vec::new();
    for step in [prefill, decode] {
        let outputs = evaluate(graph, &weights, &step, &mut caches).expect("the graph evaluates");
        logits.extend_from_slice(outputs["logits"].as_f32().expect("logits are f32"));
    }
    logits
}

fn distance(before: &[f32], after: &[f32]) -> f64 {
    assert_eq!(before.len(), after.len());
    let square = |value: f32| f64::from(value) * f64::from(value);
    let difference: f64 = before.iter().zip(after).map(|(a, b)| square(a - b)).sum();
    (difference / before.iter().map(|&a| square(a)).sum::<f64>()).sqrt()
}

fn check(scheme: Scheme) {
    let model = crate::common::model(scheme);
    let mut graph = model.graph.clone();
    let mut context = PassContext::new(&TARGETS[0], PassOptions::default());
    let mut before = logits(&model, &graph);
    for pass in PASSES {
        if !(pass.run)(&mut graph, &mut context).expect("the pass runs") {
            continue;
        }
        verify(&graph).unwrap_or_else(|error| panic!("{}: {error}", pass.name));
        let after = logits(&model, &graph);
        let (moved, bound) = (distance(&before, &after), bound(pass.name, scheme));
        assert!(moved <= bound, "{} moved the logits by {moved:e}, more than {bound:e}", pass.name);
        before = after;
    }
}

#[test]
fn passes_keep_a_model_of_f32() {
    check(Scheme::F32);
}

#[test]
fn passes_keep_a_model_of_bf16() {
    check(Scheme::BF16);
}

#[test]
fn passes_keep_a_model_of_int8() {
    check(Scheme::INT8);
}

#[test]
fn passes_keep_a_model_of_int4() {
    check(Scheme::INT4);
}

#[test]
fn every_fusing_pass_fires_on_the_small_model() {
    let graph = crate::common::fused(&crate::common::model(Scheme::INT4), &PassOptions::default(), &[]);
    let names: Vec<&str> = graph.order().iter().filter_map(|&id| Some(graph.as_op(id)?.name())).collect();
    for fused in ["rms_norm", "rope", "append", "append_qkv", "silu", "mul", "glu", "add", "gather"] {
        assert!(!names.contains(&fused), "{fused} is left as a node of its own");
    }
}

#[test]
fn passes_keep_super_blocks() {
    check(Scheme::INT6_SUPER);
    check(Scheme::INT2_SUPER);
}

#[test]
fn passes_keep_codebooks() {
    check(Scheme::IQ4_SUPER);
}
