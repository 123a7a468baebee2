//! Edits of the graph.

use lathe_ir::graph::{Graph, StepInput, Value};
use lathe_ir::ops::add::Add;
use lathe_ir::ops::embed::Embed;
use lathe_ir::ops::mul::Mul;
use lathe_ir::ops::silu::Silu;
use lathe_ir::scheme::Scheme;

use crate::fixtures::{decoder, matrix};

/// `x = embed`, `s = silu x`, `y = add s, s`; output `y`.
fn small() -> (Graph, [Value; 3]) {
    let mut g = Graph::new("main");
    let tokens = g.input(StepInput::Tokens);
    let table = matrix(&mut g, "t", Scheme::F32, 8, 4);
    let x = g.op1(Embed, &[tokens, table]).unwrap();
    let s = g.op1(Silu, &[x]).unwrap();
    let y = g.op1(Add, &[s, s]).unwrap();
    g.outputs.push(("y".to_string(), y));
    (g, [x, s, y])
}

#[test]
fn a_step_input_is_one_node() {
    let mut g = Graph::new("main");
    let first = g.input(StepInput::Rows);
    assert_eq!(g.input(StepInput::Rows), first);
    assert_eq!(g.node_count(), 1);
}

#[test]
fn uses_name_each_user_once() {
    let (g, [x, s, y]) = small();
    assert_eq!(g.uses(x), (vec![s.node], false));
    assert_eq!(g.uses(s), (vec![y.node], false));
    assert_eq!(g.uses(y), (Vec::new(), true));
    assert!(g.contains(x));
    assert!(!g.contains(Value { result: 1, ..x }));
}

#[test]
fn replace_uses_moves_every_slot() {
    let (mut g, [x, s, y]) = small();
    g.replace_uses(s, x);
    assert_eq!(g.node(y.node).inputs, [x, x]);
    assert_eq!(g.users(s.node), []);
    assert_eq!(g.users(x.node), [s.node, y.node]);
    assert_eq!(g.remove_dead(), 1);
    assert!(!g.contains(s));
    assert_eq!(g.order().len(), g.node_count());
}

#[test]
fn replace_uses_moves_outputs() {
    let (mut g, [x, _, y]) = small();
    g.replace_uses(y, x);
    assert_eq!(g.outputs[0].1, x);
}

#[test]
fn replace_uses_lets_an_op_wrap_a_value() {
    let (mut g, [x, s, y]) = small();
    let wrapped = g.op1(Mul, &[s, x]).unwrap();
    g.replace_uses(s, wrapped);
    assert_eq!(g.node(wrapped.node).inputs, [s, x]);
    assert_eq!(g.node(y.node).inputs, [wrapped, wrapped]);
}

#[test]
fn remove_dead_keeps_step_inputs_and_what_outputs_need() {
    let (mut g, [x, _, y]) = small();
    let rows = g.input(StepInput::Rows);
    let unused = g.op1(Mul, &[x, y]).unwrap();
    let text = g.to_string();
    assert_eq!(g.remove_dead(), 1);
    assert!(!g.contains(unused) && g.contains(rows) && g.contains(x));
    assert_ne!(g.to_string(), text);
    assert_eq!(g.remove_dead(), 0);
}

#[test]
fn order_puts_operands_first() {
    let graph = decoder(2, Scheme::INT8);
    let order = graph.order();
    assert_eq!(order.len(), graph.node_count());
    for (at, &id) in order.iter().enumerate() {
        for input in &graph.node(id).inputs {
            assert!(order[..at].contains(&input.node));
        }
    }
}
