//! Moves rope and cache append into the epilogue of the merged projection: heads turn while they are in the first-level
//! cache, keys and values go straight to their pages, and only queries are written out.
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
//! It leaves a projection alone whose head size is no multiple of 16, because a head must fill whole weight blocks, and
//! queries, keys and values that `merge_qkv` did not merge. It errs only when the rewritten linear refuses its operands,
//! which would be a fault of this pass.

use lathe_ir::graph::{Graph, NodeId, Value};
use lathe_ir::op::Op;
use lathe_kernels::spec::BLOCK_ROWS;

use super::{append_epilogue, linear, only_bias, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let Some((projection, extra)) = find(graph, id) else { continue };
        let rope = graph.node(graph.node(id).inputs[0].node).kind.clone();
        let append = graph.node(id).kind.clone();
        let (lathe_ir::graph::NodeKind::Op(rope), lathe_ir::graph::NodeKind::Op(append)) = (rope, append) else {
            continue;
        };
        let Some(results) = append_epilogue(graph, projection, vec![rope, append], &extra)? else { continue };
        for (result, new) in results.into_iter().enumerate() {
            graph.replace_uses(Value { node: id, result: result as u32 }, new);
        }
        changed = true;
    }
    if changed {
        graph.remove_dead();
    }
    Ok(changed)
}

/// The linear before the rope before the append `id`, and the operands that its new stages take.
fn find(graph: &Graph, id: NodeId) -> Option<(NodeId, Vec<Value>)> {
    let Op::AppendQkv(_) = graph.as_op(id)? else { return None };
    let append = &graph.node(id).inputs;
    let turned = append[0];
    let Op::Rope(rope) = graph.as_op(turned.node)? else { return None };
    let [projected, rotary] = graph.node(turned.node).inputs[..] else { return None };
    let alone = sole_user(graph, turned).is_some() && sole_user(graph, projected).is_some();
    let plain = only_bias(linear(graph, projected)?) && rope.head_dim % BLOCK_ROWS == 0;
    (alone && plain).then(|| (projected.node, [&[rotary], &append[1..]].concat()))
}
