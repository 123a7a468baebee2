//! Chooses the scheme in which each matrix is stored, by `--quantize`: `source` takes the smallest scheme that holds the
//! file's own values, so integer schemes and f16 stay and other floats become bf16; `bf16`, `int8` and `int4` take that scheme.
//!
//! Before:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: int8:g32[64, 32] = "embed"
//!   @norm: f32[32] = "norm"
//!   @up: int4:g32+min[64, 32] = "up"
//!   @down: f32[32, 64] = "down"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = rms_norm %0, @norm {eps = 1e-5} : f32[T, 32]
//!   %2 = linear %1, @up : f32[T, 64]
//!   %3 = linear %2, @down : f32[T, 32]
//!   %4 = linear %3, @embed : f32[T, 64]
//!   return logits = %4
//! }
//! ```
//! After:
//! ```text
//! graph main(%tokens: i32[T]) {
//!   @embed: int8:g32[64, 32] = "embed"
//!   @norm: f32[32] = "norm"
//!   @up: int4:g32+min[64, 32] = "up"
//!   @down: bf16[32, 64] = "down"
//!   %0 = embed %tokens, @embed : f32[T, 32]
//!   %1 = rms_norm %0, @norm {eps = 1e-5} : f32[T, 32]
//!   %2 = linear %1, @up : f32[T, 64]
//!   %3 = linear %2, @down : f32[T, 32]
//!   %4 = linear %3, @embed : f32[T, 64]
//!   return logits = %4
//! }
//! ```
//! With `int4`, the embedding and the head keep at least 8 bits, because every token passes through them alone. A matrix
//! whose rows are no whole groups cannot be of integers and becomes bf16. Vectors stay f32. Each choice is noted with
//! its reason. It never errs.

use lathe_ir::graph::{Graph, NodeId, NodeKind, Value};
use lathe_ir::op::Op;
use lathe_ir::scheme::{Code, Scheme};
use lathe_ir::types::{DType, Elem, Type};

use crate::pass::{Note, PassContext, PassError, Quantize};

/// Runs the pass; see the module.
pub fn run(graph: &mut Graph, context: &mut PassContext) -> Result<bool, PassError> {
    let mut changed = false;
    for id in graph.order() {
        let node = graph.node(id);
        let NodeKind::Weight(weight) = &node.kind else { continue };
        let Type::Tensor { elem: Elem::Weight(source), shape } = &node.results[0] else { continue };
        let width = shape.last().and_then(|k| k.constant()).unwrap_or(0);
        let (scheme, reason) = choose(*source, context.options.quantize, is_edge(graph, id), width);
        context.notes.push(Note { subject: weight.name.clone(), reason: format!("{scheme}: {reason}") });
        if scheme != *source {
            let ty = Type::Tensor { elem: Elem::Weight(scheme), shape: shape.clone() };
            graph.set_weight_type(id, ty);
            changed = true;
        }
    }
    Ok(changed)
}

/// Whether a weight is the embedding or the head.
fn is_edge(graph: &Graph, weight: NodeId) -> bool {
    graph.users(weight).into_iter().any(|user| match graph.as_op(user) {
        Some(Op::Embed(_)) => true,
        Some(Op::Linear(_)) => graph.uses(Value { node: user, result: 0 }).1,
        _ => false,
    })
}

/// The scheme of a matrix stored as `source`, and why.
fn choose(source: Scheme, quantize: Quantize, edge: bool, width: usize) -> (Scheme, &'static str) {
    let (scheme, reason) = match quantize {
        Quantize::Source => match source.code {
            Code::Uniform { .. } | Code::Table => (source, "holds the file's own codes and scales"),
            Code::Float(DType::F16) => (source, "holds the file's own values"),
            Code::Float(_) => (Scheme::BF16, "the smallest scheme for a file of floats"),
        },
        Quantize::Bf16 => (Scheme::BF16, "--quantize bf16"),
        Quantize::Int8 => (Scheme::INT8, "--quantize int8"),
        Quantize::Int4 if edge => (Scheme::INT8, "--quantize int4, but embedding and head keep 8 bits"),
        Quantize::Int4 => (Scheme::INT4, "--quantize int4"),
    };
    if scheme.is_integer() && !width.is_multiple_of(scheme.span()) {
        return (Scheme::BF16, "its rows are no whole groups");
    }
    (scheme, reason)
}

#[cfg(test)]
mod tests {
    use super::{Quantize, Scheme, choose};

    #[test]
    fn each_choice() {
        let check = |source, quantize, edge, width, expected| {
            assert_eq!(choose(source, quantize, edge, width).0, expected);
        };
        check(Scheme::INT4, Quantize::Source, false, 64, Scheme::INT4);
        check(Scheme::INT8, Quantize::Source, true, 64, Scheme::INT8);
        check(Scheme::F32, Quantize::Source, false, 64, Scheme::BF16);
        check(Scheme::F16, Quantize::Source, false, 48, Scheme::F16);
        check(Scheme::IQ4_SUPER, Quantize::Source, false, 512, Scheme::IQ4_SUPER);
        check(Scheme::INT6_SUPER, Quantize::Source, true, 384, Scheme::BF16);
        check(Scheme::INT8, Quantize::Bf16, false, 64, Scheme::BF16);
        check(Scheme::INT4, Quantize::Int8, false, 64, Scheme::INT8);
        check(Scheme::BF16, Quantize::Int4, false, 64, Scheme::INT4);
        check(Scheme::BF16, Quantize::Int4, true, 64, Scheme::INT8);
        check(Scheme::BF16, Quantize::Int4, false, 48, Scheme::BF16);
    }
}
