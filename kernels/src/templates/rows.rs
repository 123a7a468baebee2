//! Row kernels: gather, norm, residual and final form of activation rows, in one pass over each row.
//!
//! A root-mean-square norm sums squares by the lane tree: `y = x · (1 / sqrt(Σx²/K + eps)) · w`. A layer norm first sums
//! the row by the lane tree, then the squares of `x − mean`: `y = (x − mean) · (1 / sqrt(…/K + eps)) · w + bias`, the last
//! two by one fused multiply-add. The result is f32, or rounded to bf16, or quantized. Quantization takes groups of 32:
//! scale = max|y| / 127, code = y / scale rounded to even, and stores scale · Σcode and Σcode beside the codes.
//!
//! Where many teams of threads share a row, each thread finishes a quarter of a group by itself: see [`quarters`].

mod quarters;

use inkwell::FloatPredicate;
use inkwell::values::PointerValue;

use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::spec::{ACT_GROUP_BYTES, Activation, GROUP, KernelSpec, Norm};

/// The largest magnitude of a code.
const MAX_CODE: f32 = 127.0;

/// What is done to a row, in order.
#[derive(Clone, Copy)]
pub struct Steps {
    /// Whether it is gathered.
    pub gather: bool,
    /// Its norm.
    pub norm: Option<Norm>,
    /// Whether a residual is added.
    pub add: bool,
    /// The form of the result.
    pub form: Activation,
}

/// Operands: x, rows if gathering, norm weight if norming, its bias of a layer norm, residual if adding, out. Params: M, T, G.
pub fn rows<'c>(b: &Builder<'c>, Steps { gather, norm, add, form }: Steps) {
    let mut operands = (0..).map(|i| b.operand(i));
    let mut next = || operands.next().expect("the range has no end");
    let x = next();
    let index = gather.then(&mut next);
    let weight = norm.is_some().then(&mut next);
    let bias = matches!(norm, Some(Norm::Layer { .. })).then(&mut next);
    let residual = add.then(&mut next);
    let out = next();
    let groups = b.param(2);
    let one_group = KernelSpec::Rows { gather, norm, add, form }.takes_groups() && !b.is_vector();
    let quarters = quarters::Quarters::begin(b, groups, [weight, bias], form);
    b.for_units(|unit| {
        // A row, or a group of one.
        let (row, group) = if one_group { (b.udiv(unit, groups), Some(b.urem(unit, groups))) } else { (unit, None) };
        let source = index.map_or(row, |index| b.load_index(index, row));
        let x = b.element(x, b.mul(source, groups), 4 * GROUP);
        let (mean, factor) = match norm {
            None => (None, None),
            Some(Norm::Rms { eps }) => (None, Some(b.splat(inverse_rms(b, x, groups, None, eps)))),
            Some(Norm::Layer { eps }) => {
                let mean = b.splat(mean(b, x, groups));
                (Some(mean), Some(b.splat(inverse_rms(b, x, groups, Some(mean), eps))))
            }
        };
        let row_base = b.mul(row, groups);
        if let (Some(quarters), Some(factor)) = (&quarters, factor) {
            let residual = residual.map(|residual| b.element(residual, row_base, 4 * GROUP));
            return quarters.finish(&quarters::Row { x, mean, factor, residual, out, before: row_base });
        }
        let load = |g: Val<'c>| {
            // Half of a row comes from another core, which wrote it: the next one is asked for in time.
            if b.is_vector() && !gather {
                let next = b.element(x, b.add(g, groups), 4 * GROUP);
                (0..2).for_each(|line| b.prefetch(b.offset(next, b.int((line * 4 * LANES) as i64))));
            }
            [0, 1].map(|i| {
                let load = |base: PointerValue<'c>| {
                    let at = b.offset(b.element(base, g, 4 * GROUP), b.int((i * 4 * LANES) as i64));
                    b.load_lanes(Kind::F32, at)
                };
                Half {
                    x: load(x),
                    weight: weight.map(load),
                    bias: bias.map(load),
                    residual: residual.map(|residual| load(b.element(residual, row_base, 4 * GROUP))),
                }
            })
        };
        let finish = |g: Val<'c>, loaded: [Half<'c>; 2]| {
            let halves = loaded.map(|Half { x, weight, bias, residual }| {
                let mut value = x;
                if let (Some(factor), Some(weight)) = (factor, weight) {
                    let scaled = b.fmul(mean.map_or(value, |mean| b.fsub(value, mean)), factor);
                    value = match bias {
                        Some(bias) => b.fma(scaled, weight, bias),
                        None => b.fmul(scaled, weight),
                    };
                }
                residual.map_or(value, |residual| b.fadd(value, residual))
            });
            let place = || b.element(out, b.add(row_base, g), form.group_bytes());
            match form {
                Activation::Int8 => store_group(b, b.element(out, row_base, ACT_GROUP_BYTES), g, groups, halves),
                Activation::F32 => store_halves(b, Kind::F32, place(), halves),
                Activation::Bf16 => store_rounded(b, place(), halves),
            }
        };
        match group {
            Some(g) => finish(g, load(g)),
            None => b.for_team_ahead(groups, load, finish),
        }
    });
}

/// What 16 columns of a result are made of.
struct Half<'c> {
    x: Val<'c>,
    weight: Option<Val<'c>>,
    bias: Option<Val<'c>>,
    residual: Option<Val<'c>>,
}

/// Stores a group of 32 elements.
fn store_halves<'c>(b: &Builder<'c>, kind: Kind, out: PointerValue<'c>, halves: [Val<'c>; 2]) {
    for (i, value) in halves.into_iter().enumerate() {
        b.store_lanes(kind, b.offset(out, b.int((i * kind.bytes() * LANES) as i64)), value);
    }
}

/// Stores a group of 32 elements rounded to bf16 in the order of [`Activation::Bf16`].
pub fn store_rounded<'c>(b: &Builder<'c>, out: PointerValue<'c>, halves: [Val<'c>; 2]) {
    let zero = b.float(0.0);
    let halves = halves.map(|value| b.trunc(b.to_bf16_pair(value, zero), Kind::I16));
    let lane = b.zext(b.lane_index(), Kind::I64);
    let (eighth, within) = (b.udiv(lane, b.int(8)), b.urem(lane, b.int(8)));
    let (column, odd) = (b.udiv(within, b.int(2)), b.urem(within, b.int(2)));
    for (i, value) in halves.into_iter().enumerate() {
        let word = b.add(b.mul(column, b.int(4)), b.add(eighth, b.int(2 * i as i64)));
        let at = b.add(b.mul(word, b.int(2)), odd);
        b.plain_store(Kind::I16, b.element(out, at, 2), value);
    }
}

fn mean<'c>(b: &Builder<'c>, x: PointerValue<'c>, groups: Val<'c>) -> Val<'c> {
    let columns = b.mul(groups, b.int(GROUP as i64));
    let sum = sum_row(b, x, columns, |value, sum| b.fadd(value, sum));
    b.fdiv(sum, b.to_float(columns, Kind::F32))
}

/// One over the root of the mean square of a row, less `mean` where there is one.
fn inverse_rms<'c>(b: &Builder<'c>, x: PointerValue<'c>, groups: Val<'c>, mean: Option<Val<'c>>, eps: f32) -> Val<'c> {
    let columns = b.mul(groups, b.int(GROUP as i64));
    let sum = sum_row(b, x, columns, |value, sum| {
        let value = mean.map_or(value, |mean| b.fsub(value, mean));
        b.fma(value, value, sum)
    });
    let square = b.fdiv(sum, b.to_float(columns, Kind::F32));
    let root = b.overloaded("llvm.sqrt", &[b.fadd(square, b.float(eps))]);
    b.fdiv(b.float(1.0), root)
}

/// Sums a row by the lane tree: `add` takes 16 columns and the lanes' sums. Teams of threads that share a row take 16 columns
/// in turn, and their sums are added up by the lane tree as well.
fn sum_row<'c>(
    b: &Builder<'c>,
    x: PointerValue<'c>,
    columns: Val<'c>,
    add: impl Fn(Val<'c>, Val<'c>) -> Val<'c>,
) -> Val<'c> {
    let sum = b.var(b.float_lanes(0.0));
    let load = |at: Val<'c>| b.load_lanes(Kind::F32, b.element(x, at, 4 * LANES));
    b.for_team_ahead(b.udiv(columns, b.int(LANES as i64)), load, |_, value| b.set(sum, add(value, b.get(sum))));
    b.sum_teams(b.sum(b.get(sum)))
}

/// Quantizes 32 values into group `g` of the record of `groups` groups at `record`.
pub fn store_group<'c>(b: &Builder<'c>, record: PointerValue<'c>, g: Val<'c>, groups: Val<'c>, halves: [Val<'c>; 2]) {
    let scale = b.fdiv(b.max_magnitude(halves), b.float(MAX_CODE));
    let positive = b.fcmp(FloatPredicate::OGT, scale, b.float(0.0));
    let inverse = b.select(positive, b.fdiv(b.float(1.0), scale), b.float(0.0));
    let codes = halves.map(|value| {
        let scaled = b.fmul(value, b.splat(inverse));
        b.to_int(b.overloaded("llvm.roundeven", &[scaled]), Kind::I32)
    });
    for (i, code) in codes.into_iter().enumerate() {
        let at = b.add(b.mul(g, b.int(GROUP as i64)), b.int((i * LANES) as i64));
        b.store_lanes(Kind::I8, b.offset(record, at), b.trunc(code, Kind::I8));
    }
    let sum = b.sum_int(b.add(codes[0], codes[1]));
    let field = |bytes: usize| b.element(b.element(record, groups, bytes), g, 4);
    b.store(Kind::F32, field(GROUP), scale);
    b.store(Kind::F32, field(GROUP + 4), b.fmul(scale, b.to_float(sum, Kind::F32)));
    b.store(Kind::I32, field(GROUP + 8), sum);
}
