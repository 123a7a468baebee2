//! Products of 16 rows through matrix registers, over unpacked weights.
//!
//! The recipe scales the dot product of each group of columns before it adds it, so a matrix product is over one group:
//! 8 lines of weights, or 4 with groups of 16, of the 16 that a register could hold. Its exact sums go through memory into
//! vector registers, where they are scaled as everywhere else; the bits are those of every other tile.

use inkwell::values::PointerValue;

use super::{Group, Linear};
use crate::llvm::builder::{Kind, Val};
use crate::llvm::tiles::{SUM_BYTES, TILE_ROWS};
use crate::spec::{ACT_GROUP_BYTES, Activation, GROUP, Tile};
use crate::templates::decode::{LINE, span_groups};

/// Memory of a kernel that uses matrix registers.
pub(super) struct Tiles<'c> {
    /// Dot products of each part of 32 columns.
    dots: Vec<PointerValue<'c>>,
    /// Results of the strip, block after block.
    results: PointerValue<'c>,
}

impl<'c> Linear<'_, 'c> {
    /// Prepares the matrix registers where the target has them and the kernel is one for many rows of int8.
    pub(super) fn begin_tiles(&self, tile: Tile) -> Option<Tiles<'c>> {
        if !(self.b.has_tiles() && self.act == Activation::Int8 && matches!(tile, Tile::Unpack { .. })) {
            return None;
        }
        self.b.begin_tiles(self.scheme.group);
        let dots = (0..GROUP / self.scheme.group).map(|_| self.b.tile_frame(1)).collect();
        Some(Tiles { dots, results: self.b.tile_frame(self.blocks) })
    }

    /// Products of the strip with 16 rows from `row`, handed to `finish` row by row, one lane value per block.
    pub(super) fn multiply_by_tiles(
        &self,
        tiles: &Tiles<'c>,
        weights: PointerValue<'c>,
        row: Val<'c>,
        finish: impl FnOnce(Val<'c>, Vec<Val<'c>>),
    ) {
        let b = self.b;
        b.for_range(b.int(0), b.int(self.blocks as i64), b.int(1), |block| {
            let first = b.mul(b.param(2), block);
            let results = b.element(tiles.results, block, SUM_BYTES);
            for (i, value) in self.multiply_block(&tiles.dots, weights, first, row).into_iter().enumerate() {
                b.store_lanes(Kind::F32, b.offset(results, b.int((i * LINE) as i64)), value);
            }
        });
        b.for_range(b.int(0), b.int(TILE_ROWS as i64), b.int(1), |i| {
            let results = b.element(tiles.results, i, LINE);
            let value = |block: usize| b.load_lanes(Kind::F32, b.offset(results, b.int((block * SUM_BYTES) as i64)));
            finish(b.add(row, i), (0..self.blocks).map(value).collect());
        });
    }

    /// Products of 16 rows with the block of unpacked weights whose spans begin at number `first`.
    fn multiply_block(
        &self,
        dots: &[PointerValue<'c>],
        weights: PointerValue<'c>,
        first: Val<'c>,
        row: Val<'c>,
    ) -> Vec<Val<'c>> {
        let b = self.b;
        let rows: Vec<PointerValue<'c>> = (0..TILE_ROWS).map(|i| self.row(row, i)).collect();
        let stride = b.mul(self.groups(), b.int(ACT_GROUP_BYTES as i64));
        let sums: Vec<_> = rows.iter().map(|_| b.var(b.float_lanes(0.0))).collect();
        b.for_range(b.int(0), b.param(2), b.int(1), |span| {
            b.repeat(span_groups(self.scheme), |index| {
                let g = self.group_index(span, index);
                let group = self.unpacked(weights, b.add(first, span), index);
                for (part, &dots) in dots.iter().enumerate() {
                    let codes = b.offset(b.element(rows[0], g, GROUP), b.int((part * self.scheme.group) as i64));
                    let lines = b.offset(group, b.int((part * self.scheme.group / 4 * LINE) as i64));
                    b.tile_product(dots, codes, stride, lines);
                }
                let Group::Codes { parameters, .. } = self.load_unpacked(group) else {
                    unreachable!("int8 activations meet codes")
                };
                for (i, (&row, &sum)) in rows.iter().zip(&sums).enumerate() {
                    let (code_sums, starts) = self.starts(row, g);
                    let scale = b.splat(b.load(Kind::F32, self.field(row, GROUP, g)));
                    for (part, (&dots, &start)) in dots.iter().zip(&starts).enumerate() {
                        let dot = b.load_lanes(Kind::I32, b.offset(dots, b.int((i * LINE) as i64)));
                        let weighted = || self.weighted(row, g, scale, code_sums.get(part));
                        self.add_scaled(sum, b.add(dot, start), scale, (&parameters, part), weighted);
                    }
                }
            });
        });
        sums.iter().map(|&sum| b.get(sum)).collect()
    }
}
