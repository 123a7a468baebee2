//! Quantization schemes as data: how the numbers of a weight matrix are stored.
//!
//! A scheme prints in the text IR as `bf16`, `f32`, `int8:g32` (symmetric, groups of 32 along K), `int4:g32+min`
//! (affine: `w = scale · code + min`), `iq4:g32` (codes index a table of 16 levels) or `int6:g16s8/256` (the scales of
//! groups of 16 are 8-bit integers, times one f16 for each 256 columns). Kernels and packers are generated from it, so
//! that one line in the table of [`Scheme::ALL`] adds a scheme.

use std::fmt;
use std::str::FromStr;

use half::f16;

use crate::types::DType;

/// Columns that every scheme repeats after, at the least: what kernels take at once.
const COLUMNS: usize = 32;
/// Columns of a super-block: those whose integer scales share one f16.
const SUPER_COLUMNS: usize = 256;
/// Levels of the codebook of [`Code::Table`], plus 128: finer around zero, where weights are. The values are those of
/// GGUF's types `IQ4_NL` and `IQ4_XS`.
pub const TABLE: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// What one stored element means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// The value itself, in a float type; no groups, no scales.
    Float(DType),
    /// An unsigned integer of this many bits, evenly spaced.
    Uniform {
        /// Bits per code: 2, 3, 4, 5, 6 or 8.
        bits: u8,
    },
    /// An index into [`TABLE`], 4 bits.
    Table,
}

/// Where zero lies in a group of integer codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Zero {
    /// `w = scale · (level − zero)`, where zero is the middle level.
    Symmetric,
    /// `w = scale · level + min`, with a minimum per group.
    Min,
}

/// How the scales (and minima) of groups are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scales {
    /// An f16 each.
    F16,
    /// Integers that a super-block of 256 columns multiplies by one f16 (and the minima by another one). Those of a
    /// symmetric scheme are signed, stored plus half their range; those of a scheme with minima are unsigned.
    Super {
        /// Bits per scale and minimum: 4, 6 or 8.
        bits: u8,
    },
}

/// A quantization scheme: the form of codes, scales and minima of each row and group of `group` elements along K.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scheme {
    /// The code of an element.
    pub code: Code,
    /// Elements along K that share a scale; 16 or 32, 0 for float codes.
    pub group: usize,
    /// The zero point of integer codes; `Symmetric` for float codes.
    pub zero: Zero,
    /// The form of scales and minima; `F16` for float codes.
    pub scales: Scales,
}

const fn float(dtype: DType) -> Scheme {
    Scheme { code: Code::Float(dtype), group: 0, zero: Zero::Symmetric, scales: Scales::F16 }
}

const fn plain(bits: u8, zero: Zero) -> Scheme {
    Scheme { code: Code::Uniform { bits }, group: 32, zero, scales: Scales::F16 }
}

const fn nested(bits: u8, group: usize, zero: Zero, scale_bits: u8) -> Scheme {
    Scheme { code: Code::Uniform { bits }, group, zero, scales: Scales::Super { bits: scale_bits } }
}

const fn table(scales: Scales) -> Scheme {
    Scheme { code: Code::Table, group: 32, zero: Zero::Symmetric, scales }
}

/// The constants and [`Scheme::ALL`].
macro_rules! schemes {
    ($($(#[$doc:meta])* $name:ident = $scheme:expr;)+) => {
        impl Scheme {
            $($(#[$doc])* pub const $name: Scheme = $scheme;)+

            /// Every scheme that kernels and packers exist for.
            pub const ALL: [Scheme; [$(stringify!($name)),+].len()] = [$(Scheme::$name),+];
        }
    };
}

schemes! {
    /// Plain single precision.
    F32 = float(DType::F32);
    /// Plain bfloat16.
    BF16 = float(DType::Bf16);
    /// Plain half precision.
    F16 = float(DType::F16);
    /// 8 bits, symmetric, groups of 32 (holds GGUF's `Q8_0` exactly): 8.5 bits per weight.
    INT8 = plain(8, Zero::Symmetric);
    /// 4 bits, affine, groups of 32 (holds GGUF's `Q4_1` exactly): 5 bits per weight.
    INT4 = plain(4, Zero::Min);
    /// 4 bits, symmetric, groups of 32 (`Q4_0`): 4.5 bits per weight.
    INT4_SYMMETRIC = plain(4, Zero::Symmetric);
    /// 5 bits, symmetric, groups of 32 (`Q5_0`): 5.5 bits per weight.
    INT5_SYMMETRIC = plain(5, Zero::Symmetric);
    /// 5 bits, affine, groups of 32 (`Q5_1`): 6 bits per weight.
    INT5 = plain(5, Zero::Min);
    /// 6 bits, symmetric, groups of 32, for rows that no super-block divides: 6.5 bits per weight.
    INT6_SYMMETRIC = plain(6, Zero::Symmetric);
    /// 2 bits, affine, groups of 16 with 4-bit scales and minima (`Q2_K`): 2.625 bits per weight.
    INT2_SUPER = nested(2, 16, Zero::Min, 4);
    /// 3 bits, symmetric, groups of 16 with 6-bit scales (`Q3_K`): 3.4375 bits per weight.
    INT3_SUPER = nested(3, 16, Zero::Symmetric, 6);
    /// 4 bits, affine, groups of 32 with 6-bit scales and minima (`Q4_K`): 4.5 bits per weight.
    INT4_SUPER = nested(4, 32, Zero::Min, 6);
    /// 5 bits, affine, groups of 32 with 6-bit scales and minima (`Q5_K`): 5.5 bits per weight.
    INT5_SUPER = nested(5, 32, Zero::Min, 6);
    /// 6 bits, symmetric, groups of 16 with 8-bit scales (`Q6_K`): 6.5625 bits per weight.
    INT6_SUPER = nested(6, 16, Zero::Symmetric, 8);
    /// Codebook of 16 levels, groups of 32 (`IQ4_NL`): 4.5 bits per weight.
    IQ4 = table(Scales::F16);
    /// Codebook of 16 levels, groups of 32 with 6-bit scales (`IQ4_XS`): 4.25 bits per weight.
    IQ4_SUPER = table(Scales::Super { bits: 6 });
}

/// The pieces that codes of so many bits are stored in, low bits first: widths that divide a word, so that a 5-bit code
/// is a nibble in one plane and a bit in another.
pub fn pieces(bits: u8) -> &'static [u8] {
    match bits {
        3 => &[2, 1],
        5 => &[4, 1],
        6 => &[4, 2],
        2 => &[2],
        4 => &[4],
        _ => &[8],
    }
}

impl Scheme {
    /// Whether codes are integers, which allows int8 activations.
    pub fn is_integer(self) -> bool {
        !matches!(self.code, Code::Float(_))
    }

    /// Bits of a stored element.
    pub fn bits(self) -> u8 {
        match self.code {
            Code::Float(dtype) => 8 * dtype.bytes() as u8,
            Code::Uniform { bits } => bits,
            Code::Table => 4,
        }
    }

    /// The level of a code: the code itself, or its entry of the table. Always a byte.
    pub fn level(self, code: u8) -> u8 {
        if self.code == Code::Table { TABLE[usize::from(code % 16)] } else { code }
    }

    /// The largest level of integer codes; 0 for float codes.
    pub fn most_level(self) -> u8 {
        match self.code {
            Code::Float(_) => 0,
            Code::Uniform { bits } => u8::MAX >> (8 - bits),
            Code::Table => TABLE[15],
        }
    }

    /// The level that means zero in a symmetric scheme; 0 with minima.
    pub fn zero_level(self) -> u8 {
        match (self.code, self.zero) {
            (Code::Uniform { bits }, Zero::Symmetric) => 1 << (bits - 1),
            (Code::Table, _) => 128,
            (Code::Float(_), _) | (_, Zero::Min) => 0,
        }
    }

    /// Columns after which the stored form of a row repeats: 32, or 256 with super-blocks. Rows are whole spans.
    pub fn span(self) -> usize {
        if self.scales == Scales::F16 { COLUMNS } else { SUPER_COLUMNS }
    }

    /// Columns that share one f16 scale.
    pub fn scale_columns(self) -> usize {
        if self.scales == Scales::F16 { self.group } else { SUPER_COLUMNS }
    }

    /// Parameters of a group: its scale, and its minimum where there is one.
    pub fn parameters(self) -> usize {
        if self.zero == Zero::Min { 2 } else { 1 }
    }

    /// The stored integer that means zero among the scales of super-blocks.
    pub fn sub_zero(self) -> u8 {
        match (self.scales, self.zero) {
            (Scales::Super { bits }, Zero::Symmetric) => 1 << (bits - 1),
            _ => 0,
        }
    }

    /// Bytes of a row of `k` elements, scales included. `k` is a multiple of the span.
    pub fn row_bytes(self, k: usize) -> usize {
        let codes = k * usize::from(self.bits()) / 8;
        if !self.is_integer() {
            return codes;
        }
        let integers = match self.scales {
            Scales::F16 => 0,
            Scales::Super { bits } => k / self.group * self.parameters() * usize::from(bits) / 8,
        };
        codes + integers + k / self.scale_columns() * self.parameters() * 2
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Code::Float(dtype) => return write!(f, "{dtype}"),
            Code::Uniform { bits } => write!(f, "int{bits}:g{}", self.group)?,
            Code::Table => write!(f, "iq4:g{}", self.group)?,
        }
        if let Scales::Super { bits } = self.scales {
            write!(f, "s{bits}/{SUPER_COLUMNS}")?;
        }
        f.write_str(if self.zero == Zero::Min { "+min" } else { "" })
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
        /// A scheme with integer codes.
        scheme: Scheme,
        /// One code per byte.
        codes: Vec<u8>, // [N, K]
        /// Scales of groups, or of super-blocks.
        scales: Vec<f16>, // [N, K/group] or [N, K/256]
        /// Minima; empty when symmetric.
        mins: Vec<f16>, // as scales
        /// Integer scales of the groups of super-blocks, each followed by the integer minimum if there is one; empty
        /// without super-blocks.
        subs: Vec<u8>, // [N, K/group, 1 or 2]
    },
}

impl Matrix {
    /// The values of one row as f32: `scale · (level − zero)` or `scale · level + min`, each product and sum rounded to
    /// f32. With super-blocks, scale and minimum are products of an f16 and an integer, which f32 holds exactly.
    pub fn row(&self, n: usize, out: &mut [f32]) {
        let k = self.cols;
        match &self.data {
            MatrixData::Float(values) => out.copy_from_slice(&values[n * k..(n + 1) * k]),
            MatrixData::Quantized { scheme, codes, scales, mins, subs } => {
                let (zero, sub_zero) = (i32::from(scheme.zero_level()), i32::from(scheme.sub_zero()));
                let parameters = scheme.parameters();
                let codes = codes[n * k..(n + 1) * k].chunks(scheme.group);
                for (at, (codes, out)) in codes.zip(out.chunks_mut(scheme.group)).enumerate() {
                    let sub = |parameter: usize| match scheme.scales {
                        Scales::F16 => 1.0,
                        Scales::Super { .. } => {
                            let stored = subs[(n * (k / scheme.group) + at) * parameters + parameter];
                            (i32::from(stored) - sub_zero) as f32
                        }
                    };
                    let outer = n * (k / scheme.scale_columns()) + at * scheme.group / scheme.scale_columns();
                    let scale = scales[outer].to_f32() * sub(0);
                    let min = mins.get(outer).map(|min| min.to_f32() * sub(1));
                    for (value, &code) in out.iter_mut().zip(codes) {
                        let product = scale * (i32::from(scheme.level(code)) - zero) as f32;
                        *value = min.map_or(product, |min| product + min);
                    }
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
