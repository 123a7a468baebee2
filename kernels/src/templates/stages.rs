//! Epilogue stages: what a linear kernel does with a strip of its result while it is in registers.
//!
//! A strip is a list of lane values, block after block of 16 outputs, of one row of activations. Most stages are
//! lane-local: gates with their ups, and rotary pairs as a rule, lie in the same lane of two blocks.

use inkwell::IntPredicate;
use inkwell::values::PointerValue;

use super::append::{Page, Vector, numbers, page};
use super::rows::{store_group, store_rounded};
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::spec::{ACT_GROUP_BYTES, Activation, GROUP, Stage, page_bytes, rotary_columns, rotary_is_aligned};

/// Index of a linear kernel's first epilogue operand: after x and w.
const FIRST_OPERAND: usize = 2;

/// A strip of results: `values` are the 16-wide blocks of row `row`, strip number `index`.
pub struct Strip<'c> {
    /// Row of activations.
    pub row: Val<'c>,
    /// Number of the strip.
    pub index: Val<'c>,
    /// The blocks.
    pub values: Vec<Val<'c>>,
    /// Where the strip is a block of a head and its rotary partner: the number of the first, and blocks from it to the other.
    pub partners: Option<(Val<'c>, usize)>,
}

impl<'c> Strip<'c> {
    /// The number of each of its blocks in the head, or in the strip.
    fn numbers(&self, b: &Builder<'c>) -> Vec<Val<'c>> {
        match self.partners {
            Some((first, apart)) => vec![first, b.add(first, b.int(apart as i64))],
            None => numbers(b, self.values.len()),
        }
    }
}

/// Applies the stages in order and stores the result, the operand behind those of the stages.
pub fn finish<'c>(b: &Builder<'c>, epilogue: &[Stage], mut strip: Strip<'c>) {
    let mut operands = (FIRST_OPERAND..).map(|i| b.operand(i));
    let mut next = || operands.next().expect("the range has no end");
    let mut columns = b.param(1);
    for stage in epilogue {
        match *stage {
            Stage::HeadNorm { first, heads, eps, .. } => {
                // Unsigned: an index below `first` wraps to a large number.
                let index = b.sub(strip.index, b.int(first as i64));
                let takes = b.icmp(IntPredicate::ULT, index, b.int(heads as i64));
                norm_head(b, &mut strip.values, next(), eps, takes);
            }
            Stage::Rope { dim, heads, .. } => {
                let table = b.element(next(), strip.row, 4 * rotary_columns(dim));
                let turns = b.icmp(IntPredicate::SLT, strip.index, b.int(heads as i64));
                match strip.partners {
                    Some((first, _)) => {
                        let own = b.element(table, first, 4 * LANES);
                        let turned = rotate_pair(b, [strip.values[0], strip.values[1]], own, dim, turns);
                        strip.values = turned.to_vec();
                    }
                    None => rotate(b, &mut strip.values, table, dim, turns),
                }
            }
            Stage::Glu(function) => {
                let gated = |pair: &[Val<'c>]| b.fmul(b.activate(function, pair[0]), pair[1]);
                strip.values = strip.values.chunks(2).map(gated).collect();
                columns = b.udiv(columns, b.int(2));
            }
            Stage::Activate(function) => each(&mut strip, |value| b.activate(function, value)),
            Stage::Scale(factor) => each(&mut strip, |value| b.fmul(value, b.float_lanes(factor))),
            Stage::Softcap(cap) => each(&mut strip, |value| b.softcap(value, cap)),
            Stage::Add => {
                let residual = place(b, next(), &strip, columns);
                for (i, value) in strip.values.iter_mut().enumerate() {
                    let other = b.load_lanes(Kind::F32, b.offset(residual, block_offset(b, i)));
                    *value = b.fadd(*value, other);
                }
            }
            Stage::Bias => {
                let blocks = strip.partners.map_or(strip.values.len(), |(_, apart)| 2 * apart);
                let first = b.mul(strip.index, b.int((blocks * LANES) as i64));
                let bias = b.element(next(), first, 4);
                let numbers = strip.numbers(b);
                for (value, number) in strip.values.iter_mut().zip(numbers) {
                    *value = b.fadd(*value, b.load_lanes(Kind::F32, b.element(bias, number, 4 * LANES)));
                }
            }
            Stage::Quantize => {
                let &[low, high] = &strip.values[..] else { unreachable!("a strip's result is a group") };
                let groups = b.udiv(columns, b.int(GROUP as i64));
                let record = b.element(next(), b.mul(strip.row, groups), ACT_GROUP_BYTES);
                return store_group(b, record, strip.index, groups, [low, high]);
            }
            Stage::Round => {
                let &[low, high] = &strip.values[..] else { unreachable!("a strip's result is a group") };
                let groups = b.udiv(columns, b.int(GROUP as i64));
                let group = b.add(b.mul(strip.row, groups), strip.index);
                return store_rounded(b, b.element(next(), group, Activation::Bf16.group_bytes()), [low, high]);
            }
            Stage::AppendQkv { head_dim, heads, kv_heads, dtype } => {
                let [positions, sequences, block_table, cache] = [next(), next(), next(), next()];
                let pages = Page { positions, sequences, block_table, cache, table_width: b.param(4) };
                let bytes = page_bytes(kv_heads, head_dim, dtype);
                return append_strip(b, &strip, &pages, next(), [head_dim, heads, kv_heads, bytes], dtype);
            }
        }
    }
    let out = place(b, next(), &strip, columns);
    store_blocks(b, out, &strip.values);
}

fn each<'c>(strip: &mut Strip<'c>, apply: impl Fn(Val<'c>) -> Val<'c>) {
    for value in &mut strip.values {
        *value = apply(*value);
    }
}

fn block_offset<'c>(b: &Builder<'c>, block: usize) -> Val<'c> {
    b.int((4 * LANES * block) as i64)
}

/// Address of the strip in a row-major f32 matrix.
fn place<'c>(b: &Builder<'c>, base: PointerValue<'c>, strip: &Strip<'c>, columns: Val<'c>) -> PointerValue<'c> {
    let column = b.mul(strip.index, b.int((strip.values.len() * LANES) as i64));
    b.element(base, b.add(b.mul(strip.row, columns), column), 4)
}

fn store_blocks<'c>(b: &Builder<'c>, out: PointerValue<'c>, values: &[Val<'c>]) {
    for (i, value) in values.iter().enumerate() {
        b.store_lanes(Kind::F32, b.offset(out, block_offset(b, i)), *value);
    }
}

/// Divides the blocks of one head by their root mean square and scales them by `weight`, where `takes` holds. Squares are
/// summed by the lane tree.
pub fn norm_head<'c>(b: &Builder<'c>, values: &mut [Val<'c>], weight: PointerValue<'c>, eps: f32, takes: Val<'c>) {
    let squares = values.iter().fold(b.float_lanes(0.0), |sum, &value| b.fma(value, value, sum));
    let mean = b.fdiv(b.sum(squares), b.float((values.len() * LANES) as f32));
    let root = b.overloaded("llvm.sqrt", &[b.fadd(mean, b.float(eps))]);
    let factor = b.splat(b.fdiv(b.float(1.0), root));
    for (i, value) in values.iter_mut().enumerate() {
        let weight = b.load_lanes(Kind::F32, b.offset(weight, block_offset(b, i)));
        *value = b.select(takes, b.fmul(b.fmul(*value, factor), weight), *value);
    }
}

/// Rotates the first `dim` elements of one head, given in blocks, where `turns` holds. `table` is the token's row; see
/// [`rotary_columns`].
pub fn rotate<'c>(b: &Builder<'c>, values: &mut [Val<'c>], table: PointerValue<'c>, dim: usize, turns: Val<'c>) {
    if !rotary_is_aligned(dim) {
        return rotate_across(b, values, table, dim, turns);
    }
    let half = dim / 2 / LANES;
    for i in 0..half {
        let own = b.offset(table, block_offset(b, i));
        [values[i], values[half + i]] = rotate_pair(b, [values[i], values[half + i]], own, dim, turns);
    }
}

/// Rotates a block and its partner where `turns` holds. `table` is where the block's cosines begin; its sines lie `dim / 2`
/// elements behind them.
fn rotate_pair<'c>(
    b: &Builder<'c>,
    [x, y]: [Val<'c>; 2],
    table: PointerValue<'c>,
    dim: usize,
    turns: Val<'c>,
) -> [Val<'c>; 2] {
    let cos = b.load_lanes(Kind::F32, table);
    let sin = b.load_lanes(Kind::F32, b.offset(table, b.int(2 * dim as i64)));
    let minus_sin = b.fsub(b.float_lanes(0.0), sin);
    let turned = [b.fma(x, cos, b.fmul(y, minus_sin)), b.fma(y, cos, b.fmul(x, sin))];
    [b.select(turns, turned[0], x), b.select(turns, turned[1], y)]
}

/// As [`rotate`] where partners, `dim / 2` elements apart, lie in different lanes.
fn rotate_across<'c>(b: &Builder<'c>, values: &mut [Val<'c>], table: PointerValue<'c>, dim: usize, turns: Val<'c>) {
    let half = (dim / 2) as i64;
    let blocks = dim.div_ceil(LANES);
    let old = values.to_vec();
    // Elements from any place of the head on; zeros outside of it.
    let from = |first: i64| {
        let (block, lane) = (first.div_euclid(LANES as i64), first.rem_euclid(LANES as i64));
        let at = |block: i64| {
            let inside = usize::try_from(block).ok().and_then(|block| old.get(block));
            inside.copied().unwrap_or_else(|| b.float_lanes(0.0))
        };
        b.straddle(at(block), at(block + 1), lane as usize)
    };
    for (i, value) in values.iter_mut().enumerate().take(blocks) {
        let first = (i * LANES) as i64;
        let lane = b.lane_index();
        let in_first_half = b.icmp(IntPredicate::SLT, lane, b.int_lanes((half - first) as i32));
        let partner = b.select(in_first_half, from(first + half), from(first - half));
        let own = b.load_lanes(Kind::F32, b.offset(table, block_offset(b, i)));
        let other = b.load_lanes(Kind::F32, b.offset(table, block_offset(b, blocks + i)));
        let turned = b.fma(*value, own, b.fmul(partner, other));
        // Past the end the partner may be anything; what is not turned keeps its bits.
        let inside = b.icmp(IntPredicate::SLT, lane, b.int_lanes(dim as i32 - first as i32));
        *value = b.select(turns, b.select(inside, turned, *value), *value);
    }
}

/// Strip `h` is a head: queries go to the result, keys and values to the cache.
fn append_strip<'c>(
    b: &Builder<'c>,
    strip: &Strip<'c>,
    pages: &Page<'c>,
    out: PointerValue<'c>,
    [head_dim, heads, kv_heads, bytes]: [usize; 4],
    dtype: lathe_ir::types::DType,
) {
    let head = strip.index;
    let numbers = strip.numbers(b);
    let vector = Vector { head_dim, values: &strip.values, numbers: &numbers, dtype };
    let below = |limit: usize| b.icmp(IntPredicate::SLT, head, b.int(limit as i64));
    b.either(
        below(heads),
        || {
            let at = b.add(b.mul(strip.row, b.int(heads as i64)), head);
            let out = b.element(out, at, 4 * head_dim);
            for (&value, &number) in strip.values.iter().zip(&numbers) {
                b.store_lanes(Kind::F32, b.element(out, number, 4 * LANES), value);
            }
        },
        || {
            let (base, slot) = page(b, pages, strip.row, b.int(bytes as i64));
            let side = page_bytes(1, head_dim, dtype);
            b.either(
                below(heads + kv_heads),
                || {
                    let base = b.element(base, b.sub(head, b.int(heads as i64)), side);
                    super::append::store_key(b, base, slot, vector);
                },
                || {
                    let base = b.element(base, b.sub(head, b.int((heads + kv_heads) as i64)), side);
                    super::append::store_value(b, base, slot, vector);
                },
            );
        },
    );
}
