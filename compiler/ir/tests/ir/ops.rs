//! Each op's evaluation against values worked out by hand or by an independent formula.

use half::f16;
use lathe_ir::eval::{CacheState, Data, EvalContext, EvalError, Tensor};
use lathe_ir::op::Op;
use lathe_ir::ops::add::Add;
use lathe_ir::ops::append::Append;
use lathe_ir::ops::append_qkv::AppendQkv;
use lathe_ir::ops::attention::Attention;
use lathe_ir::ops::bias::Bias;
use lathe_ir::ops::embed::Embed;
use lathe_ir::ops::gather::Gather;
use lathe_ir::ops::glu::{Function, Glu};
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::mul::Mul;
use lathe_ir::ops::quantize::Quantize;
use lathe_ir::ops::rms_norm::RmsNorm;
use lathe_ir::ops::rope::Rope;
use lathe_ir::ops::rotary::{Rotary, Scaling};
use lathe_ir::ops::silu::Silu;
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};
use lathe_ir::types::{CacheType, DType};

use crate::fixtures::{Numbers, random_matrix};

/// A few roundings of f32 around values near 1.
const TOLERANCE: f32 = 1e-6;

fn eval(op: impl Into<Op>, inputs: &[Tensor]) -> Vec<Tensor> {
    op.into().eval(inputs, &mut EvalContext { threads: 2 }).unwrap()
}

fn fail(op: impl Into<Op>, inputs: &[Tensor]) -> EvalError {
    op.into().eval(inputs, &mut EvalContext { threads: 1 }).unwrap_err()
}

fn check(op: impl Into<Op>, inputs: &[Tensor], shape: &[usize], expected: &[f32]) {
    let results = eval(op, inputs);
    assert_eq!(results.len(), 1);
    close(&results[0], shape, expected);
}

fn close(tensor: &Tensor, shape: &[usize], expected: &[f32]) {
    assert_eq!(tensor.shape, shape);
    let values = tensor.as_f32().unwrap();
    assert_eq!(values.len(), expected.len());
    for (value, expected) in values.iter().zip(expected) {
        assert!((value - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{values:?} is not {expected:?}");
    }
}

fn rows(shape: [usize; 2], values: &[f32]) -> Tensor {
    Tensor::f32(shape.to_vec(), values.to_vec())
}

fn ints(values: &[i32]) -> Tensor {
    Tensor::i32(vec![values.len()], values.to_vec())
}

fn floats(rows: usize, cols: usize, values: &[f32]) -> Tensor {
    Tensor::matrix(Matrix { rows, cols, data: MatrixData::Float(values.to_vec()) })
}

/// Attention to all earlier tokens.
fn attention(heads: usize, scale: f32) -> Attention {
    Attention { heads, scale, window: None, softcap: None }
}

/// A rotary without scaling.
fn rotary(dim: usize, theta: f32) -> Rotary {
    Rotary { dim, theta, scaling: Scaling::None }
}

fn cache(dtype: DType, heads: usize, head_dim: usize) -> CacheState {
    CacheState::new(CacheType { dtype, heads, head_dim })
}

#[test]
fn embed_copies_rows() {
    let table = floats(3, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    check(Embed, &[ints(&[2, 0, 2]), table.clone()], &[3, 2], &[5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
    assert_eq!(fail(Embed, &[ints(&[3]), table.clone()]), EvalError::Index { what: "token", index: 3, limit: 3 });
    assert_eq!(fail(Embed, &[ints(&[-1]), table]), EvalError::Index { what: "token", index: -1, limit: 3 });
}

#[test]
fn gather_picks_rows() {
    let x = rows([3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    check(Gather, &[x.clone(), ints(&[2, 1])], &[2, 2], &[5.0, 6.0, 3.0, 4.0]);
    check(Gather, &[x.clone(), ints(&[])], &[0, 2], &[]);
    assert_eq!(fail(Gather, &[x, ints(&[7])]), EvalError::Index { what: "row", index: 7, limit: 3 });
}

#[test]
fn rms_norm_divides_by_the_root_mean_square() {
    // Mean squares 25/2 and 0.5; with eps 0.5 the roots are √13 and 1.
    let x = rows([2, 2], &[3.0, 4.0, 1.0, 0.0]);
    let w = Tensor::f32(vec![2], vec![1.0, 2.0]);
    let root = 13.0f32.sqrt();
    check(RmsNorm { eps: 0.5 }, &[x, w], &[2, 2], &[3.0 / root, 8.0 / root, 1.0, 0.0]);
}

#[test]
fn quantize_rounds_half_to_even() {
    // The scale is 1 in the first group, 0 in the second.
    let x = rows([1, 8], &[127.0, 0.5, 1.5, -2.5, 0.0, 0.0, 0.0, 0.0]);
    let results = eval(Quantize { group: 4 }, &[x]);
    let expected = Data::Act { codes: vec![127, 0, 2, -2, 0, 0, 0, 0], scales: vec![1.0, 0.0], group: 4 };
    assert_eq!(results[0], Tensor { shape: vec![1, 8], data: expected });
    assert_eq!(results[0].dequantized().unwrap(), [127.0, 0.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn quantize_errs_by_half_a_step_at_most() {
    let values = Numbers::of("quantize").take(4 * 64);
    let results = eval(Quantize { group: 32 }, &[rows([4, 64], &values)]);
    let back = results[0].dequantized().unwrap();
    for (group, back) in values.chunks(32).zip(back.chunks(32)) {
        let step = group.iter().fold(0.0f32, |max, value| max.max(value.abs())) / 127.0;
        assert!(group.iter().zip(back).all(|(a, b)| (a - b).abs() <= step * 0.500_01));
    }
}

#[test]
fn linear_multiplies_by_the_transposed_weight() {
    let x = rows([2, 3], &[1.0, 2.0, 3.0, -1.0, 0.0, 0.5]);
    let w = floats(2, 3, &[1.0, 0.0, 2.0, 4.0, -1.0, 0.0]);
    check(Linear::new(), &[x, w], &[2, 2], &[7.0, 2.0, 0.0, -4.0]);
}

#[test]
fn linear_dequantizes_symmetric_and_affine_weights() {
    // int8: code 130 is 2 above the middle, so 2 · 0.5; int4: code 3 is 3 · 0.5 − 1.
    let half = f16::from_f32(0.5);
    let x = rows([1, 32], &[1.0; 32]);
    let quantized = |scheme, code, mins| {
        let data = MatrixData::Quantized { scheme, codes: vec![code; 32], scales: vec![half], mins, subs: Vec::new() };
        Tensor::matrix(Matrix { rows: 1, cols: 32, data })
    };
    check(Linear::new(), &[x.clone(), quantized(Scheme::INT8, 130, Vec::new())], &[1, 1], &[32.0]);
    check(Linear::new(), &[x, quantized(Scheme::INT4, 3, vec![f16::from_f32(-1.0)])], &[1, 1], &[16.0]);
}

#[test]
fn linear_takes_int8_activations() {
    let w = floats(1, 4, &[1.0, 2.0, 3.0, 4.0]);
    let codes = Data::Act { codes: vec![1, -1, 2, 0], scales: vec![0.5, 2.0], group: 2 };
    check(Linear::new(), &[Tensor { shape: vec![1, 4], data: codes }, w], &[1, 1], &[11.5]);
}

#[test]
fn linear_does_not_depend_on_the_thread_count() {
    let x = rows([3, 64], &Numbers::of("x").take(3 * 64));
    let w = Tensor::matrix(random_matrix("w", Scheme::INT4, 300, 64));
    let run = |threads| Op::from(Linear::new()).eval(&[x.clone(), w.clone()], &mut EvalContext { threads }).unwrap();
    assert_eq!(run(1), run(5));
}

#[test]
fn rotary_holds_cosines_then_sines() {
    // theta 4 and D 4: frequencies 1 and 1/2.
    let expected = [1.0, 1.0, 0.0, 0.0, 3.0f32.cos(), 1.5f32.cos(), 3.0f32.sin(), 1.5f32.sin()];
    check(rotary(4, 4.0), &[ints(&[0, 3])], &[2, 4], &expected);
}

#[test]
fn rope_turns_pairs_of_halves() {
    // A quarter turn of the pair (0, 2), a half turn of the pair (1, 3), in the first of two heads only.
    let x = rows([1, 8], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let rotary = rows([1, 4], &[0.0, -1.0, 1.0, 0.0]);
    let expected = [-3.0, -2.0, 1.0, -4.0, 5.0, 6.0, 7.0, 8.0];
    check(Rope { head_dim: 4, heads: 1 }, &[x, rotary], &[1, 8], &expected);
}

#[test]
fn rope_keeps_scores_by_distance() {
    // The dot product of a rotated query and key depends on the difference of their positions only.
    let vectors = rows([2, 16], &Numbers::of("rope").take(32));
    let score = |p: i32, q: i32| {
        let rotary = eval(rotary(16, 1e4), &[ints(&[p, q])]).remove(0);
        let turned = eval(Rope { head_dim: 16, heads: 1 }, &[vectors.clone(), rotary]).remove(0);
        let (a, b) = turned.as_f32().unwrap().split_at(16);
        a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()
    };
    assert!((score(9, 4) - score(105, 100)).abs() < 1e-4, "rounding of 16 products of positions near 100");
    assert!((score(9, 4) - score(9, 5)).abs() > 1e-3);
}

#[test]
fn a_cache_of_codes_has_a_scale_per_group_of_a_key_and_per_value() {
    let head_dim = 48;
    let ty = CacheType { dtype: DType::Int8, heads: 2, head_dim };
    let mut state = CacheState::new(ty);
    // In every head 127 steps of 1/4 in the first 32 elements, and of 8 in the rest.
    let key: Vec<f32> =
        (0..96).map(|i| if i % 48 < 32 { (i % 48) as f32 - 31.75 } else { 1048.0 - (i % 48) as f32 }).collect();
    let mut value = vec![0.5; 96];
    value[3] = -127.0;
    value[48..].fill(0.0);
    state.append(0, 0, &key, &value);
    let row = state.visible(0, 0, None).unwrap()[0];
    for (i, (&stored, &given)) in row.key.iter().zip(&key).enumerate() {
        let step = if i % 48 < 32 { 0.25 } else { 8.0 };
        assert!((stored - given).abs() <= step / 2.0 && stored % step == 0.0, "element {i}: {stored} for {given}");
    }
    assert_eq!(row.key[..1], [-31.75], "the largest of a group is kept");
    // Ties go to even: 0.5 of a step of 1 is 0. A head of zeros stays one.
    assert_eq!(row.value, [vec![0.0, 0.0, 0.0, -127.0], vec![0.0; 92]].concat());
    assert_eq!(ty.token_bytes(), 2 * (2 * 48 + 2 * (2 + 1)), "codes, and scales of 2 bytes");
}

#[test]
fn append_rounds_to_the_cache_type() {
    // 2049 lies between two f16 values, 2048 and 2050, and rounds to the even one.
    let (k, v) = (rows([1, 2], &[2049.0, 1.0]), rows([1, 2], &[0.5, -0.25]));
    for (dtype, stored) in [(DType::F16, 2048.0), (DType::F32, 2049.0)] {
        let inputs = [k.clone(), v.clone(), ints(&[0]), ints(&[3]), Tensor::cache(cache(dtype, 1, 2))];
        let results = eval(Append, &inputs);
        let visible = results[0].as_cache().unwrap().visible(3, 0, None).unwrap();
        assert_eq!((&visible[0].key[..], &visible[0].value[..]), (&[stored, 1.0][..], &[0.5, -0.25][..]));
    }
}

#[test]
fn append_keeps_sequences_apart_and_overwrites() {
    let values = rows([3, 1], &[1.0, 2.0, 3.0]);
    let inputs = [values.clone(), values, ints(&[0, 0, 0]), ints(&[0, 1, 0]), Tensor::cache(cache(DType::F32, 1, 1))];
    let results = eval(Append, &inputs);
    let state = results[0].as_cache().unwrap();
    let key = |sequence| state.visible(sequence, 0, None).unwrap()[0].key[0];
    assert_eq!((key(0), key(1)), (3.0, 2.0));
    assert_eq!(state.visible(0, 1, None), Err(EvalError::NotCached { sequence: 0, position: 1 }));
    assert_eq!(state.visible(0, -1, None), Err(EvalError::NotCached { sequence: 0, position: -1 }));
    let mut forgotten = state.clone();
    forgotten.remove_sequence(0);
    assert!(forgotten.visible(0, 0, None).is_err() && forgotten.visible(1, 0, None).is_ok());
}

#[test]
fn append_qkv_splits_rows() {
    // Two query heads, one key head and one value head of two elements.
    let qkv = rows([1, 8], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let results = eval(AppendQkv { heads: 2 }, &[qkv, ints(&[0]), ints(&[0]), Tensor::cache(cache(DType::F16, 1, 2))]);
    close(&results[0], &[1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let visible = results[1].as_cache().unwrap().visible(0, 0, None).unwrap();
    assert_eq!((&visible[0].key[..], &visible[0].value[..]), (&[5.0, 6.0][..], &[7.0, 8.0][..]));
}

#[test]
fn attention_weighs_by_softmax_and_is_causal() {
    // Scores at position 1 are 0 and ln 3 with scale 1, so weights 1/4 and 3/4; position 0 sees itself only.
    let mut state = cache(DType::F32, 1, 1);
    state.append(0, 0, &[0.0], &[8.0]);
    state.append(0, 1, &[3.0f32.ln()], &[4.0]);
    state.append(1, 0, &[5.0], &[-1.0]);
    let q = rows([3, 1], &[1.0, 1.0, 1.0]);
    let inputs = [q, ints(&[1, 0, 0]), ints(&[0, 0, 1]), Tensor::cache(state)];
    check(attention(1, 1.0), &inputs, &[3, 1], &[5.0, 8.0, -1.0]);
}

#[test]
fn attention_shares_kv_heads_among_query_heads() {
    let mut state = cache(DType::F32, 2, 1);
    state.append(0, 0, &[1.0, 1.0], &[10.0, 20.0]);
    let inputs = [rows([1, 4], &[1.0; 4]), ints(&[0]), ints(&[0]), Tensor::cache(state.clone())];
    check(attention(4, 0.5), &inputs, &[1, 4], &[10.0, 10.0, 20.0, 20.0]);
    let inputs = [rows([1, 4], &[1.0; 4]), ints(&[1]), ints(&[0]), Tensor::cache(state)];
    let expected = EvalError::NotCached { sequence: 0, position: 1 };
    assert_eq!(fail(attention(4, 0.5), &inputs), expected);
}

#[test]
fn attention_survives_large_scores() {
    let mut state = cache(DType::F32, 1, 1);
    state.append(0, 0, &[1e4], &[1.0]);
    state.append(0, 1, &[-1e4], &[2.0]);
    let inputs = [rows([1, 1], &[1.0]), ints(&[1]), ints(&[0]), Tensor::cache(state)];
    check(attention(1, 1.0), &inputs, &[1, 1], &[1.0]);
}

#[test]
fn elementwise_ops() {
    let a = rows([1, 3], &[1.0, -2.0, 0.5]);
    let b = rows([1, 3], &[4.0, 3.0, -1.0]);
    check(Add, &[a.clone(), b.clone()], &[1, 3], &[5.0, 1.0, -0.5]);
    check(Mul, &[a, b], &[1, 3], &[4.0, -6.0, -0.5]);
    let bias = Tensor::f32(vec![2], vec![0.5, -1.0]);
    check(Bias, &[rows([2, 2], &[1.0, 2.0, 3.0, 4.0]), bias], &[2, 2], &[1.5, 1.0, 3.5, 3.0]);
    // sigmoid(ln 3) is 3/4; far out it is 1 or 0.
    let x = rows([1, 4], &[0.0, 3.0f32.ln(), 100.0, -200.0]);
    check(Silu, &[x], &[1, 4], &[0.0, 0.75 * 3.0f32.ln(), 100.0, 0.0]);
}

#[test]
fn glu_pairs_blocks_of_sixteen() {
    // Gates of ln 3 give 3/4 · ln 3; each up value tells its place.
    let gate = 3.0f32.ln();
    let row: Vec<f32> = (0..64).map(|i| if i % 32 < 16 { gate } else { i as f32 }).collect();
    let expected: Vec<f32> = (16..32).chain(48..64).map(|up| 0.75 * gate * up as f32).collect();
    check(Glu { function: Function::Silu }, &[rows([1, 64], &row)], &[1, 32], &expected);
}

#[test]
fn wrong_operands_are_errors() {
    assert_eq!(fail(Add, &[ints(&[1])]), EvalError::Operands { expected: 2, found: 1 });
    assert_eq!(fail(Silu, &[ints(&[1])]), EvalError::Kind { expected: "f32", found: "i32" });
    assert_eq!(fail(Linear::new(), &[ints(&[1])]), EvalError::Operands { expected: 2, found: 1 });
}
