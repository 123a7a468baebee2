//! Pages of a block of the history on their way to shared memory, one by each warp.

use inkwell::IntPredicate;
use inkwell::values::PointerValue;

use super::{COPY, History, KEY, Kernel, PAGES};
use crate::llvm::block::WARP;
use crate::llvm::builder::Val;
use crate::spec::{PAGE_TOKENS, page_bytes};

/// Bytes of a line of the second-level cache.
const CACHE_LINE: usize = 128;

impl<'c> Kernel<'_, 'c> {
    /// Where a warp's page of a block lies in the cache, and how many of its bytes count: all or none.
    fn page(&self, history: &History<'c>, block: Val<'c>) -> (PointerValue<'c>, Val<'c>) {
        let b = self.b;
        let page_tokens = b.int(PAGE_TOKENS as i64);
        let page = b.add(b.mul(block, b.int(PAGES as i64)), self.warp);
        let (first, last) = (b.udiv(history.first, page_tokens), b.udiv(history.last, page_tokens));
        let counts = b.and(b.icmp(IntPredicate::SGE, page, first), b.icmp(IntPredicate::SLE, page, last));
        let page = b.overloaded("llvm.smax", &[b.overloaded("llvm.smin", &[page, last]), first]);
        let number = b.load_index(history.table, page);
        let bytes = page_bytes(1, self.shape.head_dim, self.shape.dtype);
        let at = b.element(b.operand(4), b.add(b.mul(number, b.param(1)), history.head), bytes);
        (at, b.select(counts, b.int32(COPY as i32), b.int32(0)))
    }

    /// Asks the second-level cache for the pages that the blocks `begin` to before `end` have, so that they come from memory
    /// together: a page of each block by each warp.
    pub(super) fn ask_ahead(&self, history: &History<'c>, [begin, end]: [Val<'c>; 2]) {
        let b = self.b;
        let bytes = page_bytes(1, self.shape.head_dim, self.shape.dtype);
        b.for_range(begin, end, b.int(1), |block| {
            let (page, _) = self.page(history, block);
            let lines = b.int(bytes.div_ceil(CACHE_LINE) as i64);
            b.for_range(self.lane, lines, b.int(WARP as i64), |line| {
                b.ask_for_line(b.element(page, line, CACHE_LINE));
            });
        });
    }

    /// Begins the copies of the keys of a block, a page by each warp. Halves of every second four elements change places:
    /// eight elements of eight tokens then lie in different banks.
    pub(super) fn bring_keys(&self, history: &History<'c>, block: Val<'c>) {
        let b = self.b;
        let (page, bytes) = self.page(history, block);
        let own = b.mul(self.lane, b.int(COPY as i64));
        let turned = b.mul(b.urem(b.udiv(self.lane, b.int(8)), b.int(2)), b.int(COPY as i64));
        let to = b.element(self.keys, self.warp, KEY * self.shape.head_dim);
        let (to, from) = (b.offset(to, b.xor(own, turned)), b.offset(page, own));
        for turn in 0..self.pairs() {
            let at = b.int((turn * WARP * COPY) as i64);
            b.copy_16_or_zeros(b.offset(to, at), b.offset(from, at), bytes);
        }
        b.commit_copies();
    }

    /// Begins the copies of the values of a block, a page by each warp; behind the last token there are zeros.
    pub(super) fn bring_values(&self, history: &History<'c>, block: Val<'c>) {
        let b = self.b;
        let (page, bytes) = self.page(history, block);
        let per_token = b.int((2 * self.shape.head_dim / COPY) as i64);
        let first = b.mul(b.add(b.mul(block, b.int(PAGES as i64)), self.warp), b.int(PAGE_TOKENS as i64));
        let page = b.offset(page, b.int((KEY * self.shape.head_dim) as i64));
        let to = b.element(self.values, self.warp, PAGE_TOKENS * self.value_bytes());
        for turn in 0..self.pairs() {
            let piece = b.add(self.lane, b.int((turn * WARP) as i64));
            let token = b.udiv(piece, per_token);
            let counts = b.icmp(IntPredicate::SLE, b.add(first, token), history.last);
            let bytes = b.select(counts, bytes, b.int32(0));
            let to = b.element(to, b.add(piece, token), COPY);
            b.copy_16_or_zeros(to, b.element(page, piece, COPY), bytes);
        }
        b.commit_copies();
    }
}
