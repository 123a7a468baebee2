//! Round-to-nearest quantization of a matrix into another scheme.

use half::f16;
use lathe_ir::scheme::{Code, Matrix, MatrixData, Scheme, Zero};

/// The matrix in another scheme; unchanged when it already is in it. Float schemes take the values as f32 (packing
/// rounds them). Symmetric: scale = max|w| / (2^(bits−1) − 1). With minima: scale = (max − min) / (2^bits − 1), code
/// from the rounded scale and minimum, so that the error is measured against what is stored.
pub fn quantize(matrix: &Matrix, scheme: Scheme) -> Matrix {
    if let MatrixData::Quantized { scheme: stored, .. } = &matrix.data
        && *stored == scheme
    {
        return matrix.clone();
    }
    let (rows, cols) = (matrix.rows, matrix.cols);
    let values = matrix.to_f32();
    let Code::Uniform { bits } = scheme.code else { return Matrix { rows, cols, data: MatrixData::Float(values) } };
    let mut codes = Vec::with_capacity(values.len());
    let mut scales = Vec::with_capacity(values.len() / scheme.group);
    let mut mins = Vec::new();
    for group in values.chunks(scheme.group) {
        match scheme.zero {
            Zero::Symmetric => scales.push(symmetric(group, bits, &mut codes)),
            Zero::Min => {
                let (scale, min) = affine(group, bits, &mut codes);
                scales.push(scale);
                mins.push(min);
            }
        }
    }
    Matrix { rows, cols, data: MatrixData::Quantized { scheme, codes, scales, mins } }
}

fn reciprocal(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

fn symmetric(group: &[f32], bits: u8, codes: &mut Vec<u8>) -> f16 {
    let zero = (1u32 << (bits - 1)) as f32;
    let largest = group.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / (zero - 1.0));
    let inverse = reciprocal(scale.to_f32());
    codes.extend(
        group.iter().map(|value| ((value * inverse).round_ties_even() + zero).clamp(0.0, 2.0 * zero - 1.0) as u8),
    );
    scale
}

fn affine(group: &[f32], bits: u8, codes: &mut Vec<u8>) -> (f16, f16) {
    let top = ((1u32 << bits) - 1) as f32;
    let low = group.iter().copied().fold(f32::INFINITY, f32::min);
    let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (scale, min) = (f16::from_f32((high - low) / top), f16::from_f32(low));
    let inverse = reciprocal(scale.to_f32());
    codes.extend(group.iter().map(|value| ((value - min.to_f32()) * inverse).round_ties_even().clamp(0.0, top) as u8));
    (scale, min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scheme: Scheme, bound: f32) {
        let values: Vec<f32> = (0..16 * 64).map(|i| ((i * 37 % 101) as f32 - 40.0) / 13.0).collect();
        let matrix = Matrix { rows: 16, cols: 64, data: MatrixData::Float(values.clone()) };
        let back = quantize(&matrix, scheme).to_f32();
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
        check(Scheme::INT4, 0.1);
        check(Scheme::F32, 1e-12);
    }

    #[test]
    fn zeros_stay_zero() {
        let matrix = Matrix { rows: 16, cols: 32, data: MatrixData::Float(vec![0.0; 512]) };
        for scheme in [Scheme::INT8, Scheme::INT4] {
            assert_eq!(quantize(&matrix, scheme).to_f32(), vec![0.0; 512]);
        }
    }
}
