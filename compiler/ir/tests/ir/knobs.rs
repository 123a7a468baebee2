//! Ops of single families and knobs of attention and rotation, against values worked out by hand or by a formula of
//! another form.

use std::f64::consts::TAU;

use lathe_ir::eval::{CacheState, EvalContext, Tensor};
use lathe_ir::op::Op;
use lathe_ir::ops::attention::Attention;
use lathe_ir::ops::gelu::Gelu;
use lathe_ir::ops::glu::{Function, Glu};
use lathe_ir::ops::head_norm::HeadNorm;
use lathe_ir::ops::layer_norm::LayerNorm;
use lathe_ir::ops::norm_add::NormAdd;
use lathe_ir::ops::rope::Rope;
use lathe_ir::ops::rotary::scaling::{longrope_attention_factor, yarn_attention_factor};
use lathe_ir::ops::rotary::{Rotary, Scaling};
use lathe_ir::ops::scale::Scale;
use lathe_ir::ops::softcap::Softcap;
use lathe_ir::parse::parse;
use lathe_ir::types::{CacheType, DType, Type};

/// A few roundings of f32 around values near 1.
const TOLERANCE: f64 = 1e-6;

fn eval(op: impl Into<Op>, inputs: &[Tensor]) -> Vec<f32> {
    let results = op.into().eval(inputs, &mut EvalContext { threads: 1 }).unwrap();
    results[0].as_f32().unwrap().to_vec()
}

fn close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (&value, expected) in found.iter().zip(expected) {
        let bound = TOLERANCE * expected.abs().max(1.0);
        assert!((f64::from(value) - expected).abs() <= bound, "{found:?} is not {expected:?}");
    }
}

fn rows(shape: [usize; 2], values: &[f32]) -> Tensor {
    Tensor::f32(shape.to_vec(), values.to_vec())
}

fn vector(values: &[f32]) -> Tensor {
    Tensor::f32(vec![values.len()], values.to_vec())
}

fn ints(values: &[i32]) -> Tensor {
    Tensor::i32(vec![values.len()], values.to_vec())
}

#[test]
fn layer_norm_centres_and_divides() {
    // Mean 3, deviations −2, 0, 2, mean square 8/3; eps 1/3 makes the root √3.
    let inputs = [rows([1, 3], &[1.0, 3.0, 5.0]), vector(&[1.0, 2.0, 0.5]), vector(&[0.5, -1.0, 0.0])];
    let root = 3.0f64.sqrt();
    close(&eval(LayerNorm { eps: 1.0 / 3.0 }, &inputs), &[-2.0 / root + 0.5, -1.0, 1.0 / root]);
}

#[test]
fn norm_add_norms_before_it_adds() {
    // The mean square is 12.5, and eps makes the root √13.
    let inputs = [rows([1, 2], &[3.0, 4.0]), vector(&[1.0, 2.0]), rows([1, 2], &[0.5, -1.0])];
    let root = 13.0f64.sqrt();
    close(&eval(NormAdd { eps: 0.5 }, &inputs), &[3.0 / root + 0.5, 8.0 / root - 1.0]);
}

#[test]
fn head_norm_takes_some_heads() {
    // The middle head has mean square 12.5, and eps makes the root √13.
    let x = rows([1, 6], &[7.0, 7.0, 3.0, 4.0, 9.0, 9.0]);
    let op = HeadNorm { head_dim: 2, first: 1, heads: 1, eps: 0.5 };
    let root = 13.0f64.sqrt();
    close(&eval(op, &[x, vector(&[1.0, 2.0])]), &[7.0, 7.0, 3.0 / root, 8.0 / root, 9.0, 9.0]);
}

#[test]
fn gelu_follows_the_normal_distribution() {
    // Φ of 0, 1, −1, 2, −3 and −6 from tables.
    let normal = [0.5, 0.841_344_746_068_543, 0.158_655_253_931_457, 0.977_249_868_051_821, 0.001_349_898_031_630_09];
    let x = [0.0, 1.0, -1.0, 2.0, -3.0];
    let expected: Vec<f64> = x.iter().zip(normal).map(|(x, normal)| x * normal).collect();
    let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    close(&eval(Gelu { tanh: false }, &[rows([1, 5], &x)]), &expected);
    // Far out the relative error counts.
    let tail = eval(Gelu { tanh: false }, &[rows([1, 1], &[-6.0])]);
    assert!((f64::from(tail[0]) / (-6.0 * 9.865_876_450_377e-10) - 1.0).abs() < TOLERANCE);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (2.0 + 0.044_715 * 8.0);
    close(&eval(Gelu { tanh: true }, &[rows([1, 1], &[2.0])]), &[1.0 + inner.tanh()]);
    // The approximation differs by less than its known largest error, and does differ.
    let (exact, tanh) = ([false, true].map(|tanh| eval(Gelu { tanh }, &[rows([1, 5], &x)]))).into();
    let worst = Iterator::zip(exact.iter(), &tanh).map(|(a, b): (&f32, &f32)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst > 1e-5 && worst < 5e-4, "{worst}");
}

#[test]
fn glu_takes_each_function() {
    for function in Function::ALL {
        let row: Vec<f32> = (0..32).map(|i| i as f32 / 8.0 - 1.0).collect();
        let expected: Vec<f64> =
            row[..16].iter().zip(&row[16..]).map(|(&gate, &up)| f64::from(function.eval(gate) * up)).collect();
        close(&eval(Glu { function }, &[rows([1, 32], &row)]), &expected);
    }
    assert_eq!(Function::of(&Gelu { tanh: true }.into()), Some(Function::GeluTanh));
    assert_eq!(Function::of(&Scale { factor: 2.0 }.into()), None);
}

#[test]
fn scale_and_softcap() {
    close(&eval(Scale { factor: -0.5 }, &[rows([1, 2], &[3.0, -4.0])]), &[-1.5, 2.0]);
    // tanh(ln 3) is 4/5.
    let x = 30.0 * 3.0f32.ln();
    close(&eval(Softcap { cap: 30.0 }, &[rows([1, 3], &[x, -1e6, 1e-3])]), &[24.0, -30.0, 1e-3]);
}

#[test]
fn a_window_hides_the_tokens_before_it() {
    let ty = CacheType { dtype: DType::F32, heads: 1, head_dim: 1 };
    let mut state = CacheState::new(ty);
    for (position, value) in [100.0, 8.0, 4.0].into_iter().enumerate() {
        state.append(0, position as i32, &[0.0], &[value]);
    }
    let op = |window| Attention { heads: 1, scale: 1.0, window, softcap: None };
    let inputs = [rows([3, 1], &[1.0; 3]), ints(&[2, 1, 0]), ints(&[0; 3]), Tensor::cache(state)];
    close(&eval(op(Some(2)), &inputs), &[6.0, 54.0, 100.0]);
    close(&eval(op(Some(1)), &inputs), &[4.0, 8.0, 100.0]);
    assert_eq!(eval(op(Some(9)), &inputs), eval(op(None), &inputs));
}

#[test]
fn a_softcap_bounds_the_scores() {
    // Scores 0 and 2·atanh(ln 3 / 2) capped at 2 are 0 and ln 3, so weights 1/4 and 3/4.
    let mut state = CacheState::new(CacheType { dtype: DType::F32, heads: 1, head_dim: 1 });
    state.append(0, 0, &[0.0], &[8.0]);
    state.append(0, 1, &[2.0 * (3.0f32.ln() / 2.0).atanh()], &[4.0]);
    let op = Attention { heads: 1, scale: 1.0, window: None, softcap: Some(2.0) };
    close(&eval(op, &[rows([1, 1], &[1.0]), ints(&[1]), ints(&[0]), Tensor::cache(state)]), &[5.0]);
}

#[test]
fn a_partial_rope_leaves_the_rest_of_a_head() {
    // A quarter turn of the pair (0, 1) in heads of four.
    let x = rows([1, 8], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let found = eval(Rope { head_dim: 4, heads: 2 }, &[x, rows([1, 2], &[0.0, 1.0])]);
    close(&found, &[-2.0, 1.0, 3.0, 4.0, -6.0, 5.0, 7.0, 8.0]);
}

const DIM: usize = 8;
const THETA: f32 = 1e4;

/// Frequencies of four pairs at a length.
fn frequencies(scaling: &Scaling, length: usize) -> [f64; 4] {
    scaling.frequencies(DIM, THETA, length).try_into().unwrap()
}

fn near(found: [f64; 4], expected: [f64; 4]) {
    for (a, b) in found.iter().zip(expected) {
        assert!((a / b - 1.0).abs() < 1e-6, "{found:?} is not {expected:?}");
    }
}

#[test]
fn linear_and_dynamic_scaling() {
    near(frequencies(&Scaling::None, 1), [1.0, 0.1, 0.01, 0.001]);
    near(frequencies(&Scaling::Linear { factor: 4.0 }, 99), [0.25, 0.025, 0.0025, 0.000_25]);
    let dynamic = Scaling::Dynamic { factor: 2.0, original: 100 };
    near(frequencies(&dynamic, 100), [1.0, 0.1, 0.01, 0.001]);
    // At 450 tokens the base grows by (2·4.5 − 1)^(8/6) = 16: its square root is 4, its fourth root 2.
    near(frequencies(&dynamic, 450), [1.0, 0.1 / 2.0, 0.01 / 4.0, 0.001 / 8.0]);
    // A token turns by its own history, whatever the rest of the step.
    let op = Rotary { dim: DIM, theta: THETA, scaling: dynamic };
    let (alone, among) = (eval(op.clone(), &[ints(&[50])]), eval(op, &[ints(&[449, 50, 3000])]));
    assert_eq!(alone, among[DIM..2 * DIM]);
}

#[test]
fn llama3_scaling_divides_long_waves() {
    // Over 400·τ tokens the pairs make 400, 40, 4 and 0.4 turns; between 1 and 16 they blend.
    let original = (400.0 * TAU) as usize;
    let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 16.0, original };
    let turns = original as f64 * 0.01 / TAU;
    let short = (turns - 1.0) / 15.0;
    let blend = 0.01 * short + 0.01 / 8.0 * (1.0 - short);
    near(frequencies(&scaling, 1), [1.0, 0.1, blend, 0.001 / 8.0]);
}

#[test]
fn yarn_scaling_ramps_from_fast_to_slow() {
    // Pair i makes n·10^−i turns over n·τ tokens, so pair i = log10(n / turns): with 1000·τ tokens the ramp from 100
    // turns to 1 turn goes from pair 1 to pair 3.
    let original = (1000.0 * TAU).round() as usize;
    let (beta_fast, beta_slow) = (100.0, 1.0);
    let attention_factor = yarn_attention_factor(4.0);
    assert!((attention_factor - 1.138_629_4).abs() < 1e-6 && yarn_attention_factor(1.0).to_bits() == 1.0f32.to_bits());
    // The original length is not exactly 1000·τ; ends a little inside keep floor and ceiling where they are said to be.
    let scaling = Scaling::Yarn {
        factor: 4.0,
        original,
        beta_fast: beta_fast * 0.9,
        beta_slow: beta_slow * 1.1,
        attention_factor,
    };
    near(frequencies(&scaling, 1), [1.0, 0.1, 0.01 * (0.5 + 0.5 / 4.0), 0.001 / 4.0]);
    // Cosines and sines grow by the factor.
    let op = Rotary { dim: DIM, theta: THETA, scaling };
    let table = eval(op, &[ints(&[0])]);
    assert_eq!(table[..4], [attention_factor; 4]);
}

#[test]
fn longrope_switches_lists_after_the_original_length() {
    let attention_factor = longrope_attention_factor(4096 * 32, 4096);
    assert!((attention_factor - 1.190_238_1).abs() < 1e-6);
    assert!(longrope_attention_factor(4096, 4096).to_bits() == 1.0f32.to_bits());
    let (short, long) = (vec![1.0, 2.0, 4.0, 8.0], vec![2.0, 4.0, 8.0, 16.0]);
    let scaling = Scaling::LongRope { original: 10, attention_factor: 1.5, short, long };
    near(frequencies(&scaling, 10), [1.0, 0.05, 0.0025, 0.000_125]);
    near(frequencies(&scaling, 11), [0.5, 0.025, 0.001_25, 0.000_062_5]);
    let op = Rotary { dim: DIM, theta: THETA, scaling };
    let table = eval(op, &[ints(&[9, 10])]);
    close(&[table[0], table[8]], &[1.5 * 9.0f64.cos(), 1.5 * 5.0f64.cos()]);
}

#[test]
fn each_op_prints_and_parses() {
    let text = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
  @t: f32[64, 64] = "t"
  @n: f32[64] = "n" plus_one
  @b: f32[64] = "b"
  @h: f32[16] = "h" plus_one
  cache $kv.0: cache<f16, 2x16>
  %0 = embed %tokens, @t : f32[T, 64]
  %1 = layer_norm %0, @n, @b {eps = 1e-5} : f32[T, 64]
  %2 = head_norm %1, @h {head_dim = 16, heads = 4, eps = 1e-6} : f32[T, 64]
  %3 = head_norm %2, @h {head_dim = 16, first = 1, heads = 2, eps = 1e-6} : f32[T, 64]
  %4 = gelu %3 {tanh = true} : f32[T, 64]
  %5 = norm_add %4, @n, %0 {eps = 1e-6} : f32[T, 64]
  %6 = scale %5 {factor = 0.22} : f32[T, 64]
  %7 = softcap %6 {cap = 30.0} : f32[T, 64]
  %8 = attention %7, %positions, %sequences, $kv.0 {heads = 4, scale = 0.25, window = 512, softcap = 50.0} : f32[T, 64]
  %9 = glu %8 {function = "gelu_tanh"} : f32[T, 32]
  %10 = rotary %positions {dim = 8, theta = 10000.0, scaling = "linear", factor = 8.0} : f32[T, 8]
  %11 = rope %0, %10 {head_dim = 16, heads = 4} : f32[T, 64]
  %12 = rotary %positions {dim = 8, theta = 10000.0, scaling = "dynamic", factor = 2.0, original = 2048} : f32[T, 8]
  %13 = rotary %positions {dim = 8, theta = 10000.0, scaling = "yarn", factor = 4.0, original = 4096, beta_fast = 32.0, beta_slow = 1.0, attention_factor = 1.1386294} : f32[T, 8]
  %14 = rotary %positions {dim = 8, theta = 10000.0, scaling = "llama3", factor = 8.0, low = 1.0, high = 4.0, original = 8192} : f32[T, 8]
  %15 = rotary %positions {dim = 4, theta = 10000.0, scaling = "longrope", original = 4096, attention_factor = 1.25, short = [1.0, 1.5], long = [2.0, 64.0]} : f32[T, 4]
  return a = %9, b = %11, c = %12, d = %13, e = %14, f = %15
}
"#;
    let graph = parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(graph.to_string(), text);
    lathe_ir::verify::verify(&graph).unwrap();
}

#[test]
fn refusals() {
    let check = |text: &str, expected: &str| {
        let head = "graph g(%tokens: i32[T], %positions: i32[T]) { @t: f32[64, 64] = \"t\" @w: f32[16] = \"w\"\n";
        let error = parse(&format!("{head}%0 = embed %tokens, @t : f32[T, 64]\n%1 = {text} return x = %1 }}"));
        let message = error.unwrap_err().to_string();
        assert!(message.contains(expected), "{message} does not contain {expected}");
    };
    check("layer_norm %0, @w, @w {eps = 1.0} : f32[T, 64]", "operand 'w' expects f32[64], found f32[16]");
    check("head_norm %0, @w {head_dim = 16, first = 3, heads = 2, eps = 1.0} : f32[T, 64]", "at least 5 of them");
    check("head_norm %0, @w {head_dim = 32, heads = 2, eps = 1.0} : f32[T, 64]", "operand 'w' expects f32[32]");
    check("norm_add %0, @w, %0 {eps = 1.0} : f32[T, 64]", "operand 'w' expects f32[64], found f32[16]");
    check("softcap %0 {cap = 0.0} : f32[T, 64]", "'cap' expects a positive finite number, found 0.0");
    check("glu %0 {function = \"relu\"} : f32[T, 32]", "expects \"silu\", \"gelu\" or \"gelu_tanh\", found \"relu\"");
    check("glu %0 {function = [1, x]} : f32[T, 32]", "expected a number, a string, true or false, found 'x'");
    check("glu %0 {function = [1, true]} : f32[T, 32]", "expected a number, found 'true'");
    check("glu %0 {function = [[1]]} : f32[T, 32]", "expected a number, a string, true or false, found '['");
    let rotary = |dim: usize, scaling: &str, expected: &str| {
        check(
            &format!("rotary %positions {{dim = {dim}, theta = 1e4, scaling = {scaling}}} : f32[T, {dim}]"),
            expected,
        );
    };
    rotary(8, "\"ntk\"", "expects \"linear\", \"dynamic\", \"yarn\", \"llama3\" or \"longrope\", found \"ntk\"");
    rotary(8, "\"linear\", factor = 0.0", "'factor' expects a positive finite number, found 0.0");
    rotary(2, "\"dynamic\", factor = 2.0, original = 9", "'dim' expects at least 4, found 2");
    rotary(8, "\"dynamic\", factor = 0.5, original = 9", "'factor' expects 1 or more, found 0.5");
    rotary(8, "\"dynamic\", factor = 2.0, original = 0", "'original' expects a positive number, found 0");
    rotary(
        8,
        "\"llama3\", factor = 2.0, low = 4.0, high = 1.0, original = 9",
        "'high' expects more than 4.0, found 1.0",
    );
    let lists = "\"longrope\", original = 9, attention_factor = 1.0, short = [1.0, 2.0], long = [1.0]";
    rotary(4, lists, "'long' expects 2 positive numbers, found 1 numbers");
    let window = Attention { heads: 1, scale: 1.0, window: Some(0), softcap: None };
    let (x, i) = (Type::f32([lathe_ir::types::Dim::T, 1.into()]), Type::i32([lathe_ir::types::Dim::T]));
    let cache = Type::Cache(CacheType { dtype: DType::F32, heads: 1, head_dim: 1 });
    let error = Op::from(window).infer(&[&x, &i, &i, &cache]).unwrap_err().to_string();
    assert_eq!(error, "attention: attribute 'window' expects at least 1 token, found 0");
    let matrix = parse(
        "graph g(%tokens: i32[T]) { @t: f32[4, 4] = \"t\" plus_one %0 = embed %tokens, @t : f32[T, 4] return x = %0 }",
    );
    let error = lathe_ir::verify::verify(&matrix.unwrap()).unwrap_err().to_string();
    assert!(error.contains("'t' is a matrix; one is added to vectors only"), "{error}");
}
