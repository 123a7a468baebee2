//! Moves the bias of a projection into the epilogue of its linear. It runs early, so that merges carry biases along.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @q: bf16[32, 32] = "q"
//!   @q_bias: f32[32] = "q.bias"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @q : f32[T, 32]
//!   %2 = bias %1, @q_bias : f32[T, 32]
//!   return projected = %2
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @q: bf16[32, 32] = "q"
//!   @q_bias: f32[32] = "q.bias"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @q post [bias(@q_bias)] : f32[T, 32]
//!   return projected = %1
//! }
//! ```
//! It leaves a linear alone that already has an epilogue or whose result something else reads. It errs only when the
//! rewritten linear refuses its operands, which would be a fault of this pass.

use lathe_ir::graph::{Graph, Value};
use lathe_ir::op::Op;

use super::{append_epilogue, linear, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let Some(op @ Op::Bias(_)) = graph.as_op(id).cloned() else { continue };
        let [x, bias] = graph.node(id).inputs[..] else { continue };
        let plain = linear(graph, x).is_some_and(|linear| linear.epilogue.is_empty());
        if !plain || sole_user(graph, x).is_none() {
            continue;
        }
        let Some(results) = append_epilogue(graph, x.node, vec![op], &[bias])? else { continue };
        graph.replace_uses(Value { node: id, result: 0 }, results[0]);
        changed = true;
    }
    if changed {
        graph.remove_dead();
    }
    Ok(changed)
}
