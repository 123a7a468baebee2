//! Moves the add of a residual into the epilogue of the linear whose result is added.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @o: bf16[32, 32] = "o"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @o : f32[T, 32]
//!   %2 = add %1, %0 : f32[T, 32]
//!   return residual = %2
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @o: bf16[32, 32] = "o"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @o post [add(%0)] : f32[T, 32]
//!   return residual = %1
//! }
//! ```
//! It leaves a linear alone that already has an epilogue but a bias, or whose result something else reads. Where both terms are such
//! linears, the second one takes the add. It errs only when the rewritten linear refuses its operands, which would be a
//! fault of this pass.

use lathe_ir::graph::{Graph, Value};
use lathe_ir::op::Op;

use super::{append_epilogue, linear, only_bias, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let Some(op @ Op::Add(_)) = graph.as_op(id).cloned() else { continue };
        let [a, b] = graph.node(id).inputs[..] else { continue };
        let fits = |graph: &Graph, x: Value| {
            a != b && linear(graph, x).is_some_and(only_bias) && sole_user(graph, x).is_some()
        };
        let (x, residual) = match (fits(graph, a), fits(graph, b)) {
            (_, true) => (b, a),
            (true, false) => (a, b),
            (false, false) => continue,
        };
        let Some(results) = append_epilogue(graph, x.node, vec![op], &[residual])? else { continue };
        graph.replace_uses(Value { node: id, result: 0 }, results[0]);
        changed = true;
    }
    if changed {
        graph.remove_dead();
    }
    Ok(changed)
}
