//! Tensors of a GGUF file: their types, where they lie, and their decoding into matrices.
//!
//! The integer types are kept exactly: Q4_1 is `scale · code + min` and Q8_0 is `scale · code`, both in blocks of 32
//! along a row with f16 parameters, which is what the schemes `int4:g32+min` and `int8:g32` say.

use std::ops::Range;

use half::{bf16, f16};
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};

/// Elements of a row that share a scale, in both quantized types.
pub(super) const BLOCK: usize = 32;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32: f16 scale, f16 minimum, 16 bytes of codes (low nibbles first half, high nibbles second half).
    Q4_1,
    /// Blocks of 32: f16 scale, 32 signed bytes.
    Q8_0,
}

impl TensorType {
    /// The type with this number, or the name of one that is not supported.
    pub(super) fn from_id(id: u32) -> Result<TensorType, String> {
        const OTHERS: &[(u32, &str)] = &[
            (2, "Q4_0"),
            (6, "Q5_0"),
            (7, "Q5_1"),
            (9, "Q8_1"),
            (10, "Q2_K"),
            (11, "Q3_K"),
            (12, "Q4_K"),
            (13, "Q5_K"),
            (14, "Q6_K"),
            (15, "Q8_K"),
            (16, "IQ2_XXS"),
            (17, "IQ2_XS"),
            (18, "IQ3_XXS"),
            (19, "IQ1_S"),
            (20, "IQ4_NL"),
            (21, "IQ3_S"),
            (22, "IQ2_S"),
            (23, "IQ4_XS"),
            (24, "I8"),
            (25, "I16"),
            (26, "I32"),
            (27, "I64"),
            (28, "F64"),
            (29, "IQ1_M"),
            (34, "TQ1_0"),
            (35, "TQ2_0"),
            (39, "MXFP4"),
        ];
        match id {
            0 => Ok(TensorType::F32),
            1 => Ok(TensorType::F16),
            3 => Ok(TensorType::Q4_1),
            8 => Ok(TensorType::Q8_0),
            30 => Ok(TensorType::Bf16),
            _ => Err(match OTHERS.iter().find(|(other, _)| *other == id) {
                Some((_, name)) => (*name).to_owned(),
                None => format!("the unknown type {id}"),
            }),
        }
    }

    /// The number of the type in the format.
    pub(super) fn id(self) -> u32 {
        match self {
            TensorType::F32 => 0,
            TensorType::F16 => 1,
            TensorType::Q4_1 => 3,
            TensorType::Q8_0 => 8,
            TensorType::Bf16 => 30,
        }
    }

    /// Elements and bytes of a block, the unit in which a row is stored.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            TensorType::F32 => (1, 4),
            TensorType::F16 | TensorType::Bf16 => (1, 2),
            TensorType::Q4_1 => (BLOCK, 2 + 2 + BLOCK / 2),
            TensorType::Q8_0 => (BLOCK, 2 + BLOCK),
        }
    }

    /// The scheme that the type comes closest to. All but F16 are held exactly; the graph has no f16 weights, so that
    /// F16 counts as bf16, with the error that this makes recorded by whoever converts.
    pub fn scheme(self) -> Scheme {
        match self {
            TensorType::F32 => Scheme::F32,
            TensorType::F16 | TensorType::Bf16 => Scheme::BF16,
            TensorType::Q4_1 => Scheme::INT4,
            TensorType::Q8_0 => Scheme::INT8,
        }
    }
}

/// A tensor in the file. Its range was checked: it lies in the file and holds exactly `rows` rows of `cols`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// How it is stored.
    pub ty: TensorType,
    /// Elements of a row: the first dimension.
    pub cols: usize,
    /// The product of all other dimensions; 1 for a vector.
    pub rows: usize,
    /// Bytes in the file.
    pub bytes: Range<usize>,
    /// Dimensions, innermost first, without trailing ones.
    pub dims: Vec<usize>,
}

/// Decodes whole rows of `cols` elements.
pub(super) fn decode(ty: TensorType, bytes: &[u8], cols: usize) -> Matrix {
    let (block, block_bytes) = ty.block();
    let rows = bytes.len() / (cols / block * block_bytes);
    let data = match ty {
        TensorType::F32 => {
            MatrixData::Float(bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect())
        }
        TensorType::F16 => {
            MatrixData::Float(bytes.as_chunks().0.iter().map(|&chunk| f16::from_le_bytes(chunk).to_f32()).collect())
        }
        TensorType::Bf16 => {
            MatrixData::Float(bytes.as_chunks().0.iter().map(|&chunk| bf16::from_le_bytes(chunk).to_f32()).collect())
        }
        TensorType::Q4_1 => decode_q4_1(bytes),
        TensorType::Q8_0 => decode_q8_0(bytes),
    };
    Matrix { rows, cols, data }
}

fn decode_q4_1(bytes: &[u8]) -> MatrixData {
    const BYTES: usize = 4 + BLOCK / 2;
    let blocks = bytes.as_chunks::<BYTES>().0;
    let mut codes = Vec::with_capacity(blocks.len() * BLOCK);
    let mut scales = Vec::with_capacity(blocks.len());
    let mut mins = Vec::with_capacity(blocks.len());
    for block in blocks {
        scales.push(f16::from_le_bytes([block[0], block[1]]));
        mins.push(f16::from_le_bytes([block[2], block[3]]));
        codes.extend(block[4..].iter().map(|byte| byte & 0xf));
        codes.extend(block[4..].iter().map(|byte| byte >> 4));
    }
    MatrixData::Quantized { scheme: Scheme::INT4, codes, scales, mins }
}

fn decode_q8_0(bytes: &[u8]) -> MatrixData {
    const BYTES: usize = 2 + BLOCK;
    let blocks = bytes.as_chunks::<BYTES>().0;
    let mut codes = Vec::with_capacity(blocks.len() * BLOCK);
    let mut scales = Vec::with_capacity(blocks.len());
    for block in blocks {
        scales.push(f16::from_le_bytes([block[0], block[1]]));
        // A signed byte plus 128 is the byte with its top bit flipped.
        codes.extend(block[2..].iter().map(|byte| byte ^ 0x80));
    }
    MatrixData::Quantized { scheme: Scheme::INT8, codes, scales, mins: Vec::new() }
}
