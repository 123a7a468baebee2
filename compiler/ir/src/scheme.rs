//! Quantization schemes as data: how the numbers of a weight matrix are stored.
//!
//! A scheme prints in the text IR as `bf16`, `f32`, `int8:g32` (symmetric, groups of 32 along K) or `int4:g32+min`
//! (affine: `w = scale · code + min`). Kernels and packers are generated from it.

use std::fmt;
use std::str::FromStr;

use half::f16;

use crate::types::DType;

/// What one stored element means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// The value itself, in a float type; no groups, no scales.
    Float(DType),
    /// An unsigned integer of this many bits, evenly spaced.
    Uniform {
        /// Bits per code: 4 or 8.
        bits: u8,
    },
}

/// Where zero lies in a group of uniform codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Zero {
    /// `w = scale · (code − 2^(bits−1))`.
    Symmetric,
    /// `w = scale · code + min`, with an f16 minimum per group.
    Min,
}

/// A quantization scheme. Scales (and minima) are f16, one per row and group of `group` elements along K.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scheme {
    /// The code of an element.
    pub code: Code,
    /// Elements along K that share a scale; 0 for float codes.
    pub group: usize,
    /// The zero point of uniform codes; `Symmetric` for float codes.
    pub zero: Zero,
}

impl Scheme {
    /// Plain bfloat16.
    pub const BF16: Scheme = Scheme { code: Code::Float(DType::Bf16), group: 0, zero: Zero::Symmetric };
    /// Plain single precision.
    pub const F32: Scheme = Scheme { code: Code::Float(DType::F32), group: 0, zero: Zero::Symmetric };
    /// 8 bits, symmetric, groups of 32 (holds GGUF's Q8_0 exactly): 8.5 bits per weight.
    pub const INT8: Scheme = Scheme { code: Code::Uniform { bits: 8 }, group: 32, zero: Zero::Symmetric };
    /// 4 bits, affine, groups of 32 (holds GGUF's Q4_1 exactly): 5 bits per weight.
    pub const INT4: Scheme = Scheme { code: Code::Uniform { bits: 4 }, group: 32, zero: Zero::Min };

    /// Every scheme that kernels and packers exist for.
    pub const ALL: [Scheme; 4] = [Scheme::F32, Scheme::BF16, Scheme::INT8, Scheme::INT4];

    /// Whether codes are integers, which allows int8 activations.
    pub fn is_integer(self) -> bool {
        matches!(self.code, Code::Uniform { .. })
    }

    /// Bytes of a row of `k` elements, scales included. `k` is a multiple of the group.
    pub fn row_bytes(self, k: usize) -> usize {
        match self.code {
            Code::Float(dtype) => k * dtype.bytes(),
            Code::Uniform { bits } => {
                let extra = if self.zero == Zero::Min { 4 } else { 2 };
                k * usize::from(bits) / 8 + k / self.group * extra
            }
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Code::Float(dtype) => write!(f, "{dtype}"),
            Code::Uniform { bits } => {
                let min = if self.zero == Zero::Min { "+min" } else { "" };
                write!(f, "int{bits}:g{}{min}", self.group)
            }
        }
    }
}

impl FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Scheme, String> {
        Scheme::ALL.into_iter().find(|scheme| scheme.to_string() == text).ok_or_else(|| {
            let known: Vec<String> = Scheme::ALL.iter().map(Scheme::to_string).collect();
            format!("unknown scheme '{text}'; known schemes are {}", known.join(", "))
        })
    }
}

/// A weight matrix in memory, row by row, before packing.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows (outputs), N.
    pub rows: usize,
    /// Columns (inputs), K.
    pub cols: usize,
    /// The elements.
    pub data: MatrixData,
}

/// The elements of a [`Matrix`].
#[derive(Clone, Debug, PartialEq)]
pub enum MatrixData {
    /// Plain values.
    Float(Vec<f32>), // [N, K]
    /// Integer codes with scales.
    Quantized {
        /// A scheme with a uniform code.
        scheme: Scheme,
        /// One code per byte.
        codes: Vec<u8>, // [N, K]
        /// Scales.
        scales: Vec<f16>, // [N, K/group]
        /// Minima; empty when symmetric.
        mins: Vec<f16>, // [N, K/group]
    },
}

impl Matrix {
    /// The values of one row as f32: `scale · code + min`, each product and sum rounded to f32.
    pub fn row(&self, n: usize, out: &mut [f32]) {
        let k = self.cols;
        match &self.data {
            MatrixData::Float(values) => out.copy_from_slice(&values[n * k..(n + 1) * k]),
            MatrixData::Quantized { scheme, codes, scales, mins } => {
                let Code::Uniform { bits } = scheme.code else { unreachable!("a quantized matrix has uniform codes") };
                let groups = k / scheme.group;
                let half_range = 1i32 << (bits - 1);
                for (i, value) in out.iter_mut().enumerate() {
                    let code = i32::from(codes[n * k + i]);
                    let at = n * groups + i / scheme.group;
                    *value = match scheme.zero {
                        Zero::Symmetric => scales[at].to_f32() * (code - half_range) as f32,
                        Zero::Min => scales[at].to_f32() * code as f32 + mins[at].to_f32(),
                    };
                }
            }
        }
    }

    /// All values as f32, row by row: [N, K].
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (n, row) in out.chunks_mut(self.cols.max(1)).enumerate() {
            self.row(n, row);
        }
        out
    }
}
