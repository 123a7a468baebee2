//! Attention over pages of bf16, by products of pairs: `vdpbf16ps` multiplies twice as many as an instruction for f32 does, and
//! elsewhere two fused multiply-adds give the same bits.
//!
//! Queries and weights are rounded to bf16 as the cache is. A split goes in three passes, as one of floats does, but its weights
//! are relative to its largest score, so that sums of values need no corrections. Slots after the last token that a row
//! sees are not multiplied: they may hold anything.

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::types::KEY_GROUP;

use super::{Attention, SPLIT_PAGES, Span, Tile};
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{PAGE_TOKENS, paired_key_bytes};

/// Pairs of tokens of a page.
const PAIRS: usize = PAGE_TOKENS / 2;
/// Bytes of a pair.
const PAIR_BYTES: usize = 4;
/// Bytes of 16 pairs.
const LINE: usize = LANES * PAIR_BYTES;

/// Where pairs lie in pages, and memory of a worker for rounded numbers, by query row.
pub(super) struct Pairs<'c> {
    /// Groups of 32 elements of a key.
    groups: usize,
    /// Queries, in pairs as the elements of keys: `[rows][groups][16][2]`.
    queries: PointerValue<'c>,
    /// Weights of a split: `[rows][pages][8][2]`.
    weights: PointerValue<'c>,
}

impl<'c> Pairs<'c> {
    pub(super) fn new(b: &Builder<'c>, rows: usize, head_dim: usize) -> Pairs<'c> {
        let groups = head_dim.div_ceil(KEY_GROUP);
        Pairs { groups, queries: b.frame(rows * groups * LANES), weights: b.frame(rows * SPLIT_PAGES * PAIRS) }
    }
}

/// Sixteen lanes of pairs.
fn load_line<'c>(b: &Builder<'c>, base: PointerValue<'c>, bytes: usize) -> Val<'c> {
    b.load_lanes(Kind::I32, b.offset(base, b.int(bytes as i64)))
}

impl<'c> Attention<'_, 'c> {
    /// Rounds the queries of a tile.
    pub(super) fn pair_queries(&self, tile: &Tile<'c>, pairs: &Pairs<'c>) {
        let b = self.b;
        self.for_rows(tile.rows, |row| {
            let out = b.element(pairs.queries, row, LINE * pairs.groups);
            for (i, blocks) in self.query(tile, row).chunks(KEY_GROUP / LANES).enumerate() {
                b.store_lanes(Kind::I32, b.offset(out, b.int((LINE * i) as i64)), b.bf16_pairs(blocks));
            }
        });
    }

    /// The dot products of each row with the keys of a split.
    pub(super) fn score_pairs(&self, tile: &Tile<'c>, span: Span<'c>, pairs: &Pairs<'c>) {
        self.for_rows_and_pages(tile, span, |rows, page, count| {
            self.score_paired_pages(tile, span, pairs, rows, page, count);
        });
    }

    fn score_paired_pages(
        &self,
        tile: &Tile<'c>,
        span: Span<'c>,
        pairs: &Pairs<'c>,
        rows: &[usize],
        page: Val<'c>,
        count: usize,
    ) {
        let b = self.b;
        let pages = self.pages_from(tile, page, count);
        let zero = b.float_lanes(0.0);
        let dots: Vec<Vec<Var<'c>>> = rows.iter().map(|_| pages.iter().map(|_| b.var(zero)).collect()).collect();
        b.repeat(pairs.groups, |group| {
            let keys = b.mul(group, b.int((LANES * LINE) as i64));
            let queries = b.element(pairs.queries, group, LINE);
            for pair in 0..LANES {
                if rows[0] == 0 {
                    let share = b.add(b.mul(group, b.int(LANES as i64)), b.int(pair as i64));
                    for &page in &pages {
                        self.fetch_values(page, share, LANES * pairs.groups);
                    }
                }
                let lines: Vec<Val<'c>> =
                    pages.iter().map(|&page| load_line(b, b.offset(page, keys), pair * LINE)).collect();
                for (&row, dots) in rows.iter().zip(&dots) {
                    let at = b.int((row * pairs.groups * LINE + pair * PAIR_BYTES) as i64);
                    let query = b.splat(b.load(Kind::I32, b.offset(queries, at)));
                    for (&dot, &line) in dots.iter().zip(&lines) {
                        b.set(dot, b.dot_bf16(b.get(dot), line, query));
                    }
                }
            }
        });
        for (&row, dots) in rows.iter().zip(dots) {
            for (i, dot) in dots.into_iter().enumerate() {
                let slot = b.add(b.sub(page, span.begin), b.int((row * SPLIT_PAGES + i) as i64));
                b.store_lanes(Kind::F32, b.element(self.frames.weights, slot, 4 * PAGE_TOKENS), b.get(dot));
            }
        }
    }

    /// Turns the scores of a split into weights relative to the largest of them, merges it and the sums of weights into
    /// the totals, and rounds the weights.
    pub(super) fn weigh_pairs(&self, tile: &Tile<'c>, span: Span<'c>, pairs: &Pairs<'c>) {
        let b = self.b;
        // The keys of a prompt's tokens, which go together, are near as a rule.
        let is_alone = tile.rows == self.group;
        self.for_rows(tile.rows, |row| {
            let position = b.add(tile.position, b.udiv(row, b.int(self.group as i64)));
            let scores = b.element(self.frames.weights, row, 4 * SPLIT_PAGES * PAGE_TOKENS);
            let weights = b.element(pairs.weights, row, SPLIT_PAGES * PAIRS * PAIR_BYTES);
            let for_pages = |body: &dyn Fn(Val<'c>, Val<'c>)| {
                b.for_range(span.begin, span.end, b.int(1), |page| body(page, b.sub(page, span.begin)));
            };
            let largest = b.var(b.float_lanes(f32::NEG_INFINITY));
            for_pages(&|page, slot| {
                let at = b.element(scores, slot, 4 * PAGE_TOKENS);
                let scaled = b.fmul(b.load_lanes(Kind::F32, at), b.float_lanes(self.scores.scale));
                let score = self.visible_score(tile, position, page, scaled);
                b.store_lanes(Kind::F32, at, score);
                b.set(largest, b.fmax(b.get(largest), score));
            });
            let max = b.max(b.get(largest));
            let sum = b.var(b.float_lanes(0.0));
            for_pages(&|page, slot| {
                if is_alone {
                    self.fetch_early_keys(self.page_ahead(tile, span, page), row, tile.rows);
                }
                let score = b.load_lanes(Kind::F32, b.element(scores, slot, 4 * PAGE_TOKENS));
                let weight = b.exp_coarse(b.fsub(score, b.splat(max)));
                b.set(sum, b.fadd(b.get(sum), weight));
                let bits = b.trunc(b.to_bf16(weight), Kind::I16);
                b.store_lanes(Kind::I16, b.element(weights, slot, PAIRS * PAIR_BYTES), bits);
            });
            self.merge(row, max, b.get(sum));
        });
    }

    /// Adds the weighted values of a split to the totals.
    pub(super) fn add_pairs(&self, tile: &Tile<'c>, span: Span<'c>, pairs: &Pairs<'c>) {
        self.for_rows_and_blocks(tile, |rows, blocks| self.add_pairs_of(tile, span, pairs, rows, blocks));
    }

    fn add_pairs_of(&self, tile: &Tile<'c>, span: Span<'c>, pairs: &Pairs<'c>, rows: &[usize], blocks: &[usize]) {
        let b = self.b;
        let zero = b.float_lanes(0.0);
        let sums: Vec<Vec<Var<'c>>> = rows.iter().map(|_| blocks.iter().map(|_| b.var(zero)).collect()).collect();
        // Adds what a pair of tokens counts for the rows from index `first` on.
        let add = |page: Val<'c>, lines: &[Val<'c>], pair: Val<'c>, rows_and_sums: &[(usize, &Vec<Var<'c>>)]| {
            let of_page = b.element(pairs.weights, b.sub(page, span.begin), PAIRS * PAIR_BYTES);
            let of_pair = b.element(of_page, pair, PAIR_BYTES);
            for (row, sums) in rows_and_sums {
                let at = b.int((row * SPLIT_PAGES * PAIRS * PAIR_BYTES) as i64);
                let weight = b.splat(b.load(Kind::I32, b.offset(of_pair, at)));
                for (&sum, &line) in sums.iter().zip(lines) {
                    b.set(sum, b.dot_bf16(b.get(sum), line, weight));
                }
            }
        };
        let lines = |page: Val<'c>, pair: Val<'c>| -> Vec<Val<'c>> {
            let values = b.offset(self.keys(&tile.seen, page), b.int(paired_key_bytes(self.head_dim) as i64));
            let values = b.element(values, pair, PAIR_BYTES * self.head_dim);
            blocks.iter().map(|&block| load_line(b, values, block * LINE)).collect()
        };
        let all: Vec<(usize, &Vec<Var<'c>>)> = rows.iter().copied().zip(&sums).collect();
        let page_tokens = b.int(PAGE_TOKENS as i64);
        let last = b.sub(tile.seen.end, b.int(1));
        // Of the last page, the pair of the first token's position is the first that some row does not see whole.
        let whole = b.udiv(b.urem(tile.position, page_tokens), b.int(2));
        b.for_range(span.begin, span.end, b.int(1), |page| {
            let ahead = self.page_ahead(tile, span, page);
            let hidden = tile.first_seen.map_or(b.int(0), |token| {
                let begin = b.mul(page, page_tokens);
                b.udiv(b.overloaded("llvm.smax", &[b.sub(token, begin), b.int(0)]), b.int(2))
            });
            let is_last = b.icmp(IntPredicate::EQ, page, last);
            let end = b.select(is_last, whole, b.int(PAIRS as i64));
            b.for_range(hidden, end, b.int(1), |pair| {
                if rows[0] == 0 {
                    self.fetch_keys(ahead, blocks, pair, PAIRS);
                }
                add(page, &lines(page, pair), pair, &all);
            });
        });
        b.when(b.icmp(IntPredicate::EQ, span.end, tile.seen.end), || {
            let tokens = tile.rows / self.group;
            for ahead in 0..tokens.div_ceil(2) {
                let pair = b.add(whole, b.int(ahead as i64));
                let lines = lines(last, pair);
                // Rows see both tokens of the pair, the first of them, or none.
                let lower: Vec<Val<'c>> = lines.iter().map(|&line| b.and(line, b.int_lanes(0xffff))).collect();
                let of_token = |token: usize| all.iter().copied().filter(move |(row, _)| row / self.group == token);
                if tokens == 1 {
                    let is_odd = b.icmp(IntPredicate::NE, b.urem(tile.position, b.int(2)), b.int(0));
                    let seen: Vec<Val<'c>> =
                        lines.iter().zip(&lower).map(|(&both, &first)| b.select(is_odd, both, first)).collect();
                    add(last, &seen, pair, &all);
                    continue;
                }
                add(last, &lower, pair, &of_token(2 * ahead).collect::<Vec<_>>());
                let rest: Vec<_> = (2 * ahead + 1..tokens).flat_map(of_token).collect();
                add(last, &lines, pair, &rest);
            }
        });
        for (&row, sums) in rows.iter().zip(sums) {
            for (&block, sum) in blocks.iter().zip(sums) {
                self.merge_values(row, block, b.get(sum));
            }
        }
    }
}
