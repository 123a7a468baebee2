//! Attention by a block of GPU threads: one unit is one token and one key/value head, for all its query heads, in the
//! order of [`super::attention`] and with the same bits.
//!
//! A split of 256 tokens has 16 pages, and a block 16 teams of 16 threads. Each team scores one page for all query heads;
//! then the running maxima follow from those of the pages, so each team weighs its page at once; then each team adds up
//! values of one query head and 16 of its elements, token by token in order. Values of tokens that are not seen may be
//! read with the rest of their page, and are never used.
//!
//! Where tokens are few and their histories long, one block for each of them leaves most of a chip idle:
//! [`super::attention_split`] gives each split a block of its own.

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
/// How much a thread has under way at once, at the price of registers.
#[derive(Clone, Copy)]
pub(super) struct AtOnce {
    /// Elements of keys.
    pub keys: usize,
    /// Pages of values.
    pub pages: usize,
}

/// For many tokens: other blocks of the multiprocessor work while one waits.
const FOR_MANY: AtOnce = AtOnce { keys: 8, pages: 1 };

/// Operands: q, positions, sequences, block table, cache, out. Params: T, KV, S, B.
pub fn attention(b: &Builder<'_>, shape: Shape, scores: Scores) {
    let split = Split::new(b, shape, scores, FOR_MANY);
    let kv_heads = b.param(1);
    b.for_units(|unit| {
        let of = split.history(b.udiv(unit, kv_heads), b.urem(unit, kv_heads));
        let totals: Vec<State<'_>> = (0..split.own_blocks()).map(|_| start(b, 1)).collect();
        b.for_range(of.start_page, of.pages, b.int(PAGES as i64), |first| {
            split.weigh(&of, first);
            for (index, total) in totals.iter().enumerate() {
                split.when_owned(index, |head, block| merge(b, total, &split.add_values(&of, first, head, block)));
            }
            b.barrier();
        });
        for (index, total) in totals.iter().enumerate() {
            split.when_owned(index, |head, block| {
                let row = b.add(b.mul(unit, b.int(shape.group as i64)), head);
                let out = b.element(b.element(b.operand(5), row, 4 * shape.head_dim), block, 4 * LANES);
                let sum = b.splat(b.sum(b.get(total.sum)));
                b.store_lanes(Kind::F32, out, b.fdiv(b.get(total.values[0]), sum));
            });
        }
    });
}

/// What an attention's heads are like.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Query heads per key/value head.
    pub group: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Element type of the cache.
    pub dtype: DType,
}

/// What a token attends to.
pub(super) struct History<'c> {
    table: PointerValue<'c>,
    head: Val<'c>,
    kv_heads: Val<'c>,
    position: Val<'c>,
    /// The first token that it sees.
    first_seen: Val<'c>,
    /// The first page of which it sees a token.
    first_page: Val<'c>,
    /// The first page of that page's split: splits begin at multiples of their size whatever the window.
    pub start_page: Val<'c>,
    /// The page after the last one.
    pub pages: Val<'c>,
}

/// The first token that one at `position` sees, and the first page of that token's split.
pub(super) fn beginning<'c>(b: &Builder<'c>, position: Val<'c>, window: Option<usize>) -> (Val<'c>, Val<'c>) {
    let first_seen = window.map_or(b.int(0), |window| {
        let before = b.sub(position, b.int(window as i64 - 1));
        b.overloaded("llvm.smax", &[before, b.int(0)])
    });
    let split = b.int(ATTENTION_SPLIT as i64);
    (first_seen, b.mul(b.udiv(first_seen, split), b.int(PAGES as i64)))
}

/// What a block of threads knows of the split at hand, in shared memory.
pub(super) struct Split<'b, 'c> {
    b: &'b Builder<'c>,
    shape: Shape,
    scores: Scores,
    at_once: AtOnce,
    queries: PointerValue<'c>,     // [group, head_dim] f32
    maxima: PointerValue<'c>,      // [group, PAGES] f32: of each page
    corrections: PointerValue<'c>, // [group, PAGES] f32: of what was summed before a page
    weights: PointerValue<'c>,     // [group, PAGES, PAGE_TOKENS] f32
}

impl<'b, 'c> Split<'b, 'c> {
    pub fn new(b: &'b Builder<'c>, shape: Shape, scores: Scores, at_once: AtOnce) -> Split<'b, 'c> {
        Split {
            b,
            shape,
            scores,
            at_once,
            queries: b.shared("queries", shape.group * shape.head_dim),
            maxima: b.shared("maxima", shape.group * PAGES),
            corrections: b.shared("corrections", shape.group * PAGES),
            weights: b.shared("weights", shape.group * PAGES * PAGE_TOKENS),
        }
    }

    /// What a token and one of its key/value heads attend to. Brings their queries to shared memory: the block has done
    /// with those of before.
    pub fn history(&self, token: Val<'c>, head: Val<'c>) -> History<'c> {
        let b = self.b;
        let (kv_heads, width) = (b.param(1), b.param(3));
        let position = b.load_index(b.operand(1), token);
        let sequence = b.load_index(b.operand(2), token);
        let floats = self.shape.group * self.shape.head_dim;
        let query = b.element(b.operand(0), b.add(b.mul(token, kv_heads), head), 4 * floats);
        b.for_team(b.int((floats / LANES) as i64), |at| {
            let bytes = b.mul(at, b.int(4 * LANES as i64));
            b.store_lanes(Kind::F32, b.offset(self.queries, bytes), b.load_lanes(Kind::F32, b.offset(query, bytes)));
        });
        b.barrier();
        let page_tokens = b.int(PAGE_TOKENS as i64);
        let (first_seen, start_page) = beginning(b, position, self.scores.window);
        History {
            table: b.element(b.operand(3), b.mul(sequence, width), 4),
            head,
            kv_heads,
            position,
            first_seen,
            first_page: b.udiv(first_seen, page_tokens),
            start_page,
            pages: b.add(b.udiv(position, page_tokens), b.int(1)),
        }
    }

    /// The pages of the split from page `first` on that count: from the first to before the second.
    fn bounds(&self, of: &History<'c>, first: Val<'c>) -> [Val<'c>; 2] {
        let b = self.b;
        let end = b.overloaded("llvm.smin", &[b.add(first, b.int(PAGES as i64)), of.pages]);
        [b.overloaded("llvm.smax", &[first, of.first_page]), end]
    }

    /// Blocks of 16 elements of query heads that a team adds values for.
    pub fn own_blocks(&self) -> usize {
        (self.shape.group * self.shape.head_dim / LANES).div_ceil(PAGES)
    }

    /// Runs `body` with the query head and the block of its elements that is the team's `index`-th.
    pub fn when_owned(&self, index: usize, body: impl FnOnce(Val<'c>, Val<'c>)) {
        let b = self.b;
        let block = b.add(b.team().0, b.int((index * PAGES) as i64));
        let blocks = self.shape.head_dim / LANES;
        let run = || body(b.udiv(block, b.int(blocks as i64)), b.urem(block, b.int(blocks as i64)));
        if (index + 1) * PAGES <= self.shape.group * blocks {
            return run();
        }
        b.when(b.icmp(IntPredicate::SLT, block, b.int((self.shape.group * blocks) as i64)), run);
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
        let bytes = page_bytes(1, self.shape.head_dim, self.shape.dtype);
        b.element(b.operand(4), b.add(b.mul(number, of.kv_heads), of.head), bytes)
    }

    /// The place of a head's number for a page.
    fn slot(&self, base: PointerValue<'c>, head: Val<'c>, page: Val<'c>) -> PointerValue<'c> {
        self.b.element(base, self.b.add(self.b.mul(head, self.b.int(PAGES as i64)), page), 4)
    }

    /// Maxima, corrections and weights of the split from page `first` on.
    pub fn weigh(&self, of: &History<'c>, first: Val<'c>) {
        let b = self.b;
        let [begin, end] = self.bounds(of, first);
        let team = b.team().0;
        let page = b.add(first, team);
        let counts = b.and(b.icmp(IntPredicate::SGE, page, begin), b.icmp(IntPredicate::SLT, page, end));
        let lowest = b.float(f32::NEG_INFINITY);
        let scores: Vec<Var<'c>> = (0..self.shape.group).map(|_| b.var(lowest)).collect();
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
        let dots: Vec<Var<'c>> = (0..self.shape.group).map(|_| b.var(b.float(0.0))).collect();
        b.unrolled([b.int(0), b.int(self.shape.head_dim as i64)], 1, self.at_once.keys, |d| {
            let key = load(b, b.element(keys, d, PAGE_TOKENS * self.shape.dtype.bytes()), self.shape.dtype);
            for (head, &dot) in dots.iter().enumerate() {
                let at = b.offset(b.element(self.queries, d, 4), b.int((4 * head * self.shape.head_dim) as i64));
                b.set(dot, b.fma(b.load(Kind::F32, at), key, b.get(dot)));
            }
        });
        dots.into_iter().map(|dot| b.get(dot)).collect()
    }

    /// The state of a query head after the split from page `first` on, with one block of 16 of its elements.
    pub fn add_values(&self, of: &History<'c>, first: Val<'c>, head: Val<'c>, block: Val<'c>) -> State<'c> {
        let b = self.b;
        let [begin, end] = self.bounds(of, first);
        let state = start(b, 1);
        b.set(state.max, b.max(b.load_lanes(Kind::F32, self.slot(self.maxima, head, b.int(0)))));
        let value = state.values[0];
        let bytes = self.shape.dtype.bytes();
        let page = |page: Val<'c>, seen: Option<[Val<'c>; 2]>| {
            let local = b.sub(page, first);
            let correction = b.load(Kind::F32, self.slot(self.corrections, head, local));
            let weights = b.element(self.weights, self.page_of(head, local), 4 * LANES);
            b.set(state.sum, b.fma(b.get(state.sum), correction, b.load_lanes(Kind::F32, weights)));
            let values = b.int((PAGE_TOKENS * self.shape.head_dim * bytes) as i64);
            let values = b.element(b.offset(self.page(of, page), values), block, LANES * bytes);
            let mut sum = b.fmul(b.get(value), correction);
            for token in (0..PAGE_TOKENS).map(|token| b.int(token as i64)) {
                let vector = load(b, b.element(values, token, self.shape.head_dim * bytes), self.shape.dtype);
                let next = b.fma(b.load(Kind::F32, b.element(weights, token, 4)), vector, sum);
                sum = seen.map_or(next, |[from, to]| {
                    let is_seen = b.and(b.icmp(IntPredicate::SGE, token, from), b.icmp(IntPredicate::SLT, token, to));
                    b.select(is_seen, next, sum)
                });
            }
            b.set(value, sum);
        };
        let in_part = |at: Val<'c>| page(at, Some(self.seen(of, at)));
        // All tokens of the pages between the first and the last one are seen.
        let page_tokens = b.int(PAGE_TOKENS as i64);
        let cut = b.icmp(IntPredicate::SGT, of.first_seen, b.mul(begin, page_tokens));
        let from = b.select(cut, b.add(begin, b.int(1)), begin);
        let open = b.icmp(IntPredicate::SGE, of.position, b.sub(b.mul(end, page_tokens), b.int(1)));
        let to = b.select(open, end, b.sub(end, b.int(1)));
        let to = b.overloaded("llvm.smax", &[from, to]);
        if self.scores.window.is_some() {
            b.for_range(begin, from, b.int(1), in_part);
        }
        b.unrolled([from, to], 1, self.at_once.pages, |at| page(at, None));
        b.for_range(to, end, b.int(1), in_part);
        state
    }
}

/// The running state of one query head: maximum, lane sums of weights, weighted sum of values.
pub(super) struct State<'c> {
    pub max: Var<'c>,
    pub sum: Var<'c>,
    pub values: Vec<Var<'c>>,
}

pub(super) fn start<'c>(b: &Builder<'c>, blocks: usize) -> State<'c> {
    State {
        max: b.var(b.float(f32::NEG_INFINITY)),
        sum: b.var(b.float_lanes(0.0)),
        values: (0..blocks).map(|_| b.var(b.float_lanes(0.0))).collect(),
    }
}

/// Merges a finished split into the total.
pub(super) fn merge<'c>(b: &Builder<'c>, total: &State<'c>, partial: &State<'c>) {
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
