//! Moves the multiplication by a constant or the soft bound of a product into the epilogue of its linear.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @embed : f32[T, 64]
//!   %2 = scale %1 {factor = 0.125} : f32[T, 64]
//!   %3 = softcap %2 {cap = 30.0} : f32[T, 64]
//!   return logits = %3
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @embed post [scale {factor = 0.125}, softcap {cap = 30.0}] : f32[T, 64]
//!   return logits = %1
//! }
//! ```
//! It leaves a linear alone that has another epilogue than a bias and factors, or whose result something else reads, and
//! factors of anything but a product. It errs only when the rewritten linear refuses its operands, which would be a fault
//! of this pass.

use lathe_ir::graph::{Graph, Value};
use lathe_ir::op::Op;

use super::{append_epilogue, linear, only_bias_and_scale, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let Some(op @ (Op::Scale(_) | Op::Softcap(_))) = graph.as_op(id).cloned() else { continue };
        let x = graph.node(id).inputs[0];
        if !linear(graph, x).is_some_and(only_bias_and_scale) || sole_user(graph, x).is_none() {
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
