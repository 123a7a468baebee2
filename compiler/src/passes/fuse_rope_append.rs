//! Moves the norms of heads, rope and cache append into the epilogue of the merged projection: heads are normed and turned
//! while they are in the first-level cache, keys and values go straight to their pages, and only queries are written out.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @qkv: bf16[128, 32] = concat("q"[64], "k"[32], "v"[32])
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
//! After:
//! ```text
//! graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @qkv: bf16[128, 32] = concat("q"[64], "k"[32], "v"[32])
//!   cache $kv.0: cache<f16, 2x16>
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = rotary %positions {dim = 16, theta = 10000.0} : f32[T, 16]
//!   %2, $0 = linear %0, @qkv post [rope(%1) {head_dim = 16, heads = 6}, append_qkv(%positions, %sequences, $kv.0) {heads = 4}] : f32[T, 64], cache<f16, 2x16>
//!   %3 = attention %2, %positions, %sequences, $0 {heads = 4, scale = 0.25} : f32[T, 64]
//!   return attended = %3
//! }
//! ```
//! Queries and keys that `merge_qkv` did not merge are normed and turned in the epilogues of their own products, and a
//! launch of its own appends. It leaves a projection alone whose head size is no multiple of 16, because a head must fill
//! whole weight blocks. It errs only when the rewritten linear refuses its operands, which would be a fault of this pass.

use lathe_ir::graph::{Graph, NodeId, Value};
use lathe_ir::op::Op;
use lathe_ir::ops::head_norm::HeadNorm;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::rope::Rope;
use lathe_ir::types::Type;
use lathe_kernels::spec::BLOCK_ROWS;

use super::{append_epilogue, linear, only_bias, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let Some(Chain { projection, stages, extra }) = find(graph, id) else { continue };
        let Some(results) = append_epilogue(graph, projection, stages, &extra.concat())? else { continue };
        for (result, new) in results.into_iter().enumerate() {
            graph.replace_uses(Value { node: id, result: result as u32 }, new);
        }
        changed = true;
    }
    if changed {
        graph.remove_dead();
    }
    Ok(fuse_heads(graph)? || changed)
}

/// Moves the norm and the rope that are left, of queries or keys that are products of their own, into those.
fn fuse_heads(graph: &mut Graph) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let Some(op) = graph.as_op(id).cloned() else { continue };
        let (Op::Rope(Rope { head_dim, .. }) | Op::HeadNorm(HeadNorm { head_dim, .. })) = op else { continue };
        let [x, operand] = graph.node(id).inputs[..] else { continue };
        let open = |linear: &Linear| linear.epilogue.iter().all(|op| matches!(op, Op::Bias(_) | Op::HeadNorm(_)));
        if !linear(graph, x).is_some_and(open) || sole_user(graph, x).is_none() || head_dim % BLOCK_ROWS != 0 {
            continue;
        }
        let Some(results) = append_epilogue(graph, x.node, vec![op], &[operand])? else { continue };
        graph.replace_uses(Value { node: id, result: 0 }, results[0]);
        changed = true;
    }
    if changed {
        graph.remove_dead();
    }
    Ok(changed)
}

/// What leads from a projection to an append.
struct Chain {
    projection: NodeId,
    // In the order in which they run.
    stages: Vec<Op>,
    // Operands of each stage besides the running value.
    extra: Vec<Vec<Value>>,
}

/// Walks up from the append `id` through a rope and norms of heads, each with no other user, to a linear.
fn find(graph: &Graph, id: NodeId) -> Option<Chain> {
    let append @ Op::AppendQkv(_) = graph.as_op(id)? else { return None };
    let inputs = &graph.node(id).inputs;
    let Type::Cache(cache) = graph.ty(inputs[3]) else { return None };
    let mut value = inputs[0];
    let mut stages = vec![append.clone()];
    let mut extra = vec![inputs[1..].to_vec()];
    loop {
        sole_user(graph, value)?;
        match graph.as_op(value.node)? {
            Op::Linear(linear) if only_bias(linear) && cache.head_dim.is_multiple_of(BLOCK_ROWS) => break,
            stage @ (Op::Rope(_) | Op::HeadNorm(_)) => stages.push(stage.clone()),
            _ => return None,
        }
        let inputs = &graph.node(value.node).inputs;
        extra.push(inputs[1..].to_vec());
        value = inputs[0];
    }
    stages.reverse();
    extra.reverse();
    Some(Chain { projection: value.node, stages, extra })
}
