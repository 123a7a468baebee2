//! Attention of few tokens over long histories, on GPUs: every split of a token and a key/value head is a unit of its own,
//! and a second kernel merges their results. Splits, their order and their bits are those of [`super::attention_block`]:
//! a split has a fixed number of tokens, so what a row gives depends neither on its neighbours nor on how many there are.
//!
//! Between the kernels lie, for each token, key/value head, split and query head, a [`record`](partial_floats): the weighted
//! sums of values, 16 lanes of the sum of weights, and the maximum in 16 lanes.

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::recipe::ATTENTION_SPLIT;

use super::attention::Scores;
use super::attention_block::{AtOnce, Shape, Split, beginning, merge as merge_states, start};
use super::rows::store_group;
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::spec::{ACT_GROUP_BYTES, GROUP, PAGE_TOKENS, partial_floats};

/// For few tokens: a multiprocessor has few blocks, and each finishes when its own loads are there.
const FOR_FEW: AtOnce = AtOnce { keys: 32, pages: 4 };
/// Splits of a head that are merged without a branch, so that their loads are under way together.
const MERGES_AT_ONCE: usize = 4;

/// Operands: q, positions, sequences, block table, cache, partials. Params: T, KV, S, B, Z (units of a head), W (splits of
/// all key/value heads of a token).
pub fn splits(b: &Builder<'_>, shape: Shape, scores: Scores) {
    let split = Split::new(b, shape, scores, FOR_FEW);
    let (kv_heads, ways, width) = (b.param(1), b.param(4), b.param(5));
    let per_head = b.udiv(width, kv_heads);
    let pages = b.int((ATTENTION_SPLIT / PAGE_TOKENS) as i64);
    b.for_units(|unit| {
        let (pair, way) = (b.udiv(unit, ways), b.urem(unit, ways));
        let (token, head) = (b.udiv(pair, kv_heads), b.urem(pair, kv_heads));
        // Most histories are shorter than the longest: what has no split leaves before it asks for more.
        let position = b.load_index(b.operand(1), token);
        let last = b.udiv(position, b.int(ATTENTION_SPLIT as i64));
        b.when(b.icmp(IntPredicate::SLE, way, last), || {
            let of = split.history(token, head);
            b.for_range(way, b.add(last, b.int(1)), ways, |index| {
                let first = b.mul(index, pages);
                b.when(b.icmp(IntPredicate::SGE, first, of.start_page), || {
                    split.weigh(&of, first);
                    let record = b.add(b.add(b.mul(token, width), b.mul(head, per_head)), index);
                    let record = b.mul(record, b.int(shape.group as i64));
                    for own in 0..split.own_blocks() {
                        split.when_owned(own, |head, block| {
                            let state = split.add_values(&of, first, head, block);
                            let base = partial(b, b.operand(5), b.add(record, head), shape.head_dim);
                            let at = |lanes: usize| b.offset(base, b.int((4 * (shape.head_dim + lanes)) as i64));
                            b.store_lanes(Kind::F32, b.element(base, block, 4 * LANES), b.get(state.values[0]));
                            b.when(b.icmp(IntPredicate::EQ, block, b.int(0)), || {
                                b.store_lanes(Kind::F32, at(0), b.get(state.sum));
                                b.store_lanes(Kind::F32, at(LANES), b.splat(b.get(state.max)));
                            });
                        });
                    }
                    b.barrier();
                });
            });
            b.barrier();
        });
    });
}

/// Operands: positions, partials, out. Params: T, KV, W. Units: tokens · key/value heads · query heads · blocks of 16
/// elements, or groups of 32 where they are quantized.
pub fn merge(b: &Builder<'_>, [group, head_dim]: [usize; 2], window: Option<usize>, quantize: bool) {
    let (kv_heads, width) = (b.param(1), b.param(2));
    let per_head = b.udiv(width, kv_heads);
    let at_once = if quantize { GROUP / LANES } else { 1 };
    let (parts, group) = (b.int((head_dim / LANES / at_once) as i64), b.int(group as i64));
    b.for_units(|unit| {
        let (row, part) = (b.udiv(unit, parts), b.urem(unit, parts));
        let (pair, query_head) = (b.udiv(row, group), b.urem(row, group));
        let (token, head) = (b.udiv(pair, kv_heads), b.urem(pair, kv_heads));
        let position = b.load_index(b.operand(0), token);
        let (_, start_page) = beginning(b, position, window);
        let first = b.udiv(start_page, b.int((ATTENTION_SPLIT / PAGE_TOKENS) as i64));
        let end = b.add(b.udiv(position, b.int(ATTENTION_SPLIT as i64)), b.int(1));
        let total = start(b, at_once);
        b.unrolled([first, end], 1, MERGES_AT_ONCE, |index| {
            let record = b.add(b.add(b.mul(token, width), b.mul(head, per_head)), index);
            let base = partial(b, b.operand(1), b.add(b.mul(record, group), query_head), head_dim);
            let at = |lanes: usize| b.offset(base, b.int((4 * (head_dim + lanes)) as i64));
            let state = start(b, at_once);
            let own = b.element(base, part, 4 * LANES * at_once);
            for (i, &value) in state.values.iter().enumerate() {
                b.set(value, b.load_lanes(Kind::F32, b.offset(own, b.int((4 * LANES * i) as i64))));
            }
            b.set(state.sum, b.load_lanes(Kind::F32, at(0)));
            b.set(state.max, b.first(b.load_lanes(Kind::F32, at(LANES))));
            merge_states(b, &total, &state);
        });
        let sum = b.splat(b.sum(b.get(total.sum)));
        let values: Vec<Val<'_>> = total.values.iter().map(|&value| b.fdiv(b.get(value), sum)).collect();
        if let &[low, high] = &values[..] {
            let heads = b.mul(kv_heads, group);
            let groups = b.mul(heads, parts);
            let record = b.element(b.operand(2), b.mul(token, groups), ACT_GROUP_BYTES);
            let index = b.add(b.mul(b.urem(row, heads), parts), part);
            store_group(b, record, index, groups, [low, high]);
        } else {
            let out = b.element(b.element(b.operand(2), row, 4 * head_dim), part, 4 * LANES);
            b.store_lanes(Kind::F32, out, values[0]);
        }
    });
}

/// Where the record of a query head and a split lies.
fn partial<'c>(b: &Builder<'c>, base: PointerValue<'c>, record: Val<'c>, head_dim: usize) -> PointerValue<'c> {
    b.element(base, record, 4 * partial_floats(head_dim))
}
