//! Moves the activation of a feed-forward block, a glu or a function alone, into the epilogue of the linear before it, so
//! that the wide result is never written.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @gate_up: bf16[128, 32] = interleave 16("gate"[64], "up"[64])
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @gate_up : f32[T, 128]
//!   %2 = glu %1 {function = "silu"} : f32[T, 64]
//!   return gated = %2
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @gate_up: bf16[128, 32] = interleave 16("gate"[64], "up"[64])
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @gate_up post [glu {function = "silu"}] : f32[T, 64]
//!   return gated = %1
//! }
//! ```
//! It leaves a linear alone that already has an epilogue but a bias or whose result something else reads. It errs only when the
//! rewritten linear refuses its operands, which would be a fault of this pass.

use lathe_ir::graph::{Graph, Value};
use lathe_ir::op::Op;
use lathe_ir::ops::glu::Function;

use super::{append_epilogue, linear, only_bias, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let Some(op) = graph.as_op(id).cloned() else { continue };
        if !matches!(op, Op::Glu(_)) && Function::of(&op).is_none() {
            continue;
        }
        let x = graph.node(id).inputs[0];
        let fits = linear(graph, x).is_some_and(only_bias) && sole_user(graph, x).is_some();
        if !fits {
            continue;
        }
        let Some(results) = append_epilogue(graph, x.node, vec![op], &[])? else { continue };
        graph.replace_uses(Value { node: id, result: 0 }, results[0]);
        changed = true;
    }
    if changed {
        graph.remove_dead();
    }
    Ok(changed)
}
