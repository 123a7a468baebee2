//! `mma.sync`: fragments of a warp to matrices and back, and the arithmetic of the tensor cores bit for bit, after the
//! model of MMA-Sim (Microsoft): the reduction is cut into chunks; in each one the products and the accumulator are
//! aligned to the largest exponent, cut toward zero to a number of fraction bits, and added exactly; the sum is rounded
//! once, toward zero to f32 or to nearest to f16.

use super::op::{Element, Mma};
use super::regs::{LANES, Regs};
use crate::chip::Chip;
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
        // The low 13 bits are cut off, which must not make a NaN infinite.
        Element::Tf32 if bits & 0x7f80_0000 == 0x7f80_0000 => unpack(bits, 8, 23, false),
        Element::Tf32 => unpack(bits & !0x1fff, 8, 23, false),
        Element::E4m3 => unpack(bits & 0xff, 4, 3, true),
        _ => unpack(bits & 0xff, 5, 2, false),
    }
}

/// How a chip adds.
#[derive(Clone, Copy, Debug)]
struct Adder {
    /// Fraction bits that are kept.
    fraction: u32,
    /// Products in one chunk.
    chunk: usize,
    half: bool,
    /// Exponent that zeros count with.
    zero: i32,
    /// Fraction bits of the result, where it is shorter than f32's.
    result: u32,
}

fn adder(chip: Chip, mma: &Mma) -> Adder {
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

/// Element `(row, column)` of a fragment's matrix by register and lane: its register and the bits below it.
/// `A` is row-major `m x k`; the layout is that of PTX's figures for `.m16n8k*`.
fn a_place(row: usize, column: usize, bits: usize) -> (usize, usize, usize) {
    let per_reg = 32 / bits;
    let group = 4 * per_reg;
    let lane = 4 * (row % 8) + column % group / per_reg;
    let reg = row / 8 + 2 * (column / group);
    (reg, lane, column % per_reg * bits)
}

fn b_place(row: usize, column: usize, bits: usize) -> (usize, usize, usize) {
    let per_reg = 32 / bits;
    let group = 4 * per_reg;
    (row / group, 4 * column + row % group / per_reg, row % per_reg * bits)
}

/// Executes one instruction for the whole warp.
pub(crate) fn run(regs: &mut Regs, mma: &Mma, chip: Chip) {
    let bits = match mma.a {
        Element::F16 | Element::Bf16 => 16,
        Element::Tf32 => 32,
        Element::S4 | Element::U4 => 4,
        _ => 8,
    };
    let cut = if bits == 32 { u32::MAX } else { (1 << bits) - 1 };
    let fetch =
        |list: &[u32], (reg, lane, shift): (usize, usize, usize)| regs.r32[list[reg] as usize][lane] >> shift & cut;
    let (m, n, k) = (mma.m, mma.n, mma.k);
    let a_bits = |row: usize, at: usize| fetch(&mma.a_regs, a_place(row, at, bits));
    let b_bits = |at: usize, column: usize| fetch(&mma.b_regs, b_place(at, column, bits));
    let half = mma.accumulator == Ty::F16;
    let place = |row: usize, column: usize| {
        let lane = 4 * (row % 8) + column / 2;
        if half { (row / 8, lane, 16 * (column % 2)) } else { (2 * (row / 8) + column % 2, lane, 0) }
    };
    let mut out = vec![[0u32; LANES]; mma.d_regs.len()];
    let accumulator = |(reg, lane, shift): (usize, usize, usize)| regs.r32[mma.c_regs[reg] as usize][lane] >> shift;
    if mma.accumulator == Ty::S32 {
        let signed = |value: u32, of: Element| match of {
            Element::S8 => i64::from(value as u8 as i8),
            Element::S4 => i64::from(((value << 4) as u8 as i8) >> 4),
            _ => i64::from(value),
        };
        for row in 0..m {
            for column in 0..n {
                let at = place(row, column);
                let dot: i64 = (0..k).map(|i| signed(a_bits(row, i), mma.a) * signed(b_bits(i, column), mma.b)).sum();
                let sum = dot + i64::from(accumulator(at) as i32);
                let sum = if mma.saturate { sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) } else { sum };
                out[at.0][at.1] = sum as u32;
            }
        }
    } else {
        let adder = adder(chip, mma);
        let rows: Vec<Part> = (0..m * k).map(|i| element(a_bits(i / k, i % k), mma.a)).collect();
        let columns: Vec<Part> = (0..n * k).map(|i| element(b_bits(i % k, i / k), mma.b)).collect();
        for row in 0..m {
            for column in 0..n {
                let at = place(row, column);
                let (a, b) = (&rows[row * k..][..k], &columns[column * k..][..k]);
                let start = accumulator(at) & if half { 0xffff } else { u32::MAX };
                let sum =
                    a.chunks(adder.chunk).zip(b.chunks(adder.chunk)).fold(start, |sum, (a, b)| adder.chunk(a, b, sum));
                out[at.0][at.1] |= sum << at.2;
            }
        }
    }
    for (&reg, values) in mma.d_regs.iter().zip(&out) {
        regs.put32(reg, values, u32::MAX);
    }
}
