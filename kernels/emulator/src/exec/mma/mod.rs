//! `mma.sync`: fragments of a warp to matrices and back. [`model`] is the arithmetic of the tensor cores, one result after
//! another; [`tile`] gives the same bits for sixteen results at once where no value is special, and says so where it
//! cannot; [`integer`] is exact. [`wide`] is both for processors with AVX-512.

#![expect(clippy::inline_always, reason = "what a processor's own form calls must be compiled in that form")]

mod integer;
mod model;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod wide;

use super::op::{Element, Mma};
use super::regs::{LANES, Regs, vectored};
use crate::chip::Chip;
use crate::ptx::tree::Ty;

/// Rows of the largest `A`, and columns of `B`.
const ROWS: usize = 16;
const COLUMNS: usize = 8;
/// The longest reduction in whole registers: `.k256` of bits, `.k64` of four.
const MOST_WORDS: usize = 8;

/// One fragment of `A` or `B` by word of the reduction: `words[w][row]` holds the elements `w · per` to `w · per + per − 1`,
/// the first lowest, where `per` elements fill 32 bits. For `B` a column stands in place of the row.
type Words = [[u32; ROWS]; MOST_WORDS];

/// What executes one instruction for a whole warp.
pub(crate) type Run = fn(&mut Regs, &Mma, Chip);

/// The function for an instruction, compiled for the processor at hand.
pub(crate) fn runner(accumulator: Ty) -> Run {
    if accumulator == Ty::S32 {
        vectored!(|regs: &mut Regs, mma: &Mma, _chip: Chip| integer::run(regs, mma))
    } else {
        vectored!(|regs: &mut Regs, mma: &Mma, chip: Chip| floating(regs, mma, chip))
    }
}

/// Bits of an element.
pub(crate) fn bits(of: Element) -> usize {
    match of {
        Element::F16 | Element::Bf16 => 16,
        Element::Tf32 => 32,
        Element::E4m3 | Element::E5m2 | Element::S8 | Element::U8 => 8,
        Element::S4 | Element::U4 => 4,
        Element::B1 => 1,
    }
}

/// `A` by words: lane `4g + t` holds of word `4j + t` rows `g` (register `2j`) and `g + 8` (register `2j + 1`); with eight
/// rows, register `j` is row `g`.
#[inline(always)]
fn gather_a(regs: &Regs, mma: &Mma) -> Words {
    let mut out = [[0; ROWS]; MOST_WORDS];
    let halves = mma.m / 8;
    for (index, &reg) in mma.a_regs.iter().enumerate() {
        let (first, half) = (4 * (index / halves), index % halves);
        let lanes = &regs.r32[reg as usize];
        for t in 0..4 {
            for g in 0..8 {
                out[first + t][8 * half + g] = lanes[4 * g + t];
            }
        }
    }
    out
}

/// `B` by words: lane `4g + t` holds word `4j + t` of column `g` in register `j`.
#[inline(always)]
fn gather_b(regs: &Regs, mma: &Mma) -> Words {
    let mut out = [[0; ROWS]; MOST_WORDS];
    for (index, &reg) in mma.b_regs.iter().enumerate() {
        let lanes = &regs.r32[reg as usize];
        for t in 0..4 {
            for g in 0..8 {
                out[4 * index + t][g] = lanes[4 * g + t];
            }
        }
    }
    out
}

/// The accumulators by column: `out[column][row]`, 32 bits each; of f16 the low 16.
#[inline(always)]
fn gather_c(regs: &Regs, mma: &Mma) -> [[u32; ROWS]; COLUMNS] {
    let mut out = [[0; ROWS]; COLUMNS];
    if mma.accumulator == Ty::F16 {
        for (half, &reg) in mma.c_regs.iter().enumerate() {
            let lanes = &regs.r32[reg as usize];
            for t in 0..4 {
                for g in 0..8 {
                    out[2 * t][8 * half + g] = lanes[4 * g + t] & 0xffff;
                    out[2 * t + 1][8 * half + g] = lanes[4 * g + t] >> 16;
                }
            }
        }
        return out;
    }
    for (index, &reg) in mma.c_regs.iter().enumerate() {
        let (half, odd) = (index / 2, index % 2);
        let lanes = &regs.r32[reg as usize];
        for t in 0..4 {
            for g in 0..8 {
                out[2 * t + odd][8 * half + g] = lanes[4 * g + t];
            }
        }
    }
    out
}

/// The results back into their registers.
#[inline(always)]
fn scatter(regs: &mut Regs, mma: &Mma, values: &[[u32; ROWS]; COLUMNS]) {
    for (index, &reg) in mma.d_regs.iter().enumerate() {
        let mut lanes = [0; LANES];
        for t in 0..4 {
            for g in 0..8 {
                lanes[4 * g + t] = if mma.accumulator == Ty::F16 {
                    values[2 * t][8 * index + g] | values[2 * t + 1][8 * index + g] << 16
                } else {
                    values[2 * t + index % 2][8 * (index / 2) + g]
                };
            }
        }
        regs.put32(reg, &lanes, u32::MAX);
    }
}

#[inline(always)]
fn floating(regs: &mut Regs, mma: &Mma, chip: Chip) {
    let adder = model::adder(chip, mma);
    #[cfg(target_arch = "x86_64")]
    if wide::floating(regs, mma, adder) {
        return;
    }
    let (a, b, c) = (gather_a(regs, mma), gather_b(regs, mma), gather_c(regs, mma));
    let mut out = c;
    if !tile::run(mma, adder, &a, &b, &mut out) {
        model::run(mma, adder, &a, &b, &c, &mut out);
    }
    scatter(regs, mma, &out);
}
