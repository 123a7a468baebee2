//! Which bits of packed weights are free to be random: all bits of codes, the mantissas of scales, so that weights made
//! from a generator are finite and of about the size that a trained matrix has, 1/√K.

use half::{bf16, f16};
use lathe_ir::scheme::{Code, Scales, Scheme, Zero};
use lathe_ir::types::DType;

use crate::spec::{BLOCK_ROWS, GROUP};

/// Consecutive bytes of which every 32-bit word has the same fixed and free bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes, a multiple of 4.
    pub bytes: usize,
    /// Bits that are fixed.
    pub fixed: u32,
    /// Bits that are free.
    pub free: u32,
}

/// The mantissa of an f16.
const F16_MANTISSA: u16 = 0x03ff;
/// The mantissa of a bf16.
const BF16_MANTISSA: u16 = 0x007f;
/// The sign of both.
const SIGN: u16 = 0x8000;
/// The least exponent of an f16 that is not subnormal.
const F16_LEAST: i32 = -14;
/// Elements of a vector: from a half to below one, what weights of norms are like.
pub const VECTOR: Run = Run { bytes: 4, fixed: 0x3f00_0000, free: 0x007f_ffff };

/// The runs of a block of 16 rows over one span of columns, again and again: a matrix of `cols` columns.
pub fn runs(scheme: Scheme, cols: usize) -> Vec<Run> {
    let size = -(cols.max(1) as f64).log2() / 2.0;
    let lines = scheme.row_bytes(scheme.span()) * BLOCK_ROWS;
    let halves = |bytes: usize, fixed: u16, free: u16| Run { bytes, fixed: twice(fixed), free: twice(free) };
    match scheme.code {
        Code::Float(DType::F16) => {
            vec![halves(lines, f16::from_f64(power(size, F16_LEAST)).to_bits(), SIGN | F16_MANTISSA)]
        }
        Code::Float(DType::Bf16) => {
            vec![halves(lines, bf16::from_f64(power(size, -100)).to_bits(), SIGN | BF16_MANTISSA)]
        }
        Code::Float(DType::F32 | DType::I32 | DType::Int8) => {
            let fixed = (power(size, -100) as f32).to_bits();
            vec![Run { bytes: lines, fixed, free: 0x807f_ffff }]
        }
        Code::Uniform { .. } | Code::Table => {
            // Integer scales are half their range on average.
            let sub = match scheme.scales {
                Scales::F16 => 0.0,
                Scales::Super { bits } => f64::from(bits) - if scheme.zero == Zero::Symmetric { 2.0 } else { 1.0 },
            };
            let levels = f64::from(scheme.most_level()).log2();
            let scale = f16::from_f64(power(size - levels + 1.0 - sub, F16_LEAST)).to_bits();
            let min = f16::from_f64(-power(size - sub, F16_LEAST)).to_bits();
            let floats = 2 * BLOCK_ROWS * scheme.span() / scheme.scale_columns();
            let mut runs = vec![
                Run { bytes: lines - scheme.parameters() * floats, fixed: 0, free: u32::MAX },
                halves(floats, scale, F16_MANTISSA),
            ];
            if scheme.zero == Zero::Min {
                runs.push(halves(floats, min, F16_MANTISSA));
            }
            debug_assert!(scheme.span().is_multiple_of(GROUP));
            runs
        }
    }
}

/// The power of two next to an exponent, no smaller than that of `least`.
fn power(exponent: f64, least: i32) -> f64 {
    exponent.round().max(f64::from(least)).exp2()
}

fn twice(half: u16) -> u32 {
    u32::from(half) | u32::from(half) << 16
}

#[cfg(test)]
mod tests {
    use lathe_ir::scheme::{Matrix, MatrixData};

    use super::*;
    use crate::packing::pack;

    #[test]
    fn scales_lie_where_packing_puts_them() {
        for scheme in Scheme::ALL.into_iter().filter(|scheme| scheme.is_integer()) {
            let (rows, cols) = (32, 2 * scheme.span());
            let outer = rows * cols / scheme.scale_columns();
            let (scale, min) = (f16::from_bits(0x1234), f16::from_bits(0x5678));
            let data = MatrixData::Quantized {
                scheme,
                codes: vec![0; rows * cols],
                scales: vec![scale; outer],
                mins: if scheme.zero == Zero::Min { vec![min; outer] } else { Vec::new() },
                subs: match scheme.scales {
                    Scales::F16 => Vec::new(),
                    Scales::Super { .. } => vec![0; rows * cols / scheme.group * scheme.parameters()],
                },
            };
            let mut packed = Vec::new();
            pack(&Matrix { rows, cols, data }, scheme, &mut packed);
            let runs = runs(scheme, cols);
            let period: usize = runs.iter().map(|run| run.bytes).sum();
            assert_eq!(packed.len() % period, 0, "{scheme}");
            let expected = [0, twice(0x1234), twice(0x5678)];
            let mut at = 0;
            while at < packed.len() {
                for (run, expected) in runs.iter().zip(expected) {
                    let words = packed[at..at + run.bytes].as_chunks::<4>().0;
                    assert!(words.iter().all(|word| u32::from_le_bytes(*word) == expected), "{scheme} at {at}");
                    at += run.bytes;
                }
            }
        }
    }

    #[test]
    fn numbers_are_finite_and_about_as_large_as_trained_ones() {
        for scheme in Scheme::ALL {
            for cols in [576, 4096, 14_336] {
                let last = runs(scheme, cols).into_iter().find(|run| run.fixed != 0).expect("a run of floats");
                for free in [0, last.free] {
                    let word = last.fixed | free;
                    let value = match scheme.code {
                        Code::Float(DType::F32) => f64::from(f32::from_bits(word)),
                        Code::Float(DType::Bf16) => f64::from(bf16::from_bits(word as u16)),
                        _ => f64::from(f16::from_bits(word as u16)),
                    };
                    assert!(value.is_finite() && value != 0.0, "{scheme}: {value}");
                    let largest = match scheme.scales {
                        _ if !scheme.is_integer() => 1.0,
                        Scales::F16 => f64::from(scheme.most_level()),
                        Scales::Super { bits } => f64::from(scheme.most_level()) * f64::from(1u32 << bits),
                    };
                    assert!(value.abs() * largest < 4.0, "{scheme} of {cols} columns: {}", value * largest);
                }
            }
        }
    }
}
