//! Canonical text of a graph: the same graph always gives the same bytes, and [`crate::parse::parse`] reads them back.
//!
//! Step inputs come first, in their own order; then weights with their sources, caches and ops, each in
//! [`Graph::order`]. Op results are numbered in that order: `%0, %1, …` for tensors, `$0, $1, …` for cache states. Weight
//! data is left out; a weight names the checkpoint tensors that it is made from:
//!
//! ```text
//! graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
//!   @norm: f32[576] = "blk.0.attn_norm.weight"
//!   @qkv: int4:g32+min[960, 576] = concat("q"[576] pairs_to_halves(64), "k"[192] pairs_to_halves(64), "v"[192])
//!   cache $kv.0: cache<f16, 3x64>
//!   %0 = rotary %positions {dim = 64, theta = 100000.0} : f32[T, 64]
//!   …
//!   return logits = %9
//! }
//! ```

use std::collections::HashMap;
use std::fmt::Write;

use crate::graph::{Arrangement, Graph, NodeId, NodeKind, Part, RowOrder, StepInput, Value, Weight};
use crate::lex::{Name, bare_or_quoted, quote};
use crate::op::Op;
use crate::types::Type;

/// The text of a graph, with a line end after the last line.
pub fn print(graph: &Graph) -> String {
    let names = names(graph);
    let order = graph.order();
    let mut inputs: Vec<(StepInput, &Type)> = Vec::new();
    let mut weights = String::new();
    let mut caches = String::new();
    let mut ops = String::new();
    for &id in &order {
        let node = graph.node(id);
        let first = || &names[&Value { node: id, result: 0 }];
        match &node.kind {
            NodeKind::Input(input) => inputs.push((*input, &node.results[0])),
            NodeKind::Weight(weight) => {
                line(&mut weights, &format!("{}: {} = {}", first(), node.results[0], source(weight, &node.results[0])));
            }
            NodeKind::Cache(_) => line(&mut caches, &format!("cache {}: {}", first(), node.results[0])),
            NodeKind::Op(op) => line(&mut ops, &statement(graph, id, op, &names)),
        }
    }
    inputs.sort_by_key(|(input, _)| *input);
    let inputs = join(inputs.iter().map(|(input, ty)| format!("%{}: {ty}", input.name())));
    let outputs = graph.outputs.iter();
    let outputs = join(outputs.map(|(name, value)| format!("{} = {}", bare_or_quoted(name), spelling(&names, *value))));
    let end = if outputs.is_empty() { "return".to_string() } else { format!("return {outputs}") };
    format!("graph {}({inputs}) {{\n{weights}{caches}{ops}  {end}\n}}\n", bare_or_quoted(&graph.name))
}

/// The name of every value, as printed.
pub(crate) fn names(graph: &Graph) -> HashMap<Value, Name> {
    let mut names = HashMap::new();
    let (mut tensors, mut states) = (0, 0);
    for node in graph.order() {
        for (result, ty) in graph.node(node).results.iter().enumerate() {
            let (sigil, text, given) = match (&graph.node(node).kind, ty) {
                (NodeKind::Input(input), _) => ('%', input.name().to_string(), true),
                (NodeKind::Weight(weight), _) => ('@', weight.name.clone(), true),
                (NodeKind::Cache(name), _) => ('$', name.clone(), true),
                (NodeKind::Op(_), Type::Tensor { .. }) => ('%', count(&mut tensors), false),
                (NodeKind::Op(_), Type::Cache(_)) => ('$', count(&mut states), false),
            };
            names.insert(Value { node, result: result as u32 }, Name { sigil, text, given });
        }
    }
    names
}

/// The rows that a weight's only part has when its text leaves them out: all of a matrix, 1 of a vector.
pub(crate) fn implied_rows(ty: &Type) -> usize {
    match ty.shape() {
        Some([rows, _]) => rows.c,
        _ => 1,
    }
}

fn count(next: &mut usize) -> String {
    *next += 1;
    (*next - 1).to_string()
}

fn line(out: &mut String, text: &str) {
    let _ = writeln!(out, "  {text}");
}

fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

/// A value of a removed node has no name.
fn spelling(names: &HashMap<Value, Name>, value: Value) -> String {
    names.get(&value).map_or_else(|| "%removed".to_string(), Name::to_string)
}

fn statement(graph: &Graph, id: NodeId, op: &Op, names: &HashMap<Value, Name>) -> String {
    let node = graph.node(id);
    let results = join((0..node.results.len() as u32).map(|result| spelling(names, Value { node: id, result })));
    let operands = |values: &[Value]| join(values.iter().map(|&value| spelling(names, value)));
    let types = join(node.results.iter().map(Type::to_string));
    let Op::Linear(linear) = op else {
        return format!("{results} = {}{} : {types}", head(op, &operands(&node.inputs)), braces(op));
    };
    let extras: Vec<String> =
        linear.extra_slots().into_iter().map(|slots| operands(node.inputs.get(slots).unwrap_or(&[]))).collect();
    let (pre, post) = extras.split_at(linear.prologue.len());
    let stages = |word: &str, stages: &[Op], extras: &[String]| {
        let stage = |(stage, extras): (&Op, &String)| {
            let extras = if extras.is_empty() { String::new() } else { format!("({extras})") };
            format!("{}{extras}{}", stage.name(), braces(stage))
        };
        let list = join(stages.iter().zip(extras).map(stage));
        if list.is_empty() { list } else { format!(" {word} [{list}]") }
    };
    let core = operands(node.inputs.get(..2).unwrap_or(&node.inputs));
    let (pre, post) = (stages("pre", &linear.prologue, pre), stages("post", &linear.epilogue, post));
    format!("{results} = {}{pre}{post} : {types}", head(op, &core))
}

fn head(op: &Op, operands: &str) -> String {
    if operands.is_empty() { op.name().to_string() } else { format!("{} {operands}", op.name()) }
}

fn braces(op: &Op) -> String {
    let attributes = op.attributes();
    if attributes.is_empty() { String::new() } else { format!(" {attributes}") }
}

fn source(weight: &Weight, ty: &Type) -> String {
    let order = |part: &Part| {
        let order = match part.order {
            RowOrder::AsStored => String::new(),
            RowOrder::PairsToHalves { head_dim } => format!(" pairs_to_halves({head_dim})"),
        };
        order + if part.plus_one { " plus_one" } else { "" }
    };
    let part = |part: &Part| format!("{}[{}]{}", quote(&part.tensor), part.rows, order(part));
    match (&weight.parts[..], weight.arrangement) {
        ([only], Arrangement::Concat) if only.rows == implied_rows(ty) => {
            format!("{}{}", quote(&only.tensor), order(only))
        }
        (parts, Arrangement::Concat) => format!("concat({})", join(parts.iter().map(part))),
        (parts, Arrangement::Interleave { rows }) => {
            format!("interleave {rows}({})", join(parts.iter().map(part)))
        }
    }
}
