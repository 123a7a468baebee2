//! In which form the reader of a result wants it: quantized, or rounded to bf16, by what computes it.

use lathe_ir::graph::{NodeId, Value};
use lathe_ir::op::Op;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::Dim;
use lathe_kernels::spec::GROUP;
use lathe_kernels::targets::Machine;

use super::super::GPU_BATCH;
use super::Lowering;

impl Lowering<'_> {
    /// Whether a node is a norm whose result nothing but one quantization reads.
    pub(super) fn is_quantized_alone(&self, id: NodeId) -> bool {
        matches!(self.graph.as_op(id), Some(Op::RmsNorm(_) | Op::LayerNorm(_))) && self.is_only_quantized(id)
    }

    /// Whether nothing but one quantization reads a node's result.
    pub(super) fn is_only_quantized(&self, id: NodeId) -> bool {
        let quantizes =
            |user: NodeId| matches!(self.graph.as_op(user), Some(Op::Quantize(quantize)) if quantize.group == GROUP);
        let uses = self.graph.uses(Value { node: id, result: 0 });
        matches!(uses, (users, false) if matches!(users[..], [user] if quantizes(user)))
    }

    /// Whether nothing but one product reads a node's result, with `rows` rows of it, and has them rounded to bf16 before.
    pub(super) fn is_only_rounded(&self, id: NodeId, rows: Dim) -> bool {
        let value = Value { node: id, result: 0 };
        let (users, is_returned) = self.graph.uses(value);
        let (&[user], false) = (&users[..], is_returned) else { return false };
        let inputs = &self.graph.node(user).inputs;
        let is_alone = inputs.iter().filter(|&&input| input == value).count() == 1 && inputs[0] == value;
        let takes = matches!(self.graph.as_op(user), Some(Op::Linear(linear)) if linear.prologue.is_empty());
        let is_bf16 = is_alone && takes && matches!(self.scheme(inputs[1]), Ok(Scheme::BF16));
        is_bf16 && self.machine == Machine::Nvptx && rows.eval(self.max) > GPU_BATCH.tokens
    }
}
