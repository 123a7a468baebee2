//! What attention asks for before it needs it. Pages lie anywhere in memory, and each pass over a split reads keys only, or
//! values only: so a page's values are fetched while its keys are multiplied, and while values are added, the keys of the
//! page that takes their page's place in the next split, or in the next unit. Of pairs a part of them comes while weights are
//! made. So memory is always busy.
//!
//! Lines are asked for one by one among the products: on Zen 4 as many in a row kept the core's own loads waiting, and
//! histories in memory were read at half the rate.

use std::ops::Range;

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::types::DType;

use super::{Attention, SPLIT_PAGES, Seen, Span, Tile};
use crate::llvm::builder::{Builder, LANES, Val};
use crate::spec::{CodePage, PAGE_TOKENS, paired_key_bytes};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Where a head's keys and values lie in its part of a page, in bytes.
pub(super) struct Halves {
    keys: Range<usize>,
    values: Range<usize>,
    /// Scales of codes, which go with the keys; empty where numbers have none.
    scales: Range<usize>,
    /// Where the keys end that are fetched while weights are made.
    early: usize,
}

impl Halves {
    pub(super) fn new(head_dim: usize, dtype: DType) -> Halves {
        let bytes = PAGE_TOKENS * head_dim * dtype.bytes();
        match dtype {
            DType::Int8 => {
                let page = CodePage::new(head_dim);
                let [keys, values] = [0..page.values, page.values..page.key_scales];
                Halves { keys, values, scales: page.key_scales..page.bytes, early: 0 }
            }
            DType::Bf16 => {
                let keys = paired_key_bytes(head_dim);
                // Products of bf16 are done faster than a quarter of the keys comes from memory.
                let early = (keys / 4).next_multiple_of(LINE);
                Halves { keys: 0..keys, values: keys..keys + bytes, scales: 0..0, early }
            }
            _ => Halves { keys: 0..bytes, values: bytes..2 * bytes, scales: 0..0, early: 0 },
        }
    }
}

/// Asks for a share of the lines of a part of a page: the one of index `share`, of so many.
fn fetch<'c>(b: &Builder<'c>, page: PointerValue<'c>, part: &Range<usize>, share: Val<'c>, shares: usize) {
    let lines = part.len().div_ceil(LINE).div_ceil(shares);
    let start = b.element(page, share, lines * LINE);
    for line in 0..lines {
        b.prefetch(b.offset(start, b.int((part.start + line * LINE) as i64)));
    }
}

impl<'c> Attention<'_, 'c> {
    /// Asks for the keys of a tile's first split, but for those of so many pages, which the unit before has asked for. Those
    /// of later splits are asked for by the one before.
    pub(super) fn fetch_first_keys(&self, tile: &Tile<'c>, span: Span<'c>, ahead: Val<'c>) {
        let b = self.b;
        b.for_range(b.add(span.begin, ahead), span.end, b.int(1), |page| {
            let page = self.keys(&tile.seen, page);
            let shares = self.head_dim / LANES;
            b.repeat(shares, |share| fetch(b, page, &self.halves.keys, share, shares));
            fetch(b, page, &self.halves.scales, b.int(0), 1);
        });
    }

    /// Asks for a share of a page's values, before its split adds them.
    pub(super) fn fetch_values(&self, page: PointerValue<'c>, share: Val<'c>, shares: usize) {
        fetch(self.b, page, &self.halves.values, share, shares);
    }

    /// The page whose keys are fetched while values of a page are added: the one that comes a split later, or in the last
    /// split one of the first split of the unit that follows.
    pub(super) fn page_ahead(&self, tile: &Tile<'c>, span: Span<'c>, page: Val<'c>) -> PointerValue<'c> {
        let (b, Tile { seen, next, .. }) = (self.b, tile);
        let later = b.add(page, b.int(SPLIT_PAGES as i64));
        let is_inside = b.icmp(IntPredicate::SLT, later, seen.end);
        let of_next = b.add(next.begin, b.sub(page, span.begin));
        let of_next = b.overloaded("llvm.smin", &[of_next, b.sub(next.end, b.int(1))]);
        let ahead = Seen {
            table: b.select(is_inside, seen.table, next.table),
            head: b.select(is_inside, seen.head, next.head),
            ..*seen
        };
        self.keys(&ahead, b.select(is_inside, later, of_next))
    }

    /// Asks for a row's share of those keys of a page that are fetched while the weights of all rows are made.
    pub(super) fn fetch_early_keys(&self, page: PointerValue<'c>, row: Val<'c>, rows: usize) {
        fetch(self.b, page, &(0..self.halves.early), row, rows);
    }

    /// Asks for a share of the other keys of a page: of as large a part of them as these blocks are of a value.
    pub(super) fn fetch_keys(&self, page: PointerValue<'c>, blocks: &[usize], share: Val<'c>, shares: usize) {
        let (b, Halves { keys, scales, early, .. }) = (self.b, &self.halves);
        let lines = (keys.len() - early).div_ceil(LINE);
        let line = |block: usize| early + lines * block / (self.head_dim / LANES) * LINE;
        fetch(b, page, &(line(blocks[0])..line(blocks[0] + blocks.len())), share, shares);
        if blocks[0] == 0 {
            fetch(b, page, scales, share, shares);
        }
    }
}
