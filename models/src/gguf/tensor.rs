//! Tensors of a GGUF file: their types, where they lie, and their decoding into matrices.
//!
//! Every type is kept exactly: its scheme has the same codes, groups, scales and minima. What a block looks like is
//! data, in one table; [`planes`] says how the bits of codes lie in it. The source of the layouts is the definition of
//! the blocks in ggml (`ggml-common.h`), and tests compare each with what the `gguf` package for Python makes of it.

use std::ops::Range;

use half::{bf16, f16};
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};

/// How a tensor is stored; the number is that of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the format's own names")]
#[repr(u32)]
pub enum TensorType {
    /// Single precision.
    F32 = 0,
    /// Half precision.
    F16 = 1,
    /// 4 bits and a scale per 32.
    Q4_0 = 2,
    /// 4 bits, a scale and a minimum per 32.
    Q4_1 = 3,
    /// 5 bits and a scale per 32.
    Q5_0 = 6,
    /// 5 bits, a scale and a minimum per 32.
    Q5_1 = 7,
    /// 8 bits and a scale per 32.
    Q8_0 = 8,
    /// 2 bits in super-blocks.
    Q2_K = 10,
    /// 3 bits in super-blocks.
    Q3_K = 11,
    /// 4 bits in super-blocks.
    Q4_K = 12,
    /// 5 bits in super-blocks.
    Q5_K = 13,
    /// 6 bits in super-blocks.
    Q6_K = 14,
    /// Codebook of 16 levels and a scale per 32.
    IQ4_NL = 20,
    /// Codebook of 16 levels in super-blocks.
    IQ4_XS = 23,
    /// bfloat16.
    BF16 = 30,
}

/// Names of types that are not read.
const OTHERS: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
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

/// Integers of some bits in a range of a block's bytes: in each chunk, the low bits of all bytes come first, then the
/// next bits of all bytes. Integers of several planes are put together, low bits first.
#[derive(Clone, Copy)]
struct Plane {
    at: (usize, usize),
    chunk: usize,
    bits: u8,
    /// What turns a signed byte into one that counts from its least: 0x80, or nothing.
    flip: u8,
}

const fn plane(at: (usize, usize), chunk: usize, bits: u8) -> Plane {
    Plane { at, chunk, bits, flip: 0 }
}

const fn signed(at: (usize, usize)) -> Plane {
    Plane { at, chunk: at.1 - at.0, bits: 8, flip: 0x80 }
}

/// The integer scales and minima of a super-block.
#[derive(Clone, Copy)]
enum Integers {
    Planes(&'static [Plane]),
    /// Twelve bytes from here hold 8 scales and 8 minima of 6 bits: those of the groups 0 to 3 lie in the low bits of the
    /// first eight bytes, whose high bits belong to the groups 4 to 7, as do the nibbles of the last four.
    Sixes(usize),
}

/// A block of integer codes: a number of elements, and where its parts begin.
struct Block {
    ty: TensorType,
    elements: usize,
    bytes: usize,
    scheme: Scheme,
    codes: &'static [Plane],
    scale: usize,
    min: Option<usize>,
    integers: Integers,
}

/// The form of most types of 32 elements: the scale comes first.
const fn simple(ty: TensorType, bytes: usize, scheme: Scheme, min: Option<usize>, codes: &'static [Plane]) -> Block {
    Block { ty, elements: 32, bytes, scheme, codes, scale: 0, min, integers: Integers::Planes(&[]) }
}

const BLOCKS: [Block; 12] = [
    simple(TensorType::Q4_0, 18, Scheme::INT4_SYMMETRIC, None, &[plane((2, 18), 16, 4)]),
    simple(TensorType::Q4_1, 20, Scheme::INT4, Some(2), &[plane((4, 20), 16, 4)]),
    simple(TensorType::Q5_0, 22, Scheme::INT5_SYMMETRIC, None, &[plane((6, 22), 16, 4), plane((2, 6), 1, 1)]),
    simple(TensorType::Q5_1, 24, Scheme::INT5, Some(2), &[plane((8, 24), 16, 4), plane((4, 8), 1, 1)]),
    simple(TensorType::Q8_0, 34, Scheme::INT8, None, &[signed((2, 34))]),
    simple(TensorType::IQ4_NL, 18, Scheme::IQ4, None, &[plane((2, 18), 16, 4)]),
    Block {
        ty: TensorType::Q2_K,
        elements: 256,
        bytes: 84,
        scheme: Scheme::INT2_SUPER,
        codes: &[plane((16, 80), 32, 2)],
        scale: 80,
        min: Some(82),
        integers: Integers::Planes(&[plane((0, 16), 1, 4)]),
    },
    Block {
        ty: TensorType::Q3_K,
        elements: 256,
        bytes: 110,
        scheme: Scheme::INT3_SUPER,
        codes: &[plane((32, 96), 32, 2), plane((0, 32), 32, 1)],
        scale: 108,
        min: None,
        integers: Integers::Planes(&[plane((96, 104), 8, 4), plane((104, 108), 4, 2)]),
    },
    Block {
        ty: TensorType::Q4_K,
        elements: 256,
        bytes: 144,
        scheme: Scheme::INT4_SUPER,
        codes: &[plane((16, 144), 32, 4)],
        scale: 0,
        min: Some(2),
        integers: Integers::Sixes(4),
    },
    Block {
        ty: TensorType::Q5_K,
        elements: 256,
        bytes: 176,
        scheme: Scheme::INT5_SUPER,
        codes: &[plane((48, 176), 32, 4), plane((16, 48), 32, 1)],
        scale: 0,
        min: Some(2),
        integers: Integers::Sixes(4),
    },
    Block {
        ty: TensorType::Q6_K,
        elements: 256,
        bytes: 210,
        scheme: Scheme::INT6_SUPER,
        codes: &[plane((0, 128), 64, 4), plane((128, 192), 32, 2)],
        scale: 208,
        min: None,
        integers: Integers::Planes(&[signed((192, 208))]),
    },
    Block {
        ty: TensorType::IQ4_XS,
        elements: 256,
        bytes: 136,
        scheme: Scheme::IQ4_SUPER,
        codes: &[plane((8, 136), 16, 4)],
        scale: 0,
        min: None,
        integers: Integers::Planes(&[plane((4, 8), 1, 4), plane((2, 4), 1, 2)]),
    },
];

/// The types of plain numbers, with their bytes and schemes.
const FLOATS: [(TensorType, usize, Scheme); 3] =
    [(TensorType::F32, 4, Scheme::F32), (TensorType::F16, 2, Scheme::F16), (TensorType::BF16, 2, Scheme::BF16)];

impl TensorType {
    /// The type with this number, or the name of one that is not supported.
    pub(super) fn from_id(id: u32) -> Result<TensorType, String> {
        let floats = FLOATS.iter().map(|float| float.0);
        floats.chain(BLOCKS.iter().map(|block| block.ty)).find(|ty| ty.id() == id).ok_or_else(|| {
            match OTHERS.iter().find(|(other, _)| *other == id) {
                Some((_, name)) => (*name).to_owned(),
                None => format!("the unknown type {id}"),
            }
        })
    }

    /// The names of all types.
    pub(crate) fn names() -> String {
        let mut types: Vec<TensorType> = FLOATS.iter().map(|float| float.0).collect();
        types.extend(BLOCKS.iter().map(|block| block.ty));
        types.iter().map(|ty| format!("{ty:?}")).collect::<Vec<_>>().join(", ")
    }

    /// The number of the type in the format.
    pub(super) fn id(self) -> u32 {
        self as u32
    }

    /// Elements and bytes of a block, the unit in which a row is stored; and the scheme.
    fn form(self) -> (usize, usize, Scheme) {
        let block = BLOCKS.iter().find(|block| block.ty == self);
        let float = FLOATS.iter().find(|float| float.0 == self);
        match (block, float) {
            (Some(block), _) => (block.elements, block.bytes, block.scheme),
            (None, Some(&(_, bytes, scheme))) => (1, bytes, scheme),
            (None, None) => unreachable!("every type is in one of the tables"),
        }
    }

    /// Elements and bytes of a block, the unit in which a row is stored.
    pub(super) fn block(self) -> (usize, usize) {
        let (elements, bytes, _) = self.form();
        (elements, bytes)
    }

    /// The scheme that holds the type exactly.
    pub fn scheme(self) -> Scheme {
        self.form().2
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
    let (elements, block_bytes) = ty.block();
    let rows = bytes.len() / (cols / elements * block_bytes);
    let data = match ty {
        TensorType::F32 => {
            MatrixData::Float(bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect())
        }
        TensorType::F16 => {
            MatrixData::Float(bytes.as_chunks().0.iter().map(|&chunk| f16::from_le_bytes(chunk).to_f32()).collect())
        }
        TensorType::BF16 => {
            MatrixData::Float(bytes.as_chunks().0.iter().map(|&chunk| bf16::from_le_bytes(chunk).to_f32()).collect())
        }
        _ => decode_blocks(BLOCKS.iter().find(|block| block.ty == ty).expect("the other types are blocks"), bytes),
    };
    Matrix { rows, cols, data }
}

fn decode_blocks(form: &Block, bytes: &[u8]) -> MatrixData {
    let count = bytes.len() / form.bytes;
    let mut codes = vec![0; count * form.elements];
    let mut scales = Vec::with_capacity(count);
    let mut mins = Vec::with_capacity(if form.min.is_some() { count } else { 0 });
    let integers = match form.integers {
        Integers::Planes(of) => of.first().map_or(0, |plane| (plane.at.1 - plane.at.0) * 8 / usize::from(plane.bits)),
        Integers::Sixes(_) => 16,
    };
    let mut subs = vec![0; count * integers];
    for (at, (block, codes)) in bytes.chunks_exact(form.bytes).zip(codes.chunks_exact_mut(form.elements)).enumerate() {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        scales.push(half(form.scale));
        // Super-blocks subtract their minima, a scheme adds them.
        let sign = if form.elements == 32 { f16::ONE } else { f16::NEG_ONE };
        mins.extend(form.min.map(|at| half(at) * sign));
        planes(block, form.codes, codes);
        let subs = &mut subs[at * integers..][..integers];
        match form.integers {
            Integers::Planes(of) => planes(block, of, subs),
            Integers::Sixes(at) => sixes(&block[at..at + 12], subs),
        }
    }
    MatrixData::Quantized { scheme: form.scheme, codes, scales, mins, subs }
}

/// The integers that planes of a block hold together. `out` has room for exactly those.
fn planes(block: &[u8], planes: &[Plane], out: &mut [u8]) {
    let mut place = 0;
    for plane in planes {
        let mask = u8::MAX >> (8 - plane.bits);
        let mut left = &mut *out;
        for chunk in block[plane.at.0..plane.at.1].chunks_exact(plane.chunk) {
            for shift in (0..8).step_by(usize::from(plane.bits)) {
                let (integers, rest) = left.split_at_mut(chunk.len());
                left = rest;
                for (integer, byte) in integers.iter_mut().zip(chunk) {
                    *integer |= (((byte >> shift) & mask) ^ plane.flip) << place;
                }
            }
        }
        place += plane.bits;
    }
}

/// Scale and minimum of each of 8 groups, 6 bits each.
fn sixes(bytes: &[u8], out: &mut [u8]) {
    let (low, high) = out.split_at_mut(8);
    for group in 0..4 {
        let (scale, min, nibbles) = (bytes[group], bytes[4 + group], bytes[8 + group]);
        low[2 * group..][..2].copy_from_slice(&[scale & 0x3f, min & 0x3f]);
        let top = |byte: u8| (byte >> 2) & 0x30;
        high[2 * group..][..2].copy_from_slice(&[(nibbles & 0xf) | top(scale), (nibbles >> 4) | top(min)]);
    }
}
