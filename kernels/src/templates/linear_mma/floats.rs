//! Products of weights in bf16 on tensor cores: activations are bf16, or rounded to it where they are read; sums are f32.
//!
//! A line of packed weights holds two columns of each of 16 rows, so a word of it is what a thread needs of a fragment.
//! A warp adds up its run of columns in steps of 16, from the first to the last, whatever the number of rows.

use inkwell::values::PointerValue;

use super::{Product, Rows, Sums};
use crate::llvm::builder::{Kind, LANES, Val};
use crate::spec::{Activation, GROUP};
use crate::templates::decode::block_span_bytes;

/// Columns of a product of the tensor cores.
const STEP: usize = 16;
/// Bytes of a line of packed weights: two columns of 16 rows.
const LINE: usize = 4 * LANES;

impl<'c> Product<'_, 'c> {
    /// Words that a thread needs of 32 columns of a pair: its rows of four lines.
    pub(super) fn float_words(&self) -> usize {
        4 * self.thread_rows()
    }

    /// Of each step the columns `2 t` and the one after it, then `2 t + 8` and the one after it, of the thread's rows.
    pub(super) fn fetch_floats(&self, block: PointerValue<'c>, group: Val<'c>) -> Vec<Val<'c>> {
        let b = self.b;
        let span = b.element(block, group, block_span_bytes(self.scheme));
        let own = b.element(b.element(span, self.column, LINE), self.place_in_block(), 4 * self.thread_rows());
        let line = |line: usize| self.load_rows(b.offset(own, b.int((line * LINE) as i64)));
        (0..GROUP / 2).step_by(4).flat_map(line).collect()
    }

    /// Of each step the columns `2 t` and the one after it, then `2 t + 8` and the one after it: words of bf16, or pairs of
    /// f32.
    pub(super) fn fetch_float_rows(&self, rows: &Rows<'c>, group: Val<'c>) -> Vec<Val<'c>> {
        let b = self.b;
        let own = b.element(rows.own, group, self.act.group_bytes());
        if self.act == Activation::Bf16 {
            // The producer has put them side by side.
            let words: [Val<'c>; 4] = b.load_together(Kind::I32, b.element(own, self.column, 4 * 4));
            return words.to_vec();
        }
        let own = b.element(own, self.column, 8);
        let pair =
            |column: usize| -> [Val<'c>; 2] { b.load_together(Kind::F32, b.offset(own, b.int(4 * column as i64))) };
        (0..GROUP).step_by(STEP / 2).flat_map(pair).collect()
    }

    /// Adds the products of 32 columns.
    pub(super) fn add_floats(&self, words: &[Val<'c>], rows: impl Fn(usize) -> Vec<Val<'c>>, sums: &Sums<'c>) {
        let b = self.b;
        for (tile, sums) in sums.iter().enumerate() {
            let rows = rows(tile);
            let rows = match self.act {
                Activation::Bf16 => rows,
                _ => rows.chunks(2).map(|pair| b.to_bf16_pair(pair[0], pair[1])).collect(),
            };
            for step in 0..GROUP / STEP {
                let activations = [rows[2 * step], rows[2 * step + 1]];
                for (words, sums) in words.chunks(self.float_words()).zip(sums) {
                    let lines = &words[2 * self.thread_rows() * step..];
                    for (product, sums) in sums.iter().enumerate() {
                        let next = self.thread_rows();
                        let weights = [0, 1, next, next + 1].map(|word| lines[2 * product + word]);
                        let products = b.mma_bf16(&weights, &activations, sums.map(|sum| b.get(sum)));
                        for (&sum, product) in sums.iter().zip(products) {
                            b.set(sum, product);
                        }
                    }
                }
            }
        }
    }
}
