//! Quantization of a matrix into another scheme.

use half::{bf16, f16};
use lathe_ir::scheme::{Code, Matrix, MatrixData, Scales, Scheme, Zero};
use lathe_ir::types::DType;

use super::search;

/// How the scale and minimum of a group are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// They span the group's range, and each value takes the nearest code. Symmetric: scale = max|w| / the largest level.
    /// With minima: scale = (max − min) / (2^bits − 1).
    Nearest,
    /// Searched for the least weighted squared error; see [`search`](super::search).
    Search,
}

/// The least bits of a code at which a search gains too little to be worth its time.
const EXACT_BITS: u8 = 8;

/// The matrix in another scheme; unchanged when it already is in it. Float schemes round each value. Scale and minimum
/// of codes below 8 bits are searched for.
pub fn quantize(matrix: &Matrix, scheme: Scheme) -> Matrix {
    quantize_by(if scheme.bits() < EXACT_BITS { Method::Search } else { Method::Nearest }, matrix, scheme)
}

/// As [`quantize`], by a method. With super-blocks, scales and minima are rounded to integer multiples of their f16. Codes
/// come from the scale and minimum that are stored.
pub fn quantize_by(method: Method, matrix: &Matrix, scheme: Scheme) -> Matrix {
    if let MatrixData::Quantized { scheme: stored, .. } = &matrix.data
        && *stored == scheme
    {
        return matrix.clone();
    }
    let (rows, cols) = (matrix.rows, matrix.cols);
    let values = matrix.to_f32();
    if let Code::Float(dtype) = scheme.code {
        let round = |value| match dtype {
            DType::Bf16 => bf16::from_f32(value).to_f32(),
            DType::F16 => f16::from_f32(value).to_f32(),
            DType::F32 | DType::I32 | DType::Int8 => value,
        };
        return Matrix { rows, cols, data: MatrixData::Float(values.into_iter().map(round).collect()) };
    }
    let mut codes = Vec::with_capacity(values.len());
    let (mut scales, mut mins, mut subs) = (Vec::new(), Vec::new(), Vec::new());
    for values in values.chunks(scheme.scale_columns()) {
        let rms = search::root_mean_square(values);
        let of = |group: &[f32]| match method {
            Method::Nearest => parameters(group, scheme),
            Method::Search => search::parameters(group, rms, scheme, highest_minimum(scheme)),
        };
        let ideal: Vec<[f32; 2]> = values.chunks(scheme.group).map(of).collect();
        let largest = |i: usize| ideal.iter().map(|of| of[i]).max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0);
        let top = match scheme.scales {
            Scales::F16 => 1,
            Scales::Super { bits } => (1 << bits) - 1 - i32::from(scheme.sub_zero()),
        };
        let outer = [0, 1].map(|i| f16::from_f32(largest(i) / top as f32));
        scales.push(outer[0]);
        if scheme.zero == Zero::Min {
            mins.push(outer[1]);
        }
        for (group, ideal) in values.chunks(scheme.group).zip(ideal) {
            let stored = [0, 1].map(|i| match scheme.scales {
                Scales::F16 => outer[i].to_f32(),
                Scales::Super { .. } => {
                    let integer = (ideal[i] * reciprocal(outer[i].to_f32())).round_ties_even();
                    let integer = integer.clamp(-f32::from(scheme.sub_zero()), top as f32);
                    if i < scheme.parameters() {
                        subs.push((integer as i32 + i32::from(scheme.sub_zero())) as u8);
                    }
                    outer[i].to_f32() * integer
                }
            });
            codes.extend(group.iter().map(|value| code((value - stored[1]) * reciprocal(stored[0]), scheme)));
        }
    }
    Matrix { rows, cols, data: MatrixData::Quantized { scheme, codes, scales, mins, subs } }
}

fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// What a minimum is at most: those of super-blocks share one factor, so that all have one sign.
fn highest_minimum(scheme: Scheme) -> f32 {
    if scheme.scales == Scales::F16 { f32::INFINITY } else { 0.0 }
}

/// Scale and minimum of a group, before they are rounded; the minimum is 0 in a symmetric scheme.
fn parameters(group: &[f32], scheme: Scheme) -> [f32; 2] {
    let low = group.iter().copied().fold(f32::INFINITY, f32::min);
    let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let low = low.min(highest_minimum(scheme));
    let top = (1u32 << scheme.bits()) - 1;
    match scheme.zero {
        Zero::Symmetric => {
            let top = scheme.level(top as u8) - scheme.zero_level();
            [low.abs().max(high.abs()) / f32::from(top), 0.0]
        }
        Zero::Min => [(high - low) / top as f32, low],
    }
}

/// The code whose level is nearest to a value in units of the scale.
fn code(value: f32, scheme: Scheme) -> u8 {
    let zero = f32::from(scheme.zero_level());
    if scheme.code == Code::Table {
        let (bottom, top) = (f32::from(scheme.level(0)) - zero, f32::from(scheme.most_level()) - zero);
        return search::CODES[search::table_index(value.max(bottom).min(top))];
    }
    let top = ((1u32 << scheme.bits()) - 1) as f32;
    search::rounded_byte((value + zero).max(0.0).min(top))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scheme: Scheme, bound: f32) {
        let values: Vec<f32> = (0..16 * 256).map(|i| ((i * 37 % 101) as f32 - 40.0) / 13.0).collect();
        let matrix = Matrix { rows: 16, cols: 256, data: MatrixData::Float(values.clone()) };
        let back = quantize_by(Method::Nearest, &matrix, scheme).to_f32();
        let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
        let difference: Vec<f32> = values.iter().zip(&back).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / norm(&values);
        assert!(error < bound, "{scheme}: relative error {error} above {bound}");
        assert!(scheme == Scheme::F32 || error > 0.0, "{scheme}: rounding must be visible");
    }

    #[test]
    fn errors_match_the_number_of_bits() {
        // Uniform rounding error of a step Δ is Δ/√12; the range is about ±3.5 of an rms of about 2.4.
        check(Scheme::INT8, 0.01);
        check(Scheme::INT6_SUPER, 0.03);
        check(Scheme::INT6_SYMMETRIC, 0.03);
        check(Scheme::INT5, 0.05);
        check(Scheme::INT5_SUPER, 0.05);
        check(Scheme::INT5_SYMMETRIC, 0.06);
        check(Scheme::INT4, 0.1);
        check(Scheme::INT4_SUPER, 0.1);
        check(Scheme::INT4_SYMMETRIC, 0.12);
        check(Scheme::IQ4, 0.12);
        check(Scheme::IQ4_SUPER, 0.12);
        check(Scheme::INT3_SUPER, 0.3);
        check(Scheme::INT2_SUPER, 0.5);
        check(Scheme::F32, 1e-12);
    }

    /// Σ importance · difference² over a matrix.
    fn weighted_error(source: &[f32], back: &[f32]) -> f64 {
        let groups = source.chunks(32).zip(back.chunks(32));
        let of = |(source, back): (&[f32], &[f32])| {
            let rms = search::root_mean_square(source);
            let terms = source.iter().zip(back);
            terms.map(|(a, b)| f64::from(search::importance(*a, rms)) * f64::from(a - b).powi(2)).sum::<f64>()
        };
        groups.map(of).sum()
    }

    #[test]
    fn a_search_loses_less_than_rounding_to_the_nearest() {
        // Sums of uniform numbers have the bell shape of weights.
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let values: Vec<f32> = (0..32 * 512).map(|_| (0..6).map(|_| uniform()).sum()).collect();
        let matrix = Matrix { rows: 32, cols: 512, data: MatrixData::Float(values.clone()) };
        for scheme in Scheme::ALL.into_iter().filter(|scheme| scheme.is_integer() && scheme.bits() < EXACT_BITS) {
            let error = |method| weighted_error(&values, &quantize_by(method, &matrix, scheme).to_f32());
            let (nearest, searched) = (error(Method::Nearest), error(Method::Search));
            assert!(searched < 0.97 * nearest, "{scheme}: {searched} of {nearest}");
        }
    }

    #[test]
    fn zeros_stay_zero() {
        let matrix = Matrix { rows: 16, cols: 256, data: MatrixData::Float(vec![0.0; 4096]) };
        for scheme in Scheme::ALL {
            assert_eq!(quantize(&matrix, scheme).to_f32(), vec![0.0; 4096], "{scheme}");
        }
    }
}
