//! Causal attention over the paged cache on CPUs: one unit is one token and one key/value head, for all its query heads.
//!
//! Online softmax (Milakov and Gimelshein, 2018) over pages of 16 tokens, in splits of 256 tokens that merge in order,
//! as flash attention does (Dao et al., 2022). A token's result depends on nothing but its own history, in logical
//! order. (On GPUs a block of threads shares a unit: [`super::attention_block`].) Scores of tokens after the position or
//! before the window are replaced, and their values never read; pages before the window are not touched, so its length
//! bounds the work.
//!
//! A split goes in three passes, so that none waits for the chain of the others: dot products of all its pages, several
//! pages at once; maxima and weights of all its pages; then the sums of its values, which stay in registers. What the next
//! pass reads is fetched meanwhile: see [`fetch`].
//!
//! Consecutive tokens of a sequence that end in one page go together: a key is loaded and widened once for all their
//! heads. Units are numbered by blocks of as many tokens, then by head, then by token.
//!
//! Over pages of int8 codes the three passes are those of [`int8`], over pages of bf16 those of [`pairs`].

mod fetch;
mod int8;
mod pairs;

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::recipe::ATTENTION_SPLIT;
use lathe_ir::types::DType;

use self::fetch::Halves;
use self::int8::Codes;
use self::pairs::Pairs;
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{KernelSpec, PAGE_TOKENS, page_bytes};

/// Pages of a split: their maxima are one lane value.
const SPLIT_PAGES: usize = ATTENTION_SPLIT / PAGE_TOKENS;
const _: () = assert!(SPLIT_PAGES == LANES, "the maxima of a split are one lane value");

/// Elements of a key in a step of the loop over them.
const KEY_STEP: usize = 4;

/// How scores come from dot products.
#[derive(Clone, Copy)]
pub struct Scores {
    /// Factor.
    pub scale: f32,
    /// Tokens that a token sees, itself included.
    pub window: Option<usize>,
    /// Bound.
    pub softcap: Option<f32>,
}

/// Operands: q, positions, sequences, block table, cache, out. Params: T, KV, S, B.
pub fn attention<'c>(b: &Builder<'c>, group: usize, head_dim: usize, dtype: DType, scores: Scores) {
    let together = KernelSpec::attention_tokens(group);
    let rows = together * group;
    let codes = (dtype == DType::Int8).then(|| Codes::new(b, rows, head_dim));
    let pairs = (dtype == DType::Bf16).then(|| Pairs::new(b, rows, head_dim));
    let (frames, halves) = (Frames::new(b, rows, head_dim), Halves::new(head_dim, dtype));
    let kernel = Attention { b, group, head_dim, dtype, scores, frames, halves, codes, pairs };
    let (tokens, heads) = (b.param(0), b.param(1));
    let block_tokens = b.int(together as i64);
    b.for_units_by(together, |first, end| {
        // The token, the head and the tokens that follow in its block.
        let place = |unit: Val<'c>| {
            let block = b.udiv(unit, b.mul(block_tokens, heads));
            let start = b.mul(block, block_tokens);
            let height = b.overloaded("llvm.smin", &[b.sub(tokens, start), block_tokens]);
            let rest = b.sub(unit, b.mul(start, heads));
            (b.add(start, b.urem(rest, height)), b.udiv(rest, height), height)
        };
        let is_whole = b.var(b.int(0));
        if together > 1 {
            let (token, _, height) = place(first);
            let covers = b.icmp(IntPredicate::EQ, b.sub(end, first), block_tokens);
            let is_block = b.and(covers, b.icmp(IntPredicate::EQ, height, block_tokens));
            b.when(is_block, || b.set(is_whole, kernel.belong_together(token, together)));
        }
        let go_together = b.icmp(IntPredicate::NE, b.get(is_whole), b.int(0));
        let all = || {
            let (token, head, _) = place(first);
            kernel.tokens([token, head], together, None);
        };
        b.either(go_together, all, || {
            let ahead = b.var(b.int(0));
            let last = b.sub(end, b.int(1));
            b.for_range(first, end, b.int(1), |unit| {
                let (token, head, _) = place(unit);
                let (next_token, next_head, _) = place(b.overloaded("llvm.smin", &[b.add(unit, b.int(1)), last]));
                kernel.tokens([token, head], 1, Some(Follower { place: [next_token, next_head], ahead }));
            });
        });
    });
}

/// Memory of a worker, by query row: a head of a token.
struct Frames<'c> {
    /// Scores, then weights, of a split: `[rows][pages][16]`.
    weights: PointerValue<'c>,
    /// Maxima after each page of a split, behind minus infinity.
    maxima: PointerValue<'c>,
    /// What each page's maximum makes of the sums before it: `[rows][pages]`.
    corrections: PointerValue<'c>,
    /// The totals' maxima, `[rows]`.
    max: PointerValue<'c>,
    /// The totals' sums of weights, `[rows][16]`.
    sum: PointerValue<'c>,
    /// The totals' sums of values, `[rows][D]`.
    values: PointerValue<'c>,
    /// What merging makes of a total and of a split: `[rows][2]`.
    shares: PointerValue<'c>,
}

struct Attention<'b, 'c> {
    b: &'b Builder<'c>,
    group: usize,
    head_dim: usize,
    dtype: DType,
    scores: Scores,
    frames: Frames<'c>,
    halves: Halves,
    codes: Option<Codes<'c>>,
    pairs: Option<Pairs<'c>>,
}

/// The tokens of a unit, or of several: one key/value head, consecutive positions of one sequence.
struct Tile<'c> {
    /// Queries of the first row.
    query: PointerValue<'c>,
    /// Bytes from a token's queries to the next one's.
    stride: Val<'c>,
    /// Rows: heads by token.
    rows: usize,
    /// The first token's position.
    position: Val<'c>,
    /// The first token that the window shows.
    first_seen: Option<Val<'c>>,
    /// The pages that the tokens see.
    seen: Seen<'c>,
    /// Those of the unit that follows, or the same ones.
    next: Seen<'c>,
}

/// The pages of a sequence that a tile sees, for one head.
#[derive(Clone, Copy)]
struct Seen<'c> {
    /// Where the sequence's pages begin in the block table.
    table: Val<'c>,
    /// The head, in a page.
    head: Val<'c>,
    /// The first page that the window shows.
    begin: Val<'c>,
    /// One after the last token's page.
    end: Val<'c>,
}

/// The unit that a worker computes after this one.
#[derive(Clone, Copy)]
struct Follower<'c> {
    /// Its token and head.
    place: [Val<'c>; 2],
    /// How many pages of a unit the one before it has fetched the keys of.
    ahead: Var<'c>,
}

/// Pages of a split.
#[derive(Clone, Copy)]
struct Span<'c> {
    begin: Val<'c>,
    end: Val<'c>,
}

impl<'c> Frames<'c> {
    fn new(b: &Builder<'c>, rows: usize, head_dim: usize) -> Frames<'c> {
        let frames = Frames {
            weights: b.frame(rows * SPLIT_PAGES * PAGE_TOKENS),
            maxima: b.frame(1 + SPLIT_PAGES),
            corrections: b.frame(rows * SPLIT_PAGES),
            max: b.frame(rows),
            sum: b.frame(rows * LANES),
            values: b.frame(rows * head_dim),
            shares: b.frame(rows * 2),
        };
        b.store(Kind::F32, frames.maxima, b.float(f32::NEG_INFINITY));
        b.store_lanes(Kind::F32, b.offset(frames.maxima, b.int(4)), b.float_lanes(f32::NEG_INFINITY));
        frames
    }
}

impl<'c> Attention<'_, 'c> {
    /// Whether this token and those after it are of one sequence and one page, one position after the other, and the
    /// window hides nothing from any: 1 or 0.
    fn belong_together(&self, token: Val<'c>, count: usize) -> Val<'c> {
        let b = self.b;
        let (positions, sequences) = (b.operand(1), b.operand(2));
        let position = b.load_index(positions, token);
        let sequence = b.load_index(sequences, token);
        let mut all = b.icmp(IntPredicate::EQ, b.urem(position, b.int(count as i64)), b.int(0));
        for i in 1..count {
            let (next, distance) = (b.add(token, b.int(i as i64)), b.int(i as i64));
            let follows = b.icmp(IntPredicate::EQ, b.load_index(positions, next), b.add(position, distance));
            let is_same = b.icmp(IntPredicate::EQ, b.load_index(sequences, next), sequence);
            all = b.and(all, b.and(follows, is_same));
        }
        if let Some(window) = self.scores.window {
            let last = b.add(position, b.int(count as i64 - 1));
            all = b.and(all, b.icmp(IntPredicate::SLT, last, b.int(window as i64)));
        }
        b.zext(all, Kind::I64)
    }

    /// The first token that the window of a position shows, if there is a window.
    fn first_seen(&self, position: Val<'c>) -> Option<Val<'c>> {
        let b = self.b;
        self.scores.window.map(|window| {
            let before = b.sub(position, b.int(window as i64 - 1));
            b.overloaded("llvm.smax", &[before, b.int(0)])
        })
    }

    /// The pages that `count` tokens from `token` on see, from the token `first_seen` on.
    fn seen(&self, [token, head]: [Val<'c>; 2], count: usize, first_seen: Option<Val<'c>>) -> Seen<'c> {
        let b = self.b;
        let sequence = b.load_index(b.operand(2), token);
        let page_tokens = b.int(PAGE_TOKENS as i64);
        let last = b.add(b.load_index(b.operand(1), token), b.int(count as i64 - 1));
        Seen {
            table: b.mul(sequence, b.param(3)),
            head,
            begin: first_seen.map_or(b.int(0), |token| b.udiv(token, page_tokens)),
            end: b.add(b.udiv(last, page_tokens), b.int(1)),
        }
    }

    /// Computes `count` tokens from a token on, for one key/value head.
    fn tokens(&self, [token, head]: [Val<'c>; 2], count: usize, follower: Option<Follower<'c>>) {
        let (b, group, frames) = (self.b, self.group, &self.frames);
        let heads = b.param(1);
        let position = b.load_index(b.operand(1), token);
        let first_row = b.mul(b.add(b.mul(token, heads), head), b.int(group as i64));
        let first_seen = if count == 1 { self.first_seen(position) } else { None };
        let seen = self.seen([token, head], count, first_seen);
        let next = follower.map_or(seen, |follower| {
            let [token, _] = follower.place;
            self.seen(follower.place, 1, self.first_seen(b.load_index(b.operand(1), token)))
        });
        let tile = Tile {
            query: b.element(b.operand(0), first_row, 4 * self.head_dim),
            stride: b.mul(heads, b.int((4 * group * self.head_dim) as i64)),
            rows: count * group,
            position,
            first_seen,
            seen,
            next,
        };
        self.for_rows(tile.rows, |row| {
            b.store(Kind::F32, b.element(frames.max, row, 4), b.float(f32::NEG_INFINITY));
            b.store_lanes(Kind::F32, b.element(frames.sum, row, 4 * LANES), b.float_lanes(0.0));
            self.for_blocks(|block| {
                let values = b.element(frames.values, row, 4 * self.head_dim);
                b.store_lanes(Kind::F32, b.element(values, block, 4 * LANES), b.float_lanes(0.0));
            });
        });
        if let Some(codes) = &self.codes {
            self.round_queries(&tile, codes);
        }
        if let Some(pairs) = &self.pairs {
            self.pair_queries(&tile, pairs);
        }
        // Splits begin at multiples of their size whatever the window, so that the order of the sum is that of positions.
        let split = b.int(SPLIT_PAGES as i64);
        let start = b.mul(b.udiv(seen.begin, split), split);
        let span_from = |first: Val<'c>| Span {
            begin: b.overloaded("llvm.smax", &[first, seen.begin]),
            end: b.overloaded("llvm.smin", &[b.add(first, split), seen.end]),
        };
        // Several tokens are of a prompt, the tokens before which have just read these keys.
        if let Some(Follower { ahead, .. }) = follower {
            self.fetch_first_keys(&tile, span_from(start), b.get(ahead));
            let last = span_from(b.mul(b.udiv(b.sub(seen.end, b.int(1)), split), split));
            b.set(ahead, b.sub(last.end, last.begin));
        }
        b.for_range(start, seen.end, split, |first| {
            let span = span_from(first);
            if let Some(codes) = &self.codes {
                self.score_codes(&tile, span, codes);
                self.weigh_codes(&tile, span, codes);
                self.add_codes(&tile, span, codes);
            } else if let Some(pairs) = &self.pairs {
                self.score_pairs(&tile, span, pairs);
                self.weigh_pairs(&tile, span, pairs);
                self.add_pairs(&tile, span, pairs);
            } else {
                self.score(&tile, span);
                self.weigh(&tile, span);
                self.add_values(&tile, span);
            }
        });
        let out = b.element(b.operand(5), first_row, 4 * self.head_dim);
        for i in 0..count {
            self.for_rows(group, |row| {
                let at = b.add(row, b.int((i * group) as i64));
                let inverse = b.splat(b.sum(b.load_lanes(Kind::F32, b.element(frames.sum, at, 4 * LANES))));
                let values = b.element(frames.values, at, 4 * self.head_dim);
                let token = b.offset(out, b.mul(tile.stride, b.int(i as i64)));
                let out = b.element(token, row, 4 * self.head_dim);
                self.for_blocks(|block| {
                    let value = b.load_lanes(Kind::F32, b.element(values, block, 4 * LANES));
                    b.store_lanes(Kind::F32, b.element(out, block, 4 * LANES), b.fdiv(value, inverse));
                });
            });
        }
    }

    fn for_rows(&self, rows: usize, body: impl FnOnce(Val<'c>)) {
        self.b.for_range(self.b.int(0), self.b.int(rows as i64), self.b.int(1), body);
    }

    fn for_blocks(&self, body: impl FnOnce(Val<'c>)) {
        self.b.repeat(self.head_dim / LANES, body);
    }

    /// The head's keys of a page; its values follow them.
    fn keys(&self, seen: &Seen<'c>, page: Val<'c>) -> PointerValue<'c> {
        let b = self.b;
        let number = b.load_index(b.operand(3), b.add(seen.table, page));
        let at = b.add(b.mul(number, b.param(1)), seen.head);
        b.element(b.operand(4), at, page_bytes(1, self.head_dim, self.dtype))
    }

    fn values_offset(&self) -> usize {
        PAGE_TOKENS * self.head_dim * self.dtype.bytes()
    }

    /// The dot products of each row with the keys of a split, in order of d.
    fn score(&self, tile: &Tile<'c>, span: Span<'c>) {
        self.for_rows_and_pages(tile, span, |rows, page, count| self.score_pages(tile, span, rows, page, count));
    }

    /// Calls `body` for as many rows and pages at a time as the registers hold dot products of.
    fn for_rows_and_pages(&self, tile: &Tile<'c>, span: Span<'c>, body: impl Fn(&[usize], Val<'c>, usize)) {
        let b = self.b;
        let dots = b.target.tile.dots;
        let passes = tile.rows.div_ceil(dots);
        let rows: Vec<usize> = (0..tile.rows).collect();
        for rows in rows.chunks(tile.rows.div_ceil(passes)) {
            let at_once = (dots / rows.len()).clamp(1, 4);
            let count = b.sub(span.end, span.begin);
            let whole = b.sub(span.end, b.urem(count, b.int(at_once as i64)));
            b.for_range(span.begin, whole, b.int(at_once as i64), |page| body(rows, page, at_once));
            if at_once > 1 {
                b.for_range(whole, span.end, b.int(1), |page| body(rows, page, 1));
            }
        }
    }

    /// Calls `body` for rows and blocks of values whose sums the registers hold: as many blocks as leave room for those of
    /// all rows, so that a value is loaded for many of them.
    fn for_rows_and_blocks(&self, tile: &Tile<'c>, body: impl Fn(&[usize], &[usize])) {
        let sums = self.b.target.tile.sums;
        let blocks: Vec<usize> = (0..self.head_dim / LANES).collect();
        let rows: Vec<usize> = (0..tile.rows).collect();
        let rows_at_once = tile.rows.div_ceil(tile.rows.div_ceil(sums / 2));
        for blocks in blocks.chunks((sums / rows_at_once).clamp(1, 4)) {
            for rows in rows.chunks(rows_at_once) {
                body(rows, blocks);
            }
        }
    }

    /// The query of a row, in blocks of 16.
    fn query(&self, tile: &Tile<'c>, row: Val<'c>) -> Vec<Val<'c>> {
        let b = self.b;
        let group = b.int(self.group as i64);
        let token = b.offset(tile.query, b.mul(tile.stride, b.udiv(row, group)));
        let query = b.element(token, b.urem(row, group), 4 * self.head_dim);
        let load = |i: usize| b.load_lanes(Kind::F32, b.offset(query, b.int((4 * LANES * i) as i64)));
        (0..self.head_dim / LANES).map(load).collect()
    }

    /// Where the head lies in so many pages from one on.
    fn pages_from(&self, tile: &Tile<'c>, page: Val<'c>, count: usize) -> Vec<PointerValue<'c>> {
        (0..count).map(|i| self.keys(&tile.seen, self.b.add(page, self.b.int(i as i64)))).collect()
    }

    fn score_pages(&self, tile: &Tile<'c>, span: Span<'c>, rows: &[usize], page: Val<'c>, count: usize) {
        let b = self.b;
        let pages = self.pages_from(tile, page, count);
        let dots: Vec<Vec<Var<'c>>> =
            rows.iter().map(|_| pages.iter().map(|_| b.var(b.float_lanes(0.0))).collect()).collect();
        let key_bytes = PAGE_TOKENS * self.dtype.bytes();
        b.repeat(self.head_dim / KEY_STEP, |step| {
            let first = b.mul(step, b.int(KEY_STEP as i64));
            for i in 0..KEY_STEP {
                let d = b.add(first, b.int(i as i64));
                if rows[0] == 0 {
                    for &page in &pages {
                        self.fetch_values(page, d, self.head_dim);
                    }
                }
                let keys: Vec<Val<'c>> =
                    pages.iter().map(|&keys| load(b, b.element(keys, d, key_bytes), self.dtype)).collect();
                for (&row, dots) in rows.iter().zip(&dots) {
                    let token = b.mul(tile.stride, b.int((row / self.group) as i64));
                    let query =
                        b.offset(tile.query, b.add(token, b.int((row % self.group * 4 * self.head_dim) as i64)));
                    let q = b.splat(b.load(Kind::F32, b.element(query, d, 4)));
                    for (&dot, &key) in dots.iter().zip(&keys) {
                        b.set(dot, b.fma(q, key, b.get(dot)));
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

    /// Turns the scores of a split into weights relative to the maximum so far, says what each new maximum makes of the
    /// sums before it, and merges maxima and sums of weights into the totals.
    fn weigh(&self, tile: &Tile<'c>, span: Span<'c>) {
        let (b, frames, scores) = (self.b, &self.frames, self.scores);
        let next_maxima = b.offset(frames.maxima, b.int(4));
        self.for_rows(tile.rows, |row| {
            let position = b.add(tile.position, b.udiv(row, b.int(self.group as i64)));
            let row_weights = b.element(frames.weights, row, 4 * SPLIT_PAGES * PAGE_TOKENS);
            let corrections = b.element(frames.corrections, row, 4 * SPLIT_PAGES);
            let running = b.var(b.float(f32::NEG_INFINITY));
            b.for_range(span.begin, span.end, b.int(1), |page| {
                let slot = b.sub(page, span.begin);
                let at = b.element(row_weights, slot, 4 * PAGE_TOKENS);
                let scaled = b.fmul(b.load_lanes(Kind::F32, at), b.float_lanes(scores.scale));
                let masked = self.visible_score(tile, position, page, scaled);
                b.store_lanes(Kind::F32, at, masked);
                b.set(running, b.fmax(b.get(running), b.max(masked)));
                b.store(Kind::F32, b.element(next_maxima, slot, 4), b.get(running));
            });
            let before = b.load_lanes(Kind::F32, frames.maxima);
            let after = b.load_lanes(Kind::F32, next_maxima);
            b.store_lanes(Kind::F32, corrections, b.exp(b.fsub(before, after)));
            let sum = b.var(b.float_lanes(0.0));
            b.for_range(span.begin, span.end, b.int(1), |page| {
                let slot = b.sub(page, span.begin);
                let at = b.element(row_weights, slot, 4 * PAGE_TOKENS);
                let max = b.splat(b.load(Kind::F32, b.element(next_maxima, slot, 4)));
                let weights = b.exp(b.fsub(b.load_lanes(Kind::F32, at), max));
                b.store_lanes(Kind::F32, at, weights);
                let correction = b.splat(b.load(Kind::F32, b.element(corrections, slot, 4)));
                b.set(sum, b.fma(b.get(sum), correction, weights));
            });
            self.merge(row, b.get(running), b.get(sum));
        });
    }

    /// A score, or minus infinity where the row does not see the token.
    fn visible_score(&self, tile: &Tile<'c>, position: Val<'c>, page: Val<'c>, scaled: Val<'c>) -> Val<'c> {
        let b = self.b;
        let begin = b.mul(page, b.int(PAGE_TOKENS as i64));
        let lane = |index: Val<'c>| b.splat(b.trunc(index, Kind::I32));
        let mut visible = b.icmp(IntPredicate::SLE, b.lane_index(), lane(b.sub(position, begin)));
        if let Some(seen) = tile.first_seen {
            let hidden = lane(b.sub(seen, begin));
            visible = b.and(visible, b.icmp(IntPredicate::SGE, b.lane_index(), hidden));
        }
        let capped = self.scores.softcap.map_or(scaled, |cap| b.softcap(scaled, cap));
        b.select(visible, capped, b.float_lanes(f32::NEG_INFINITY))
    }

    /// Merges the maximum and the sums of weights of a row's split into the totals, and keeps what merging makes of either.
    fn merge(&self, row: Val<'c>, other: Val<'c>, sum: Val<'c>) {
        let (b, frames) = (self.b, &self.frames);
        let (max, total) = (b.element(frames.max, row, 4), b.element(frames.sum, row, 4 * LANES));
        let old = b.load(Kind::F32, max);
        let new = b.fmax(old, other);
        let keep = b.exp_uniform(b.fsub(old, new));
        let take = b.exp_uniform(b.fsub(other, new));
        let kept = b.fmul(b.load_lanes(Kind::F32, total), b.splat(keep));
        b.store_lanes(Kind::F32, total, b.fma(sum, b.splat(take), kept));
        b.store(Kind::F32, max, new);
        let shares = b.element(frames.shares, row, 8);
        b.store(Kind::F32, shares, keep);
        b.store(Kind::F32, b.offset(shares, b.int(4)), take);
    }

    /// Merges a split's weighted sum of values into a row's total.
    fn merge_values(&self, row: usize, block: usize, sum: Val<'c>) {
        let (b, frames) = (self.b, &self.frames);
        let share = |i: usize| b.splat(b.load(Kind::F32, b.offset(frames.shares, b.int((8 * row + 4 * i) as i64))));
        let at = b.offset(frames.values, b.int((4 * (row * self.head_dim + block * LANES)) as i64));
        let kept = b.fmul(b.load_lanes(Kind::F32, at), share(0));
        b.store_lanes(Kind::F32, at, b.fma(sum, share(1), kept));
    }

    /// Adds the weighted values of a split to the totals, as many sums at a time as stay in registers.
    fn add_values(&self, tile: &Tile<'c>, span: Span<'c>) {
        let sums = self.b.target.tile.sums;
        let blocks: Vec<usize> = (0..self.head_dim / LANES).collect();
        let rows: Vec<usize> = (0..tile.rows).collect();
        for blocks in blocks.chunks(sums) {
            for rows in rows.chunks(sums / blocks.len()) {
                self.add_values_of(tile, span, rows, blocks);
            }
        }
    }

    fn add_values_of(&self, tile: &Tile<'c>, span: Span<'c>, rows: &[usize], blocks: &[usize]) {
        let (b, frames) = (self.b, &self.frames);
        let zero = b.float_lanes(0.0);
        let sums: Vec<Vec<Var<'c>>> = rows.iter().map(|_| blocks.iter().map(|_| b.var(zero)).collect()).collect();
        // Adds a token's value to the rows from index `first` on.
        let add = |page: Val<'c>, values: PointerValue<'c>, token: Val<'c>, first: usize| {
            let value = b.element(values, token, self.head_dim * self.dtype.bytes());
            let loaded: Vec<Val<'c>> = blocks
                .iter()
                .map(|block| load(b, b.offset(value, b.int((block * LANES * self.dtype.bytes()) as i64)), self.dtype))
                .collect();
            for (&row, sums) in rows.iter().zip(&sums).skip(first) {
                let slot = b.add(b.sub(page, span.begin), b.int((row * SPLIT_PAGES) as i64));
                let weights = b.element(frames.weights, slot, 4 * PAGE_TOKENS);
                let weight = b.splat(b.load(Kind::F32, b.element(weights, token, 4)));
                for (&sum, &value) in sums.iter().zip(&loaded) {
                    b.set(sum, b.fma(weight, value, b.get(sum)));
                }
            }
        };
        let page_values = |page| b.offset(self.keys(&tile.seen, page), b.int(self.values_offset() as i64));
        let page_tokens = b.int(PAGE_TOKENS as i64);
        b.for_range(span.begin, span.end, b.int(1), |page| {
            let ahead = self.page_ahead(tile, span, page);
            for (&row, sums) in rows.iter().zip(&sums) {
                let slot = b.add(b.sub(page, span.begin), b.int((row * SPLIT_PAGES) as i64));
                let correction = b.splat(b.load(Kind::F32, b.element(frames.corrections, slot, 4)));
                for &sum in sums {
                    b.set(sum, b.fmul(b.get(sum), correction));
                }
            }
            let begin = b.mul(page, page_tokens);
            let hidden =
                tile.first_seen.map_or(b.int(0), |token| b.overloaded("llvm.smax", &[b.sub(token, begin), b.int(0)]));
            let seen = b.add(b.sub(tile.position, begin), b.int(1));
            let values = page_values(page);
            b.for_range(hidden, b.overloaded("llvm.smin", &[seen, page_tokens]), b.int(1), |token| {
                if rows[0] == 0 {
                    self.fetch_keys(ahead, blocks, token, PAGE_TOKENS);
                }
                add(page, values, token, 0);
            });
        });
        // What only later tokens of the tile see.
        let last_token = rows[rows.len() - 1] / self.group;
        if last_token > 0 {
            let page = b.sub(tile.seen.end, b.int(1));
            b.when(b.icmp(IntPredicate::EQ, span.end, tile.seen.end), || {
                let values = page_values(page);
                for ahead in 1..=last_token {
                    let position = b.add(tile.position, b.int(ahead as i64));
                    let first = rows.iter().position(|row| row / self.group >= ahead).expect("the last row sees it");
                    add(page, values, b.urem(position, page_tokens), first);
                }
            });
        }
        for (&row, sums) in rows.iter().zip(sums) {
            for (&block, sum) in blocks.iter().zip(sums) {
                self.merge_values(row, block, b.get(sum));
            }
        }
    }
}

pub(super) fn load<'c>(b: &Builder<'c>, pointer: PointerValue<'c>, dtype: DType) -> Val<'c> {
    if dtype == DType::F16 {
        b.to_width(b.load_lanes(Kind::F16, pointer), Kind::F32)
    } else {
        b.load_lanes(Kind::F32, pointer)
    }
}
