//! Computes query, key and value of a layer by one product with a merged weight, turns queries and keys by one rope
//! (norms of their heads before it stay two, one for the heads of each), and appends keys and values straight from the
//! merged result.
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
//! differently or used elsewhere, when any of them already has stages but a bias, when only some have one, and when
//! queries and keys are not normed and turned alike: whole heads, or none, by one rotary value. It errs only when the
//! rewritten ops refuse their operands, which would be a fault of this pass.

use lathe_ir::graph::{Arrangement, Graph, NodeId, Value};
use lathe_ir::op::Op;
use lathe_ir::ops::append_qkv::AppendQkv;
use lathe_ir::ops::bias::Bias;
use lathe_ir::ops::head_norm::HeadNorm;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::rope::Rope;
use lathe_ir::types::{CacheType, Type};

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
    heads: usize,
    cache: CacheType,
    // Epsilon and weight of the norms of queries and keys.
    norms: Option<[(f32, Value); 2]>,
    rotary: Option<Value>,
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
    let Op::Attention(of) = graph.as_op(attention)? else { return None };
    let queries = graph.node(attention).inputs[0];
    let Type::Cache(ty) = *graph.ty(cache) else { return None };

    let query = path(graph, queries, of.heads, ty.head_dim)?;
    let key = path(graph, keys, ty.heads, ty.head_dim)?;
    let (q, k, v) = (query.projection, key.projection, projection(graph, v)?);
    let norms = match (query.norm, key.norm) {
        (None, None) => None,
        (Some(query), Some(key)) => Some([query, key]),
        _ => return None,
    };
    let biases: Vec<NodeId> = [q, k, v].iter().filter_map(|projection| projection.bias).collect();
    if query.rotary != key.rotary || q.x != k.x || q.x != v.x || !matches!(biases.len(), 0 | 3) {
        return None;
    }
    Some(Layer {
        x: q.x,
        weights: [q.weight, k.weight, v.weight],
        biases,
        heads: of.heads,
        cache: ty,
        norms,
        rotary: query.rotary,
        state: [positions, sequences, cache],
        queries,
        appended,
    })
}

/// How queries or keys come from their projection.
struct Path {
    projection: Projection,
    // Epsilon and weight.
    norm: Option<(f32, Value)>,
    rotary: Option<Value>,
}

/// Walks up from a value through a rope and a norm over all of its heads, each optional and with no other user.
fn path(graph: &Graph, mut value: Value, heads: usize, head_dim: usize) -> Option<Path> {
    let (mut norm, mut rotary) = (None, None);
    if let Op::Rope(rope) = graph.as_op(value.node)? {
        sole_user(graph, value)?;
        let [x, angles] = graph.node(value.node).inputs[..] else { return None };
        (rope.heads == heads && rope.head_dim == head_dim).then_some(())?;
        (value, rotary) = (x, Some(angles));
    }
    if let Op::HeadNorm(of) = graph.as_op(value.node)? {
        sole_user(graph, value)?;
        let [x, weight] = graph.node(value.node).inputs[..] else { return None };
        (of.first == 0 && of.heads == heads && of.head_dim == head_dim).then_some(())?;
        (value, norm) = (x, Some((of.eps, weight)));
    }
    Some(Path { projection: projection(graph, value)?, norm, rotary })
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
    let mut merged = graph.op1(projection, &inputs)?;
    let CacheType { heads: kv_heads, head_dim, .. } = layer.cache;
    let spans = [(0, layer.heads), (layer.heads, kv_heads)];
    for ((eps, weight), (first, heads)) in layer.norms.into_iter().flatten().zip(spans) {
        merged = graph.op1(HeadNorm { head_dim, first, heads, eps }, &[merged, weight])?;
    }
    if let Some(rotary) = layer.rotary {
        merged = graph.op1(Rope { head_dim, heads: layer.heads + kv_heads }, &[merged, rotary])?;
    }
    let [positions, sequences, cache] = layer.state;
    let results = graph.op(AppendQkv { heads: layer.heads }, &[merged, positions, sequences, cache])?;
    graph.replace_uses(layer.queries, results[0]);
    graph.replace_uses(layer.appended, results[1]);
    Ok(true)
}
