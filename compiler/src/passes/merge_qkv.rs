//! Computes query, key and value of a layer by one product with a merged weight, turns queries and keys by one rope, and
//! appends keys and values straight from the merged result.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @q: bf16[64, 32] = "q" pairs_to_halves(16)
//!   @k: bf16[32, 32] = "k" pairs_to_halves(16)
//!   @v: bf16[32, 32] = "v"
//!   cache $kv.0: cache<f16, 2x16>
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @q : f32[T, 64]
//!   %2 = rotary %positions {dim = 16, theta = 10000.0} : f32[T, 16]
//!   %3 = rope %1, %2 {head_dim = 16, heads = 4} : f32[T, 64]
//!   %4 = linear %0, @k : f32[T, 32]
//!   %5 = rope %4, %2 {head_dim = 16, heads = 2} : f32[T, 32]
//!   %6 = linear %0, @v : f32[T, 32]
//!   $0 = append %5, %6, %positions, %sequences, $kv.0 : cache<f16, 2x16>
//!   %7 = attention %3, %positions, %sequences, $0 {heads = 4, scale = 0.25} : f32[T, 64]
//!   return attended = %7
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @qkv: bf16[128, 32] = concat("q"[64] pairs_to_halves(16), "k"[32] pairs_to_halves(16), "v"[32])
//!   cache $kv.0: cache<f16, 2x16>
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @qkv : f32[T, 128]
//!   %2 = rotary %positions {dim = 16, theta = 10000.0} : f32[T, 16]
//!   %3 = rope %1, %2 {head_dim = 16, heads = 6} : f32[T, 128]
//!   %4, $0 = append_qkv %3, %positions, %sequences, $kv.0 {heads = 4} : f32[T, 64], cache<f16, 2x16>
//!   %5 = attention %4, %positions, %sequences, $0 {heads = 4, scale = 0.25} : f32[T, 64]
//!   return attended = %5
//! }
//! ```
//! It leaves a layer alone when the three products do not read the same value, when their weights are stored
//! differently or used elsewhere, when any of them already has stages but a bias, when only some have one, or when queries and keys turn by different
//! rotary values. It errs only when the rewritten ops refuse their operands, which would be a fault of this pass.

use lathe_ir::graph::{Arrangement, Graph, NodeId, Value};
use lathe_ir::op::Op;
use lathe_ir::ops::append_qkv::AppendQkv;
use lathe_ir::ops::bias::Bias;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::rope::Rope;

use super::{Projection, joined_vector, merged_weight, projection, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        if let Some(layer) = find(graph, id) {
            changed |= merge(graph, &layer)?;
        }
    }
    if changed {
        graph.remove_dead();
    }
    Ok(changed)
}

/// The parts of one layer.
struct Layer {
    x: Value,
    weights: [NodeId; 3],
    // Empty where no projection has a bias.
    biases: Vec<NodeId>,
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    rotary: Value,
    // Positions, sequences and cache, as the append takes them.
    state: [Value; 3],
    // What the merged nodes replace.
    queries: Value,
    appended: Value,
}

/// The layer whose keys and values node `id` appends.
fn find(graph: &Graph, id: NodeId) -> Option<Layer> {
    let Op::Append(_) = graph.as_op(id)? else { return None };
    let [keys, v, positions, sequences, cache] = graph.node(id).inputs[..] else { return None };
    let appended = Value { node: id, result: 0 };
    let attention = sole_user(graph, appended)?;
    let Op::Attention(_) = graph.as_op(attention)? else { return None };
    let queries = graph.node(attention).inputs[0];

    let (query_turn, q, rotary) = turned(graph, queries)?;
    let (key_turn, k, key_rotary) = turned(graph, keys)?;
    let v = projection(graph, v)?;
    let same_turn = query_turn.head_dim == key_turn.head_dim && rotary == key_rotary;
    let biases: Vec<NodeId> = [q, k, v].iter().filter_map(|projection| projection.bias).collect();
    if !same_turn || q.x != k.x || q.x != v.x || !matches!(biases.len(), 0 | 3) {
        return None;
    }
    Some(Layer {
        x: q.x,
        weights: [q.weight, k.weight, v.weight],
        biases,
        head_dim: query_turn.head_dim,
        heads: query_turn.heads,
        kv_heads: key_turn.heads,
        rotary,
        state: [positions, sequences, cache],
        queries,
        appended,
    })
}

/// A rope over every head of a plain projection: the rope, the projection and the rotary value.
fn turned(graph: &Graph, value: Value) -> Option<(Rope, Projection, Value)> {
    let Op::Rope(rope) = graph.as_op(value.node)? else { return None };
    sole_user(graph, value)?;
    let [x, rotary] = graph.node(value.node).inputs[..] else { return None };
    let width = graph.ty(x).shape()?.last()?.constant()?;
    (rope.heads * rope.head_dim == width).then_some((rope.clone(), projection(graph, x)?, rotary))
}

fn merge(graph: &mut Graph, layer: &Layer) -> Result<bool, PassError> {
    let Some((weight, ty)) = merged_weight(graph, &layer.weights, Arrangement::Concat) else { return Ok(false) };
    let mut projection = Linear::new();
    let mut inputs = vec![layer.x, graph.weight(weight, ty)];
    if !layer.biases.is_empty() {
        let Some((bias, ty)) = joined_vector(graph, &layer.biases) else { return Ok(false) };
        projection.epilogue.push(Bias.into());
        inputs.push(graph.weight(bias, ty));
    }
    let projected = graph.op1(projection, &inputs)?;
    let rope = Rope { head_dim: layer.head_dim, heads: layer.heads + layer.kv_heads };
    let turned = graph.op1(rope, &[projected, layer.rotary])?;
    let [positions, sequences, cache] = layer.state;
    let results = graph.op(AppendQkv { heads: layer.heads }, &[turned, positions, sequences, cache])?;
    graph.replace_uses(layer.queries, results[0]);
    graph.replace_uses(layer.appended, results[1]);
    Ok(true)
}
