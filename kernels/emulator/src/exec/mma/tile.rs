//! The arithmetic of [`super::model`] for a whole column of results at once, in f32 where that is exact.
//!
//! The product of two significands of at most eleven bits is exact in f32. With `e` the exponent that a chunk is aligned to,
//! an addend times `2^(fraction − e)` has its last kept bit at one, so that a conversion to an integer cuts it where the
//! tensor core does; a product too small for f32 is below one and is cut to zero in both. The integers are below 2³¹ in
//! sum, and that sum times `2^(e − fraction)` is exact in f64, from where it is rounded.

#![expect(clippy::inline_always, reason = "what a processor's own form calls must be compiled in that form")]

use super::model::Adder;
use super::{COLUMNS, MOST_WORDS, ROWS, Words};
use crate::exec::op::{Element, Mma};

/// The exponents between which no product leaves the normal numbers of f32, and none is below a zero's.
const LOWEST: i32 = -50;
const HIGHEST: i32 = 62;
/// Exponent of a zero among the elements.
const ZERO: i32 = -1 << 12;
/// The longest reduction.
const MOST_K: usize = 4 * MOST_WORDS;

/// Elements as values, and their exponents.
struct Values<const N: usize> {
    value: [[f32; N]; MOST_K],
    exponent: [[i32; N]; MOST_K],
}

/// Adds the products to the accumulators. False, and nothing is done, where a value is infinite, no number, or outside of the range.
#[inline(always)]
pub(super) fn run(
    mma: &Mma,
    adder: Adder,
    a: &Words<ROWS>,
    b: &Words<COLUMNS>,
    sums: &mut [[u32; ROWS]; COLUMNS],
) -> bool {
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
            let scale = top.map(|top| single_power(fraction.wrapping_sub(top).min(127)));
            let mut products = [0i32; ROWS];
            for k in range {
                let own = b.value[k][at];
                for ((sum, &other), &scale) in products.iter_mut().zip(&a.value[k]).zip(&scale) {
                    *sum = sum.wrapping_add((own * other * scale) as i32);
                }
            }
            for row in 0..ROWS {
                let start = (starts[row] * double_power(fraction.wrapping_sub(top[row]))).trunc();
                let exact = (f64::from(products[row]) + start) * double_power(top[row].wrapping_sub(fraction));
                sums[row] = if adder.half { nearest_half(exact) } else { toward_zero(exact, adder.result) };
            }
        }
    }
    *sums = out;
    true
}

/// Exponents and values of the accumulators, zeros with the exponent that they count with; nothing where one is not finite.
#[inline(always)]
fn accumulators(sums: &[u32; ROWS], adder: Adder) -> Option<([i32; ROWS], [f64; ROWS])> {
    let (mut exponents, mut starts, mut finite) = ([0; ROWS], [0.0; ROWS], true);
    for row in 0..ROWS {
        let bits = sums[row];
        let (magnitude, field, bias, top) = if adder.half {
            (bits & 0x7fff, bits >> 10 & 0x1f, 15, 0x1f)
        } else {
            (bits & 0x7fff_ffff, bits >> 23 & 0xff, 127, 0xff)
        };
        finite &= field != top;
        exponents[row] =
            if magnitude == 0 { adder.zero } else { (field.max(1) as i32).wrapping_sub(bias).max(adder.zero) };
        starts[row] = f64::from(if adder.half { half_value(bits) } else { f32::from_bits(bits) });
    }
    finite.then_some((exponents, starts))
}

/// Takes words apart. Nothing where an element is special, or its exponent outside of the range.
#[inline(always)]
fn values<const N: usize>(words: &Words<N>, count: usize, of: Element) -> Option<Values<N>> {
    match of {
        Element::F16 => take_apart::<N, 2>(words, count, |bits| {
            let field = (bits >> 10 & 0x1f) as i32;
            (half_value(bits), field.max(1).wrapping_sub(15), bits << 17 == 0, field == 0x1f)
        }),
        Element::Bf16 => take_apart::<N, 2>(words, count, |bits| single(bits << 16)),
        Element::Tf32 => take_apart::<N, 1>(words, count, |bits| single(bits & !0x1fff)),
        Element::E4m3 => take_apart::<N, 4>(words, count, |bits| {
            let (magnitude, sign) = (bits & 0x7f, bits << 24 & 1 << 31);
            // The exponent's bias is 7 instead of 127.
            let value = f32::from_bits(magnitude << 20) * single_power(120);
            let exponent = ((magnitude >> 3) as i32).max(1).wrapping_sub(7);
            (f32::from_bits(value.to_bits() | sign), exponent, magnitude == 0, magnitude == 0x7f)
        }),
        Element::E5m2 => take_apart::<N, 4>(words, count, |bits| {
            // The upper half of an f16.
            let field = (bits >> 2 & 0x1f) as i32;
            (half_value(bits << 8 & 0xff00), field.max(1).wrapping_sub(15), bits << 25 == 0, field == 0x1f)
        }),
        _ => None,
    }
}

/// `PER` elements in a word, each as value, exponent, whether zero and whether special.
#[inline(always)]
fn take_apart<const N: usize, const PER: usize>(
    words: &Words<N>,
    count: usize,
    one: impl Fn(u32) -> (f32, i32, bool, bool),
) -> Option<Values<N>> {
    let mut out = Values { value: [[0.0; N]; MOST_K], exponent: [[ZERO; N]; MOST_K] };
    let mut fits = true;
    for (word, values) in words.iter().enumerate().take(count) {
        for place in 0..PER {
            let k = (word * PER + place) % MOST_K;
            for (at, &bits) in values.iter().enumerate() {
                let (value, exponent, is_zero, is_special) = one(bits >> (32 / PER * place));
                out.value[k][at] = value;
                out.exponent[k][at] = if is_zero { ZERO } else { exponent };
                let exponent = if is_special { HIGHEST + 1 } else { exponent };
                fits &= is_zero || (LOWEST..=HIGHEST).contains(&exponent);
            }
        }
    }
    fits.then_some(out)
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

/// The bits of a value cut to f32 with so many fraction bits; a zero is positive.
#[inline(always)]
fn toward_zero(value: f64, fraction: u32) -> u32 {
    let cut = f64::from_bits(value.to_bits() & u64::MAX << (52 - fraction));
    // Below the normal numbers the last place stays where it is.
    let last = 126 + fraction as i32;
    let small = (value * double_power(last)).trunc() * double_power(-last);
    let kept = if value.abs() < double_power(-126) { small } else { cut };
    (kept as f32 + 0.0).to_bits()
}

/// The bits of a value as f16, to nearest with ties to even; a zero is positive.
#[inline(always)]
fn nearest_half(value: f64) -> u32 {
    let magnitude = value.abs();
    // Added to a number with 42 bits between its last place and that of the f16, so that the sum is rounded there.
    let floor = magnitude.max(double_power(-14)).to_bits() >> 52 << 52;
    let shifter = f64::from_bits(floor) * (1.5 * double_power(42));
    let rounded = (magnitude + shifter) - shifter;
    let small = (rounded * double_power(24)) as u32;
    let bits = rounded.to_bits();
    let normal = ((bits >> 42) as u32).wrapping_sub((1023 - 15) << 10);
    let finite = if rounded < double_power(-14) { small } else { normal };
    let out = if rounded >= 65536.0 { 0x7c00 } else { finite };
    if value < 0.0 && out != 0 { out | 0x8000 } else { out }
}
