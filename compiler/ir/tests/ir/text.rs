//! Printing and parsing are inverse, and the text does not depend on how a graph was built.

use lathe_ir::graph::{Graph, StepInput};
use lathe_ir::ops::add::Add;
use lathe_ir::ops::embed::Embed;
use lathe_ir::ops::rms_norm::RmsNorm;
use lathe_ir::ops::silu::Silu;
use lathe_ir::parse::parse;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{CacheType, DType, Dim, Elem, Type};
use lathe_ir::verify::verify;

use crate::fixtures::{decoder, fused, matrix, matrix_type, schemes, weight};

/// The text parses and prints again as itself.
fn check(text: &str) -> Graph {
    let graph = parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(graph.to_string(), text);
    graph
}

#[test]
fn built_graphs_round_trip() {
    for scheme in schemes() {
        let graph = decoder(3, scheme);
        let parsed = check(&graph.to_string());
        verify(&parsed).unwrap();
        assert_eq!(parsed.node_count(), graph.node_count());
    }
}

#[test]
fn fused_text_round_trips_in_every_scheme() {
    for scheme in schemes() {
        verify(&check(&fused(scheme, false))).unwrap();
        if scheme.is_integer() {
            verify(&check(&fused(scheme, true))).unwrap();
        }
    }
}

#[test]
fn every_scheme_parses_by_its_own_name() {
    for scheme in Scheme::ALL {
        assert_eq!(scheme.to_string().parse(), Ok(scheme));
        let w = matrix_type(scheme, 16, 256);
        check(&format!("graph main() {{\n  @w: {w} = \"w\"\n  return\n}}\n"));
    }
    assert_eq!(Scheme::INT6_SUPER.to_string(), "int6:g16s8/256");
    assert_eq!(Scheme::INT4_SUPER.to_string(), "int4:g32s6/256+min");
}

#[test]
fn the_form_of_each_declaration() {
    let graph = check(
        r#"graph "draft 2"(%tokens: i32[T], %rows: i32[R]) {
  @table: int4:g32+min[64, 32] = concat("a"[32] pairs_to_halves(16), "b \"\\"[32])
  @"9 lives": f32[32] = "n"
  @unused: bf16[8, 32] = "u" pairs_to_halves(8)
  cache $kv.0: cache<bf16, 1x8>
  %0 = embed %tokens, @table : f32[T, 32]
  %1 = rms_norm %0, @"9 lives" {eps = 1e-6} : f32[T, 32]
  %2 = quantize %1 {group = 16} : int8[16][T, 32]
  return hidden = %1, "last one" = %0
}
"#,
    );
    assert_eq!(graph.name, "draft 2");
    assert_eq!(graph.outputs[1].0, "last one");
    let quantized = graph.order().into_iter().map(|id| graph.node(id)).find(|node| {
        node.results[0] == Type::Tensor { elem: Elem::Act { group: 16 }, shape: vec![Dim::T, Dim::of(32)] }
    });
    assert!(quantized.is_some());
}

#[test]
fn an_empty_graph_round_trips() {
    check("graph main() {\n  return\n}\n");
}

#[test]
fn spacing_and_value_names_are_free() {
    let text = "graph g(%tokens:i32[T]){@t:f32[8,4]=\"t\" %first=embed %tokens,@t:f32[T,4] %b=silu %first:f32[1*T,4] return y=%b}";
    let canonical = "graph g(%tokens: i32[T]) {\n  @t: f32[8, 4] = \"t\"\n  %0 = embed %tokens, @t : f32[T, 4]\n  \
                     %1 = silu %0 : f32[T, 4]\n  return y = %1\n}\n";
    assert_eq!(parse(text).unwrap().to_string(), canonical);
}

#[test]
fn text_does_not_depend_on_insertion_order() {
    let build = |swap: bool| {
        let mut g = Graph::new("main");
        let (tokens, table) = if swap {
            let table = matrix(&mut g, "t", Scheme::F32, 8, 4);
            (g.input(StepInput::Tokens), table)
        } else {
            (g.input(StepInput::Tokens), matrix(&mut g, "t", Scheme::F32, 8, 4))
        };
        let x = g.op1(Embed, &[tokens, table]).unwrap();
        let norm = weight(&mut g, "n", Type::f32([Dim::of(4)]), 1);
        let (a, b) = if swap {
            let b = g.op1(Silu, &[x]).unwrap();
            (g.op1(RmsNorm { eps: 0.5 }, &[x, norm]).unwrap(), b)
        } else {
            let a = g.op1(RmsNorm { eps: 0.5 }, &[x, norm]).unwrap();
            (a, g.op1(Silu, &[x]).unwrap())
        };
        let y = g.op1(Add, &[a, b]).unwrap();
        g.outputs.push(("y".to_string(), y));
        g.to_string()
    };
    assert_eq!(build(false), build(true));
}

#[test]
fn floats_keep_their_bits() {
    for value in [1e-5f32, 0.1, 1.0 / 3.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, 1e5, 10000.0, 0.125] {
        let mut g = Graph::new("main");
        let tokens = g.input(StepInput::Tokens);
        let table = matrix(&mut g, "t", Scheme::F32, 8, 4);
        let norm = weight(&mut g, "n", Type::f32([Dim::of(4)]), 1);
        let x = g.op1(Embed, &[tokens, table]).unwrap();
        let y = g.op1(RmsNorm { eps: value }, &[x, norm]).unwrap();
        g.outputs.push(("y".to_string(), y));
        let parsed = check(&g.to_string());
        let node = parsed.outputs[0].1.node;
        assert_eq!(parsed.as_op(node), Some(&RmsNorm { eps: value }.into()), "{value:?}");
    }
}

#[test]
fn dimensions_and_types_print() {
    let dims = [
        (Dim::default(), "0"),
        (Dim::of(576), "576"),
        (Dim::T, "T"),
        (Dim::S, "S"),
        (Dim { t: 8, ..Dim::default() }, "8*T"),
        (Dim { t: 2, s: 1, r: 3, c: 4 }, "2*T+S+3*R+4"),
    ];
    for (dim, text) in dims {
        assert_eq!(dim.to_string(), text);
    }
    let types = [
        (Type::f32([Dim::T, Dim::of(576)]), "f32[T, 576]"),
        (Type::i32([Dim::R]), "i32[R]"),
        (
            Type::Tensor { elem: Elem::Weight(Scheme::INT4), shape: vec![Dim::of(2), Dim::of(32)] },
            "int4:g32+min[2, 32]",
        ),
        (Type::Tensor { elem: Elem::Act { group: 32 }, shape: vec![Dim::T, Dim::of(64)] }, "int8[32][T, 64]"),
        (Type::Cache(CacheType { dtype: DType::F16, heads: 3, head_dim: 64 }), "cache<f16, 3x64>"),
        (Type::Cache(CacheType { dtype: DType::Int8, heads: 3, head_dim: 64 }), "cache<int8, 3x64>"),
    ];
    for (ty, text) in types {
        assert_eq!(ty.to_string(), text);
    }
}
