//! What a block of 64 tokens of the history does to rows: its scores, the maximum that they move, its weights, and the sums
//! of its values. Warps that share their rows score a page each and tell each other maxima and weights.

use inkwell::values::PointerValue;
use inkwell::{FloatPredicate, IntPredicate};

use super::{COPY, KEY, Kernel, PAGES, ROWS, Rows, STEP, State, TOKENS};
use crate::llvm::block::WARP;
use crate::llvm::builder::{Builder, Kind, Val};
use crate::llvm::memory::Var;
use crate::spec::PAGE_TOKENS;

/// What warps that share their rows tell each other, in shared memory.
pub struct Exchange<'c> {
    maxima: PointerValue<'c>,  // [pages, rows] f32
    weights: PointerValue<'c>, // [pages, lanes, 4] words: fragments of f16
    sums: PointerValue<'c>,    // [pages, lanes, 2] f32
}

impl<'c> Exchange<'c> {
    pub fn new(b: &Builder<'c>) -> Exchange<'c> {
        Exchange {
            maxima: b.shared("maxima", PAGES * ROWS),
            weights: b.shared("weights", PAGES * WARP * 4),
            sums: b.shared("sums", PAGES * WARP * 2),
        }
    }
}

/// Of a page and this thread's rows: a fragment of weights, and the sums of its own.
pub struct Weights<'c> {
    words: [Val<'c>; 4],
    sums: [Val<'c>; 2],
}

impl<'c> Kernel<'_, 'c> {
    /// The pages of a block that this thread scores: all, or its warp's.
    fn own_pages(&self) -> Vec<Val<'c>> {
        match self.exchange {
            Some(_) => vec![self.warp],
            None => (0..PAGES).map(|page| self.b.int(page as i64)).collect(),
        }
    }

    /// Scores of this thread's rows with the tokens of a page of the block: `[rows][columns]`.
    fn score(&self, rows: &Rows<'c>, block: Val<'c>, page: Val<'c>) -> [[Val<'c>; 4]; 2] {
        let b = self.b;
        let (matrix, within) = (b.udiv(self.lane, b.int(8)), b.urem(self.lane, b.int(8)));
        let (half, which) = (b.udiv(matrix, b.int(2)), b.urem(matrix, b.int(2)));
        let element = b.add(b.mul(which, b.int(8)), within);
        let half = b.xor(half, b.urem(b.udiv(within, b.int(4)), b.int(2)));
        let keys = b.element(self.keys, page, KEY * self.shape.head_dim);
        let keys = b.element(b.element(keys, element, KEY), half, COPY);
        let zero = b.float(0.0);
        let mut dots = [[zero; 4]; 2];
        for (step, queries) in rows.queries.iter().enumerate() {
            let [first, second, third, fourth] = b.load_transposed(b.offset(keys, b.int((step * STEP * KEY) as i64)));
            dots[0] = b.mma_f16(queries, &[first, second], dots[0]);
            dots[1] = b.mma_f16(queries, &[third, fourth], dots[1]);
        }
        let token = b.add(b.mul(block, b.int(TOKENS as i64)), b.mul(page, b.int(PAGE_TOKENS as i64)));
        let token = b.trunc(b.add(token, b.mul(self.column, b.int(2))), Kind::I32);
        let score = |row: usize, tile: usize, column: usize| {
            let scaled = b.fmul(dots[tile][2 * row + column], b.float(self.scores.scale));
            let capped = self.scores.softcap.map_or(scaled, |cap| b.softcap(scaled, cap));
            let token = b.add(token, b.int32((8 * tile + column) as i32));
            let from = b.icmp(IntPredicate::SGE, token, rows.first[row]);
            let seen = b.and(from, b.icmp(IntPredicate::SLE, token, rows.last[row]));
            b.select(seen, capped, b.float(f32::NEG_INFINITY))
        };
        [0, 1].map(|row| [score(row, 0, 0), score(row, 0, 1), score(row, 1, 0), score(row, 1, 1)])
    }

    /// Moves the maxima by a block; the fragments of weights and the sums of weights of the pages that this thread scores.
    pub fn weigh(&self, rows: &Rows<'c>, block: Val<'c>, state: &State<'c>) -> Vec<Weights<'c>> {
        let b = self.b;
        let pages = self.own_pages();
        let scores: Vec<[[Val<'c>; 4]; 2]> = pages.iter().map(|&page| self.score(rows, block, page)).collect();
        let lowest = b.float(f32::NEG_INFINITY);
        let larger = |one: Val<'c>, other: Val<'c>| b.fmax(one, other);
        let mut maxima = [0, 1].map(|row| {
            let own = scores.iter().flat_map(|page| page[row]).fold(lowest, larger);
            self.across_row(own, larger)
        });
        if let Some(exchange) = &self.exchange {
            maxima = self.of_all_pages(exchange, maxima);
        }
        let shifts = [0, 1].map(|row| {
            let old = b.get(state.max[row]);
            let new = b.fmax(old, maxima[row]);
            let shift = self.finite(new);
            let correction = b.exp(b.fsub(old, shift));
            b.set(state.max[row], new);
            b.set(state.sum[row], b.fmul(b.get(state.sum[row]), correction));
            for values in &state.values {
                for &value in values.chunks(2).skip(row).step_by(2).flatten() {
                    b.set(value, b.fmul(b.get(value), correction));
                }
            }
            shift
        });
        let of = |scores: &[[Val<'c>; 4]; 2]| {
            let weights = [0, 1].map(|row| scores[row].map(|score| b.exp(b.fsub(score, shifts[row]))));
            let sum =
                |[first, second, third, fourth]: [Val<'c>; 4]| b.fadd(b.fadd(first, second), b.fadd(third, fourth));
            let pair = |row: usize, tile: usize| b.to_f16_pair(weights[row][2 * tile], weights[row][2 * tile + 1]);
            Weights { words: [pair(0, 0), pair(1, 0), pair(0, 1), pair(1, 1)], sums: weights.map(sum) }
        };
        let weights: Vec<Weights<'c>> = scores.iter().map(of).collect();
        if let Some(exchange) = &self.exchange {
            let at = b.add(b.mul(self.warp, b.int(WARP as i64)), self.lane);
            let words = b.element(exchange.weights, at, 16);
            for (i, &word) in weights[0].words.iter().enumerate() {
                b.plain_store(Kind::I32, b.offset(words, b.int(4 * i as i64)), word);
            }
            b.store_together(b.element(exchange.sums, at, 8), weights[0].sums);
        }
        weights
    }

    /// The largest of what the warps found on their pages.
    fn of_all_pages(&self, exchange: &Exchange<'c>, maxima: [Val<'c>; 2]) -> [Val<'c>; 2] {
        let b = self.b;
        let slot = |page: Val<'c>, row: usize| {
            let at = b.add(b.mul(page, b.int(ROWS as i64)), self.row_numbers()[row]);
            b.element(exchange.maxima, at, 4)
        };
        b.when(b.icmp(IntPredicate::EQ, self.column, b.int(0)), || {
            (0..2).for_each(|row| b.plain_store(Kind::F32, slot(self.warp, row), maxima[row]));
        });
        b.barrier();
        [0, 1].map(|row| {
            let pages = (0..PAGES).map(|page| b.load(Kind::F32, slot(b.int(page as i64), row)));
            pages.fold(b.float(f32::NEG_INFINITY), |one, other| b.fmax(one, other))
        })
    }

    /// A maximum, or zero where nothing is seen yet: weights are zero then.
    pub fn finite(&self, max: Val<'c>) -> Val<'c> {
        let b = self.b;
        let nothing = b.fcmp(FloatPredicate::OEQ, max, b.float(f32::NEG_INFINITY));
        b.select(nothing, b.float(0.0), max)
    }

    /// The weights of all pages of a block, and adds their sums.
    pub fn gather(&self, weights: Vec<Weights<'c>>, state: &State<'c>) -> Vec<[Val<'c>; 4]> {
        let b = self.b;
        let all = match &self.exchange {
            None => weights,
            Some(exchange) => (0..PAGES)
                .map(|page| {
                    let at = b.add(b.int((page * WARP) as i64), self.lane);
                    Weights {
                        words: b.load_together(Kind::I32, b.element(exchange.weights, at, 16)),
                        sums: b.load_together(Kind::F32, b.element(exchange.sums, at, 8)),
                    }
                })
                .collect(),
        };
        for (row, &sum) in state.sum.iter().enumerate() {
            let pages = all.iter().map(|weights| weights.sums[row]).reduce(|sum, page| b.fadd(sum, page));
            b.set(sum, b.fadd(b.get(sum), pages.expect("a block has pages")));
        }
        all.into_iter().map(|weights| weights.words).collect()
    }

    /// Adds the weighted values of a block.
    pub fn add_values(&self, weights: &[[Val<'c>; 4]], state: &State<'c>) {
        let b = self.b;
        let (matrix, within) = (b.udiv(self.lane, b.int(8)), b.urem(self.lane, b.int(8)));
        let token = b.add(b.mul(b.urem(matrix, b.int(2)), b.int(8)), within);
        let own = b.element(b.element(self.values, token, self.value_bytes()), b.udiv(matrix, b.int(2)), COPY);
        self.each_own_pair(|index, pair| {
            let own = b.element(own, pair, 2 * COPY);
            let sums = &state.values[index];
            for (page, weights) in weights.iter().enumerate() {
                let at = b.int((page * PAGE_TOKENS * self.value_bytes()) as i64);
                let [first, second, third, fourth] = b.load_transposed(b.offset(own, at));
                for (tile, values) in [[first, second], [third, fourth]].into_iter().enumerate() {
                    let sums: [Var<'c>; 4] = std::array::from_fn(|i| sums[4 * tile + i]);
                    let products = b.mma_f16(weights, &values, sums.map(|sum| b.get(sum)));
                    sums.into_iter().zip(products).for_each(|(sum, product)| b.set(sum, product));
                }
            }
        });
    }
}
