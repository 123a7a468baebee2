//! Computes gate and up of a feed-forward block by one product, and activation and mul of the two by one glu. The merged
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
//!   %2 = glu %1 {function = "silu"} : f32[T, 64]
//!   return gated = %2
//! }
//! ```
//! It leaves a block alone when the two products do not read the same value, when their weights are stored differently
//! or used elsewhere, when one of them already has stages, a bias too, or when the width is no multiple of 16. It errs only when
//! the rewritten ops refuse their operands, which would be a fault of this pass.

use lathe_ir::graph::{Arrangement, Graph, NodeId, Value};
use lathe_ir::op::Op;
use lathe_ir::ops::glu::{Function, Glu};
use lathe_ir::ops::linear::Linear;
use lathe_kernels::spec::BLOCK_ROWS;

use super::{merged_weight, projection, sole_user};
use crate::pass::{PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, _context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        if let Some(gated) = find(graph, id) {
            changed |= merge(graph, id, &gated)?;
        }
    }
    if changed {
        graph.remove_dead();
    }
    Ok(changed)
}

struct Gated {
    // What both products read.
    x: Value,
    // Of gate and up.
    weights: [NodeId; 2],
    function: Function,
}

/// The shared operand and the weights of gate and up and the function, when node `id` is the product
/// `function(gate) · up`, in either order.
fn find(graph: &Graph, id: NodeId) -> Option<Gated> {
    let Op::Mul(_) = graph.as_op(id)? else { return None };
    let [a, b] = graph.node(id).inputs[..] else { return None };
    pair(graph, a, b).or_else(|| pair(graph, b, a))
}

fn pair(graph: &Graph, activated: Value, up: Value) -> Option<Gated> {
    let function = Function::of(graph.as_op(activated.node)?)?;
    sole_user(graph, activated)?;
    let gate = projection(graph, graph.node(activated.node).inputs[0])?;
    let up = projection(graph, up)?;
    let fits = gate.x == up.x && gate.bias.is_none() && up.bias.is_none();
    fits.then_some(Gated { x: gate.x, weights: [gate.weight, up.weight], function })
}

fn merge(graph: &mut Graph, id: NodeId, gated: &Gated) -> Result<bool, PassError> {
    let &Gated { x, weights, function } = gated;
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
    let activated = graph.op1(Glu { function }, &[projected])?;
    graph.replace_uses(product, activated);
    Ok(true)
}
