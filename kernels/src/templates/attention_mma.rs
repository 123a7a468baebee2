//! Attention on tensor cores over pages of f16, in blocks of 64 tokens of the history.
//!
//! Rows of the products are query heads of one key/value head: of many tokens, whose warps take 16 rows each
//! ([`attention`]), or of one token, whose warps share a split of its history ([`splits`]). Both do the same to a row, bit
//! for bit:
//!
//! - queries are rounded to f16; tensor cores sum their products with keys, 16 elements at once, in order;
//! - of a block of 64 tokens the largest score that is seen moves the maximum of the split; weights `e^(score − maximum)`
//!   are summed in f32, by each of four threads its columns of pages one after the other, and rounded to f16;
//! - sums of values so far are scaled by what the new maximum makes of them, and tensor cores add the products of weights
//!   and values, a page of 16 tokens at once, in order;
//! - splits of 256 tokens merge in order, as in [`super::attention_block`].
//!
//! Tokens that a row does not see weigh nothing: their products are zeros, which tensor cores add without a trace, and a
//! block without a token that is seen leaves all as it was. Values behind the last token of all rows are zeros in shared
//! memory, whatever the page holds there. So a row's bits do not depend on what is computed beside it.

mod block;
mod copies;
mod total;

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::recipe::ATTENTION_SPLIT;

use super::attention::Scores;
use super::attention_block::{Shape, beginning};
use crate::llvm::block::WARP;
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{ATTENTION_BLOCK, PAGE_TOKENS, attention_rows, partial_floats};
use block::Exchange;
use total::{Total, combined};

/// Warps of a block of threads.
const WARPS: usize = 4;
/// Rows of a product of the tensor cores.
const ROWS: usize = 16;
/// Elements of a step of a product.
const STEP: usize = 16;
/// Pages of a block of the history, and its tokens.
const TOKENS: usize = ATTENTION_BLOCK;
const PAGES: usize = TOKENS / PAGE_TOKENS;
/// Bytes of a copy to shared memory.
const COPY: usize = 16;
/// Bytes of 16 tokens of an element of keys.
const KEY: usize = 2 * PAGE_TOKENS;

/// Operands: q, positions, sequences, block table, cache, out. Params: T, KV, S, B. Units: key/value heads, by rows of
/// tokens.
pub fn attention(b: &Builder<'_>, shape: Shape, scores: Scores) {
    let tokens = attention_rows(shape.group, shape.head_dim, shape.dtype).expect("the heads fit tensor cores");
    let kernel = Kernel::new(b, shape, scores, None);
    let first = b.mul(b.special("ctaid.y"), b.int(tokens as i64));
    let count = b.overloaded("llvm.smin", &[b.sub(b.param(0), first), b.int(tokens as i64)]);
    b.for_units(|head| {
        // A run of tokens of one sequence after the other.
        let starts = b.var(kernel.starts(first, count));
        let runs = b.overloaded("llvm.ctpop", &[b.get(starts)]);
        b.for_range(b.int(0), runs, b.int(1), |_| {
            let bits = b.get(starts);
            let rest = b.and(bits, b.sub(bits, b.int(1)));
            b.set(starts, rest);
            let begin = kernel.lowest(bits);
            let end = b.select(b.icmp(IntPredicate::EQ, rest, b.int(0)), count, kernel.lowest(rest));
            kernel.run(first, [begin, end], head);
        });
    });
}

/// Operands: q, positions, sequences, block table, cache, partials. Params: T, KV, S, B, Z (units of a head), W (splits of
/// all key/value heads of a token).
pub fn splits(b: &Builder<'_>, shape: Shape, scores: Scores) {
    let kernel = Kernel::new(b, shape, scores, Some(Exchange::new(b)));
    let (kv_heads, ways, width) = (b.param(1), b.param(4), b.param(5));
    let per_head = b.udiv(width, kv_heads);
    let split_tokens = b.int(ATTENTION_SPLIT as i64);
    b.for_units(|unit| {
        let (pair, way) = (b.udiv(unit, ways), b.urem(unit, ways));
        let (token, head) = (b.udiv(pair, kv_heads), b.urem(pair, kv_heads));
        // Most histories are shorter than the longest: what has no split leaves before it asks for more.
        let position = b.load_index(b.operand(1), token);
        let last = b.udiv(position, split_tokens);
        b.when(b.icmp(IntPredicate::SLE, way, last), || {
            let (first_seen, _) = beginning(b, position, scores.window);
            let rows = kernel.rows(token, [b.int(0), b.int(1)], head);
            let history = kernel.history(token, head, [first_seen, position]);
            b.for_range(way, b.add(last, b.int(1)), ways, |index| {
                b.when(b.icmp(IntPredicate::SGE, index, b.udiv(first_seen, split_tokens)), || {
                    let state = kernel.start();
                    kernel.add_split(&rows, &history, index, &state);
                    let record = b.add(b.add(b.mul(token, width), b.mul(head, per_head)), index);
                    kernel.store_record(&state, record);
                });
            });
        });
    });
}

/// The kernel as one thread sees it.
struct Kernel<'b, 'c> {
    b: &'b Builder<'c>,
    shape: Shape,
    scores: Scores,
    /// Where warps share their rows.
    exchange: Option<Exchange<'c>>,
    keys: PointerValue<'c>,   // [PAGES, D, 16] f16, halves turned
    values: PointerValue<'c>, // [PAGES, 16, D + 8] f16
    warp: Val<'c>,
    lane: Val<'c>,
    /// Row 0 to 7 in fragments, the other one is 8 further on, and which of four pairs of columns.
    row: Val<'c>,
    column: Val<'c>,
}

/// A query head that is one of this thread's rows.
struct OwnHead<'c> {
    /// Whether it is of the tokens at hand.
    inside: Val<'c>,
    token: Val<'c>,
    /// Its number among all.
    number: Val<'c>,
}

/// This thread's two rows: the first and last token that each sees, and its fragments of queries.
struct Rows<'c> {
    first: [Val<'c>; 2],
    last: [Val<'c>; 2],
    queries: Vec<[Val<'c>; 4]>,
}

/// What the rows of a block attend to.
struct History<'c> {
    table: PointerValue<'c>,
    head: Val<'c>,
    /// The first and last token that any row sees.
    first: Val<'c>,
    last: Val<'c>,
}

/// Of this thread's two rows: maximum, its part of the sum of weights, and the fragments of sums of values that it has, in
/// pairs.
struct State<'c> {
    max: [Var<'c>; 2],
    sum: [Var<'c>; 2],
    values: Vec<[Var<'c>; 8]>,
}

impl<'b, 'c> Kernel<'b, 'c> {
    fn new(b: &'b Builder<'c>, shape: Shape, scores: Scores, exchange: Option<Exchange<'c>>) -> Kernel<'b, 'c> {
        let thread = b.special("tid.x");
        let lane = b.urem(thread, b.int(WARP as i64));
        Kernel {
            b,
            shape,
            scores,
            exchange,
            keys: b.shared("keys", PAGES * KEY * shape.head_dim / 4),
            values: b.shared("values", PAGES * PAGE_TOKENS * (2 * shape.head_dim + COPY) / 4),
            warp: b.udiv(thread, b.int(WARP as i64)),
            lane,
            row: b.udiv(lane, b.int(4)),
            column: b.urem(lane, b.int(4)),
        }
    }

    /// Bytes of a token of values in shared memory: with 16 more than it has, eight of them lie in different banks.
    fn value_bytes(&self) -> usize {
        2 * self.shape.head_dim + COPY
    }

    /// Pairs of eight elements.
    fn pairs(&self) -> usize {
        self.shape.head_dim / STEP
    }

    /// The pairs of which this thread has sums: all, or those of its warp.
    fn own_pairs(&self) -> usize {
        if self.exchange.is_some() { self.pairs().div_ceil(WARPS) } else { self.pairs() }
    }

    /// Runs `body` with each pair that this thread has, by its index here.
    fn each_own_pair(&self, mut body: impl FnMut(usize, Val<'c>)) {
        let b = self.b;
        for index in 0..self.own_pairs() {
            if self.exchange.is_none() {
                body(index, b.int(index as i64));
                continue;
            }
            let pair = b.add(self.warp, b.int((index * WARPS) as i64));
            if (index + 1) * WARPS <= self.pairs() {
                body(index, pair);
            } else {
                b.when(b.icmp(IntPredicate::SLT, pair, b.int(self.pairs() as i64)), || body(index, pair));
            }
        }
    }

    /// Index of the lowest bit that is set.
    fn lowest(&self, bits: Val<'c>) -> Val<'c> {
        let b = self.b;
        let below = b.and(b.xor(bits, b.int(-1)), b.sub(bits, b.int(1)));
        b.overloaded("llvm.ctpop", &[below])
    }

    /// Bit `i` is set where token `first + i` begins a run of tokens of one sequence.
    fn starts(&self, first: Val<'c>, count: Val<'c>) -> Val<'c> {
        let b = self.b;
        let half = |from: usize| {
            let at = b.add(self.lane, b.int(from as i64));
            let inside = b.icmp(IntPredicate::SLT, at, count);
            let sequence = |at: Val<'c>| {
                let at = b.overloaded("llvm.smin", &[at, b.sub(count, b.int(1))]);
                let at = b.overloaded("llvm.smax", &[at, b.int(0)]);
                b.load_index(b.operand(2), b.add(first, at))
            };
            let differs = b.icmp(IntPredicate::NE, sequence(at), sequence(b.sub(at, b.int(1))));
            let begins = b.or(differs, b.icmp(IntPredicate::EQ, at, b.int(0)));
            b.zext(b.ballot(b.and(inside, begins)), Kind::I64)
        };
        b.or(half(0), b.shl(half(WARP), b.int(WARP as i64)))
    }

    /// Attends for the tokens `begin` to before `end` from token `first` on, of one sequence.
    fn run(&self, first: Val<'c>, [begin, end]: [Val<'c>; 2], head: Val<'c>) {
        let b = self.b;
        let rows = self.rows(first, [begin, end], head);
        // The tokens that any of them sees: positions may come in any order.
        let (lowest, highest) = (b.int32(i32::MAX), b.int32(-1));
        let ends = [0, WARP].map(|from| {
            let at = b.add(self.lane, b.int(from as i64));
            let inside = b.and(b.icmp(IntPredicate::SGE, at, begin), b.icmp(IntPredicate::SLT, at, end));
            let at = b.overloaded("llvm.smin", &[at, b.sub(end, b.int(1))]);
            let position = b.load_index(b.operand(1), b.add(first, at));
            let (first_seen, _) = beginning(b, position, self.scores.window);
            let narrow = |value: Val<'c>| b.trunc(value, Kind::I32);
            [b.select(inside, narrow(first_seen), lowest), b.select(inside, narrow(position), highest)]
        });
        let least = b.overloaded("llvm.smin", &[ends[0][0], ends[1][0]]);
        let most = b.overloaded("llvm.smax", &[ends[0][1], ends[1][1]]);
        let seen = [b.zext(b.warp_min(least), Kind::I64), b.zext(b.warp_max(most), Kind::I64)];
        let history = self.history(b.add(first, begin), head, seen);

        // Where this thread's elements of its rows go, and whether they are rows of these tokens.
        let outs = self.own_heads(first, [begin, end], head);
        let outs = outs.map(|own| (own.inside, b.element(b.operand(5), own.number, 4 * self.shape.head_dim)));
        let state = self.start();
        let total = Total::new(self);
        let of_rows = |body: &dyn Fn(usize, PointerValue<'c>)| {
            for (row, &(inside, out)) in outs.iter().enumerate() {
                b.when(inside, || body(row, out));
            }
        };
        let zero = b.float(0.0);
        if total.values.is_none() {
            of_rows(&|row, out| self.each_pair(&state.values, row, out, |at, _| b.store_together(at, [zero; 2])));
        }
        let split_tokens = b.int(ATTENTION_SPLIT as i64);
        let splits = [b.udiv(history.first, split_tokens), b.add(b.udiv(history.last, split_tokens), b.int(1))];
        b.for_range(splits[0], splits[1], b.int(1), |split| {
            self.reset(&state);
            self.add_split(&rows, &history, split, &state);
            let shares = [0, 1].map(|row| total.merge(self, &state, row));
            if total.values.is_none() {
                of_rows(&|row, out| {
                    self.each_pair(&state.values, row, out, |at, values| {
                        let old: [Val<'c>; 2] = b.load_together(Kind::F32, at);
                        b.store_together(at, [0, 1].map(|i| combined(b, old[i], values[i], shares[row])));
                    });
                });
            }
        });
        of_rows(&|row, out| {
            let sum = b.get(total.sum[row]);
            match &total.values {
                Some(values) => self.each_pair(values, row, out, |at, values| {
                    b.store_together(at, values.map(|value| b.fdiv(value, sum)));
                }),
                None => self.each_pair(&state.values, row, out, |at, _| {
                    let values: [Val<'c>; 2] = b.load_together(Kind::F32, at);
                    b.store_together(at, values.map(|value| b.fdiv(value, sum)));
                }),
            }
        });
    }

    /// This thread's rows among those of its warp, or of all warps.
    fn row_numbers(&self) -> [Val<'c>; 2] {
        let b = self.b;
        let first = match self.exchange {
            Some(_) => self.row,
            None => b.add(b.mul(self.warp, b.int(ROWS as i64)), self.row),
        };
        [first, b.add(first, b.int(8))]
    }

    /// The query heads that this thread's rows are, of the tokens `begin` to before `end` from token `first` on. A row of
    /// others takes the place of one of token `begin`.
    fn own_heads(&self, first: Val<'c>, [begin, end]: [Val<'c>; 2], head: Val<'c>) -> [OwnHead<'c>; 2] {
        let b = self.b;
        let group = b.int(self.shape.group as i64);
        self.row_numbers().map(|row| {
            let (token, query_head) = (b.udiv(row, group), b.urem(row, group));
            let inside = b.and(b.icmp(IntPredicate::SGE, token, begin), b.icmp(IntPredicate::SLT, token, end));
            let token = b.add(first, b.select(inside, token, begin));
            let pair = b.add(b.mul(token, b.param(1)), head);
            OwnHead { inside, token, number: b.add(b.mul(pair, group), query_head) }
        })
    }

    /// This thread's rows of the tokens `begin` to before `end` from token `first` on; a row of others sees nothing.
    fn rows(&self, first: Val<'c>, [begin, end]: [Val<'c>; 2], head: Val<'c>) -> Rows<'c> {
        let b = self.b;
        let of = self.own_heads(first, [begin, end], head).map(|OwnHead { inside, token, number }| {
            let position = b.load_index(b.operand(1), token);
            let (first_seen, _) = beginning(b, position, self.scores.window);
            let query = b.element(b.element(b.operand(0), number, 4 * self.shape.head_dim), self.column, 8);
            (first_seen, b.select(inside, position, b.int(-1)), query)
        });
        let words = |query: PointerValue<'c>, element: usize| {
            let [low, high] = b.load_together(Kind::F32, b.offset(query, b.int(4 * element as i64)));
            b.to_f16_pair(low, high)
        };
        let step = |step: usize| {
            let words = |element: usize| of.map(|(_, _, query)| words(query, step * STEP + element));
            let ([first, second], [third, fourth]) = (words(0), words(8));
            [first, second, third, fourth]
        };
        let narrow = |value: Val<'c>| b.trunc(value, Kind::I32);
        Rows {
            first: of.map(|(first, ..)| narrow(first)),
            last: of.map(|(_, last, _)| narrow(last)),
            queries: (0..self.pairs()).map(step).collect(),
        }
    }

    fn history(&self, token: Val<'c>, head: Val<'c>, [first, last]: [Val<'c>; 2]) -> History<'c> {
        let b = self.b;
        let sequence = b.load_index(b.operand(2), token);
        History { table: b.element(b.operand(3), b.mul(sequence, b.param(3)), 4), head, first, last }
    }

    fn start(&self) -> State<'c> {
        let b = self.b;
        let (lowest, zero) = (b.float(f32::NEG_INFINITY), b.float(0.0));
        State {
            max: [b.var(lowest), b.var(lowest)],
            sum: [b.var(zero), b.var(zero)],
            values: (0..self.own_pairs()).map(|_| [(); 8].map(|()| b.var(zero))).collect(),
        }
    }

    fn reset(&self, state: &State<'c>) {
        let b = self.b;
        state.max.iter().for_each(|&max| b.set(max, b.float(f32::NEG_INFINITY)));
        state.sum.iter().chain(state.values.iter().flatten()).for_each(|&sum| b.set(sum, b.float(0.0)));
    }

    /// The state after a split of the history that began with it; the four threads of a row then have the sum of all.
    fn add_split(&self, rows: &Rows<'c>, history: &History<'c>, split: Val<'c>, state: &State<'c>) {
        let b = self.b;
        let per_split = b.int((ATTENTION_SPLIT / TOKENS) as i64);
        let tokens = b.int(TOKENS as i64);
        let first = b.mul(split, per_split);
        let begin = b.overloaded("llvm.smax", &[first, b.udiv(history.first, tokens)]);
        let end = b.add(b.udiv(history.last, tokens), b.int(1));
        let end = b.overloaded("llvm.smin", &[b.add(first, per_split), end]);
        if self.exchange.is_some() {
            self.ask_ahead(history, [begin, end]);
        }
        // All have done with what lay there.
        b.barrier();
        self.bring_keys(history, begin);
        self.bring_values(history, begin);
        b.for_range(begin, end, b.int(1), |block| {
            b.wait_copies(1);
            b.barrier();
            let weights = self.weigh(rows, block, state);
            b.wait_copies(0);
            b.barrier();
            let next = b.add(block, b.int(1));
            let is_last = b.icmp(IntPredicate::SGE, next, end);
            b.either(is_last, || {}, || self.bring_keys(history, next));
            let weights = self.gather(weights, state);
            self.add_values(&weights, state);
            b.either(
                is_last,
                || {},
                || {
                    b.barrier();
                    self.bring_values(history, next);
                },
            );
        });
        for &sum in &state.sum {
            b.set(sum, self.across_row(b.get(sum), |one, other| b.fadd(one, other)));
        }
    }

    /// Combines what the four threads of a row have.
    fn across_row(&self, value: Val<'c>, combine: impl Fn(Val<'c>, Val<'c>) -> Val<'c>) -> Val<'c> {
        let b = self.b;
        [1, 2].into_iter().fold(value, |value, distance| combine(value, b.butterfly(value, distance)))
    }

    /// Runs `body` with every two neighbouring elements of a row that this thread has, and where they lie
    /// in `out`.
    fn each_pair(
        &self,
        values: &[[Var<'c>; 8]],
        row: usize,
        out: PointerValue<'c>,
        body: impl Fn(PointerValue<'c>, [Val<'c>; 2]),
    ) {
        let b = self.b;
        let own = b.element(out, self.column, 8);
        self.each_own_pair(|index, pair| {
            let own = b.element(own, pair, 4 * STEP);
            for tile in 0..2 {
                let pair = [0, 1].map(|column| b.get(values[index][4 * tile + 2 * row + column]));
                body(b.offset(own, b.int(4 * 8 * tile as i64)), pair);
            }
        });
    }

    /// Stores the record of a split: see [`partial_floats`]. The sum is in the first of its lanes alone.
    fn store_record(&self, state: &State<'c>, record: Val<'c>) {
        let b = self.b;
        let head_dim = self.shape.head_dim;
        for (i, row) in self.row_numbers().into_iter().enumerate() {
            b.when(b.icmp(IntPredicate::SLT, row, b.int(self.shape.group as i64)), || {
                let number = b.add(b.mul(record, b.int(self.shape.group as i64)), row);
                let base = b.element(b.operand(5), number, 4 * partial_floats(head_dim));
                self.each_pair(&state.values, i, base, |at, values| b.store_together(at, values));
                b.when(b.icmp(IntPredicate::EQ, self.warp, b.int(0)), || {
                    let lanes = b.element(b.offset(base, b.int(4 * head_dim as i64)), self.column, LANES);
                    let is_first = b.icmp(IntPredicate::EQ, self.column, b.int(0));
                    let (zero, max) = (b.float(0.0), b.get(state.max[i]));
                    let first = b.select(is_first, b.get(state.sum[i]), zero);
                    let maxima = b.offset(lanes, b.int(4 * LANES as i64));
                    for (lane, sum) in [first, zero, zero, zero].into_iter().enumerate() {
                        let at = b.int(4 * lane as i64);
                        b.plain_store(Kind::F32, b.offset(lanes, at), sum);
                        b.plain_store(Kind::F32, b.offset(maxima, at), max);
                    }
                });
            });
        }
    }
}
