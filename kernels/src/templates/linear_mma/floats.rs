//! Products of weights in bf16 on tensor cores: activations are rounded to bf16 where they are read, sums are f32.
//!
//! A line of packed weights holds two columns of each of 16 rows, so a word of it is what a thread needs of a fragment.
//! A warp adds up its run of columns in steps of 16, from the first to the last, whatever the number of rows.

use inkwell::values::PointerValue;

use super::{Product, Sums, TILE_ROWS, UNROLL};
use crate::llvm::builder::{Kind, LANES, Val};
use crate::spec::GROUP;
use crate::templates::decode::block_span_bytes;

/// Columns of a product of the tensor cores.
const STEP: usize = 16;
/// Bytes of a line of packed weights: two columns of 16 rows.
const LINE: usize = 4 * LANES;

impl<'c> Product<'_, 'c> {
    /// This warp's run of the products of a strip.
    pub(super) fn multiply_floats(&self, strip: Val<'c>) -> Sums<'c> {
        let b = self.b;
        let block = b.mul(strip, b.int(self.blocks as i64));
        let weights = b.element(b.operand(1), b.mul(block, b.param(2)), block_span_bytes(self.scheme));
        let rows: Vec<PointerValue<'c>> = (0..self.tokens / TILE_ROWS).map(|tile| self.float_row(tile)).collect();
        let sums = self.zeros(rows.len());
        let times = if rows.len() == 1 { UNROLL } else { 1 };
        b.unrolled(self.run(), 1, times, |group| {
            for step in 0..GROUP / STEP {
                let fragments: Vec<[Val<'c>; 4]> = (0..self.blocks)
                    .map(|block| {
                        let span = b.add(b.mul(b.param(2), b.int(block as i64)), group);
                        self.float_weights(b.element(weights, span, block_span_bytes(self.scheme)), step)
                    })
                    .collect();
                for (&row, sums) in rows.iter().zip(&sums) {
                    let activations = self.float_activations(b.element(row, group, 4 * GROUP), step);
                    for (weights, sums) in fragments.iter().zip(sums) {
                        let products = b.mma_bf16(weights, &activations, sums.map(|sum| b.get(sum)));
                        for (&sum, product) in sums.iter().zip(products) {
                            b.set(sum, product);
                        }
                    }
                }
            }
        });
        sums
    }

    /// The row of activations that a thread reads of a tile, from its own columns on. Rows past the last are read as the
    /// last; their results are dropped.
    fn float_row(&self, tile: usize) -> PointerValue<'c> {
        let b = self.b;
        let row = b.add(b.add(self.first_row, b.int((TILE_ROWS * tile) as i64)), self.row);
        let row = b.overloaded("llvm.smin", &[row, b.sub(b.param(0), b.int(1))]);
        b.element(b.element(b.operand(0), b.mul(row, self.groups), 4 * GROUP), self.column, 8)
    }

    /// Sixteen columns of a block of weights: rows `g` and `g + 8`, columns `2 t` and `2 t + 8` with the one after each.
    fn float_weights(&self, span: PointerValue<'c>, step: usize) -> [Val<'c>; 4] {
        let b = self.b;
        let own = b.element(b.element(span, self.column, LINE), self.row, 4);
        [(0, 0), (0, 8), (4, 0), (4, 8)].map(|(line, row)| {
            let at = (step * STEP / 2 + line) * LINE + 4 * row;
            b.load(Kind::I32, b.offset(own, b.int(at as i64)))
        })
    }

    /// Sixteen columns of a row of activations: `2 t` and `2 t + 8` with the one after each.
    fn float_activations(&self, own: PointerValue<'c>, step: usize) -> [Val<'c>; 2] {
        let b = self.b;
        [0, 8].map(|column| {
            // Rows begin at multiples of 128 bytes, so two columns are one aligned load.
            let pair = b.load(Kind::I64, b.offset(own, b.int(4 * (step * STEP + column) as i64)));
            let half = |bits: Val<'c>| b.bitcast(b.trunc(bits, Kind::I32), Kind::F32);
            b.to_bf16_pair(half(pair), half(b.lshr(pair, b.int(32))))
        })
    }
}
