//! Result types, refusals and costs of ops.

use lathe_ir::op::Op;
use lathe_ir::ops::add::Add;
use lathe_ir::ops::append::Append;
use lathe_ir::ops::append_qkv::AppendQkv;
use lathe_ir::ops::attention::Attention;
use lathe_ir::ops::embed::Embed;
use lathe_ir::ops::gather::Gather;
use lathe_ir::ops::glu::{Function, Glu};
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::quantize::Quantize;
use lathe_ir::ops::rms_norm::RmsNorm;
use lathe_ir::ops::rope::Rope;
use lathe_ir::ops::rotary::{Rotary, Scaling};
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{DType, Dim, StepSize, Type};

use crate::fixtures::{act_type, cache_type, matrix_type};

fn infer(op: impl Into<Op>, inputs: &[Type]) -> Result<Vec<Type>, String> {
    op.into().infer(&inputs.iter().collect::<Vec<_>>()).map_err(|error| error.to_string())
}

fn check(op: impl Into<Op>, inputs: &[Type], expected: &[Type]) {
    assert_eq!(infer(op, inputs).unwrap(), expected);
}

fn refuse(op: impl Into<Op>, inputs: &[Type], expected: &str) {
    assert_eq!(infer(op, inputs).unwrap_err(), expected);
}

fn x(k: usize) -> Type {
    Type::f32([Dim::T, Dim::of(k)])
}

fn v(k: usize) -> Type {
    Type::f32([Dim::of(k)])
}

fn i(dim: Dim) -> Type {
    Type::i32([dim])
}

fn cache() -> Type {
    Type::Cache(cache_type(DType::F16))
}

#[test]
fn results() {
    check(Embed, &[i(Dim::T), matrix_type(Scheme::INT8, 10, 32)], &[x(32)]);
    check(Gather, &[x(8), i(Dim::R)], &[Type::f32([Dim::R, Dim::of(8)])]);
    check(RmsNorm { eps: 1.0 }, &[x(8), v(8)], &[x(8)]);
    check(Quantize { group: 32 }, &[x(64)], &[act_type(32, Dim::T, 64)]);
    check(Linear::new(), &[x(32), matrix_type(Scheme::BF16, 7, 32)], &[x(7)]);
    check(
        Linear::new(),
        &[act_type(32, Dim::R, 64), matrix_type(Scheme::INT4, 7, 64)],
        &[Type::f32([Dim::R, Dim::of(7)])],
    );
    check(Rotary { dim: 8, theta: 1.0, scaling: Scaling::None }, &[i(Dim::T)], &[x(8)]);
    check(Rope { head_dim: 8, heads: 2 }, &[x(32), x(8)], &[x(32)]);
    check(Rope { head_dim: 8, heads: 2 }, &[x(32), x(6)], &[x(32)]);
    check(Append, &[x(32), x(32), i(Dim::T), i(Dim::T), cache()], &[cache()]);
    check(AppendQkv { heads: 4 }, &[x(128), i(Dim::T), i(Dim::T), cache()], &[x(64), cache()]);
    check(
        Attention { heads: 4, scale: 1.0, window: None, softcap: None },
        &[x(64), i(Dim::T), i(Dim::T), cache()],
        &[x(64)],
    );
    check(Glu { function: Function::Silu }, &[x(64)], &[x(32)]);
}

#[test]
fn refusals_name_operand_expectation_and_finding() {
    refuse(Add, &[x(8)], "add: expected 2 operands (a, b), found 1");
    refuse(Add, &[x(8), x(9)], "add: operand 'b' expects f32[T, 8], found f32[T, 9]");
    refuse(RmsNorm { eps: 1.0 }, &[x(8), v(9)], "rms_norm: operand 'w' expects f32[8], found f32[9]");
    refuse(
        RmsNorm { eps: 0.0 },
        &[x(8), v(8)],
        "rms_norm: attribute 'eps' expects a positive finite number, found 0.0",
    );
    refuse(
        RmsNorm { eps: f32::NAN },
        &[x(8), v(8)],
        "rms_norm: attribute 'eps' expects a positive finite number, found NaN",
    );
    refuse(Quantize { group: 32 }, &[x(40)], "quantize: 40 columns are not whole groups of 32");
    refuse(Quantize { group: 0 }, &[x(40)], "quantize: 40 columns are not whole groups of 0");
    refuse(
        Rotary { dim: 7, theta: 1.0, scaling: Scaling::None },
        &[i(Dim::T)],
        "rotary: attribute 'dim' expects an even number, found 7",
    );
    let rope = Rope { head_dim: 8, heads: 5 };
    refuse(
        rope.clone(),
        &[x(32), x(8)],
        "rope: operand 'x' expects whole heads of 8, at least 5 of them, found f32[T, 32]",
    );
    refuse(
        rope,
        &[x(40), x(10)],
        "rope: operand 'rotary' expects f32[T, R] with an even R of at most 8, found f32[T, 10]",
    );
    refuse(
        Append,
        &[x(32), x(31), i(Dim::T), i(Dim::T), cache()],
        "append: operand 'v' expects T rows that fill one entry of cache<f16, 2x16>, found f32[T, 31]",
    );
    refuse(
        Append,
        &[x(32), x(32), i(Dim::R), i(Dim::T), cache()],
        "append: operand 'positions' expects i32[T], found i32[R]",
    );
    refuse(
        AppendQkv { heads: 3 },
        &[x(128), i(Dim::T), i(Dim::T), cache()],
        "append_qkv: operand 'qkv' expects (3 + 2·2)·16 columns, found f32[T, 128]",
    );
    refuse(
        Attention { heads: 3, scale: 1.0, window: None, softcap: None },
        &[x(48), i(Dim::T), i(Dim::T), cache()],
        "attention: operand 'cache' expects a number of heads that divides 3, found cache<f16, 2x16>",
    );
    refuse(
        Glu { function: Function::Silu },
        &[x(48)],
        "glu: operand 'x' expects columns in blocks of 32, found f32[T, 48]",
    );
}

#[test]
fn linear_refusals() {
    let w = matrix_type(Scheme::INT4, 7, 32);
    refuse(
        Linear::new(),
        &[x(64), w.clone()],
        "linear: x has 64 columns, w expects 32 (x f32[T, 64], w int4:g32+min[7, 32])",
    );
    refuse(Linear::new(), &[x(32), x(32)], "linear: operand 'w' expects a weight matrix [N, K], found f32[T, 32]");
    refuse(Linear::new(), &[x(32)], "linear: expected 2 operands (x, w and 0 of its stages), found 1");
    let float = "linear: x in groups of 32 needs an integer weight scheme whose groups divide them, found f32";
    refuse(Linear::new(), &[act_type(32, Dim::T, 32), matrix_type(Scheme::F32, 7, 32)], float);
    let group = "linear: x in groups of 16 needs an integer weight scheme whose groups divide them, found int4:g32+min";
    refuse(Linear::new(), &[act_type(16, Dim::T, 32), w], group);
    let two = Linear {
        prologue: Vec::new(),
        epilogue: vec![AppendQkv { heads: 4 }.into(), Glu { function: Function::Silu }.into()],
    };
    let inputs = [x(32), matrix_type(Scheme::F32, 128, 32), i(Dim::T), i(Dim::T), cache()];
    refuse(two, &inputs, "linear: stage append_qkv has 2 results and must be last");
}

/// 3 tokens of 2 sequences, 1 row.
const SIZE: StepSize = StepSize { tokens: 3, sequences: 2, rows: 1 };

fn cost(op: impl Into<Op>, inputs: &[Type]) -> (u64, u64) {
    let op = op.into();
    let inputs: Vec<&Type> = inputs.iter().collect();
    let cost = op.cost(&inputs, &op.infer(&inputs).unwrap(), SIZE);
    (cost.flops, cost.bytes)
}

#[test]
fn costs_count_weights_in_their_scheme() {
    // A row of 64 int4 codes with two scales and minima is 32 + 8 bytes, of int8 codes 64 + 4.
    assert_eq!(Scheme::INT4.row_bytes(64), 40);
    assert_eq!(Scheme::INT8.row_bytes(64), 68);
    // Bytes of 256 elements in GGUF's own blocks.
    let blocks = [
        (Scheme::INT2_SUPER, 84),
        (Scheme::INT3_SUPER, 110),
        (Scheme::INT4_SUPER, 144),
        (Scheme::INT5_SUPER, 176),
        (Scheme::INT6_SUPER, 210),
        (Scheme::IQ4_SUPER, 136),
        (Scheme::IQ4, 144),
        (Scheme::INT4_SYMMETRIC, 144),
        (Scheme::INT5_SYMMETRIC, 176),
        (Scheme::INT5, 192),
    ];
    for (scheme, bytes) in blocks {
        assert_eq!(scheme.row_bytes(256), bytes, "{scheme}");
    }
    let (x_bytes, y_bytes) = (3 * 64 * 4, 3 * 16 * 4);
    let linear = |scheme| cost(Linear::new(), &[x(64), matrix_type(scheme, 16, 64)]);
    assert_eq!(linear(Scheme::INT4), (2 * 3 * 16 * 64, 16 * 40 + x_bytes + y_bytes));
    assert_eq!(linear(Scheme::BF16), (2 * 3 * 16 * 64, 16 * 128 + x_bytes + y_bytes));
    // An activation record is 64 codes, and 12 bytes for each of two groups.
    let quantized = cost(Linear::new(), &[act_type(32, Dim::T, 64), matrix_type(Scheme::INT4, 16, 64)]);
    assert_eq!(quantized.1, 16 * 40 + 3 * (64 + 24) + y_bytes);
    // Only the rows of the tokens are read from a table.
    assert_eq!(cost(Embed, &[i(Dim::T), matrix_type(Scheme::INT8, 1000, 64)]), (0, 3 * 4 + 3 * 68 + x_bytes));
    assert_eq!(cost(Gather, &[x(64), i(Dim::R)]), (0, 4 + 2 * 64 * 4));
}

#[test]
fn costs_of_a_fused_linear_leave_out_what_stays_in_registers() {
    let fused = Linear { prologue: vec![RmsNorm { eps: 1.0 }.into()], epilogue: vec![Add.into()] };
    let w = matrix_type(Scheme::F32, 16, 64);
    let (flops, bytes) = cost(fused, &[x(64), w.clone(), v(64), x(16)]);
    let parts =
        [cost(RmsNorm { eps: 1.0 }, &[x(64), v(64)]), cost(Linear::new(), &[x(64), w]), cost(Add, &[x(16), x(16)])];
    assert_eq!(flops, parts.iter().map(|part| part.0).sum::<u64>());
    let kept = 2 * (3 * 64 * 4) + 2 * (3 * 16 * 4);
    assert_eq!(bytes + kept, parts.iter().map(|part| part.1).sum::<u64>());
}

#[test]
fn appends_write_their_tokens_to_the_cache() {
    // 2 heads of 16 f16 keys and values are 128 bytes a token.
    let (_, bytes) = cost(Append, &[x(32), x(32), i(Dim::T), i(Dim::T), cache()]);
    assert_eq!(bytes, 2 * 3 * 32 * 4 + 2 * 3 * 4 + 3 * 128);
}
