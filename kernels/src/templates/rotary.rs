//! Rotary position embedding: the table of angles of a step, and the rotation of heads in halves layout (Su et al.,
//! 2021): element `i` pairs with `i + dim/2`. Norms of heads, which come before it, are here as well.

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::ops::rotary::Scaling;
use lathe_ir::ops::rotary::scaling::growth_exponent;

use super::stages::{norm_head, rotate};
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::spec::{rotary_columns, rotary_is_aligned};

/// Operands: positions, out. Params: T. Angles are computed in f64 as position · frequency, with the frequencies of
/// [`Scaling::frequencies`]. Rows are laid out as [`rotary_columns`] says.
pub fn rotary<'c>(b: &Builder<'c>, dim: usize, theta: f32, scaling: &Scaling) {
    let half = dim / 2;
    let aligned = rotary_is_aligned(dim);
    let columns = if aligned { half } else { dim.next_multiple_of(LANES) };
    // The pair of each column; columns past the end have none.
    let pair = |column: usize| if aligned || column < half { column } else { column - half };
    let table = |name: &str, of_pair: &dyn Fn(usize) -> f64| {
        let of_column = |column: usize| if column < dim { of_pair(pair(column)) } else { 0.0 };
        b.table(name, &(0..columns).map(of_column).collect::<Vec<f64>>())
    };
    let frequencies = |name: &str, length: usize| {
        let values = scaling.frequencies(dim, theta, length);
        table(name, &|pair| values[pair])
    };
    let near = frequencies("frequencies", 1);
    let far = scaling.original().filter(|_| matches!(scaling, Scaling::LongRope { .. }));
    let far = far.map(|original| frequencies("long_frequencies", original + 1));
    let growing = matches!(scaling, Scaling::Dynamic { .. });
    let exponents = growing.then(|| table("growth_exponents", &|pair| growth_exponent(dim, pair)));
    let attention_factor = scaling.attention_factor();
    let (positions, out) = (b.operand(0), b.operand(1));
    b.for_units(|token| {
        let index = b.load_index(positions, token);
        let position = b.splat(b.to_float(index, Kind::F64));
        let growth = growing.then(|| b.splat(b.ln_uniform(growth(b, scaling, index))));
        let long = scaling.original().map(|original| b.icmp(IntPredicate::SGE, index, b.int(original as i64)));
        let out = b.element(out, token, 4 * rotary_columns(dim));
        for first in (0..columns).step_by(LANES) {
            let load = |table: PointerValue<'c>| b.load_lanes(Kind::F64, b.offset(table, b.int(8 * first as i64)));
            let mut frequency = load(near);
            if let (Some(far), Some(long)) = (far, long) {
                frequency = b.select(long, load(far), frequency);
            }
            if let (Some(exponents), Some(growth)) = (exponents, growth) {
                frequency = b.fmul(frequency, b.exp_f64(b.fmul(load(exponents), growth)));
            }
            let (mut cos, mut sin) = b.cos_sin(b.fmul(position, frequency));
            if attention_factor.to_bits() != 1.0f32.to_bits() {
                (cos, sin) =
                    (b.fmul(cos, b.float_lanes(attention_factor)), b.fmul(sin, b.float_lanes(attention_factor)));
            }
            if !aligned {
                // The first half of the elements takes its partner times minus the sine.
                let in_first_half = b.icmp(IntPredicate::SLT, b.lane_index(), b.int_lanes(half as i32 - first as i32));
                sin = b.select(in_first_half, b.fsub(b.float_lanes(0.0), sin), sin);
            }
            b.store_lanes(Kind::F32, b.offset(out, b.int(4 * first as i64)), cos);
            b.store_lanes(Kind::F32, b.offset(out, b.int(4 * (columns + first) as i64)), sin);
        }
    });
}

/// [`Scaling::growth`] of the token at a position, in f64; its length is the position and one.
fn growth<'c>(b: &Builder<'c>, scaling: &Scaling, position: Val<'c>) -> Val<'c> {
    let Scaling::Dynamic { factor, original } = scaling else { unreachable!("only dynamic scaling grows") };
    let constant = |value: f64| Val(b.context.f64_type().const_float(value).into());
    let factor = f64::from(*factor);
    let length = b.to_float(b.add(position, b.int(1)), Kind::F64);
    let grown = b.fma(length, constant(factor / *original as f64), constant(1.0 - factor));
    b.fmax(grown, constant(1.0))
}

/// Operands: x, rotary, out. Params: T, H, HR.
pub fn rope(b: &Builder<'_>, head_dim: usize, dim: usize) {
    let (x, table, out) = (b.operand(0), b.operand(1), b.operand(2));
    let (heads, turning) = (b.param(1), b.param(2));
    b.for_units(|token| {
        let table = b.element(table, token, 4 * rotary_columns(dim));
        for_heads(b, [x, out], head_dim, token, heads, |values, head| {
            rotate(b, values, table, dim, b.icmp(IntPredicate::SLT, head, turning));
        });
    });
}

/// Operands: x, norm, out. Params: T, H, HF, HN.
pub fn head_norm(b: &Builder<'_>, head_dim: usize, eps: f32) {
    let (x, weight, out) = (b.operand(0), b.operand(1), b.operand(2));
    let (heads, first, count) = (b.param(1), b.param(2), b.param(3));
    b.for_units(|token| {
        for_heads(b, [x, out], head_dim, token, heads, |values, head| {
            // Unsigned: an index below the first wraps to a large number.
            let takes = b.icmp(IntPredicate::ULT, b.sub(head, first), count);
            norm_head(b, values, weight, eps, takes);
        });
    });
}

/// Changes every head of a token, given in blocks.
fn for_heads<'c>(
    b: &Builder<'c>,
    [x, out]: [PointerValue<'c>; 2],
    head_dim: usize,
    token: Val<'c>,
    heads: Val<'c>,
    change: impl FnOnce(&mut [Val<'c>], Val<'c>),
) {
    b.for_range(b.int(0), heads, b.int(1), |head| {
        let at = b.add(b.mul(token, heads), head);
        let (x, out) = (b.element(x, at, 4 * head_dim), b.element(out, at, 4 * head_dim));
        let block = |i: usize| b.int((4 * LANES * i) as i64);
        let mut values: Vec<_> =
            (0..head_dim / LANES).map(|i| b.load_lanes(Kind::F32, b.offset(x, block(i)))).collect();
        change(&mut values, head);
        for (i, value) in values.into_iter().enumerate() {
            b.store_lanes(Kind::F32, b.offset(out, block(i)), value);
        }
    });
}
