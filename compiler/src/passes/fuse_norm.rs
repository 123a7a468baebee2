//! Moves a norm into the prologue of the linear that it feeds, with the gather before it and the quantization after it.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T], %rows: i32[R]) {
//!   @embed: int8:g32[64, 32] = "embed"
//!   @norm: f32[32] = "norm"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = gather %0, %rows : f32[R, 32]
//!   %2 = rms_norm %1, @norm {eps = 1e-5} : f32[R, 32]
//!   %3 = quantize %2 {group = 32} : int8[32][R, 32]
//!   %4 = linear %3, @embed : f32[R, 64]
//!   return logits = %4
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T], %rows: i32[R]) {
//!   @embed: int8:g32[64, 32] = "embed"
//!   @norm: f32[32] = "norm"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @embed pre [gather(%rows), rms_norm(@norm) {eps = 1e-5}, quantize {group = 32}] : f32[R, 64]
//!   return logits = %1
//! }
//! ```
//! It leaves a norm alone that more than one linear reads: its result is then computed once and shared. A quantization
//! without a norm stays where it is. It errs only when the rewritten linear refuses its operands, which would be a fault
//! of this pass.

use lathe_ir::graph::{Graph, NodeId, Value};
use lathe_ir::op::Op;

use super::sole_user;
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let Some(Op::Linear(linear)) = graph.as_op(id).cloned() else { continue };
        let Some(prologue) = find(graph, id).filter(|_| linear.prologue.is_empty()) else { continue };
        let old = graph.node(id).inputs.clone();
        let inputs = [&[prologue.x, old[1]], &prologue.extra.concat()[..], &old[2..]].concat();
        let fused = lathe_ir::ops::linear::Linear { prologue: prologue.stages, ..linear };
        for (result, new) in graph.op(fused, &inputs)?.into_iter().enumerate() {
            graph.replace_uses(Value { node: id, result: result as u32 }, new);
        }
        changed = true;
    }
    if changed {
        graph.remove_dead();
    }
    Ok(changed)
}

struct Prologue {
    // What the first stage reads.
    x: Value,
    // In the order in which they run.
    stages: Vec<Op>,
    // Operands of each stage besides the running value.
    extra: Vec<Vec<Value>>,
}

/// Walks up from the first operand of a linear through quantization, norm and gather, each at most once and each with no
/// other user.
fn find(graph: &Graph, linear: NodeId) -> Option<Prologue> {
    let mut found = Prologue { x: graph.node(linear).inputs[0], stages: Vec::new(), extra: Vec::new() };
    let mut normed = false;
    let mut last_rank = usize::MAX;
    while sole_user(graph, found.x).is_some() {
        let rank = match graph.as_op(found.x.node) {
            Some(Op::Quantize(_)) => 2,
            Some(Op::RmsNorm(_) | Op::LayerNorm(_)) => 1,
            Some(Op::Gather(_)) => 0,
            _ => break,
        };
        // Stages run in the order gather, norm, quantize; a gather of what is not normed is not ours.
        if rank >= last_rank || (rank == 0 && !normed) {
            break;
        }
        last_rank = rank;
        normed |= rank == 1;
        found.stages.extend(graph.as_op(found.x.node).cloned());
        let inputs = &graph.node(found.x.node).inputs;
        found.extra.push(inputs[1..].to_vec());
        found.x = inputs[0];
    }
    found.stages.reverse();
    found.extra.reverse();
    normed.then_some(found)
}
