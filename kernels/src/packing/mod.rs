//! Weight packers: a matrix becomes blocks of 16 rows in the layout that kernels read.
//!
//! Block after block of 16 rows; in a block, group after group of 32 columns; in a group, lines of four bytes for each
//! of the 16 rows, then 16 f16 scales, then 16 f16 minima where the scheme has them. `f32` and `bf16` have lines only.

mod quantize;

use half::bf16;
use lathe_ir::scheme::{Code, Matrix, MatrixData, Scheme};
use lathe_ir::types::DType;

pub use quantize::quantize;

use crate::spec::{BLOCK_ROWS, GROUP};

/// Bytes of a packed matrix of `rows` (a multiple of 16) by `cols` (a multiple of 32).
pub fn packed_bytes(scheme: Scheme, rows: usize, cols: usize) -> usize {
    rows * scheme.row_bytes(cols)
}

/// Appends the packed matrix to `out`. `matrix` is in `scheme` already (see [`quantize`]).
///
/// # Panics
/// When the matrix is not in `scheme` or its shape does not divide into blocks: the compiler checks both before.
pub fn pack(matrix: &Matrix, scheme: Scheme, out: &mut Vec<u8>) {
    assert!(matrix.rows.is_multiple_of(BLOCK_ROWS) && matrix.cols.is_multiple_of(GROUP), "shape in whole blocks");
    out.reserve(packed_bytes(scheme, matrix.rows, matrix.cols));
    for block in 0..matrix.rows / BLOCK_ROWS {
        for group in 0..matrix.cols / GROUP {
            pack_group(matrix, scheme, block * BLOCK_ROWS, group, out);
        }
    }
}

fn pack_group(matrix: &Matrix, scheme: Scheme, first_row: usize, group: usize, out: &mut Vec<u8>) {
    let at = |row: usize, k: usize| (first_row + row) * matrix.cols + group * GROUP + k;
    match (&matrix.data, scheme.code) {
        (MatrixData::Float(values), Code::Float(DType::Bf16)) => {
            for pair in 0..GROUP / 2 {
                for row in 0..BLOCK_ROWS {
                    for k in [2 * pair, 2 * pair + 1] {
                        out.extend_from_slice(&bf16::from_f32(values[at(row, k)]).to_le_bytes());
                    }
                }
            }
        }
        (MatrixData::Float(values), Code::Float(_)) => {
            for k in 0..GROUP {
                for row in 0..BLOCK_ROWS {
                    out.extend_from_slice(&values[at(row, k)].to_le_bytes());
                }
            }
        }
        (MatrixData::Quantized { scheme: stored, codes, scales, mins }, Code::Uniform { bits }) => {
            assert_eq!(*stored, scheme, "quantize before packing");
            if bits == 8 {
                for quad in 0..GROUP / 4 {
                    for row in 0..BLOCK_ROWS {
                        out.extend_from_slice(&codes[at(row, 4 * quad)..][..4]);
                    }
                }
            } else {
                for pair in 0..GROUP / 8 {
                    for row in 0..BLOCK_ROWS {
                        let (low, high) = (at(row, 8 * pair), at(row, 8 * pair + 4));
                        out.extend((0..4).map(|i| codes[low + i] | codes[high + i] << 4));
                    }
                }
            }
            let groups = matrix.cols / GROUP;
            for parameters in [scales, mins] {
                if !parameters.is_empty() {
                    for row in 0..BLOCK_ROWS {
                        out.extend_from_slice(&parameters[(first_row + row) * groups + group].to_le_bytes());
                    }
                }
            }
        }
        _ => panic!("quantize before packing: the matrix is not in {scheme}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn int4_lines_hold_the_even_quad_low_and_the_odd_quad_high() {
        let (rows, cols) = (16, 32);
        let codes: Vec<u8> = (0..rows * cols).map(|i| ((i / cols + i % cols) % 16) as u8).collect();
        let data = MatrixData::Quantized {
            scheme: Scheme::INT4,
            codes,
            scales: (0..rows).map(|row| f16::from_f32(row as f32)).collect(),
            mins: (0..rows).map(|row| f16::from_f32(-(row as f32))).collect(),
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
    fn bf16_lines_hold_pairs() {
        let values: Vec<f32> = (0..16 * 32).map(|i| i as f32).collect();
        let mut out = Vec::new();
        pack(&Matrix { rows: 16, cols: 32, data: MatrixData::Float(values) }, Scheme::BF16, &mut out);
        // Line 2, row 1: k = 4 and 5 of row 1 are 36 and 37.
        assert_eq!(out[2 * 64 + 4..][..2], bf16::from_f32(36.0).to_le_bytes());
        assert_eq!(out[2 * 64 + 6..][..2], bf16::from_f32(37.0).to_le_bytes());
    }
}
