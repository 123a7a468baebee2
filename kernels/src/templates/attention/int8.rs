//! Attention over pages of int8 codes, by exact sums of integers.
//!
//! A query is rounded to 16 bits and a weight, times the scale of its value, to 15, so that what rounding adds is little
//! beside what the codes lack. Products of 16 bits are twice as many in an instruction as those of f32, and since their
//! sums are exact, neither the order nor the target changes a bit.
//!
//! A split goes in three passes, as one of floats does, but its weights are relative to its largest score, so that one
//! scale serves them all. Tokens that are not seen have a weight of zero, and what their slots hold makes no difference.

use inkwell::FloatPredicate;
use inkwell::values::PointerValue;
use lathe_ir::types::KEY_GROUP;

use super::super::append::inverse;
use super::{Attention, SPLIT_PAGES, Span, Tile};
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{CodePage, PAGE_TOKENS, SCALE_BYTES};

/// The largest magnitude of a rounded query or weight.
const MOST: f32 = 32767.0;
/// Pairs of tokens of a page.
const PAIRS: usize = PAGE_TOKENS / 2;

/// Where codes lie in pages, and memory of a worker for rounded numbers, by query row.
pub(super) struct Codes<'c> {
    page: CodePage,
    /// Queries in pairs, an element of a group of 32 and the one 16 further on: `[rows][groups][16][2]` i16.
    queries: PointerValue<'c>,
    /// What a dot product of codes is times its key's scale: `[rows]`.
    factors: PointerValue<'c>,
    /// Weights of a split times the scales of their values: `[rows][pages][16]` i16.
    weights: PointerValue<'c>,
    /// What a rounded weight counts: `[rows]`.
    steps: PointerValue<'c>,
}

impl<'c> Codes<'c> {
    pub(super) fn new(b: &Builder<'c>, rows: usize, head_dim: usize) -> Codes<'c> {
        let page = CodePage::new(head_dim);
        Codes {
            page,
            queries: b.frame(rows * page.groups * LANES),
            factors: b.frame(rows),
            weights: b.frame(rows * SPLIT_PAGES * PAIRS),
            steps: b.frame(rows),
        }
    }

    /// The page's scales of values.
    fn value_scales(&self, b: &Builder<'c>, page: PointerValue<'c>) -> Val<'c> {
        scales(b, b.offset(page, b.int(self.page.value_scales as i64)))
    }
}

/// Sixteen scales.
fn scales<'c>(b: &Builder<'c>, at: PointerValue<'c>) -> Val<'c> {
    b.to_width(b.load_lanes(Kind::F16, at), Kind::F32)
}

/// Numbers rounded to even as 32-bit integers.
fn rounded<'c>(b: &Builder<'c>, value: Val<'c>) -> Val<'c> {
    b.to_int(b.overloaded("llvm.roundeven", &[value]), Kind::I32)
}

impl<'c> Attention<'_, 'c> {
    /// Rounds the queries of a tile.
    pub(super) fn round_queries(&self, tile: &Tile<'c>, codes: &Codes<'c>) {
        let b = self.b;
        self.for_rows(tile.rows, |row| {
            let blocks = self.query(tile, row);
            let magnitudes = blocks.iter().map(|&block| b.overloaded("llvm.fabs", &[block]));
            let largest = b.max(magnitudes.reduce(|a, c| b.fmax(a, c)).expect("a head has elements"));
            let factor = b.fmul(b.fdiv(largest, b.float(MOST)), b.float(self.scores.scale));
            b.store(Kind::F32, b.element(codes.factors, row, 4), factor);
            let inverse = b.splat(inverse(b, largest, MOST));
            let out = b.element(codes.queries, row, 4 * LANES * codes.page.groups);
            for (i, pair) in blocks.chunks(KEY_GROUP / LANES).enumerate() {
                let code = |value: Val<'c>| rounded(b, b.fmul(value, inverse));
                let low = b.and(code(pair[0]), b.int_lanes(0xffff));
                let high = pair.get(1).map_or(b.int_lanes(0), |&value| b.shl(code(value), b.int_lanes(16)));
                b.store_lanes(Kind::I32, b.offset(out, b.int((4 * LANES * i) as i64)), b.or(low, high));
            }
        });
    }

    /// The dot products of each row with the keys of a split, but for the rows' factors.
    pub(super) fn score_codes(&self, tile: &Tile<'c>, span: Span<'c>, codes: &Codes<'c>) {
        self.for_rows_and_pages(tile, span, |rows, page, count| {
            self.score_code_pages(tile, span, codes, rows, page, count);
        });
    }

    fn score_code_pages(
        &self,
        tile: &Tile<'c>,
        span: Span<'c>,
        codes: &Codes<'c>,
        rows: &[usize],
        page: Val<'c>,
        count: usize,
    ) {
        let (b, layout) = (self.b, codes.page);
        let pages = self.pages_from(tile, page, count);
        let group_bytes = KEY_GROUP * PAGE_TOKENS;
        let scores = |row: usize, i: usize| {
            let slot = b.add(b.sub(page, span.begin), b.int((row * SPLIT_PAGES + i) as i64));
            b.element(self.frames.weights, slot, 4 * PAGE_TOKENS)
        };
        for &row in rows {
            for i in 0..count {
                b.store_lanes(Kind::F32, scores(row, i), b.float_lanes(0.0));
            }
        }
        b.repeat(layout.groups, |group| {
            let keys = b.mul(group, b.int(group_bytes as i64));
            let zero = b.int_lanes(0);
            let dots: Vec<Vec<Var<'c>>> = rows.iter().map(|_| pages.iter().map(|_| b.var(zero)).collect()).collect();
            for pair in 0..LANES {
                if rows[0] == 0 {
                    let share = b.add(b.mul(group, b.int(LANES as i64)), b.int(pair as i64));
                    for &page in &pages {
                        self.fetch_values(page, share, LANES * layout.groups);
                    }
                }
                let at = b.add(keys, b.int((pair * 2 * PAGE_TOKENS) as i64));
                let keys: Vec<Val<'c>> = pages.iter().map(|&page| b.load_pairs(b.offset(page, at))).collect();
                for (&row, dots) in rows.iter().zip(&dots) {
                    let queries = b.element(codes.queries, group, 4 * LANES);
                    let at = b.int((4 * (row * layout.groups * LANES + pair)) as i64);
                    let query = b.splat(b.load(Kind::I32, b.offset(queries, at)));
                    for (&dot, &key) in dots.iter().zip(&keys) {
                        b.set(dot, b.dot2(b.get(dot), key, query));
                    }
                }
            }
            for (i, &page) in pages.iter().enumerate() {
                let at = b.offset(page, b.int(layout.key_scales as i64));
                let scale = scales(b, b.element(at, group, PAGE_TOKENS * SCALE_BYTES));
                for (&row, dots) in rows.iter().zip(&dots) {
                    let before = b.load_lanes(Kind::F32, scores(row, i));
                    let sum = b.fma(b.to_float(b.get(dots[i]), Kind::F32), scale, before);
                    b.store_lanes(Kind::F32, scores(row, i), sum);
                }
            }
        });
    }

    /// Turns the scores of a split into weights relative to the largest of them, merges it and the sums of weights into
    /// the totals, and rounds weights times the scales of their values.
    pub(super) fn weigh_codes(&self, tile: &Tile<'c>, span: Span<'c>, codes: &Codes<'c>) {
        let b = self.b;
        let page_bytes = 4 * PAGE_TOKENS;
        self.for_rows(tile.rows, |row| {
            let position = b.add(tile.position, b.udiv(row, b.int(self.group as i64)));
            let row_weights = b.element(self.frames.weights, row, SPLIT_PAGES * page_bytes);
            let factor = b.splat(b.load(Kind::F32, b.element(codes.factors, row, 4)));
            let largest = b.var(b.float_lanes(f32::NEG_INFINITY));
            let pages = |body: &dyn Fn(Val<'c>, Val<'c>)| {
                b.for_range(span.begin, span.end, b.int(1), |page| body(page, b.sub(page, span.begin)));
            };
            pages(&|page, slot| {
                let at = b.element(row_weights, slot, page_bytes);
                let score = self.visible_score(tile, position, page, b.fmul(b.load_lanes(Kind::F32, at), factor));
                b.store_lanes(Kind::F32, at, score);
                b.set(largest, b.fmax(b.get(largest), score));
            });
            let max = b.max(b.get(largest));
            let sum = b.var(b.float_lanes(0.0));
            let most = b.var(b.float_lanes(0.0));
            pages(&|page, slot| {
                let at = b.element(row_weights, slot, page_bytes);
                let weight = b.exp(b.fsub(b.load_lanes(Kind::F32, at), b.splat(max)));
                b.set(sum, b.fadd(b.get(sum), weight));
                let scaled = b.fmul(weight, codes.value_scales(b, self.keys(&tile.seen, page)));
                // The scale of a slot that holds no token may be anything.
                let counts = b.fcmp(FloatPredicate::OGT, weight, b.float_lanes(0.0));
                let scaled = b.select(counts, scaled, b.float_lanes(0.0));
                b.store_lanes(Kind::F32, at, scaled);
                b.set(most, b.fmax(b.get(most), scaled));
            });
            let most = b.max(b.get(most));
            let inverse = b.splat(inverse(b, most, MOST));
            b.store(Kind::F32, b.element(codes.steps, row, 4), b.fdiv(most, b.float(MOST)));
            let row_codes = b.element(codes.weights, row, 4 * SPLIT_PAGES * PAIRS);
            pages(&|_, slot| {
                let scaled = b.load_lanes(Kind::F32, b.element(row_weights, slot, page_bytes));
                let code = b.trunc(rounded(b, b.fmul(scaled, inverse)), Kind::I16);
                b.store_lanes(Kind::I16, b.element(row_codes, slot, 4 * PAIRS), code);
            });
            self.merge(row, max, b.get(sum));
        });
    }

    /// Adds the weighted values of a split to the totals.
    pub(super) fn add_codes(&self, tile: &Tile<'c>, span: Span<'c>, codes: &Codes<'c>) {
        self.for_rows_and_blocks(tile, |rows, blocks| self.add_codes_of(tile, span, codes, rows, blocks));
    }

    fn add_codes_of(&self, tile: &Tile<'c>, span: Span<'c>, codes: &Codes<'c>, rows: &[usize], blocks: &[usize]) {
        let b = self.b;
        let zero = b.int_lanes(0);
        let sums: Vec<Vec<Var<'c>>> = rows.iter().map(|_| blocks.iter().map(|_| b.var(zero)).collect()).collect();
        b.for_range(span.begin, span.end, b.int(1), |page| {
            let ahead = self.page_ahead(tile, span, page);
            let slot = b.sub(page, span.begin);
            let values = b.offset(self.keys(&tile.seen, page), b.int(codes.page.values as i64));
            for pair in 0..PAIRS {
                if rows[0] == 0 {
                    self.fetch_keys(ahead, blocks, b.int(pair as i64), PAIRS);
                }
                let at = |&block: &usize| b.int((2 * (pair * self.head_dim + block * LANES)) as i64);
                let values: Vec<Val<'c>> =
                    blocks.iter().map(|block| b.load_pairs(b.offset(values, at(block)))).collect();
                for (&row, sums) in rows.iter().zip(&sums) {
                    let of_page = b.element(codes.weights, slot, 4 * PAIRS);
                    let at = b.int((4 * (row * SPLIT_PAGES * PAIRS + pair)) as i64);
                    let weight = b.splat(b.load(Kind::I32, b.offset(of_page, at)));
                    for (&sum, &value) in sums.iter().zip(&values) {
                        b.set(sum, b.dot2(b.get(sum), value, weight));
                    }
                }
            }
        });
        for (&row, sums) in rows.iter().zip(sums) {
            let step = b.load(Kind::F32, b.offset(codes.steps, b.int(4 * row as i64)));
            for (&block, sum) in blocks.iter().zip(sums) {
                let value = b.fmul(b.to_float(b.get(sum), Kind::F32), b.splat(step));
                self.merge_values(row, block, value);
            }
        }
    }
}
