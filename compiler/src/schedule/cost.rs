//! The cost of a launch in operations and bytes, affine in the size of the step, for reports and predictions.
//!
//! Bytes follow from the kernel's own operands: each is read or written once. Two operands are not touched whole: the
//! embedding table, of which a token reads one row, and the cache, priced at [`ATTENTION_CONTEXT`] cached positions or the window.

use std::collections::BTreeSet;

use lathe_ir::types::Dim;
use lathe_kernels::spec::{
    Access, Activation, GROUP, KernelSpec, MapOp, Norm, Operand, SamplePart, Stage, page_bytes, span_bytes,
};

use super::{Buffer, Schedule, plus, product, times};

/// Cached positions that a token's attention is priced with: a conversation of some turns. The true number is known only
/// at run time.
pub const ATTENTION_CONTEXT: usize = 512;

/// Bytes of an operand as a dimension over the launch's parameters; `None` when that is not affine.
pub fn extent(operand: &Operand, params: &[Dim]) -> Option<Dim> {
    let mut bytes = Dim::of(0);
    for term in &operand.extent {
        let mut value = Dim::of(term.coefficient as usize);
        for factor in term.factors.into_iter().flatten() {
            value = product(value, *params.get(usize::from(factor))?)?;
        }
        bytes = plus(bytes, value);
    }
    Some(bytes)
}

/// Weight bytes that a step of one token reads: each weight once, and one row of a table that tokens are looked up in.
pub fn weight_bytes_per_token(schedule: &Schedule) -> u64 {
    let mut whole = BTreeSet::new();
    let mut rows = 0;
    for launch in schedule.buckets.first().map_or(&[][..], |bucket| &bucket.launches) {
        for buffer in &launch.buffers {
            match (buffer, &launch.kernel) {
                (Buffer::Weight(_), KernelSpec::Embed { scheme }) => {
                    rows += (span_bytes(*scheme) * launch.params[2].c) as u64;
                }
                (Buffer::Weight(at), _) => _ = whole.insert(*at),
                _ => {}
            }
        }
    }
    rows + whole.iter().map(|&at| schedule.weights[at].bytes).sum::<u64>()
}

/// Bytes read and written by a launch.
pub fn bytes(kernel: &KernelSpec, params: &[Dim]) -> Dim {
    let zero = Dim::of(0);
    let param = |at: usize| params.get(at).copied().unwrap_or(zero);
    let whole = |name: &str| !matches!(name, "scratch" | "cache" | "table" | "block_table" | "partials");
    // What passes between the halves of an attention is a record for each split of the histories, not of all that may be.
    let is_partial = |operand: &Operand| operand.name == "out" && matches!(kernel, KernelSpec::AttentionSplits { .. });
    let operands = kernel.operands();
    let dense =
        operands.iter().filter(|operand| whole(operand.name) && !is_partial(operand)).fold(zero, |sum, operand| {
            let passes = if operand.access == Access::ReadWrite { 2 } else { 1 };
            plus(sum, times(extent(operand, params).unwrap_or(zero), passes))
        });
    let token_bytes = |kv_heads: usize, head_dim: usize, dtype| {
        page_bytes(kv_heads, head_dim, dtype) / lathe_kernels::spec::PAGE_TOKENS
    };
    let rest = match kernel {
        KernelSpec::Embed { scheme } => times(param(0), span_bytes(*scheme) * param(2).c),
        KernelSpec::Attention { head_dim, dtype, window, .. }
        | KernelSpec::AttentionSplits { head_dim, dtype, window, .. } => {
            times(param(0), token_bytes(param(1).c, *head_dim, *dtype) * context(*window))
        }
        KernelSpec::Append { head_dim, dtype } => times(param(0), token_bytes(param(1).c, *head_dim, *dtype)),
        KernelSpec::AppendQkv { head_dim, dtype } => times(param(0), token_bytes(param(2).c, *head_dim, *dtype)),
        KernelSpec::Linear { epilogue, .. } => epilogue.iter().fold(zero, |sum, stage| match stage {
            Stage::AppendQkv { head_dim, kv_heads, dtype, .. } => {
                plus(sum, times(param(0), token_bytes(*kv_heads, *head_dim, *dtype)))
            }
            _ => sum,
        }),
        KernelSpec::Rows { .. }
        | KernelSpec::Rotary { .. }
        | KernelSpec::AttentionMerge { .. }
        | KernelSpec::Map { .. }
        | KernelSpec::Rope { .. }
        | KernelSpec::HeadNorm { .. }
        | KernelSpec::Sample(_) => zero,
    };
    plus(dense, rest)
}

/// Operations of a launch. A multiply-add counts as two, an exponential, root or division as one.
pub fn flops(kernel: &KernelSpec, params: &[Dim]) -> Dim {
    let param = |at: usize| params.get(at).copied().unwrap_or(Dim::of(0));
    let rows = param(0);
    let columns = param(1).c;
    match kernel {
        KernelSpec::Embed { scheme } => times(rows, 2 * scheme.span() * param(2).c),
        // The norm; largest, scale, round.
        KernelSpec::Rows { norm, add, form, .. } => {
            let per_element =
                norm.map_or(0, norm_flops) + usize::from(*add) + if *form == Activation::Int8 { 3 } else { 0 };
            times(rows, per_element * GROUP * param(2).c)
        }
        KernelSpec::Rotary { dim, .. } => times(rows, 2 * dim),
        KernelSpec::Linear { scheme, epilogue, .. } => {
            let stages: usize = epilogue.iter().map(|stage| stage_flops(*stage, columns)).sum();
            times(rows, 2 * columns * scheme.span() * param(2).c + stages)
        }
        KernelSpec::Attention { group, head_dim, window, .. }
        | KernelSpec::AttentionSplits { group, head_dim, window, .. } => {
            times(rows, 4 * columns * group * head_dim * context(*window))
        }
        KernelSpec::Map { op } => times(rows, columns * map_flops(*op)),
        KernelSpec::Rope { dim, .. } => times(rows, 3 * dim * param(2).c),
        KernelSpec::HeadNorm { head_dim, .. } => times(rows, 4 * head_dim * param(3).c),
        // An exponential; a hash, where there is noise, is not of floats.
        KernelSpec::Sample(SamplePart::Sums) => times(rows, 2 * columns),
        KernelSpec::Sample(_)
        | KernelSpec::AttentionMerge { .. }
        | KernelSpec::Append { .. }
        | KernelSpec::AppendQkv { .. } => Dim::of(0),
    }
}

/// Operations per row of a stage after a product with `columns` results.
fn stage_flops(stage: Stage, columns: usize) -> usize {
    match stage {
        Stage::HeadNorm { head_dim, heads, .. } => 4 * head_dim * heads,
        Stage::Rope { dim, heads, .. } => 3 * dim * heads,
        Stage::AppendQkv { .. } => 0,
        Stage::Glu(function) => columns / 2 * map_flops(MapOp::Glu(function)),
        Stage::Activate(function) => columns * map_flops(MapOp::Activate(function)),
        Stage::Softcap(cap) => columns * map_flops(MapOp::Softcap(cap)),
        Stage::Quantize => 3 * columns,
        Stage::Add | Stage::Bias | Stage::Scale(_) | Stage::Round => columns,
    }
}

/// Cached positions that a token's attention reads, as priced.
fn context(window: Option<usize>) -> usize {
    window.map_or(ATTENTION_CONTEXT, |window| window.min(ATTENTION_CONTEXT))
}

/// Operations per element of a norm: square and sum, scale by the root and the weight; also centre and shift.
fn norm_flops(norm: Norm) -> usize {
    match norm {
        Norm::Rms { .. } => 4,
        Norm::Layer { .. } => 7,
    }
}

/// Operations per element of the result.
fn map_flops(op: MapOp) -> usize {
    match op {
        MapOp::Add | MapOp::Mul | MapOp::Bias | MapOp::Scale(_) => 1,
        MapOp::Activate(_) => 3,
        MapOp::Glu(_) | MapOp::Softcap(_) => 4,
    }
}
