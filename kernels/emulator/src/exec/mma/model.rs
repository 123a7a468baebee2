//! The arithmetic of the tensor cores bit for bit, after the model of MMA-Sim (Microsoft): the reduction is cut into
//! chunks; in each one the products and the accumulator are aligned to the largest exponent, cut toward zero to a number
//! of fraction bits, and added exactly; the sum is rounded once, toward zero to f32 or to nearest to f16.

use super::{COLUMNS, ROWS, Words};
use crate::chip::Chip;
use crate::exec::op::{Element, Mma};
use crate::ptx::tree::Ty;

/// A finite value as `significand · 2^exponent`; the exponent is that of a significand in [1, 2) with `BITS` fraction
/// bits, or the format's smallest.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    significand: i64,
    exponent: i32,
    special: Special,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Special {
    #[default]
    Finite,
    Infinite,
    Nan,
}

/// Fraction bits of a [`Part`].
const BITS: u32 = 23;

fn unpack(bits: u32, exponent_bits: u32, mantissa_bits: u32, is_finite: bool) -> Part {
    let negative = bits >> (exponent_bits + mantissa_bits) & 1 != 0;
    let field = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let mantissa = bits & ((1 << mantissa_bits) - 1);
    let bias = (1i32 << (exponent_bits - 1)) - 1;
    let top = (1 << exponent_bits) - 1;
    let special = match (field == top, is_finite) {
        (true, false) if mantissa == 0 => Special::Infinite,
        (true, false) => Special::Nan,
        (true, true) if mantissa == (1 << mantissa_bits) - 1 => Special::Nan,
        _ => Special::Finite,
    };
    let (whole, exponent) =
        if field == 0 { (mantissa, 1 - bias) } else { (mantissa | 1 << mantissa_bits, field as i32 - bias) };
    let magnitude = i64::from(whole) << (BITS - mantissa_bits);
    Part { significand: if negative { -magnitude } else { magnitude }, exponent, special }
}

fn element(bits: u32, of: Element) -> Part {
    match of {
        Element::F16 => unpack(bits & 0xffff, 5, 10, false),
        Element::Bf16 => unpack(bits & 0xffff, 8, 7, false),
        // The low 13 bits are cut off, also where that makes a NaN infinite.
        Element::Tf32 => unpack(bits & !0x1fff, 8, 23, false),
        Element::E4m3 => unpack(bits & 0xff, 4, 3, true),
        _ => unpack(bits & 0xff, 5, 2, false),
    }
}

/// How a chip adds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adder {
    /// Fraction bits that are kept.
    pub(super) fraction: u32,
    /// Products in one chunk.
    pub(super) chunk: usize,
    /// Whether sums are f16.
    pub(super) half: bool,
    /// Exponent that zeros count with.
    pub(super) zero: i32,
    /// Fraction bits of the result, where it is shorter than f32's.
    pub(super) result: u32,
}

/// How a chip adds for an instruction.
pub(super) fn adder(chip: Chip, mma: &Mma) -> Adder {
    let bytes = match mma.a {
        Element::F16 | Element::Bf16 => 2,
        Element::Tf32 => 4,
        _ => 1,
    };
    let half = mma.accumulator == Ty::F16;
    let hopper = chip == Chip::Sm90;
    let eight = chip == Chip::Sm89 && bytes == 1;
    let fraction = if eight {
        13
    } else if hopper {
        25
    } else {
        24
    };
    let zero = match (hopper, half) {
        (true, true) => -21,
        (true, false) => -133,
        (false, true) => -20,
        (false, false) => -132,
    };
    Adder {
        fraction,
        chunk: if hopper { 32 / bytes } else { 16 / bytes },
        half,
        zero,
        result: if eight { 13 } else { 23 },
    }
}

impl Adder {
    /// One chunk: `c + Σ a·b`, as bits of the accumulator's type.
    fn chunk(self, a: &[Part], b: &[Part], c: u32) -> u32 {
        let accumulator = if self.half { unpack(c & 0xffff, 5, 10, false) } else { unpack(c, 8, 23, false) };
        let nan = if self.half { 0x7fff } else { 0x7fff_ffff };
        let mut infinite = 0i32;
        let mut add_special = |special: Special, negative: bool| match special {
            Special::Finite => false,
            Special::Nan => true,
            Special::Infinite => {
                let sign = if negative { -1 } else { 1 };
                let clash = infinite == -sign;
                infinite = sign;
                clash
            }
        };
        for (x, y) in a.iter().zip(b) {
            let special = match (x.special, y.special) {
                (Special::Finite, Special::Finite) => Special::Finite,
                (Special::Nan, _) | (_, Special::Nan) => Special::Nan,
                (Special::Infinite, _) if y.special == Special::Finite && y.significand == 0 => Special::Nan,
                (_, Special::Infinite) if x.special == Special::Finite && x.significand == 0 => Special::Nan,
                _ => Special::Infinite,
            };
            if add_special(special, (x.significand < 0) != (y.significand < 0)) {
                return nan;
            }
        }
        if add_special(accumulator.special, accumulator.significand < 0) {
            return nan;
        }
        if infinite != 0 {
            let bits = if self.half { 0x7c00 } else { 0x7f80_0000 };
            return if infinite < 0 { bits | if self.half { 0x8000 } else { 1 << 31 } } else { bits };
        }
        // Every addend with twice the fraction bits.
        let product = |(x, y): (&Part, &Part)| {
            let significand = x.significand * y.significand;
            (significand, if significand == 0 { self.zero } else { x.exponent + y.exponent })
        };
        let own = (
            accumulator.significand << BITS,
            if accumulator.significand == 0 { self.zero } else { accumulator.exponent },
        );
        let top = a.iter().zip(b).map(product).chain([own]).map(|(_, exponent)| exponent).max().unwrap_or(self.zero);
        let sum: i64 = a
            .iter()
            .zip(b)
            .map(product)
            .chain([own])
            .map(|(significand, exponent)| {
                let down = (2 * BITS - self.fraction) + (top - exponent) as u32;
                let magnitude = significand.unsigned_abs().checked_shr(down).unwrap_or(0) as i64;
                if significand < 0 { -magnitude } else { magnitude }
            })
            .sum();
        if self.half {
            let value = sum as f64 * 2f64.powi(top - self.fraction as i32);
            let bits = crate::float::F16.encode(value, crate::float::Round::Nearest, false) as u32;
            return if bits == 0x8000 { 0 } else { bits };
        }
        self.round(sum, top)
    }

    /// `sum · 2^(top − fraction)` toward zero to f32.
    fn round(self, sum: i64, top: i32) -> u32 {
        if sum == 0 {
            return 0;
        }
        let magnitude = sum.unsigned_abs();
        let highest = 63 - magnitude.leading_zeros() as i32;
        let exponent = (highest + top - self.fraction as i32).max(-126);
        // Position of the last kept bit in the sum.
        let last = exponent - self.result as i32 - (top - self.fraction as i32);
        let kept = if last > 0 { magnitude.checked_shr(last as u32).unwrap_or(0) } else { magnitude << -last };
        let significand = (kept as u32) << (23 - self.result);
        let sign = if sum < 0 { 1 << 31 } else { 0 };
        if exponent > 127 {
            return sign | 0x7f80_0000;
        }
        let bits =
            if significand >> 23 == 0 { significand } else { ((exponent + 126) as u32) * (1 << 23) + significand };
        if bits == 0 { 0 } else { sign | bits }
    }
}

/// All results, one after another.
pub(super) fn run(
    mma: &Mma,
    adder: Adder,
    a: &Words,
    b: &Words,
    c: &[[u32; ROWS]; COLUMNS],
    out: &mut [[u32; ROWS]; COLUMNS],
) {
    let bits = super::bits(mma.a);
    let per = 32 / bits;
    let row =
        |row: usize| -> Vec<Part> { (0..mma.k).map(|i| element(a[i / per][row] >> (i % per * bits), mma.a)).collect() };
    let column = |column: usize| -> Vec<Part> {
        (0..mma.k).map(|i| element(b[i / per][column] >> (i % per * bits), mma.b)).collect()
    };
    let rows: Vec<_> = (0..mma.m).map(row).collect();
    for (at, out) in out.iter_mut().enumerate() {
        let column = column(at);
        for (row, (a, out)) in rows.iter().zip(out).enumerate() {
            let chunks = a.chunks(adder.chunk).zip(column.chunks(adder.chunk));
            *out = chunks.fold(c[at][row], |sum, (a, b)| adder.chunk(a, b, sum));
        }
    }
}
