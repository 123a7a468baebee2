//! Causal attention over the paged cache: one unit is one token and one key/value head, for all its query heads.
//!
//! Online softmax (Milakov and Gimelshein, 2018) over pages of 16 tokens, in splits of 256 tokens that merge in order,
//! as flash attention does (Dao et al., 2022). A token's result depends on nothing but its own history, in logical
//! order. (On GPUs a block of threads shares a unit: [`super::attention_block`].) Scores of tokens after the position or before the window are replaced, and their values never read; pages
//! before the window are not touched, so its length bounds the work.

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::recipe::ATTENTION_SPLIT;
use lathe_ir::types::DType;

use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::{Spread, Var};
use crate::spec::{PAGE_TOKENS, page_bytes};

/// Sums of values that are kept in registers at once. 24 measured 4 % slower and 8 up to 24 % slower over heads of 64 to
/// 256 on Zen 4; all of four heads of 256, which spill, 57 %.
const SUMS: usize = 16;

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

/// The running state of one query head: maximum, lane sums of weights, weighted sum of values.
pub(super) struct State<'c> {
    pub max: Var<'c>,
    pub sum: Var<'c>,
    pub values: Vec<Var<'c>>,
}

/// Operands: q, positions, sequences, block table, cache, out. Params: T, KV, S, B.
pub fn attention<'c>(b: &Builder<'c>, group: usize, head_dim: usize, dtype: DType, scores: Scores) {
    let [q, positions, sequences, table, cache, out] = [0, 1, 2, 3, 4, 5].map(|i| b.operand(i));
    let (kv_heads, width) = (b.param(1), b.param(3));
    let weights = b.frame(group * PAGE_TOKENS);
    b.for_units(|unit| {
        let token = b.udiv(unit, kv_heads);
        let head = b.urem(unit, kv_heads);
        let position = b.load_index(positions, token);
        let sequence = b.load_index(sequences, token);
        let table = b.element(table, b.mul(sequence, width), 4);
        let query = b.element(q, unit, 4 * group * head_dim);
        let pages = b.add(b.udiv(position, b.int(PAGE_TOKENS as i64)), b.int(1));
        let total: Vec<State<'_>> = (0..group).map(|_| start(b, head_dim / LANES)).collect();
        let split = b.int((ATTENTION_SPLIT / PAGE_TOKENS) as i64);
        // The first token that this one sees, its page and the start of its split: splits begin at multiples of their
        // size whatever the window, so that the order of the sum is that of positions.
        let first_seen = scores.window.map(|window| {
            let before = b.sub(position, b.int(window as i64 - 1));
            b.overloaded("llvm.smax", &[before, b.int(0)])
        });
        let first_page = first_seen.map(|token| b.udiv(token, b.int(PAGE_TOKENS as i64)));
        let start_page = first_page.map_or(b.int(0), |page| b.mul(b.udiv(page, split), split));
        b.for_range(start_page, pages, split, |first| {
            let partial: Vec<State<'_>> = (0..group).map(|_| start(b, head_dim / LANES)).collect();
            let end = b.overloaded("llvm.smin", &[b.add(first, split), pages]);
            let begin = first_page.map_or(first, |page| b.overloaded("llvm.smax", &[first, page]));
            b.for_range(begin, end, b.int(1), |page| {
                let number = b.load_index(table, page);
                let bytes = page_bytes(1, head_dim, dtype);
                let base = b.element(cache, b.add(b.mul(number, kv_heads), head), bytes);
                let last = b.sub(position, b.mul(page, b.int(PAGE_TOKENS as i64)));
                // Where the window begins in this page.
                let hidden = first_seen.map(|token| {
                    let tokens = b.sub(token, b.mul(page, b.int(PAGE_TOKENS as i64)));
                    b.overloaded("llvm.smax", &[tokens, b.int(0)])
                });
                let lane = |index: Val<'c>| b.splat(b.trunc(index, Kind::I32));
                let dots = score(b, query, base, group, head_dim, dtype);
                let mut spread = Vec::with_capacity(group);
                for (i, (state, dot)) in partial.iter().zip(dots).enumerate() {
                    let visible = b.icmp(IntPredicate::SLE, b.lane_index(), lane(last));
                    let visible = hidden.map_or(visible, |hidden| {
                        b.and(visible, b.icmp(IntPredicate::SGE, b.lane_index(), lane(hidden)))
                    });
                    let scaled = b.fmul(dot, b.float_lanes(scores.scale));
                    let capped = scores.softcap.map_or(scaled, |cap| b.softcap(scaled, cap));
                    let masked = b.select(visible, capped, b.float_lanes(f32::NEG_INFINITY));
                    let slots = b.offset(weights, b.int((4 * PAGE_TOKENS * i) as i64));
                    spread.push(b.spread(slots, weigh(b, state, masked)));
                }
                let values = b.offset(base, b.int((PAGE_TOKENS * head_dim * dtype.bytes()) as i64));
                let count = b.overloaded("llvm.smin", &[b.add(last, b.int(1)), b.int(PAGE_TOKENS as i64)]);
                add_values(b, &partial, &spread, values, [hidden.unwrap_or(b.int(0)), count], dtype);
            });
            for (total, partial) in total.iter().zip(&partial) {
                merge(b, total, partial);
            }
        });
        for (i, state) in total.iter().enumerate() {
            let inverse = b.splat(b.sum(b.get(state.sum)));
            let out = b.element(out, b.add(b.mul(unit, b.int(group as i64)), b.int(i as i64)), 4 * head_dim);
            for (block, &value) in state.values.iter().enumerate() {
                let at = b.offset(out, b.int((4 * LANES * block) as i64));
                b.store_lanes(Kind::F32, at, b.fdiv(b.get(value), inverse));
            }
        }
    });
}

pub(super) fn start<'c>(b: &Builder<'c>, blocks: usize) -> State<'c> {
    State {
        max: b.var(b.float(f32::NEG_INFINITY)),
        sum: b.var(b.float_lanes(0.0)),
        values: (0..blocks).map(|_| b.var(b.float_lanes(0.0))).collect(),
    }
}

pub(super) fn load<'c>(b: &Builder<'c>, pointer: PointerValue<'c>, dtype: DType) -> Val<'c> {
    if dtype == DType::F16 {
        b.to_width(b.load_lanes(Kind::F16, pointer), Kind::F32)
    } else {
        b.load_lanes(Kind::F32, pointer)
    }
}

/// Dot products of each query head with the 16 keys of a page, in order of d.
fn score<'c>(
    b: &Builder<'c>,
    query: PointerValue<'c>,
    keys: PointerValue<'c>,
    group: usize,
    head_dim: usize,
    dtype: DType,
) -> Vec<Val<'c>> {
    let dots: Vec<Var<'c>> = (0..group).map(|_| b.var(b.float_lanes(0.0))).collect();
    for d in 0..head_dim {
        let d = b.int(d as i64);
        let key = load(b, b.element(keys, d, PAGE_TOKENS * dtype.bytes()), dtype);
        for (i, &dot) in dots.iter().enumerate() {
            let q = b.load(Kind::F32, b.offset(b.element(query, d, 4), b.int((4 * i * head_dim) as i64)));
            b.set(dot, b.fma(b.splat(q), key, b.get(dot)));
        }
    }
    dots.into_iter().map(|dot| b.get(dot)).collect()
}

/// Turns scores into weights relative to the new maximum, and rescales what was summed before.
fn weigh<'c>(b: &Builder<'c>, state: &State<'c>, scores: Val<'c>) -> Val<'c> {
    let old = b.get(state.max);
    let new = b.fmax(old, b.max(scores));
    let correction = b.splat(b.exp_uniform(b.fsub(old, new)));
    let weights = b.exp(b.fsub(scores, b.splat(new)));
    b.set(state.max, new);
    b.set(state.sum, b.fma(b.get(state.sum), correction, weights));
    for &value in &state.values {
        b.set(value, b.fmul(b.get(value), correction));
    }
    weights
}

/// Adds the weighted values of some tokens of a page, as many heads at a time as have their sums in registers.
fn add_values<'c>(
    b: &Builder<'c>,
    states: &[State<'c>],
    weights: &[Spread<'c>],
    values: PointerValue<'c>,
    [begin, end]: [Val<'c>; 2],
    dtype: DType,
) {
    let blocks = states[0].values.len();
    let heads = (SUMS / blocks).max(1);
    for (states, weights) in states.chunks(heads).zip(weights.chunks(heads)) {
        add_values_of(b, states, weights, values, [begin, end], dtype);
    }
}

fn add_values_of<'c>(
    b: &Builder<'c>,
    states: &[State<'c>],
    weights: &[Spread<'c>],
    values: PointerValue<'c>,
    [begin, end]: [Val<'c>; 2],
    dtype: DType,
) {
    let head_dim = states[0].values.len() * LANES;
    b.for_range(begin, end, b.int(1), |token| {
        let row = b.element(values, token, head_dim * dtype.bytes());
        let vector: Vec<Val<'c>> = (0..states[0].values.len())
            .map(|block| load(b, b.offset(row, b.int((block * LANES * dtype.bytes()) as i64)), dtype))
            .collect();
        for (state, &weights) in states.iter().zip(weights) {
            let weight = b.splat(b.lane(weights, token));
            for (&sum, &value) in state.values.iter().zip(&vector) {
                b.set(sum, b.fma(weight, value, b.get(sum)));
            }
        }
    });
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
