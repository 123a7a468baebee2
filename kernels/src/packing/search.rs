//! Scale and minimum of a group, searched for the least weighted squared error.
//!
//! A scale that spans a group's whole range spends codes on its one largest value. So scales around that one are tried:
//! each gives codes, the codes give the best scale (and minimum) by weighted least squares, and the pair with the least
//! error wins. The weight of a value is its magnitude plus the root mean square around it, because a row's large weights
//! meet large sums more often than chance and an error on them is an error of the product, while small ones still count.

use lathe_ir::scheme::{Code, Scheme, TABLE, Zero};

/// How far the tried scales reach: from this part of the full range …
const FROM: f32 = 0.70;
/// … to this one, in so many steps.
const TO: f32 = 1.05;
const STEPS: usize = 10;
/// Most elements of a group.
const GROUP: usize = 32;

/// Weights of the values of a group whose neighbourhood has a root mean square.
pub fn importance(group: &[f32], rms: f32) -> [f32; GROUP] {
    let mut weights = [0.0; GROUP];
    weights.iter_mut().zip(group).for_each(|(weight, value)| *weight = value.abs() + rms);
    weights
}

/// `√mean x²`.
pub fn root_mean_square(values: &[f32]) -> f32 {
    (values.iter().map(|value| value * value).sum::<f32>() / values.len().max(1) as f32).sqrt()
}

/// Scale and minimum of a group; the minimum is 0 in a symmetric scheme and at most `highest` in others.
pub fn parameters(group: &[f32], rms: f32, scheme: Scheme, highest: f32) -> [f32; 2] {
    let weights = importance(group, rms);
    match scheme.zero {
        Zero::Symmetric => [symmetric(group, &weights, scheme), 0.0],
        Zero::Min => affine(group, &weights, ((1u32 << scheme.bits()) - 1) as f32, highest),
    }
}

/// The nearest integer of a value below 2²², ties to even. The addition rounds, which needs no instruction that old
/// processors lack.
fn round(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT) - SHIFT
}

/// Sums of what `of` makes of each value and its weight. Each lane sums every eighth value, so that the additions of one
/// lane need not wait for those of another.
#[inline]
fn sums<const N: usize>(group: &[f32], weights: &[f32], of: impl Fn(f32, f32) -> [f32; N]) -> [f32; N] {
    const LANES: usize = 8;
    let mut sums = [[0.0f32; LANES]; N];
    for (values, weights) in group.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            for (sum, term) in sums.iter_mut().zip(of(values[lane], weights[lane])) {
                sum[lane] += term;
            }
        }
    }
    sums.map(|sum| sum.iter().sum())
}

/// The scale that the step's share of the range gives.
fn shares() -> impl Iterator<Item = f32> {
    (0..STEPS).map(|step| FROM + (TO - FROM) * step as f32 / (STEPS - 1) as f32)
}

/// `w = scale · code + min`.
fn affine(group: &[f32], weights: &[f32], top: f32, highest: f32) -> [f32; 2] {
    let low = group.iter().copied().fold(highest, f32::min);
    let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return [0.0, low];
    }
    let mut best = ([(high - low) / top, low], f32::INFINITY);
    for share in shares() {
        let inverse = top / ((high - low) * share);
        // Sums of weight times 1, code, code², value, code · value.
        let [w, wc, wcc, wx, wcx] = sums(group, weights, |x, weight| {
            let code = round((x - low) * inverse).min(top);
            [weight, weight * code, weight * code * code, weight * x, weight * code * x]
        });
        let determinant = w * wcc - wc * wc;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (w * wcx - wc * wx) / determinant;
        let mut min = (wcc * wx - wc * wcx) / determinant;
        if min > highest {
            (scale, min) = (if wcc > 0.0 { (wcx - highest * wc) / wcc } else { 0.0 }, highest);
        }
        if scale <= 0.0 {
            continue;
        }
        let inverse = 1.0 / scale;
        let [error] = sums(group, weights, |x, weight| {
            let code = round(((x - min) * inverse).max(0.0).min(top));
            let difference = scale * code + min - x;
            [weight * difference * difference]
        });
        if error < best.1 {
            best = ([scale, min], error);
        }
    }
    best.0
}

/// `w = scale · (level − zero)`. A scale of either sign is tried, because the levels reach further below zero.
fn symmetric(group: &[f32], weights: &[f32], scheme: Scheme) -> f32 {
    let peak = group.iter().copied().fold(0.0f32, |peak, x| if x.abs() > peak.abs() { x } else { peak });
    if peak == 0.0 {
        return 0.0;
    }
    let zero = f32::from(scheme.zero_level());
    let last = match scheme.code {
        Code::Table => 15,
        _ => ((1u32 << scheme.bits()) - 1) as u8,
    };
    let (bottom, top) = (f32::from(scheme.level(0)) - zero, f32::from(scheme.level(last)) - zero);
    let is_table = scheme.code == Code::Table;
    let mut best = (peak / bottom, 0.0);
    for share in shares() {
        for end in [bottom, top] {
            let inverse = end / (peak * share);
            let [wxl, wll] = sums(group, weights, |x, weight| {
                let value = round((x * inverse).max(bottom).min(top));
                let level = if is_table { nearest(value) } else { value };
                [weight * x * level, weight * level * level]
            });
            // The best scale for these levels takes (Σ w x l)² / Σ w l² off the error.
            let gain = if wll > 0.0 { wxl * wxl / wll } else { 0.0 };
            if gain > best.1 {
                best = (wxl / wll, gain);
            }
        }
    }
    best.0
}

/// The codebook's level, less its zero, nearest to a whole number from −127 to 113.
fn nearest(value: f32) -> f32 {
    const NEAREST: [i8; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let mut code = 0;
            while code < 15 && at as i32 * 2 > TABLE[code] as i32 + TABLE[code + 1] as i32 {
                code += 1;
            }
            table[at] = (TABLE[code] as i32 - 128) as i8;
            at += 1;
        }
        table
    };
    f32::from(NEAREST[(value as i32 + 128).clamp(0, 255) as usize])
}
