//! Scale and minimum of a group, searched for the least weighted squared error.
//!
//! A scale that spans a group's whole range spends codes on its one largest value. So scales around that one are tried:
//! each gives codes, and the codes give the best scale (and minimum) by weighted least squares. The pair with the least
//! error wins, and is made better by the codes that it gives itself. The weight of a value is its magnitude plus the root
//! mean square around it, because a row's large weights meet large sums more often than chance and an error on them is an
//! error of the product, while small ones still count.
//!
//! Loops are written over whole groups in arrays, so that the compiler makes vector instructions of them: a model has
//! hundreds of millions of values, and each is looked at some twenty times.

use lathe_ir::scheme::{Code, Scheme, TABLE, Zero};

/// How far the tried scales reach: from this part of the full range …
const FROM: f32 = 0.70;
/// … to this one, in so many steps.
const TO: f32 = 1.05;
const STEPS: usize = 10;
/// Most times that the best scale is fitted again to the codes that it gives.
const REFINEMENTS: usize = 2;
/// Sums of a group in as many lanes, so that the additions of one need not wait for those of another.
const LANES: usize = 8;

/// Weights of values whose neighbourhood has a root mean square.
pub fn importance(value: f32, rms: f32) -> f32 {
    value.abs() + rms
}

/// `√mean x²`.
pub fn root_mean_square(values: &[f32]) -> f32 {
    (values.iter().map(|value| value * value).sum::<f32>() / values.len().max(1) as f32).sqrt()
}

/// Scale and minimum of a group of 16 or 32; the minimum is 0 in a symmetric scheme and at most `highest` in others.
///
/// # Panics
/// When the group has another length, which no scheme has.
pub fn parameters(group: &[f32], rms: f32, scheme: Scheme, highest: f32) -> [f32; 2] {
    match group.len() {
        16 => parameters_of::<16>(group.try_into().expect("16 values"), rms, scheme, highest),
        length => {
            let group = group.try_into().unwrap_or_else(|_| panic!("groups have 16 or 32 values, not {length}"));
            parameters_of::<32>(group, rms, scheme, highest)
        }
    }
}

fn parameters_of<const N: usize>(values: &[f32; N], rms: f32, scheme: Scheme, highest: f32) -> [f32; 2] {
    let weights = values.map(|value| importance(value, rms));
    let (zero, top) = (f32::from(scheme.zero_level()), ((1u32 << scheme.bits()) - 1) as f32);
    match (scheme.zero, scheme.code) {
        (Zero::Min, _) => affine(values, weights, top, highest),
        (Zero::Symmetric, Code::Table) => {
            let ends = [TABLE[0], TABLE[15]].map(|level| f32::from(level) - zero);
            symmetric(&Group::of(*values, weights), ends, |scaled| scaled.map(|value| LEVELS[table_index(value)]))
        }
        (Zero::Symmetric, _) => {
            symmetric(&Group::of(*values, weights), [-zero, top - zero], |scaled| scaled.map(round))
        }
    }
}

/// Bits of `value + SHIFT` end in the nearest integer of a value below 2²², ties to even. The addition rounds, which
/// needs no instruction that old processors lack.
const SHIFT: f32 = 12_582_912.0;

/// The nearest integer of a value below 2²², ties to even.
pub fn round(value: f32) -> f32 {
    (value + SHIFT) - SHIFT
}

/// The lowest byte of [`round`].
pub fn rounded_byte(value: f32) -> u8 {
    (value + SHIFT).to_bits() as u8
}

/// Where `LEVELS` and `CODES` hold what is nearest to a value from −127 to 113: half-integers part the levels, so its
/// half is what counts.
pub fn table_index(value: f32) -> usize {
    ((2.0 * value - 0.5) + SHIFT).to_bits() as usize % NEAREST
}

const NEAREST: usize = 512;

/// The codebook's code nearest to a value, by [`table_index`].
pub const CODES: [u8; NEAREST] = {
    let mut codes = [0; NEAREST];
    let mut at = 0;
    while at < NEAREST {
        // The index counts from −256 on, modulo 512; twice the middle of what falls on it is 2 · half + 1.
        let half = if at < NEAREST / 2 { at as i32 } else { at as i32 - NEAREST as i32 };
        let mut code = 0;
        while code < 15 && 2 * (half + 256) + 1 > 2 * (TABLE[code] as i32 + TABLE[code + 1] as i32) {
            code += 1;
        }
        codes[at] = code as u8;
        at += 1;
    }
    codes
};

/// The codebook's level, less its zero, nearest to a value, by [`table_index`].
const LEVELS: [f32; NEAREST] = {
    let mut levels = [0.0; NEAREST];
    let mut at = 0;
    while at < NEAREST {
        levels[at] = (TABLE[CODES[at] as usize] as i32 - 128) as f32;
        at += 1;
    }
    levels
};

/// The values of a group with their weights, and the products of both.
struct Group<const N: usize> {
    values: [f32; N],
    weights: [f32; N],
    weighted: [f32; N],
}

impl<const N: usize> Group<N> {
    fn of(values: [f32; N], weights: [f32; N]) -> Group<N> {
        Group { values, weights, weighted: std::array::from_fn(|at| values[at] * weights[at]) }
    }

    /// `Σ weight · a · b` and `Σ weighted · a`.
    fn sums(&self, a: &[f32; N], b: &[f32; N]) -> [f32; 2] {
        let mut lanes = [[0.0f32; LANES]; 2];
        for at in (0..N).step_by(LANES) {
            for lane in 0..LANES {
                lanes[0][lane] += self.weights[at + lane] * a[at + lane] * b[at + lane];
                lanes[1][lane] += self.weighted[at + lane] * a[at + lane];
            }
        }
        lanes.map(total)
    }
}

fn total(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The share of the range that each tried scale spans.
fn shares() -> impl Iterator<Item = f32> {
    (0..STEPS).map(|step| FROM + (TO - FROM) * step as f32 / (STEPS - 1) as f32)
}

/// `w = scale · code + min`.
fn affine<const N: usize>(values: &[f32; N], weights: [f32; N], top: f32, highest: f32) -> [f32; 2] {
    let low = values.iter().copied().fold(highest, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return [0.0, low];
    }
    // Distances from the lowest value, whose squares lose less than those of the values when they are subtracted.
    let above = Group::of(values.map(|value| value - low), weights);
    let ones = [1.0; N];
    let [w, wx] = above.sums(&ones, &ones);
    // The best scale and minimum for the codes that an inverse scale and a minimum give, and what they take off the error.
    let fit = |inverse: f32, min: f32| {
        let codes = above.values.map(|value| round(((value - min) * inverse).max(0.0).min(top)));
        let [wcc, wcx] = above.sums(&codes, &codes);
        let [wc, _] = above.sums(&codes, &ones);
        let determinant = w * wcc - wc * wc;
        let mut scale = (w * wcx - wc * wx) / determinant;
        let mut min = (wcc * wx - wc * wcx) / determinant;
        if min > highest - low {
            (scale, min) = ((wcx - (highest - low) * wc) / wcc, highest - low);
        }
        let gain = 2.0 * (scale * wcx + min * wx) - scale * scale * wcc - 2.0 * scale * min * wc - min * min * w;
        // Codes that are all alike leave no scale.
        (scale, min, if scale > 0.0 && gain.is_finite() { gain } else { f32::NEG_INFINITY })
    };
    let range = high - low;
    let fits = shares().map(|share| fit(top / (range * share), 0.0));
    let mut best = fits.fold((range / top, 0.0, f32::NEG_INFINITY), |best, of| if of.2 > best.2 { of } else { best });
    for _ in 0..REFINEMENTS {
        let next = fit(1.0 / best.0, best.1);
        if next.2 <= best.2 {
            break;
        }
        best = next;
    }
    [best.0, low + best.1]
}

/// `w = scale · level`, where levels reach from `ends[0]` to `ends[1]` and `levels` are those nearest to values between.
/// A scale of either sign is tried, because they reach further below zero.
fn symmetric<const N: usize>(group: &Group<N>, ends: [f32; 2], levels: impl Fn(&[f32; N]) -> [f32; N]) -> [f32; 2] {
    let peak = group.values.iter().copied().fold(0.0f32, |peak, x| if x.abs() > peak.abs() { x } else { peak });
    if peak == 0.0 {
        return [0.0, 0.0];
    }
    // The best scale for the levels that an inverse scale gives takes (Σ w x l)² / Σ w l² off the error.
    let fit = |inverse: f32| {
        let levels = levels(&group.values.map(|value| (value * inverse).max(ends[0]).min(ends[1])));
        let [wll, wxl] = group.sums(&levels, &levels);
        if wll > 0.0 { (wxl / wll, wxl * wxl / wll) } else { (0.0, 0.0) }
    };
    let tried = shares().flat_map(|share| ends.map(|end| end / (peak * share)));
    let mut best = tried.map(fit).fold((peak / ends[0], 0.0), |best, of| if of.1 > best.1 { of } else { best });
    for _ in 0..REFINEMENTS {
        let next = fit(1.0 / best.0);
        if next.1 <= best.1 {
            break;
        }
        best = next;
    }
    [best.0, 0.0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_level_is_found_by_index() {
        // Steps of an eighth, which no half-integer between two levels falls on but by itself.
        for eighth in -127 * 8..=113 * 8 {
            let value = eighth as f32 / 8.0;
            let distance = |code: u8| (f32::from(TABLE[usize::from(code)]) - 128.0 - value).abs();
            let code = CODES[table_index(value)];
            let nearest = (0..16).map(distance).fold(f32::INFINITY, f32::min);
            assert!(distance(code) <= nearest, "{value}: code {code}");
            assert!((LEVELS[table_index(value)] - value).abs() <= nearest, "{value}");
        }
    }
}
