//! Every way to the same bits: the fast forms against [`super::model`], one result after another.

use super::{COLUMNS, ROWS, gather_a, gather_b, gather_c, integer, model, runner, scatter, tile};
use crate::chip::Chip;
use crate::exec::op::{Element, Mma};
use crate::exec::regs::Regs;
use crate::ptx::tree::Ty;

/// `SplitMix64` (Steele, Lea and Flood, 2014).
fn next(state: &mut u64) -> u32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 32) as u32
}

fn mma(a: Element, b: Element, k: usize, accumulator: Ty, saturate: bool) -> Mma {
    let bits = super::bits(a);
    let (a_count, b_count) = (ROWS * k * bits / 1024, COLUMNS * k * bits / 1024);
    let c_count = if accumulator == Ty::F16 { 2 } else { 4 };
    let mut first = 0;
    let mut take = |count: usize| {
        let regs: Vec<u32> = (first..first + count as u32).collect();
        first += count as u32;
        regs
    };
    let (a_regs, b_regs, c_regs, d_regs) = (take(a_count), take(b_count), take(c_count), take(c_count));
    let (m, n, is_xor, run) = (ROWS, COLUMNS, false, runner(accumulator));
    Mma { m, n, k, a, b, accumulator, saturate, is_xor, run, d_regs, a_regs, b_regs, c_regs }
}

/// How the numbers of a test are spread.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// Any bits.
    Any,
    /// Close to one.
    Near,
    /// The largest significand of one exponent, all of one sign.
    Largest,
    /// Some are zero.
    Sparse,
}

/// A word of elements.
fn word(state: &mut u64, spread: Spread, of: Element) -> u32 {
    // Of each element: the sign and the significand, and the exponent of one.
    let (free, one, per): (u32, u32, u32) = match of {
        Element::F16 => (0x83ff, 0x3c00, 2),
        Element::Bf16 => (0x807f, 0x3f80, 2),
        Element::Tf32 => (0x807f_ffff, 0x3f80_0000, 1),
        Element::E4m3 => (0x87, 0x38, 4),
        _ => (0x83, 0x3c, 4),
    };
    let step = one & one.wrapping_neg();
    (0..per).fold(0, |word, at| {
        let element = match spread {
            Spread::Any => next(state),
            Spread::Near => (next(state) & free | one).wrapping_add(next(state) % 3 * step),
            // The sign is the highest of the free bits.
            Spread::Largest => free ^ 1 << free.ilog2() | one,
            Spread::Sparse if next(state).is_multiple_of(3) => next(state) & free | one,
            Spread::Sparse => 0,
        };
        let mask = u32::MAX >> (32 - 32 / per);
        word | (element & mask) << (at * (32 / per))
    })
}

fn fragments(state: &mut u64, spread: Spread, mma: &Mma) -> Regs {
    let count = mma.d_regs.iter().max().map_or(0, |&reg| reg as usize + 1);
    let mut regs = Regs { r32: vec![[0; 32]; count], r64: vec![], p: vec![] };
    for (list, of) in [(&mma.a_regs, mma.a), (&mma.b_regs, mma.b)] {
        for &reg in list {
            regs.r32[reg as usize] = std::array::from_fn(|_| word(state, spread, of));
        }
    }
    let of = if mma.accumulator == Ty::F16 { Element::F16 } else { Element::Tf32 };
    for &reg in &mma.c_regs {
        regs.r32[reg as usize] = std::array::from_fn(|_| word(state, spread, of));
    }
    regs
}

#[test]
fn fast_sums_have_the_bits_of_the_model() {
    use Element::{Bf16, E4m3, E5m2, F16, Tf32};
    let kinds = [
        (F16, F16, 8, Ty::F32),
        (F16, F16, 16, Ty::F32),
        (F16, F16, 16, Ty::F16),
        (Bf16, Bf16, 8, Ty::F32),
        (Bf16, Bf16, 16, Ty::F32),
        (Tf32, Tf32, 4, Ty::F32),
        (Tf32, Tf32, 8, Ty::F32),
        (E4m3, E4m3, 32, Ty::F32),
        (E5m2, E4m3, 32, Ty::F32),
        (E4m3, E5m2, 32, Ty::F16),
    ];
    let mut state = 1;
    for (a, b, k, accumulator) in kinds {
        let mma = mma(a, b, k, accumulator, false);
        for chip in [Chip::Sm80, Chip::Sm89, Chip::Sm90] {
            let adder = model::adder(chip, &mma);
            for spread in [Spread::Any, Spread::Near, Spread::Largest, Spread::Sparse] {
                for _ in 0..20 {
                    let mut regs = fragments(&mut state, spread, &mma);
                    let (a_words, b_words, c) = (gather_a(&regs, &mma), gather_b(&regs, &mma), gather_c(&regs, &mma));
                    let mut expected = c;
                    model::run(&mma, adder, &a_words, &b_words, &c, &mut expected);
                    let mut found = c;
                    let is_plain = tile::run(&mma, adder, &a_words, &b_words, &mut found);
                    assert!(is_plain || matches!(spread, Spread::Any), "{a:?} {spread:?} is no special case");
                    if is_plain {
                        assert_eq!(found, expected, "{a:?} {b:?} {k} {accumulator:?} {chip:?} {spread:?}, portable");
                    }
                    let mut scattered = regs.clone();
                    scatter(&mut scattered, &mma, &expected);
                    (mma.run)(&mut regs, &mma, chip);
                    assert!(regs == scattered, "{a:?} {b:?} {k} {accumulator:?} {chip:?} {spread:?}, as it runs");
                }
            }
        }
    }
}

#[test]
fn fast_sums_of_bytes_are_exact() {
    use Element::{S8, U8};
    let mut state = 2;
    for (a, b) in [(S8, S8), (S8, U8), (U8, S8), (U8, U8)] {
        for (k, saturate) in [(16, false), (32, false), (32, true)] {
            let mma = mma(a, b, k, Ty::S32, saturate);
            for _ in 0..50 {
                let mut regs = fragments(&mut state, Spread::Any, &mma);
                // Accumulators at the ends of the range clamp or wrap.
                for &reg in &mma.c_regs {
                    let near = |lane: u32| if lane.is_multiple_of(2) { 0x7fff_ff00 } else { 0x8000_0100 };
                    regs.r32[reg as usize] = std::array::from_fn(|lane| near(lane as u32));
                }
                let mut expected = regs.clone();
                integer::portable(&mut expected, &mma);
                (mma.run)(&mut regs, &mma, Chip::Sm80);
                assert!(regs == expected, "{a:?} {b:?} {k} {saturate}");
            }
        }
    }
}
