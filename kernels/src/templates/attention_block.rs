//! Attention by a block of GPU threads: one unit is one token and one key/value head, for all its query heads, in the
//! order of [`super::attention`] and with the same bits.
//!
//! A split of 256 tokens has 16 pages, and a block 16 teams of 16 threads. Each team scores one page for all query heads;
//! then the running maxima follow from those of the pages, so each team weighs its page at once; then each team adds up
//! values of one query head and 16 of its elements, token by token in order.

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::recipe::ATTENTION_SPLIT;
use lathe_ir::types::DType;

use super::attention::{Scores, load};
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{PAGE_TOKENS, page_bytes};

/// Pages of a split, teams of a block.
const PAGES: usize = ATTENTION_SPLIT / PAGE_TOKENS;
/// Elements of keys whose loads are under way together.
const KEYS_AT_ONCE: usize = 8;

/// Operands: q, positions, sequences, block table, cache, out. Params: T, KV, S, B.
pub fn attention(b: &Builder<'_>, group: usize, head_dim: usize, dtype: DType, scores: Scores) {
    let split = Split {
        b,
        group,
        head_dim,
        dtype,
        scores,
        maxima: b.shared("maxima", group * PAGES),
        corrections: b.shared("corrections", group * PAGES),
        weights: b.shared("weights", group * PAGES * PAGE_TOKENS),
    };
    let (kv_heads, width) = (b.param(1), b.param(3));
    b.for_units(|unit| {
        let token = b.udiv(unit, kv_heads);
        let position = b.load_index(b.operand(1), token);
        let sequence = b.load_index(b.operand(2), token);
        let of = History {
            table: b.element(b.operand(3), b.mul(sequence, width), 4),
            query: b.element(b.operand(0), unit, 4 * group * head_dim),
            head: b.urem(unit, kv_heads),
            kv_heads,
            position,
            first_seen: scores.window.map_or(b.int(0), |window| {
                let before = b.sub(position, b.int(window as i64 - 1));
                b.overloaded("llvm.smax", &[before, b.int(0)])
            }),
        };
        let page_tokens = b.int(PAGE_TOKENS as i64);
        let pages = b.add(b.udiv(position, page_tokens), b.int(1));
        let first_page = b.udiv(of.first_seen, page_tokens);
        let step = b.int(PAGES as i64);
        // Splits begin at multiples of their size whatever the window.
        let start_page = b.mul(b.udiv(first_page, step), step);
        let totals: Vec<State<'_>> = (0..split.own_blocks()).map(|_| start(b, 1)).collect();
        b.for_range(start_page, pages, step, |first| {
            let end = b.overloaded("llvm.smin", &[b.add(first, step), pages]);
            let begin = b.overloaded("llvm.smax", &[first, first_page]);
            split.weigh(&of, first, [begin, end]);
            for (index, total) in totals.iter().enumerate() {
                split.add_values(&of, first, [begin, end], index, total);
            }
            b.barrier();
        });
        for (index, total) in totals.iter().enumerate() {
            split.when_owned(index, |head, block| {
                let row = b.add(b.mul(unit, b.int(group as i64)), head);
                let out = b.element(b.element(b.operand(5), row, 4 * head_dim), block, 4 * LANES);
                let sum = b.splat(b.sum(b.get(total.sum)));
                b.store_lanes(Kind::F32, out, b.fdiv(b.get(total.values[0]), sum));
            });
        }
    });
}

/// What a token attends to.
struct History<'c> {
    table: PointerValue<'c>,
    query: PointerValue<'c>,
    head: Val<'c>,
    kv_heads: Val<'c>,
    position: Val<'c>,
    /// The first token that it sees.
    first_seen: Val<'c>,
}

/// What a block of threads knows of the split at hand, in shared memory.
struct Split<'b, 'c> {
    b: &'b Builder<'c>,
    group: usize,
    head_dim: usize,
    dtype: DType,
    scores: Scores,
    maxima: PointerValue<'c>,      // [group, PAGES] f32: of each page
    corrections: PointerValue<'c>, // [group, PAGES] f32: of what was summed before a page
    weights: PointerValue<'c>,     // [group, PAGES, PAGE_TOKENS] f32
}

impl<'c> Split<'_, 'c> {
    /// Blocks of 16 elements of query heads that a team adds values for.
    fn own_blocks(&self) -> usize {
        (self.group * self.head_dim / LANES).div_ceil(PAGES)
    }

    /// Runs `body` with the query head and the block of its elements that is the team's `index`-th.
    fn when_owned(&self, index: usize, body: impl FnOnce(Val<'c>, Val<'c>)) {
        let b = self.b;
        let block = b.add(b.team().0, b.int((index * PAGES) as i64));
        let blocks = self.head_dim / LANES;
        let run = || body(b.udiv(block, b.int(blocks as i64)), b.urem(block, b.int(blocks as i64)));
        if (index + 1) * PAGES <= self.group * blocks {
            return run();
        }
        b.when(b.icmp(IntPredicate::SLT, block, b.int((self.group * blocks) as i64)), run);
    }

    /// The tokens of a page that are seen: from the first to before the second.
    fn seen(&self, of: &History<'c>, page: Val<'c>) -> [Val<'c>; 2] {
        let b = self.b;
        let tokens = b.mul(page, b.int(PAGE_TOKENS as i64));
        let begin = b.overloaded("llvm.smax", &[b.sub(of.first_seen, tokens), b.int(0)]);
        let after = b.add(b.sub(of.position, tokens), b.int(1));
        [begin, b.overloaded("llvm.smin", &[after, b.int(PAGE_TOKENS as i64)])]
    }

    /// Where the keys of a page lie.
    fn page(&self, of: &History<'c>, page: Val<'c>) -> PointerValue<'c> {
        let b = self.b;
        let number = b.load_index(of.table, page);
        let bytes = page_bytes(1, self.head_dim, self.dtype);
        b.element(b.operand(4), b.add(b.mul(number, of.kv_heads), of.head), bytes)
    }

    /// The place of a head's number for a page.
    fn slot(&self, base: PointerValue<'c>, head: Val<'c>, page: Val<'c>) -> PointerValue<'c> {
        self.b.element(base, self.b.add(self.b.mul(head, self.b.int(PAGES as i64)), page), 4)
    }

    /// Maxima, corrections and weights of the pages from `first` on, of which those of `[begin, end]` count.
    fn weigh(&self, of: &History<'c>, first: Val<'c>, [begin, end]: [Val<'c>; 2]) {
        let b = self.b;
        let team = b.team().0;
        let page = b.add(first, team);
        let counts = b.and(b.icmp(IntPredicate::SGE, page, begin), b.icmp(IntPredicate::SLT, page, end));
        let lowest = b.float(f32::NEG_INFINITY);
        let scores: Vec<Var<'c>> = (0..self.group).map(|_| b.var(lowest)).collect();
        b.when(counts, || {
            let [from, to] = self.seen(of, page).map(|token| b.trunc(token, Kind::I32));
            let lane = b.lane_index();
            let visible = b.and(b.icmp(IntPredicate::SGE, lane, from), b.icmp(IntPredicate::SLT, lane, to));
            for (&score, dot) in scores.iter().zip(self.dots(of, page)) {
                let scaled = b.fmul(dot, b.float_lanes(self.scores.scale));
                let capped = self.scores.softcap.map_or(scaled, |cap| b.softcap(scaled, cap));
                b.set(score, b.select(visible, capped, lowest));
            }
        });
        for (head, &score) in scores.iter().enumerate() {
            b.store(Kind::F32, self.slot(self.maxima, b.int(head as i64), team), b.max(b.get(score)));
        }
        b.barrier();
        b.when(counts, || {
            for (head, &score) in scores.iter().enumerate() {
                let head = b.int(head as i64);
                let maxima = b.load_lanes(Kind::F32, self.slot(self.maxima, head, b.int(0)));
                let lane = b.zext(b.lane_index(), Kind::I64);
                let up_to = |within: Val<'c>| b.max(b.select(within, maxima, lowest));
                let old = up_to(b.icmp(IntPredicate::SLT, lane, team));
                let new = up_to(b.icmp(IntPredicate::SLE, lane, team));
                b.store(Kind::F32, self.slot(self.corrections, head, team), b.exp_uniform(b.fsub(old, new)));
                let weights =
                    b.element(self.slot(self.weights, b.int(0), b.int(0)), self.page_of(head, team), 4 * LANES);
                b.store_lanes(Kind::F32, weights, b.exp(b.fsub(b.get(score), new)));
            }
        });
        b.barrier();
    }

    fn page_of(&self, head: Val<'c>, page: Val<'c>) -> Val<'c> {
        self.b.add(self.b.mul(head, self.b.int(PAGES as i64)), page)
    }

    /// Dot products of each query head with the 16 keys of a page, in order of their elements.
    fn dots(&self, of: &History<'c>, page: Val<'c>) -> Vec<Val<'c>> {
        let b = self.b;
        let keys = self.page(of, page);
        let dots: Vec<Var<'c>> = (0..self.group).map(|_| b.var(b.float(0.0))).collect();
        b.unrolled([b.int(0), b.int(self.head_dim as i64)], 1, KEYS_AT_ONCE, |d| {
            let key = load(b, b.element(keys, d, PAGE_TOKENS * self.dtype.bytes()), self.dtype);
            for (head, &dot) in dots.iter().enumerate() {
                let at = b.offset(b.element(of.query, d, 4), b.int((4 * head * self.head_dim) as i64));
                b.set(dot, b.fma(b.load(Kind::F32, at), key, b.get(dot)));
            }
        });
        dots.into_iter().map(|dot| b.get(dot)).collect()
    }

    /// Adds the split's values of the team's `index`-th block to `total`.
    fn add_values(
        &self,
        of: &History<'c>,
        first: Val<'c>,
        [begin, end]: [Val<'c>; 2],
        index: usize,
        total: &State<'c>,
    ) {
        let b = self.b;
        self.when_owned(index, |head, block| {
            let maxima = b.load_lanes(Kind::F32, self.slot(self.maxima, head, b.int(0)));
            let partial = start(b, 1);
            b.set(partial.max, b.max(maxima));
            let (sum, value) = (partial.sum, partial.values[0]);
            b.for_range(begin, end, b.int(1), |page| {
                let local = b.sub(page, first);
                let correction = b.load(Kind::F32, self.slot(self.corrections, head, local));
                let weights = b.element(self.weights, self.page_of(head, local), 4 * LANES);
                b.set(sum, b.fma(b.get(sum), correction, b.load_lanes(Kind::F32, weights)));
                b.set(value, b.fmul(b.get(value), correction));
                let bytes = self.dtype.bytes();
                let values = b.offset(self.page(of, page), b.int((PAGE_TOKENS * self.head_dim * bytes) as i64));
                let values = b.element(values, block, LANES * bytes);
                let [from, to] = self.seen(of, page);
                b.unrolled([from, to], 1, PAGE_TOKENS, |token| {
                    let vector = load(b, b.element(values, token, self.head_dim * bytes), self.dtype);
                    let weight = b.load(Kind::F32, b.element(weights, token, 4));
                    b.set(value, b.fma(weight, vector, b.get(value)));
                });
            });
            merge(b, total, &partial);
        });
    }
}

/// The running state of one query head: maximum, lane sums of weights, weighted sum of values.
struct State<'c> {
    max: Var<'c>,
    sum: Var<'c>,
    values: Vec<Var<'c>>,
}

fn start<'c>(b: &Builder<'c>, blocks: usize) -> State<'c> {
    State {
        max: b.var(b.float(f32::NEG_INFINITY)),
        sum: b.var(b.float_lanes(0.0)),
        values: (0..blocks).map(|_| b.var(b.float_lanes(0.0))).collect(),
    }
}

/// Merges a finished split into the total.
fn merge<'c>(b: &Builder<'c>, total: &State<'c>, partial: &State<'c>) {
    let (old, other) = (b.get(total.max), b.get(partial.max));
    let new = b.fmax(old, other);
    let keep = b.splat(b.exp_uniform(b.fsub(old, new)));
    let take = b.splat(b.exp_uniform(b.fsub(other, new)));
    let combine = |total: Var<'c>, partial: Var<'c>| {
        b.set(total, b.fma(b.get(partial), take, b.fmul(b.get(total), keep)));
    };
    combine(total.sum, partial.sum);
    for (&total, &partial) in total.values.iter().zip(&partial.values) {
        combine(total, partial);
    }
    b.set(total.max, new);
}
