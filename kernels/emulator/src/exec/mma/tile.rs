//! The arithmetic of [`super::model`] for a whole column of results at once, in f32 where that is exact.
//!
//! The product of two significands of at most eleven bits is exact in f32. With `e` the exponent that a chunk is aligned to,
//! an addend times `2^(fraction − e)` has its last kept bit at one, so that a conversion to an integer cuts it where the
//! tensor core does; a product too small for f32 is below one and is cut to zero in both. Sixteen such integers are below 2³¹
//! in sum; sums of them times `2^(e − fraction)` are exact in f64, from where they are rounded.

#![expect(clippy::inline_always, reason = "what a processor's own form calls must be compiled in that form")]

use super::model::Adder;
use super::{COLUMNS, MOST_WORDS, ROWS, Words};
use crate::exec::op::{Element, Mma};

/// The exponents between which no product leaves the normal numbers of f32, and none is below a zero's.
pub(super) const LOWEST: i32 = -50;
pub(super) const HIGHEST: i32 = 62;
/// Exponent of a zero among the elements.
pub(super) const ZERO: i32 = -1 << 12;
/// How many products are below 2³¹ in sum.
pub(super) const GROUP: usize = 16;
/// The longest reduction.
const MOST_K: usize = 4 * MOST_WORDS;

/// Elements as values, and their exponents.
struct Values {
    value: [[f32; ROWS]; MOST_K],
    exponent: [[i32; ROWS]; MOST_K],
}

/// Adds the products to the accumulators. False, and nothing is done, where a value is infinite, no number, or outside of the range.
#[inline(always)]
pub(super) fn run(mma: &Mma, adder: Adder, a: &Words, b: &Words, sums: &mut [[u32; ROWS]; COLUMNS]) -> bool {
    let words = mma.k * super::bits(mma.a) / 32;
    let (Some(a), Some(b)) = (values(a, words, mma.a), values(b, words, mma.b)) else { return false };
    let mut out = *sums;
    for (at, sums) in out.iter_mut().enumerate() {
        for first in (0..mma.k).step_by(adder.chunk) {
            let range = first..(first + adder.chunk).min(mma.k);
            let Some((mut top, starts)) = accumulators(sums, adder) else { return false };
            for k in range.clone() {
                let own = b.exponent[k][at];
                for (top, &other) in top.iter_mut().zip(&a.exponent[k]) {
                    *top = (*top).max(own.wrapping_add(other));
                }
            }
            let fraction = adder.fraction as i32;
            // Where the power is past f32, every product is zero.
            let mut scale = [0.0; ROWS];
            for (scale, &top) in scale.iter_mut().zip(&top) {
                *scale = single_power(fraction.wrapping_sub(top).min(127));
            }
            let mut exact = [0.0; ROWS];
            for row in 0..ROWS {
                exact[row] = (starts[row] * double_power(fraction.wrapping_sub(top[row]))).trunc();
            }
            for group in range.clone().step_by(GROUP) {
                let mut products = [0i32; ROWS];
                for k in group..(group + GROUP).min(range.end) {
                    let own = b.value[k][at];
                    for ((sum, &other), &scale) in products.iter_mut().zip(&a.value[k]).zip(&scale) {
                        *sum = sum.wrapping_add(cut(own * other * scale));
                    }
                }
                for (exact, &products) in exact.iter_mut().zip(&products) {
                    *exact += f64::from(products);
                }
            }
            for (exact, &top) in exact.iter_mut().zip(&top) {
                *exact *= double_power(top.wrapping_sub(fraction));
            }
            if adder.half {
                for (sum, &exact) in sums.iter_mut().zip(&exact) {
                    *sum = nearest_half(exact);
                }
            } else {
                let (mask, last) = (u64::MAX << (52 - adder.result), 126 + adder.result as i32);
                for (sum, &exact) in sums.iter_mut().zip(&exact) {
                    *sum = toward_zero(exact, mask, double_power(last), double_power(-last));
                }
            }
        }
    }
    *sums = out;
    true
}

/// Exponents and values of the accumulators, zeros with the exponent that they count with; nothing where one is not finite.
#[inline(always)]
fn accumulators(sums: &[u32; ROWS], adder: Adder) -> Option<([i32; ROWS], [f64; ROWS])> {
    let (mut exponents, mut starts, mut special) = ([0; ROWS], [0.0; ROWS], 0);
    if adder.half {
        for row in 0..ROWS {
            let (bits, field) = (sums[row], (sums[row] >> 10 & 0x1f) as i32);
            special |= u32::from(field == 0x1f);
            let exponent = field.max(1).wrapping_sub(15);
            exponents[row] = if bits << 17 == 0 { adder.zero } else { exponent.max(adder.zero) };
            starts[row] = f64::from(half_value(bits));
        }
    } else {
        for row in 0..ROWS {
            let (bits, field) = (sums[row], (sums[row] >> 23 & 0xff) as i32);
            special |= u32::from(field == 0xff);
            let exponent = field.max(1).wrapping_sub(127);
            exponents[row] = if bits << 1 == 0 { adder.zero } else { exponent.max(adder.zero) };
            starts[row] = f64::from(f32::from_bits(bits));
        }
    }
    (special == 0).then_some((exponents, starts))
}

/// Takes words apart. Nothing where an element is special, or its exponent outside of the range.
#[inline(always)]
fn values(words: &Words, count: usize, of: Element) -> Option<Values> {
    match of {
        Element::F16 => take_apart::<2>(words, count, |bits| {
            let field = (bits >> 10 & 0x1f) as i32;
            (half_value(bits), field.max(1).wrapping_sub(15), bits << 17 == 0, field == 0x1f)
        }),
        Element::Bf16 => take_apart::<2>(words, count, |bits| single(bits << 16)),
        Element::Tf32 => take_apart::<1>(words, count, |bits| single(bits & !0x1fff)),
        Element::E4m3 => take_apart::<4>(words, count, |bits| {
            let (magnitude, sign) = (bits & 0x7f, bits << 24 & 1 << 31);
            // The exponent's bias is 7 instead of 127.
            let value = f32::from_bits(magnitude << 20) * single_power(120);
            let exponent = ((magnitude >> 3) as i32).max(1).wrapping_sub(7);
            (f32::from_bits(value.to_bits() | sign), exponent, magnitude == 0, magnitude == 0x7f)
        }),
        Element::E5m2 => take_apart::<4>(words, count, |bits| {
            // The upper half of an f16.
            let field = (bits >> 2 & 0x1f) as i32;
            (half_value(bits << 8 & 0xff00), field.max(1).wrapping_sub(15), bits << 25 == 0, field == 0x1f)
        }),
        _ => None,
    }
}

/// `PER` elements in a word, each as value, exponent, whether zero and whether special.
#[inline(always)]
fn take_apart<const PER: usize>(
    words: &Words,
    count: usize,
    one: impl Fn(u32) -> (f32, i32, bool, bool),
) -> Option<Values> {
    let mut out = Values { value: [[0.0; ROWS]; MOST_K], exponent: [[ZERO; ROWS]; MOST_K] };
    // Not a bool, so that it stays a vector.
    let mut outside = 0;
    for (word, values) in words.iter().enumerate().take(count) {
        for place in 0..PER {
            let k = (word * PER + place) % MOST_K;
            for (at, &bits) in values.iter().enumerate() {
                let (value, exponent, is_zero, is_special) = one(bits >> (32 / PER * place));
                out.value[k][at] = value;
                out.exponent[k][at] = if is_zero { ZERO } else { exponent };
                let above = exponent.wrapping_sub(LOWEST) as u32 > (HIGHEST - LOWEST) as u32;
                outside |= u32::from(is_special) | u32::from(above) & u32::from(!is_zero);
            }
        }
    }
    (outside == 0).then_some(out)
}

#[inline(always)]
fn single(bits: u32) -> (f32, i32, bool, bool) {
    let field = (bits >> 23 & 0xff) as i32;
    (f32::from_bits(bits), field.max(1).wrapping_sub(127), bits << 1 == 0, field == 0xff)
}

/// The value of a finite f16.
#[inline(always)]
fn half_value(bits: u32) -> f32 {
    // The exponent's bias is 15 instead of 127.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * single_power(112);
    f32::from_bits(magnitude.to_bits() | bits << 16 & 1 << 31)
}

/// Two to an exponent from -126 to 127.
#[inline(always)]
fn single_power(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127) as u32) << 23)
}

/// Two to an exponent from -1022 to 1023.
#[inline(always)]
fn double_power(exponent: i32) -> f64 {
    f64::from_bits((i64::from(exponent).wrapping_add(1023) as u64) << 52)
}

/// The integer below a scaled product in magnitude.
#[expect(unsafe_code, reason = "a checked conversion is a branch for each of thousands of products")]
#[inline(always)]
fn cut(product: f32) -> i32 {
    // SAFETY: `values` lets finite elements through alone, and their exponents add up to `top` at most. Significands are
    // below 2 and `fraction` is 25 at most, so a product is below 2²⁷ in magnitude.
    unsafe { product.to_int_unchecked() }
}

/// The bits of a value cut to f32 by a mask of the kept bits; a zero is positive. Below the normal numbers the last place
/// stays where it is, and the value in units of it is cut to an integer.
#[inline(always)]
fn toward_zero(value: f64, mask: u64, to_units: f64, unit: f64) -> u32 {
    let cut = f64::from_bits(value.to_bits() & mask);
    let small = (value * to_units).trunc() * unit;
    let kept = if value.abs() < double_power(-126) { small } else { cut };
    (kept as f32 + 0.0).to_bits()
}

/// The bits of a value as f16, to nearest with ties to even; a zero is positive.
#[inline(always)]
pub(super) fn nearest_half(value: f64) -> u32 {
    let magnitude = value.abs();
    // Added to a number with 42 bits between its last place and that of the f16, so that the sum is rounded there.
    let floor = magnitude.max(double_power(-14)).to_bits() >> 52 << 52;
    let shifter = f64::from_bits(floor) * (1.5 * double_power(42));
    let rounded = (magnitude + shifter) - shifter;
    // Added to 2⁵², an integer is in the low bits.
    let small = (rounded * double_power(24) + double_power(52)).to_bits() as u32;
    let bits = rounded.to_bits();
    let normal = ((bits >> 42) as u32).wrapping_sub((1023 - 15) << 10);
    let finite = if rounded < double_power(-14) { small } else { normal };
    let out = if rounded >= 65536.0 { 0x7c00 } else { finite };
    if value < 0.0 && out != 0 { out | 0x8000 } else { out }
}
