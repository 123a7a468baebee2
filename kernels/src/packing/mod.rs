//! Weight packers: a matrix becomes blocks of 16 rows in the layout that kernels read.
//!
//! Block after block of 16 rows; in a block, span after span of columns (32, or 256 with super-blocks). In a span: for
//! each 32 columns, lines of four bytes for each of the 16 rows; then, with super-blocks, the integer scales and minima
//! in half-lines of two bytes per row; then 16 f16 scales; then 16 f16 minima where the scheme has them. Codes and
//! integers of 3, 5 and 6 bits lie as two pieces, low bits first. `f32`, `bf16` and `f16` have lines only.

mod quantize;
pub mod random;
pub mod search;

use half::{bf16, f16};
use lathe_ir::scheme::{Code, Matrix, MatrixData, Scales, Scheme, pieces};
use lathe_ir::types::DType;

pub use quantize::{Method, quantize, quantize_by};

use crate::spec::{BLOCK_ROWS, GROUP};

/// Bytes of a packed matrix of `rows` (a multiple of 16) by `cols` (a multiple of the span).
pub fn packed_bytes(scheme: Scheme, rows: usize, cols: usize) -> usize {
    rows * scheme.row_bytes(cols)
}

/// Appends rows of zeros to a matrix until it has `rows`.
pub fn pad_rows(matrix: &mut Matrix, rows: usize) {
    let grow = |len: usize| len / matrix.rows.max(1) * rows.max(matrix.rows);
    match &mut matrix.data {
        MatrixData::Float(values) => values.resize(grow(values.len()), 0.0),
        MatrixData::Quantized { codes, scales, mins, subs, .. } => {
            // A scale and a minimum of zero make every code mean zero.
            codes.resize(grow(codes.len()), 0);
            scales.resize(grow(scales.len()), f16::ZERO);
            mins.resize(grow(mins.len()), f16::ZERO);
            subs.resize(grow(subs.len()), 0);
        }
    }
    matrix.rows = rows.max(matrix.rows);
}

/// Appends the packed matrix to `out`. `matrix` is in `scheme` already (see [`quantize`]).
///
/// # Panics
/// When the matrix is not in `scheme` or its shape does not divide into blocks: the compiler checks both before.
pub fn pack(matrix: &Matrix, scheme: Scheme, out: &mut Vec<u8>) {
    let span = scheme.span();
    assert!(matrix.rows.is_multiple_of(BLOCK_ROWS) && matrix.cols.is_multiple_of(span), "shape in whole blocks");
    out.reserve(packed_bytes(scheme, matrix.rows, matrix.cols));
    for row in (0..matrix.rows).step_by(BLOCK_ROWS) {
        for k in (0..matrix.cols).step_by(span) {
            pack_span(matrix, scheme, row, k, out);
        }
    }
}

/// Packs the span of a block that begins at a row and column.
fn pack_span(matrix: &Matrix, scheme: Scheme, first_row: usize, first_k: usize, out: &mut Vec<u8>) {
    // Where `per_span` numbers of each span begin in a row, for each row of the block.
    let starts = |per_span: usize| {
        let (per_row, at) = (matrix.cols / scheme.span() * per_span, first_k / scheme.span() * per_span);
        (first_row..first_row + BLOCK_ROWS).map(move |row| row * per_row + at)
    };
    match (&matrix.data, scheme.code) {
        (MatrixData::Float(values), Code::Float(dtype)) => {
            let rows: [&[f32]; BLOCK_ROWS] = std::array::from_fn(|row| {
                let start = (first_row + row) * matrix.cols + first_k;
                &values[start..start + GROUP]
            });
            pack_floats(dtype, &rows, out);
        }
        (MatrixData::Quantized { scheme: stored, codes, scales, mins, subs }, Code::Uniform { .. } | Code::Table) => {
            assert_eq!(*stored, scheme, "quantize before packing");
            for group in (0..scheme.span()).step_by(GROUP) {
                let rows: Vec<&[u8]> = starts(scheme.span()).map(|start| &codes[start + group..][..GROUP]).collect();
                pack_codes(scheme.bits(), &rows, out);
            }
            if let Scales::Super { bits } = scheme.scales {
                let count = scheme.span() / scheme.group * scheme.parameters();
                let rows: Vec<&[u8]> = starts(count).map(|start| &subs[start..][..count]).collect();
                pack_integers(bits, &rows, out);
            }
            for parameters in [scales, mins] {
                if !parameters.is_empty() {
                    out.extend(starts(1).flat_map(|at| parameters[at].to_le_bytes()));
                }
            }
        }
        _ => panic!("quantize before packing: the matrix is not in {scheme}"),
    }
}

/// Lines of 32 values per row: of one f32 per row, or of two 16-bit floats.
fn pack_floats(dtype: DType, rows: &[&[f32]], out: &mut Vec<u8>) {
    let per_line = 4 / dtype.bytes();
    for line in 0..GROUP / per_line {
        for row in rows {
            let values = &row[line * per_line..][..per_line];
            let word = match dtype {
                DType::Bf16 => join_halves(bf16::from_f32(values[0]).to_bits(), bf16::from_f32(values[1]).to_bits()),
                DType::F16 => join_halves(f16::from_f32(values[0]).to_bits(), f16::from_f32(values[1]).to_bits()),
                DType::F32 | DType::I32 | DType::Int8 => values[0].to_bits(),
            };
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
}

fn join_halves(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// Lines of 32 codes per row: in each piece, byte `i` of a line holds element `i` of some quads, from the low bits up.
fn pack_codes(bits: u8, rows: &[&[u8]], out: &mut Vec<u8>) {
    let mut place = 0;
    for &piece in pieces(bits) {
        match piece {
            1 => pack_piece::<8>(place, rows, out),
            2 => pack_piece::<4>(place, rows, out),
            4 => pack_piece::<2>(place, rows, out),
            _ => pack_piece::<1>(place, rows, out),
        }
        place += piece;
    }
}

/// One piece of codes, `8 / QUADS` bits from `place` on, four codes at a time: a quad is one word, and its bits move
/// together.
fn pack_piece<const QUADS: usize>(place: u8, rows: &[&[u8]], out: &mut Vec<u8>) {
    let piece = 8 / QUADS;
    let mask = u32::from(u8::MAX >> (8 - piece)) * 0x0101_0101;
    let start = out.len();
    out.resize(start + piece * 4 * rows.len(), 0);
    for (at, line) in out[start..].chunks_exact_mut(4 * rows.len()).enumerate() {
        for (row, word) in rows.iter().zip(line.as_chunks_mut::<4>().0) {
            let quads = row[at * QUADS * 4..][..QUADS * 4].as_chunks::<4>().0;
            let quad = |quad: usize| ((u32::from_le_bytes(quads[quad]) >> place) & mask) << (piece * quad);
            *word = (0..QUADS).fold(0, |word, at| word | quad(at)).to_le_bytes();
        }
    }
}

/// Half-lines of integers: in each piece, two bytes per row hold some of them, from the low bits up.
fn pack_integers(bits: u8, rows: &[&[u8]], out: &mut Vec<u8>) {
    let mut place = 0;
    for &piece in pieces(bits) {
        let per_half_line = 16 / usize::from(piece);
        let field = |integer: u8| u16::from(integer >> place & u8::MAX >> (8 - piece));
        for first in (0..rows[0].len()).step_by(per_half_line) {
            for row in rows {
                let integers = row[first..].iter().take(per_half_line);
                let word =
                    integers.enumerate().fold(0, |word, (i, &integer)| word | field(integer) << (piece * i as u8));
                out.extend(word.to_le_bytes());
            }
        }
        place += piece;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int4_lines_hold_the_even_quad_low_and_the_odd_quad_high() {
        let (rows, cols) = (16, 32);
        let codes: Vec<u8> = (0..rows * cols).map(|i| ((i / cols + i % cols) % 16) as u8).collect();
        let data = MatrixData::Quantized {
            scheme: Scheme::INT4,
            codes,
            scales: (0..rows).map(|row| f16::from_f32(row as f32)).collect(),
            mins: (0..rows).map(|row| f16::from_f32(-(row as f32))).collect(),
            subs: Vec::new(),
        };
        let mut out = Vec::new();
        pack(&Matrix { rows, cols, data }, Scheme::INT4, &mut out);
        assert_eq!(out.len(), packed_bytes(Scheme::INT4, rows, cols));
        // Row 3, line 1 holds k = 8..12 low and 12..16 high: codes 11..14 and 15, 0, 1, 2.
        assert_eq!(out[64 + 4 * 3..][..4], [0xfb, 0x0c, 0x1d, 0x2e]);
        assert_eq!(out[4 * 64 + 2 * 5..][..2], f16::from_f32(5.0).to_le_bytes());
        assert_eq!(out[4 * 64 + 32 + 2 * 5..][..2], f16::from_f32(-5.0).to_le_bytes());
    }

    #[test]
    fn packed_weights_take_the_bits_of_the_formats_that_they_hold() {
        // Bytes and elements of a block, by ggml's definition of each type.
        let blocks = [
            (Scheme::F32, 4, 1),
            (Scheme::BF16, 2, 1),
            (Scheme::F16, 2, 1),
            (Scheme::INT8, 34, 32),
            (Scheme::INT4, 20, 32),
            (Scheme::INT4_SYMMETRIC, 18, 32),
            (Scheme::INT5_SYMMETRIC, 22, 32),
            (Scheme::INT5, 24, 32),
            // No type of ggml: 6 bits each and an f16.
            (Scheme::INT6_SYMMETRIC, 26, 32),
            (Scheme::INT2_SUPER, 84, 256),
            (Scheme::INT3_SUPER, 110, 256),
            (Scheme::INT4_SUPER, 144, 256),
            (Scheme::INT5_SUPER, 176, 256),
            (Scheme::INT6_SUPER, 210, 256),
            (Scheme::IQ4, 18, 32),
            (Scheme::IQ4_SUPER, 136, 256),
        ];
        let (rows, cols) = (32, 512);
        let matrix = Matrix { rows, cols, data: MatrixData::Float(vec![1.0; rows * cols]) };
        for scheme in Scheme::ALL {
            let (_, bytes, elements) = blocks.into_iter().find(|block| block.0 == scheme).expect("a block of each");
            let mut out = Vec::new();
            pack(&quantize(&matrix, scheme), scheme, &mut out);
            assert_eq!(out.len(), rows * cols * bytes / elements, "{scheme}");
            assert_eq!(out.len(), packed_bytes(scheme, rows, cols), "{scheme}");
        }
    }

    #[test]
    fn bf16_lines_hold_pairs() {
        let values: Vec<f32> = (0..16 * 32).map(|i| i as f32).collect();
        let mut out = Vec::new();
        pack(&Matrix { rows: 16, cols: 32, data: MatrixData::Float(values) }, Scheme::BF16, &mut out);
        // Line 2, row 1: k = 4 and 5 of row 1 are 36 and 37.
        assert_eq!(out[2 * 64 + 4..][..2], bf16::from_f32(36.0).to_le_bytes());
        assert_eq!(out[2 * 64 + 6..][..2], bf16::from_f32(37.0).to_le_bytes());
    }
}
