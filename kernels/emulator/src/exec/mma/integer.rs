//! Integer products: exact sums that wrap, or clamp under `.satfinite`.

#![expect(clippy::inline_always, reason = "what a processor's own form calls must be compiled in that form")]

use super::{COLUMNS, MOST_WORDS, ROWS, Words, gather_a, gather_b, gather_c, scatter};
use crate::exec::op::{Element, Mma};
use crate::exec::regs::Regs;

#[inline(always)]
pub(super) fn run(regs: &mut Regs, mma: &Mma) {
    #[cfg(target_arch = "x86_64")]
    if super::wide::integers(regs, mma) {
        return;
    }
    portable(regs, mma);
}

/// [`run`] without the processor's own instructions.
#[inline(always)]
pub(super) fn portable(regs: &mut Regs, mma: &Mma) {
    let (a, b) = (gather_a(regs, mma), gather_b(regs, mma));
    let mut sums = gather_c(regs, mma);
    let words = mma.k * super::bits(mma.a) / 32;
    let dots = match mma.a {
        Element::B1 => bits(&a, &b, words, mma.is_xor),
        Element::S4 | Element::U4 => products::<4, 8>(&a, &b, words, mma.a == Element::S4, mma.b == Element::S4),
        _ => products::<8, 4>(&a, &b, words, mma.a == Element::S8, mma.b == Element::S8),
    };
    for (sums, dots) in sums.iter_mut().zip(&dots) {
        for (sum, &dot) in sums.iter_mut().zip(dots) {
            let (c, dot) = (*sum as i32, dot as i32);
            *sum = if mma.saturate { c.saturating_add(dot) } else { c.wrapping_add(dot) } as u32;
        }
    }
    scatter(regs, mma, &sums);
}

/// Elements of `BITS` bits, `PER` of them in a word.
#[inline(always)]
fn products<const BITS: u32, const PER: usize>(
    a: &Words,
    b: &Words,
    words: usize,
    a_signed: bool,
    b_signed: bool,
) -> [[u32; ROWS]; COLUMNS] {
    let widen = |word: u32, place: usize, signed: bool| {
        let up = word << (32 - BITS - BITS * place as u32);
        if signed { (up as i32 >> (32 - BITS)) as u32 } else { up >> (32 - BITS) }
    };
    let mut dots = [[0u32; ROWS]; COLUMNS];
    for word in 0..words.min(MOST_WORDS) {
        for place in 0..PER {
            let mut rows = a[word];
            for row in &mut rows {
                *row = widen(*row, place, a_signed);
            }
            for (dots, &value) in dots.iter_mut().zip(&b[word]) {
                let column = widen(value, place, b_signed);
                for (dot, &row) in dots.iter_mut().zip(&rows) {
                    *dot = dot.wrapping_add(row.wrapping_mul(column));
                }
            }
        }
    }
    dots
}

#[inline(always)]
fn bits(a: &Words, b: &Words, words: usize, is_xor: bool) -> [[u32; ROWS]; COLUMNS] {
    let mut dots = [[0u32; ROWS]; COLUMNS];
    for word in 0..words.min(MOST_WORDS) {
        for (dots, &column) in dots.iter_mut().zip(&b[word]) {
            for (dot, &row) in dots.iter_mut().zip(&a[word]) {
                *dot += if is_xor { row ^ column } else { row & column }.count_ones();
            }
        }
    }
    dots
}
