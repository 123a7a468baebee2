//! Quantizes the activations of every product with an integer weight to 8 bits in groups of 32. Products that read the
//! same value share one quantization.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @gate: int4:g32+min[64, 32] = "gate"
//!   @up: int4:g32+min[64, 32] = "up"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = linear %0, @gate : f32[T, 64]
//!   %2 = linear %0, @up : f32[T, 64]
//!   %3 = mul %1, %2 : f32[T, 64]
//!   return product = %3
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: bf16[64, 32] = "embed"
//!   @gate: int4:g32+min[64, 32] = "gate"
//!   @up: int4:g32+min[64, 32] = "up"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = quantize %0 {group = 32} : int8[32][T, 32]
//!   %2 = linear %1, @gate : f32[T, 64]
//!   %3 = linear %1, @up : f32[T, 64]
//!   %4 = mul %2, %3 : f32[T, 64]
//!   return product = %4
//! }
//! ```
//! It leaves products with float weights alone, and everything with `--activations f32`. It errs only when the rewritten
//! ops refuse their operands, which would be a fault of this pass.

use std::collections::HashMap;

use lathe_ir::graph::{Graph, Value};
use lathe_ir::op::Op;
use lathe_ir::ops::quantize::Quantize;
use lathe_ir::types::{DType, Elem};
use lathe_kernels::spec::GROUP;

use crate::pass::{Activations, PassContext, PassError};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, context: &mut PassContext) -> Result<bool, PassError> {
    if context.options.activations == Activations::F32 {
        return Ok(false);
    }
    let mut quantized: HashMap<Value, Value> = HashMap::new();
    for id in graph.order() {
        let Some(Op::Linear(linear)) = graph.as_op(id).cloned() else { continue };
        let mut inputs = graph.node(id).inputs.clone();
        let integer = matches!(graph.ty(inputs[1]).elem(), Some(Elem::Weight(scheme)) if scheme.is_integer());
        let plain = graph.ty(inputs[0]).elem() == Some(&Elem::Dense(DType::F32)) && linear.prologue.is_empty();
        if !integer || !plain {
            continue;
        }
        let x = inputs[0];
        inputs[0] = match quantized.get(&x) {
            Some(&shared) => shared,
            None => graph.op1(Quantize { group: GROUP }, &[x])?,
        };
        quantized.insert(x, inputs[0]);
        for (result, new) in graph.op(linear, &inputs)?.into_iter().enumerate() {
            graph.replace_uses(Value { node: id, result: result as u32 }, new);
        }
    }
    if !quantized.is_empty() {
        graph.remove_dead();
    }
    Ok(!quantized.is_empty())
}
