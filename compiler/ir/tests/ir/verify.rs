//! The verifier refuses each violated invariant, and names the node.

use lathe_ir::graph::{Arrangement, Graph, Part, RowOrder, StepInput, Value, Weight};
use lathe_ir::ops::append::Append;
use lathe_ir::ops::embed::Embed;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::mul::Mul;
use lathe_ir::ops::silu::Silu;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{CacheType, DType, Dim, Type};
use lathe_ir::verify::verify;

use crate::fixtures::{cache_type, decoder, fused, matrix, matrix_type, schemes};

fn check(graph: &Graph, expected: &str) {
    assert_eq!(verify(graph).expect_err(expected).to_string(), expected);
}

/// `x = embed`, `y = silu x`; output `y`.
fn small() -> (Graph, Value, Value) {
    let mut g = Graph::new("main");
    let tokens = g.input(StepInput::Tokens);
    let table = matrix(&mut g, "t", Scheme::F32, 8, 32);
    let x = g.op1(Embed, &[tokens, table]).unwrap();
    let y = g.op1(Silu, &[x]).unwrap();
    g.outputs.push(("y".to_string(), y));
    (g, x, y)
}

#[test]
fn sound_graphs_pass() {
    for scheme in schemes() {
        verify(&decoder(2, scheme)).unwrap();
    }
    verify(&small().0).unwrap();
}

#[test]
fn cycles() {
    let (mut g, x, y) = small();
    let z = g.op1(Mul, &[y, x]).unwrap();
    g.replace_uses(x, z);
    check(&g, "%1 (mul): an operand is not computed before it (the graph has a cycle)");
}

#[test]
fn missing_operands_and_outputs() {
    let (mut g, x, _) = small();
    let orphan = g.op1(Silu, &[x]).unwrap();
    g.remove_dead();
    g.outputs.push(("gone".to_string(), orphan));
    check(&g, "output 'gone': expected a tensor of the graph, found a value that was removed");
    assert!(g.to_string().contains("gone = %removed"));

    let (mut g, x, y) = small();
    g.replace_uses(x, Value { node: y.node, result: 0 });
    g.replace_uses(x, Value { result: 7, ..x });
    check(&g, "%1 (silu): operand 0 does not exist");
}

#[test]
fn names() {
    let (mut g, _, y) = small();
    matrix(&mut g, "t", Scheme::F32, 8, 32);
    check(&g, "@t: the name is defined twice");

    let (mut g, ..) = small();
    g.cache("kv", cache_type(DType::F16));
    g.cache("kv", cache_type(DType::F16));
    check(&g, "$kv: the name is defined twice");

    let (mut g, ..) = small();
    g.outputs.push(("y".to_string(), y));
    check(&g, "output 'y': the name is defined twice");
}

#[test]
fn weights() {
    let with = |parts: &[(usize, RowOrder)], arrangement: Arrangement, ty: Type| {
        let (mut g, ..) = small();
        let part = |&(rows, order): &(usize, RowOrder)| Part { tensor: "p".to_string(), rows, order, plus_one: false };
        let parts = parts.iter().map(part).collect();
        g.weight(Weight { name: "w".to_string(), parts, arrangement }, ty);
        g
    };
    let stored = RowOrder::AsStored;
    let concat = Arrangement::Concat;
    let square = || matrix_type(Scheme::INT8, 32, 32);
    verify(&with(&[(8, stored), (24, stored)], concat, square())).unwrap();
    check(&with(&[(8, stored), (8, stored)], concat, square()), "@w: its parts have 16 rows in all, expected 32");
    check(&with(&[], concat, square()), "@w: its parts have 0 rows in all, expected 32");
    check(&with(&[(8, stored)], concat, matrix_type(Scheme::INT8, 8, 40)), "@w: 40 columns are not whole groups of 32");
    let plain = "@w: expected a constant matrix in a scheme or f32[K], found";
    check(&with(&[(8, stored)], concat, Type::f32([Dim::of(8), Dim::of(4)])), &format!("{plain} f32[8, 4]"));
    check(&with(&[(1, stored)], concat, Type::f32([Dim::T])), &format!("{plain} f32[T]"));
    verify(&with(&[(3, stored), (5, stored)], concat, Type::f32([Dim::of(8)]))).unwrap();
    let vector = Type::f32([Dim::of(8)]);
    check(&with(&[(1, stored), (1, stored)], concat, vector.clone()), "@w: its parts have 2 rows in all, expected 8");
    let interleave = |rows| Arrangement::Interleave { rows };
    check(&with(&[(4, stored), (4, stored)], interleave(4), vector), &format!("{plain} f32[8]"));
    verify(&with(&[(16, stored), (16, stored)], interleave(8), square())).unwrap();
    for (parts, block) in [([16, 16], 12), ([8, 24], 8), ([16, 16], 0)] {
        let graph = with(&parts.map(|rows| (rows, stored)), interleave(block), square());
        check(&graph, &format!("@w: interleaved parts are of equal size in whole blocks of {block} rows"));
    }
    for head_dim in [0, 1, 12] {
        let graph = with(&[(32, RowOrder::PairsToHalves { head_dim })], concat, square());
        check(&graph, &format!("@w: 'p' has 32 rows, not whole heads of an even {head_dim}"));
    }
}

#[test]
fn caches() {
    let (mut g, ..) = small();
    g.cache("kv", CacheType { dtype: DType::I32, heads: 1, head_dim: 8 });
    check(&g, "$kv: expected a cache of floats with heads and elements, found cache<i32, 1x8>");
}

#[test]
fn types() {
    let (mut g, x, _) = small();
    let wide = matrix(&mut g, "wide", Scheme::F32, 64, 32);
    let wide = g.op1(Linear::new(), &[x, wide]).unwrap();
    g.replace_uses(x, wide);
    check(&g, "%2 (silu): the op infers f32[T, 64], but the node holds f32[T, 32]");

    let (mut g, x, _) = small();
    let tokens = g.input(StepInput::Tokens);
    g.replace_uses(x, tokens);
    check(&g, "%0 (silu): silu: operand 'x' expects f32[M, K] with a constant K, found i32[T]");
}

#[test]
fn stages() {
    let (mut g, x, y) = small();
    let w = matrix(&mut g, "w", Scheme::F32, 32, 32);
    let early = Linear { prologue: vec![Silu.into()], epilogue: Vec::new() };
    let z = g.op1(early, &[x, w]).unwrap();
    g.replace_uses(y, z);
    check(&g, "%1 (linear): silu may not stand in the prologue of a linear");

    let text = fused(Scheme::F32, false).replace("\"silu\"}] : f32[T, 96]", "\"silu\"}, rms_norm(@n)] : f32[T, 96]");
    let text =
        text.replace("rms_norm(@n)", "rms_norm(@n) {eps = 0.5}").replace("  cache", "  @n: f32[96] = \"n\"\n  cache");
    let graph = lathe_ir::parse::parse(&text).unwrap();
    check(&graph, "%5 (linear): rms_norm may not stand in the epilogue of a linear");
}

#[test]
fn cache_states_are_appended_to_once() {
    let twice = |g: &mut Graph, first: bool| {
        let tokens = g.input(StepInput::Tokens);
        let table = matrix(g, "k", Scheme::F32, 8, 32);
        let k = g.op1(Embed, &[tokens, table]).unwrap();
        let [positions, sequences] = [StepInput::Positions, StepInput::Sequences].map(|input| g.input(input));
        let start = g.cache("kv", cache_type(DType::F16));
        let next = g.op1(Append, &[k, k, positions, sequences, start]).unwrap();
        let state = if first { start } else { next };
        g.op1(Append, &[k, k, positions, sequences, state]).unwrap();
    };
    let (mut g, ..) = small();
    twice(&mut g, false);
    verify(&g).unwrap();
    let (mut g, ..) = small();
    twice(&mut g, true);
    check(&g, "$0 (append): appends to $kv, which has another use; a state that is appended to has no other use");
}

#[test]
fn outputs() {
    let (mut g, ..) = small();
    let state = g.cache("kv", cache_type(DType::F16));
    g.outputs.push(("state".to_string(), state));
    check(&g, "output 'state': expected a tensor of the graph, found cache<f16, 2x16>");
    g.outputs.clear();
    check(&g, "the graph has no output");
}
