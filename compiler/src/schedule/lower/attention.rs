//! Attention as launches: one where there are enough tokens to keep a machine busy, or on a GPU two for few tokens, the
//! first of which gives every split of their histories a block of its own.

use lathe_ir::graph::{NodeId, Value};
use lathe_ir::ops::attention::Attention;
use lathe_ir::recipe::ATTENTION_SPLIT;
use lathe_ir::types::{CacheType, Dim};
use lathe_kernels::spec::{BLOCK_ROWS, GROUP, KernelSpec, PAGE_TOKENS, partial_floats};
use lathe_kernels::targets::Machine;

use super::super::{Buffer, DECODE, GPU_BATCH, MULTIPROCESSORS, ScheduleError, Share, times};
use super::{Lowering, check_head};

/// Fewest and most blocks for a token's key/value head.
const WAYS: [usize; 2] = [4, 64];
/// Blocks of the least step of a bucket that fill a chip, if its histories are long; where they are short, blocks that find
/// nothing to do take longer to come and go than the others to work.
const FULL: usize = 2 * MULTIPROCESSORS;
/// Most bytes of intermediate results for which splits get blocks of their own: enough for 128 sequences of 131,072 tokens with
/// 32 heads. Without them a block attends for one sequence after the other, which takes ten times as long.
const MOST_PARTIAL_BYTES: usize = 1536 << 20;

impl Lowering<'_> {
    /// Lowers an attention over `cache`; the operands are q, positions, sequences, block table, cache.
    pub(super) fn attention(
        &mut self,
        id: NodeId,
        attention: &Attention,
        cache: CacheType,
        operands: &[Buffer],
    ) -> Result<Buffer, ScheduleError> {
        let &Attention { heads, scale, window, softcap } = attention;
        let CacheType { heads: kv_heads, head_dim, dtype } = cache;
        check_head("attention", head_dim)?;
        let group = heads / kv_heads;
        let (rows, _) = self.shape(Value { node: id, result: 0 });
        let mut params = vec![rows, Dim::of(kv_heads), Dim::S, self.pages];
        let splits = (self.pages.c * PAGE_TOKENS).div_ceil(ATTENTION_SPLIT);
        let bytes = 4 * partial_floats(head_dim) * heads * splits * rows.eval(self.max);
        // Where tokens are many they fill the chip by themselves, and blocks without a split cost more than they help.
        let many = rows.eval(self.max) > GPU_BATCH.tokens;
        if self.machine == Machine::X86 || many || splits == 1 || bytes > MOST_PARTIAL_BYTES {
            let kernel = KernelSpec::Attention { group, head_dim, dtype, scale, window, softcap };
            // Where a block of GPU threads takes several tokens, their number is no matter of units.
            let by_rows = self.machine == Machine::Nvptx && kernel.grid().rows > 0;
            let units = if by_rows { Dim::of(kv_heads) } else { times(rows, kv_heads) };
            // A token's work grows with its position, so workers take units as they get free: the tokens that the kernel takes
            // together, or fewer where there are few.
            let grain = KernelSpec::attention_tokens(group);
            return self.launch("attention", kernel, operands, params, units, Share::Claim(grain as u32));
        }
        let least = if self.max.tokens > DECODE.tokens { DECODE.tokens + 1 } else { 1 };
        let ways = (FULL / (kv_heads * least)).clamp(WAYS[0], WAYS[1]).min(splits);
        let width = Dim::of(kv_heads * splits);
        params.extend([Dim::of(ways), width]);
        let kernel = KernelSpec::AttentionSplits { group, head_dim, dtype, scale, window, softcap };
        let units = times(rows, kv_heads * ways);
        let partials = self.launch("attention splits", kernel, operands, params, units, Share::Claim(1))?;
        let quantize = head_dim.is_multiple_of(GROUP) && self.is_only_quantized(id);
        if quantize {
            self.formed.insert(Value { node: id, result: 0 });
        }
        let kernel = KernelSpec::AttentionMerge { group, head_dim, window, quantize };
        let params = vec![rows, Dim::of(kv_heads), width];
        let units = times(rows, heads * head_dim.div_ceil(if quantize { GROUP } else { BLOCK_ROWS }));
        self.launch("attention", kernel, &[operands[1], partials], params, units, Share::Even)
    }
}
