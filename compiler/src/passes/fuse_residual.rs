//! Moves the add of a residual into the epilogue of the linear whose result is added, or into the norm where a model norms
//! the results of its blocks.
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
//! It leaves a linear alone that already has an epilogue but a bias or a factor, or whose result something else reads. Where both terms are such
//! linears, the second one takes the add. A norm takes it only where its result has no other use. It errs only when the rewritten linear refuses its operands, which would be a
//! fault of this pass.

use lathe_ir::graph::{Graph, NodeId, Value};
use lathe_ir::op::Op;
use lathe_ir::ops::norm_add::NormAdd;

use super::{append_epilogue, linear, only_bias_and_scale, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let Some(op @ Op::Add(_)) = graph.as_op(id).cloned() else { continue };
        let [a, b] = graph.node(id).inputs[..] else { continue };
        let fits = |graph: &Graph, x: Value| {
            a != b && linear(graph, x).is_some_and(only_bias_and_scale) && sole_user(graph, x).is_some()
        };
        let (x, residual) = match (fits(graph, a), fits(graph, b)) {
            (_, true) => (b, a),
            (true, false) => (a, b),
            (false, false) => {
                changed |= into_norm(graph, id, a, b)? || into_norm(graph, id, b, a)?;
                continue;
            }
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

/// Turns `id`, the sum of a norm's result and a residual, into one op; false where `normed` is none or used elsewhere.
fn into_norm(graph: &mut Graph, id: NodeId, normed: Value, residual: Value) -> Result<bool, PassError> {
    let Some(Op::RmsNorm(norm)) = graph.as_op(normed.node).cloned() else { return Ok(false) };
    let [x, weight] = graph.node(normed.node).inputs[..] else { return Ok(false) };
    if sole_user(graph, normed).is_none() || normed == residual {
        return Ok(false);
    }
    let sum = graph.op1(NormAdd { eps: norm.eps }, &[x, weight, residual])?;
    graph.replace_uses(Value { node: id, result: 0 }, sum);
    Ok(true)
}
