//! Computes gate and up of a feed-forward block by one product, and silu and mul of the two by one swiglu. The merged
//! weight alternates 16 rows of the gate and 16 of the up, so that both halves of a pair lie in one strip of the result.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @gate: bf16[64, 32] = "gate"
//!   @up: bf16[64, 32] = "up"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @gate : f32[T, 64]
//!   %2 = silu %1 : f32[T, 64]
//!   %3 = linear %0, @up : f32[T, 64]
//!   %4 = mul %2, %3 : f32[T, 64]
//!   return gated = %4
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @gate_up: bf16[128, 32] = interleave 16("gate"[64], "up"[64])
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @gate_up : f32[T, 128]
//!   %2 = swiglu %1 : f32[T, 64]
//!   return gated = %2
//! }
//! ```
//! It leaves a block alone when the two products do not read the same value, when their weights are stored differently
//! or used elsewhere, when one of them already has stages, or when the width is no multiple of 16. It errs only when
//! the rewritten ops refuse their operands, which would be a fault of this pass.

use lathe_ir::graph::{Arrangement, Graph, NodeId, Value};
use lathe_ir::op::Op;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::swiglu::SwiGlu;
use lathe_kernels::spec::BLOCK_ROWS;

use super::{merged_weight, projection, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        if let Some((x, weights)) = find(graph, id) {
            changed |= merge(graph, id, x, weights)?;
        }
    }
    if changed {
        graph.remove_dead();
    }
    Ok(changed)
}

/// The shared operand and the weights of gate and up when node `id` is the product `silu(gate) · up`, in either order.
fn find(graph: &Graph, id: NodeId) -> Option<(Value, [NodeId; 2])> {
    let Op::Mul(_) = graph.as_op(id)? else { return None };
    let [a, b] = graph.node(id).inputs[..] else { return None };
    pair(graph, a, b).or_else(|| pair(graph, b, a))
}

fn pair(graph: &Graph, activated: Value, up: Value) -> Option<(Value, [NodeId; 2])> {
    let Op::Silu(_) = graph.as_op(activated.node)? else { return None };
    sole_user(graph, activated)?;
    let gate = projection(graph, graph.node(activated.node).inputs[0])?;
    let up = projection(graph, up)?;
    (gate.x == up.x && gate.bias.is_none() && up.bias.is_none()).then_some((gate.x, [gate.weight, up.weight]))
}

fn merge(graph: &mut Graph, id: NodeId, x: Value, weights: [NodeId; 2]) -> Result<bool, PassError> {
    let product = Value { node: id, result: 0 };
    let whole_blocks = graph
        .ty(product)
        .shape()
        .and_then(|shape| shape.last()?.constant()) // columns of the result
        .is_some_and(|width| width % BLOCK_ROWS == 0);
    let arrangement = Arrangement::Interleave { rows: BLOCK_ROWS };
    let Some((weight, ty)) = merged_weight(graph, &weights, arrangement).filter(|_| whole_blocks) else {
        return Ok(false);
    };
    let weight = graph.weight(weight, ty);
    let projected = graph.op1(Linear::new(), &[x, weight])?;
    let activated = graph.op1(SwiGlu, &[projected])?;
    graph.replace_uses(product, activated);
    Ok(true)
}
