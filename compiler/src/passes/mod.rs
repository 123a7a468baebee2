//! The passes, one file each. Their order and summaries are in [`crate::pass`].
//!
//! Every file opens with the text of a small graph before and after; the tests run the pass on the first and compare
//! with the second.

pub mod choose_weight_format;
pub mod fuse_activation;
pub mod fuse_bias;
pub mod fuse_norm;
pub mod fuse_residual;
pub mod fuse_rope_append;
pub mod fuse_scale;
pub mod merge_gate_up;
pub mod merge_qkv;
pub mod quantize_activations;
pub mod remove_dead;

use lathe_ir::graph::{Arrangement, Graph, NodeId, NodeKind, Part, Value, Weight};
use lathe_ir::op::{Op, OpError};
use lathe_ir::ops::linear::Linear;
use lathe_ir::types::{Dim, Elem, Type};

/// The node that alone uses `value`, when the graph does not also return it.
fn sole_user(graph: &Graph, value: Value) -> Option<NodeId> {
    match graph.uses(value) {
        (users, false) if users.len() == 1 => Some(users[0]),
        _ => None,
    }
}

/// The linear that computes `value`.
fn linear(graph: &Graph, value: Value) -> Option<&Linear> {
    match graph.as_op(value.node)? {
        Op::Linear(linear) => Some(linear),
        _ => None,
    }
}

/// A linear whose only stage may be a bias and whose result and weights nothing else uses, seen through its operands.
#[derive(Clone, Copy)]
struct Projection {
    x: Value,
    weight: NodeId,
    bias: Option<NodeId>,
}

fn projection(graph: &Graph, value: Value) -> Option<Projection> {
    let plain = linear(graph, value)?;
    if !plain.prologue.is_empty() || !only_bias(plain) || sole_user(graph, value).is_none() {
        return None;
    }
    let (x, weights) = graph.node(value.node).inputs.split_first()?;
    for &weight in weights {
        sole_user(graph, weight)?;
    }
    Some(Projection { x: *x, weight: weights.first()?.node, bias: weights.get(1).map(|bias| bias.node) })
}

/// Whether a linear has no epilogue but a bias.
fn only_bias(linear: &Linear) -> bool {
    matches!(linear.epilogue[..], [] | [Op::Bias(_)])
}

/// Whether a linear has no epilogue but a bias and factors, after which a residual may be added.
fn only_bias_and_scale(linear: &Linear) -> bool {
    linear.epilogue.iter().all(|stage| matches!(stage, Op::Bias(_) | Op::Scale(_)))
}

/// A linear rebuilt with `stages` after those that it has; `extra` are the operands of the new stages.
fn append_epilogue(
    graph: &mut Graph,
    id: NodeId,
    stages: Vec<Op>,
    extra: &[Value],
) -> Result<Option<Vec<Value>>, OpError> {
    let Some(Op::Linear(old)) = graph.as_op(id) else { return Ok(None) };
    let mut fused = old.clone();
    fused.epilogue.extend(stages);
    let inputs = [&graph.node(id).inputs[..], extra].concat();
    graph.op(fused, &inputs).map(Some)
}

/// The vector that joins the vectors `parts`; `None` unless all are plain.
fn joined_vector(graph: &Graph, parts: &[NodeId]) -> Option<(Weight, Type)> {
    let mut joined = Vec::new();
    let mut names = Vec::new();
    let mut elements = 0;
    for &id in parts {
        let node = graph.node(id);
        let (NodeKind::Weight(weight), Some(&[k])) = (&node.kind, node.results[0].shape()) else { return None };
        let [part] = &weight.parts[..] else { return None };
        joined.push(Part { rows: k.constant()?, ..part.clone() });
        names.push(weight.name.as_str());
        elements += k.constant()?;
    }
    let weight = Weight { name: merged_name(&names), parts: joined, arrangement: Arrangement::Concat };
    Some((weight, Type::f32([Dim::of(elements)])))
}

/// The weight and the type that hold the rows of `parts`; `None` unless all are plain matrices of one storage and width.
fn merged_weight(graph: &Graph, parts: &[NodeId], arrangement: Arrangement) -> Option<(Weight, Type)> {
    let mut merged: Option<(Weight, Elem, Dim)> = None;
    let mut names = Vec::new();
    let mut rows = 0;
    for &id in parts {
        let node = graph.node(id);
        let (NodeKind::Weight(weight), Type::Tensor { elem, shape }) = (&node.kind, &node.results[0]) else {
            return None;
        };
        let &[n, k] = &shape[..] else { return None };
        if weight.arrangement != Arrangement::Concat || (arrangement != Arrangement::Concat && weight.parts.len() != 1)
        {
            return None;
        }
        names.push(weight.name.as_str());
        rows += n.constant()?;
        match &mut merged {
            None => merged = Some((weight.clone(), elem.clone(), k)),
            Some((first, of, width)) if of == elem && *width == k => first.parts.extend(weight.parts.iter().cloned()),
            Some(_) => return None,
        }
    }
    let (first, elem, k) = merged?;
    let weight = Weight { name: merged_name(&names), parts: first.parts, arrangement };
    Some((weight, Type::Tensor { elem, shape: vec![Dim::of(rows), k] }))
}

/// `blk.0.attn_q`, `blk.0.attn_k`, `blk.0.attn_v` give `blk.0.attn_qkv`; `ffn_gate` and `ffn_up` give `ffn_gate_up`.
fn merged_name(names: &[&str]) -> String {
    let Some((&first, rest)) = names.split_first() else { return String::new() };
    let common = |same: &dyn Fn(&str, usize) -> bool| {
        (0..=first.len()).rev().find(|&n| first.is_char_boundary(n) && rest.iter().all(|name| same(name, n)))
    };
    let prefix = common(&|name, n| name.starts_with(&first[..n])).unwrap_or(0);
    let tail = first[prefix..].find('.').map_or("", |dot| &first[prefix + dot..]);
    let tail = if rest.iter().all(|name| name[prefix..].ends_with(tail)) { tail } else { "" };
    let parts: Vec<&str> = names.iter().map(|name| &name[prefix..name.len() - tail.len()]).collect();
    let separator = if parts.iter().all(|part| part.len() <= 1) { "" } else { "_" };
    format!("{}{}{tail}", &first[..prefix], parts.join(separator))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod names {
    use super::merged_name;

    #[test]
    fn merged_names_read_like_their_parts() {
        let check = |names: &[&str], expected: &str| assert_eq!(merged_name(names), expected);
        check(&["blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"], "blk.0.attn_qkv");
        check(&["blk.0.ffn_gate", "blk.0.ffn_up"], "blk.0.ffn_gate_up");
        check(&["layers.3.q.weight", "layers.3.k.weight", "layers.3.v.weight"], "layers.3.qkv.weight");
        check(&["gate", "up"], "gate_up");
    }
}
