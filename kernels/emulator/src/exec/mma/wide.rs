//! The arithmetic of [`super::model`] and [`super::integer`] in vectors of sixteen rows, for processors with AVX-512. It adds
//! as [`super::tile`] does, which says why that is exact, and refuses what is special or far from one, which [`super::model`]
//! does instead.

#![expect(unsafe_code, reason = "vectors are read from and written to arrays of their size")]

use std::arch::x86_64::{
    __m256i, __m512, __m512d, __m512i, __mmask16, _mm512_add_epi32, _mm512_add_pd, _mm512_and_si512,
    _mm512_castpd_si512, _mm512_castps_si512, _mm512_castps256_ps512, _mm512_castps512_ps256, _mm512_castsi256_si512,
    _mm512_castsi512_pd, _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cmpeq_epi32_mask, _mm512_cmpgt_epu32_mask,
    _mm512_cmplt_epi32_mask, _mm512_cvtepi32_pd, _mm512_cvtpd_ps, _mm512_cvtps_pd, _mm512_cvttps_epi32,
    _mm512_extractf32x8_ps, _mm512_extracti64x4_epi64, _mm512_insertf32x8, _mm512_inserti64x4, _mm512_loadu_si512,
    _mm512_madd_epi16, _mm512_mask_blend_epi32, _mm512_mask_mov_epi32, _mm512_max_epi32, _mm512_movepi32_mask,
    _mm512_mul_pd, _mm512_mul_ps, _mm512_or_si512, _mm512_permutex2var_epi32, _mm512_set1_epi32, _mm512_set1_epi64,
    _mm512_setr_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_slli_epi32,
    _mm512_srai_epi16, _mm512_srai_epi32, _mm512_srli_epi16, _mm512_srli_epi32, _mm512_srlv_epi32, _mm512_storeu_pd,
    _mm512_storeu_si512, _mm512_sub_epi32, _mm512_test_epi32_mask, _mm512_xor_si512,
};

use super::model::Adder;
use super::tile::{GROUP, HIGHEST, LOWEST, ZERO, nearest_half};
use super::{COLUMNS, ROWS};
use crate::exec::op::{Element, Mma};
use crate::exec::regs::{AVX512, Lanes32, Regs, level};
use crate::ptx::tree::Ty;

/// The longest reduction.
const MOST_K: usize = 32;
/// Words of a reduction that this takes.
const WORDS: usize = 8;
/// The least exponent that a chunk is aligned to here, so that its scale is a number of f32. Products are not below it.
const LEAST: i32 = 2 * LOWEST;

/// Sixteen words.
#[target_feature(enable = "avx512f")]
fn load(words: &[u32; 16]) -> __m512i {
    // SAFETY: sixteen words are 64 bytes, wherever they lie.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
fn store(words: &mut [u32; 16], value: __m512i) {
    // SAFETY: as in `load`.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), value) }
}

/// A register in two halves.
#[target_feature(enable = "avx512f")]
fn halves(lanes: &Lanes32) -> [__m512i; 2] {
    let (low, high) = lanes.split_at(16);
    [low, high].map(|half| load(half.try_into().expect("sixteen of thirty-two")))
}

/// Lanes `4g + t` of a register, for `g` from 0 to 7.
#[target_feature(enable = "avx512f")]
fn quads([low, high]: [__m512i; 2], t: i32) -> __m256i {
    let lanes =
        _mm512_add_epi32(_mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0), _mm512_set1_epi32(t));
    _mm512_castsi512_si256(_mm512_permutex2var_epi32(low, lanes, high))
}

/// The same of two registers, one after the other: a word of `A`, or a column of the accumulators, by row.
#[target_feature(enable = "avx512f")]
fn rows(first: [__m512i; 2], second: [__m512i; 2], t: i32) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(quads(first, t)), quads(second, t))
}

/// Words of `A` by row, and of `B` by column in the low half.
#[target_feature(enable = "avx512f")]
fn words(regs: &Regs, mma: &Mma) -> ([__m512i; WORDS], [__m512i; WORDS]) {
    let reg = |index: u32| halves(&regs.r32[index as usize]);
    let (mut a, mut b) = ([_mm512_setzero_si512(); WORDS], [_mm512_setzero_si512(); WORDS]);
    for (words, pair) in a.chunks_exact_mut(4).zip(mma.a_regs.chunks_exact(2)) {
        let (first, second) = (reg(pair[0]), reg(pair[1]));
        for (t, word) in words.iter_mut().enumerate() {
            *word = rows(first, second, t as i32);
        }
    }
    for (words, &one) in b.chunks_exact_mut(4).zip(&mma.b_regs) {
        let lanes = reg(one);
        for (t, word) in words.iter_mut().enumerate() {
            *word = _mm512_castsi256_si512(quads(lanes, t as i32));
        }
    }
    (a, b)
}

/// The accumulators by column.
#[target_feature(enable = "avx512f")]
fn sums(regs: &Regs, mma: &Mma) -> [__m512i; COLUMNS] {
    let reg = |index: usize| halves(&regs.r32[mma.c_regs[index] as usize]);
    let mut out = [_mm512_setzero_si512(); COLUMNS];
    for t in 0..4 {
        if mma.accumulator == Ty::F16 {
            let pair = rows(reg(0), reg(1), t as i32);
            out[2 * t] = _mm512_and_si512(pair, _mm512_set1_epi32(0xffff));
            out[2 * t + 1] = _mm512_srli_epi32::<16>(pair);
        } else {
            out[2 * t] = rows(reg(0), reg(2), t as i32);
            out[2 * t + 1] = rows(reg(1), reg(3), t as i32);
        }
    }
    out
}

/// Four columns, `columns[t][8 · half + g]`, to lanes `4g + t` of a register for each half.
#[target_feature(enable = "avx512f")]
fn scatter(regs: &mut Regs, [first, second]: [u32; 2], columns: [__m512i; 4]) {
    for (half, reg) in [first, second].into_iter().enumerate() {
        let lanes = &mut regs.r32[reg as usize];
        for (part, lanes) in lanes.chunks_exact_mut(16).enumerate() {
            // Rows 8 · half + 4 · part and up, each from four columns.
            let first = (8 * half + 4 * part) as i32;
            let pick = _mm512_add_epi32(
                _mm512_setr_epi32(0, 16, 0, 16, 1, 17, 1, 17, 2, 18, 2, 18, 3, 19, 3, 19),
                _mm512_set1_epi32(first),
            );
            let left = _mm512_permutex2var_epi32(columns[0], pick, columns[1]);
            let right = _mm512_permutex2var_epi32(columns[2], pick, columns[3]);
            let both = _mm512_mask_blend_epi32(0b1100_1100_1100_1100, left, right);
            store(lanes.try_into().expect("sixteen lanes"), both);
        }
    }
}

/// Puts the accumulators back.
#[target_feature(enable = "avx512f")]
fn put(regs: &mut Regs, mma: &Mma, out: &[__m512i; COLUMNS]) {
    let d = &mma.d_regs;
    if mma.accumulator == Ty::F16 {
        let pair = |t: usize| _mm512_or_si512(out[2 * t], _mm512_slli_epi32::<16>(out[2 * t + 1]));
        scatter(regs, [d[0], d[1]], [pair(0), pair(1), pair(2), pair(3)]);
    } else {
        scatter(regs, [d[0], d[2]], [out[0], out[2], out[4], out[6]]);
        scatter(regs, [d[1], d[3]], [out[1], out[3], out[5], out[7]]);
    }
}

/// Elements taken apart, sixteen to a vector: value, exponent, and the lanes that are special or outside of the range.
struct Parts {
    value: __m512,
    exponent: __m512i,
    outside: __mmask16,
}

/// The value of sixteen finite f16.
#[target_feature(enable = "avx512f")]
fn half_values(bits: __m512i) -> __m512 {
    // The exponent's bias is 15 instead of 127.
    let magnitude = _mm512_slli_epi32::<13>(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fff)));
    let value = _mm512_mul_ps(_mm512_castsi512_ps(magnitude), power(_mm512_set1_epi32(112)));
    let sign = _mm512_slli_epi32::<16>(_mm512_and_si512(bits, _mm512_set1_epi32(0x8000)));
    _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(value), sign))
}

/// Two to exponents from -126 to 127.
#[target_feature(enable = "avx512f")]
fn power(exponent: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(exponent, _mm512_set1_epi32(127))))
}

/// Takes one element of each word apart, which is at the bottom of it; what is above does not count.
#[target_feature(enable = "avx512f")]
fn take_apart(bits: __m512i, of: Element) -> Parts {
    let all = |value: i32| _mm512_set1_epi32(value);
    // Exponent's place, its bits, its bias, and the bits besides the sign.
    let (at, width, bias, magnitude) = match of {
        Element::F16 => (10, 0x1f, 15, 0x7fff),
        Element::Bf16 => (7, 0xff, 127, 0x7fff),
        Element::Tf32 => (23, 0xff, 127, 0x7fff_e000),
        Element::E4m3 => (3, 0xf, 7, 0x7f),
        _ => (2, 0x1f, 15, 0x7f),
    };
    let value = match of {
        Element::F16 => half_values(bits),
        Element::Bf16 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)),
        Element::Tf32 => _mm512_castsi512_ps(_mm512_and_si512(bits, all(!0x1fff))),
        Element::E4m3 => {
            let number = _mm512_slli_epi32::<20>(_mm512_and_si512(bits, all(0x7f)));
            let value = _mm512_mul_ps(_mm512_castsi512_ps(number), power(all(120)));
            let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(bits, all(0x80)));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(value), sign))
        }
        // The upper half of an f16.
        _ => half_values(_mm512_slli_epi32::<8>(bits)),
    };
    let field = _mm512_and_si512(_mm512_srlv_epi32(bits, all(at)), all(width));
    let number = _mm512_and_si512(bits, all(magnitude));
    let special = match of {
        Element::E4m3 => _mm512_cmpeq_epi32_mask(number, all(0x7f)),
        _ => _mm512_cmpeq_epi32_mask(field, all(width)),
    };
    let exponent = _mm512_sub_epi32(_mm512_max_epi32(field, all(1)), all(bias));
    let counts = _mm512_test_epi32_mask(number, number);
    let far = _mm512_cmpgt_epu32_mask(_mm512_sub_epi32(exponent, all(LOWEST)), all(HIGHEST - LOWEST));
    let exponent = _mm512_mask_blend_epi32(counts, all(ZERO), exponent);
    Parts { value, exponent, outside: special | far & counts }
}

/// Takes words apart: element `k` of all rows or columns at `k`. False where one is not finite, or far from one.
#[target_feature(enable = "avx512f")]
fn elements(words: &[__m512i], of: Element, values: &mut [__m512], exponents: &mut [__m512i]) -> bool {
    let bits = super::bits(of);
    let per = 32 / bits;
    let mut outside = 0;
    for (at, (value, exponent)) in values.iter_mut().zip(exponents).enumerate() {
        let word = words[at / per];
        let parts = take_apart(_mm512_srlv_epi32(word, _mm512_set1_epi32((at % per * bits) as i32)), of);
        (*value, *exponent) = (parts.value, parts.exponent);
        outside |= parts.outside;
    }
    outside == 0
}

/// Executes an instruction on floating-point numbers. False, and nothing is done, where a value is infinite, no number, or far
/// from one, or the processor lacks what this needs.
pub(super) fn floating(regs: &mut Regs, mma: &Mma, adder: Adder) -> bool {
    // SAFETY: the level says that the processor has the features that are enabled there.
    level() == AVX512 && unsafe { sum_products(regs, mma, adder) }
}

/// Executes an instruction on integers of eight bits. False, and nothing is done, for others, or where the processor lacks what
/// this needs.
pub(super) fn integers(regs: &mut Regs, mma: &Mma) -> bool {
    // SAFETY: as above.
    level() == AVX512 && unsafe { sum_bytes(regs, mma) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn sum_products(regs: &mut Regs, mma: &Mma, adder: Adder) -> bool {
    if mma.m != ROWS || mma.k > MOST_K {
        return false;
    }
    let (a, b) = words(regs, mma);
    let mut out = sums(regs, mma);
    let zero = (_mm512_setzero_ps(), _mm512_setzero_si512());
    let (mut a_values, mut a_exponents) = ([zero.0; MOST_K], [zero.1; MOST_K]);
    let (mut b_values, mut b_exponents) = ([zero.0; MOST_K], [zero.1; MOST_K]);
    let k = mma.k;
    if !elements(&a, mma.a, &mut a_values[..k], &mut a_exponents[..k])
        || !elements(&b, mma.b, &mut b_values[..k], &mut b_exponents[..k])
    {
        return false;
    }
    // Columns are taken one by one, and spread over all rows.
    let (mut values, mut exponents) = ([[0; 16]; MOST_K], [[0; 16]; MOST_K]);
    for at in 0..k {
        store(&mut values[at], _mm512_castps_si512(b_values[at]));
        store(&mut exponents[at], b_exponents[at]);
    }
    let mut outside = 0;
    for (column, sum) in out.iter_mut().enumerate() {
        for first in (0..k).step_by(adder.chunk) {
            let end = (first + adder.chunk).min(k);
            let (mut top, start, special) = accumulators(*sum, adder);
            outside |= special;
            for (own, &other) in exponents[first..end].iter().zip(&a_exponents[first..end]) {
                let own = _mm512_set1_epi32(own[column] as i32);
                top = _mm512_max_epi32(top, _mm512_add_epi32(own, other));
            }
            let scale = power(_mm512_sub_epi32(_mm512_set1_epi32(adder.fraction as i32), top));
            let mut exact = widen(_mm512_cvttps_epi32(_mm512_mul_ps(start, scale)));
            for group in (first..end).step_by(GROUP) {
                let mut products = _mm512_setzero_si512();
                let range = group..(group + GROUP).min(end);
                for (own, &other) in values[range.clone()].iter().zip(&a_values[range]) {
                    let own = _mm512_castsi512_ps(_mm512_set1_epi32(own[column] as i32));
                    let product = _mm512_mul_ps(_mm512_mul_ps(own, other), scale);
                    products = _mm512_add_epi32(products, _mm512_cvttps_epi32(product));
                }
                let [low, high] = widen(products);
                exact = [_mm512_add_pd(exact[0], low), _mm512_add_pd(exact[1], high)];
            }
            *sum = rounded(exact, top, adder);
        }
    }
    if outside == 0 {
        put(regs, mma, &out);
    }
    outside == 0
}

/// Exponents that a chunk is aligned to by its accumulators alone, their values, and the lanes of those that are not finite or
/// too small.
#[target_feature(enable = "avx512f")]
fn accumulators(sums: __m512i, adder: Adder) -> (__m512i, __m512, __mmask16) {
    let all = |value: i32| _mm512_set1_epi32(value);
    let magnitude = _mm512_and_si512(sums, all(if adder.half { 0x7fff } else { 0x7fff_ffff }));
    let counts = _mm512_test_epi32_mask(magnitude, magnitude);
    if adder.half {
        let field = _mm512_srli_epi32::<10>(magnitude);
        let exponent = _mm512_sub_epi32(_mm512_max_epi32(field, all(1)), all(15));
        let exponent = _mm512_mask_blend_epi32(counts, all(adder.zero), exponent);
        return (exponent, half_values(sums), _mm512_cmpeq_epi32_mask(field, all(0x1f)));
    }
    let field = _mm512_srli_epi32::<23>(magnitude);
    let exponent = _mm512_sub_epi32(field, all(127));
    let small = _mm512_cmplt_epi32_mask(exponent, all(LEAST)) & counts;
    let special = _mm512_cmpeq_epi32_mask(field, all(0xff));
    (_mm512_max_epi32(exponent, all(LEAST)), _mm512_castsi512_ps(sums), small | special)
}

/// Sixteen integers as f64.
#[target_feature(enable = "avx512f")]
fn widen(sums: __m512i) -> [__m512d; 2] {
    [_mm512_cvtepi32_pd(_mm512_castsi512_si256(sums)), _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64::<1>(sums))]
}

/// The bits of sums in units of the last place that a chunk keeps.
#[target_feature(enable = "avx512f,avx512dq")]
fn rounded(exact: [__m512d; 2], top: __m512i, adder: Adder) -> __m512i {
    let unit = power(_mm512_sub_epi32(top, _mm512_set1_epi32(adder.fraction as i32)));
    let low = _mm512_cvtps_pd(_mm512_castps512_ps256(unit));
    let high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(unit));
    let sums = [_mm512_mul_pd(exact[0], low), _mm512_mul_pd(exact[1], high)];
    if adder.half {
        let mut values = [0.0; 16];
        for (values, sum) in values.chunks_exact_mut(8).zip(sums) {
            // SAFETY: eight numbers of 64 bits are 64 bytes.
            unsafe { _mm512_storeu_pd(values.as_mut_ptr(), sum) };
        }
        return load(&values.map(nearest_half));
    }
    // The sum is zero or at least one unit of a top that is not low, and so no subnormal number.
    let kept = _mm512_set1_epi64((u64::MAX << (52 - adder.result)) as i64);
    let [low, high] = sums.map(|sum| {
        let cut = _mm512_and_si512(_mm512_castpd_si512(sum), kept);
        _mm512_cvtpd_ps(_mm512_castsi512_pd(cut))
    });
    _mm512_castps_si512(_mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high))
}

/// Exact sums that wrap, or clamp under `.satfinite`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn sum_bytes(regs: &mut Regs, mma: &Mma) -> bool {
    if mma.m != ROWS || super::bits(mma.a) != 8 {
        return false;
    }
    let (a, b) = words(regs, mma);
    let mut out = sums(regs, mma);
    // The even and the odd bytes of each word as pairs of sixteen bits.
    let pairs = |word: __m512i, of: Element| {
        let up = _mm512_slli_epi16::<8>(word);
        match of {
            Element::S8 => [_mm512_srai_epi16::<8>(up), _mm512_srai_epi16::<8>(word)],
            _ => [_mm512_srli_epi16::<8>(up), _mm512_srli_epi16::<8>(word)],
        }
    };
    let count = mma.k / 4;
    let (mut left, mut right) = ([[_mm512_setzero_si512(); 2]; WORDS], [[[0u32; 16]; 2]; WORDS]);
    for at in 0..count {
        left[at] = pairs(a[at], mma.a);
        for (target, pair) in right[at].iter_mut().zip(pairs(b[at], mma.b)) {
            store(target, pair);
        }
    }
    for (column, sum) in out.iter_mut().enumerate() {
        let mut dot = _mm512_setzero_si512();
        for (left, right) in left.iter().zip(&right).take(count) {
            for (left, right) in left.iter().zip(right) {
                let own = _mm512_set1_epi32(right[column] as i32);
                dot = _mm512_add_epi32(dot, _mm512_madd_epi16(*left, own));
            }
        }
        let total = _mm512_add_epi32(*sum, dot);
        *sum = if mma.saturate {
            // Past the range where both have the sign that the total has not.
            let over = _mm512_and_si512(_mm512_xor_si512(total, *sum), _mm512_xor_si512(total, dot));
            let end = _mm512_xor_si512(_mm512_srai_epi32::<31>(*sum), _mm512_set1_epi32(i32::MAX));
            _mm512_mask_mov_epi32(total, _mm512_movepi32_mask(over), end)
        } else {
            total
        };
    }
    put(regs, mma, &out);
    true
}
