//! Linear kernels: `out[m, n] = Σ_k x[m, k] · w[n, k]`, then the epilogue.
//!
//! A unit is a strip of one or more blocks of 16 weight rows, for all rows of activations. Lanes are weight rows, so a
//! reduction over K stays in its lane and its order is the recipe: per group the integer dot product is exact, then
//! `acc = fma(f32(dot) · scale, x scale, acc)` and, with minima, `acc = fma(min, x scale · x sum, acc)`; for f32
//! activations one fused multiply-add per element in order of k. Both tiles follow it, hence give the same bits.

use inkwell::values::PointerValue;
use lathe_ir::scheme::{Scheme, Zero};

use super::decode::{LINE, block_group_bytes, half_range, mins, quads, scales, values};
use super::stages::{Strip, finish};
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{ACT_GROUP_BYTES, Activation, GROUP, KernelSpec, Stage, Tile};

/// Weight blocks that the inner tile of [`Tile::Unpack`] multiplies at once.
const TILE_BLOCKS: usize = 2;
/// Index of the first epilogue operand: after x and w.
const FIRST_STAGE_OPERAND: usize = 2;

/// Operands: x, w, those of the stages, out, scratch. Params: M, N, G and those of the stages.
pub fn linear(b: &Builder<'_>, scheme: Scheme, act: Activation, tile: Tile, epilogue: &[Stage]) {
    let kernel = Linear { b, scheme, act, blocks: KernelSpec::strip_blocks(epilogue) };
    b.for_units(|strip| {
        let block = b.mul(strip, b.int(kernel.blocks as i64));
        let weights = b.element(b.operand(1), b.mul(block, b.param(2)), block_group_bytes(scheme));
        let weights = match tile {
            Tile::Stream { .. } => weights,
            Tile::Unpack { .. } => kernel.unpack(weights, epilogue),
        };
        let (Tile::Stream { tokens } | Tile::Unpack { tokens }) = tile;
        let rows = b.param(0);
        let full = b.sub(rows, b.urem(rows, b.int(tokens as i64)));
        for (begin, end, count) in [(b.int(0), full, tokens), (full, rows, 1)] {
            b.for_range(begin, end, b.int(count as i64), |row| {
                let results = kernel.multiply(tile, weights, row, count);
                for (i, values) in results.into_iter().enumerate() {
                    let row = b.add(row, b.int(i as i64));
                    finish(b, epilogue, Strip { row, index: strip, values }, FIRST_STAGE_OPERAND);
                }
            });
        }
    });
}

struct Linear<'b, 'c> {
    b: &'b Builder<'c>,
    scheme: Scheme,
    act: Activation,
    blocks: usize,
}

/// A group of a block, ready to be multiplied.
enum Group<'c> {
    /// Byte codes by quad, scales and minima.
    Codes { quads: Vec<Val<'c>>, scales: Val<'c>, mins: Option<Val<'c>> },
    /// Dequantized elements by k.
    Values(Vec<Val<'c>>),
}

impl<'c> Linear<'_, 'c> {
    /// Products of the strip with `count` rows from `row`: `[count][blocks]` lane values.
    fn multiply(&self, tile: Tile, weights: PointerValue<'c>, row: Val<'c>, count: usize) -> Vec<Vec<Val<'c>>> {
        let at_once = if matches!(tile, Tile::Unpack { .. }) { TILE_BLOCKS } else { 1 };
        let mut results = vec![Vec::new(); count];
        for first in (0..self.blocks).step_by(at_once) {
            let blocks: Vec<usize> = (first..(first + at_once).min(self.blocks)).collect();
            for (result, values) in results.iter_mut().zip(self.multiply_blocks(tile, weights, &blocks, row, count)) {
                result.extend(values);
            }
        }
        results
    }

    fn multiply_blocks(
        &self,
        tile: Tile,
        weights: PointerValue<'c>,
        blocks: &[usize],
        row: Val<'c>,
        count: usize,
    ) -> Vec<Vec<Val<'c>>> {
        let b = self.b;
        let groups = b.param(2);
        let record = if self.act == Activation::Int8 { ACT_GROUP_BYTES } else { 4 * GROUP };
        let rows: Vec<PointerValue<'c>> =
            (0..count).map(|i| b.element(b.operand(0), b.mul(b.add(row, b.int(i as i64)), groups), record)).collect();
        let zero = b.float_lanes(0.0);
        let sums: Vec<Vec<_>> = (0..count).map(|_| blocks.iter().map(|_| b.var(zero)).collect()).collect();
        let stride = self.group_stride(tile);
        b.for_range(b.int(0), groups, b.int(1), |g| {
            let loaded: Vec<Group<'c>> = blocks
                .iter()
                .map(|&block| {
                    let index = b.add(b.mul(groups, b.int(block as i64)), g);
                    self.load(tile, b.element(weights, index, stride))
                })
                .collect();
            match self.act {
                Activation::Int8 => self.add_codes(&loaded, &rows, g, &sums),
                Activation::F32 => self.add_values(&loaded, &rows, g, &sums),
            }
        });
        sums.iter().map(|row| row.iter().map(|&sum| b.get(sum)).collect()).collect()
    }

    fn add_codes(&self, loaded: &[Group<'c>], rows: &[PointerValue<'c>], g: Val<'c>, sums: &[Vec<Var<'c>>]) {
        let b = self.b;
        let groups = b.param(2);
        let field = |row: PointerValue<'c>, bytes: usize| b.element(b.element(row, groups, bytes), g, 4);
        let mut dots: Vec<Vec<Val<'c>>> = Vec::new();
        for row in rows {
            let start = match self.scheme.zero {
                Zero::Symmetric => {
                    let sum = b.load(Kind::I32, field(*row, GROUP + 8));
                    b.splat(b.mul(sum, b.int32(-half_range(self.scheme))))
                }
                Zero::Min => b.int_lanes(0),
            };
            dots.push(vec![start; loaded.len()]);
        }
        for quad in 0..GROUP / 4 {
            for (row, dots) in rows.iter().zip(&mut dots) {
                let at = b.offset(b.element(*row, g, GROUP), b.int(4 * quad as i64));
                let activations = b.splat(b.load(Kind::I32, at));
                for (group, dot) in loaded.iter().zip(dots) {
                    let Group::Codes { quads, .. } = group else { unreachable!("int8 activations meet codes") };
                    *dot = b.dot4(*dot, quads[quad], activations);
                }
            }
        }
        for ((row, dots), sums) in rows.iter().zip(dots).zip(sums) {
            let scale = b.splat(b.load(Kind::F32, field(*row, GROUP)));
            for ((group, dot), &sum) in loaded.iter().zip(dots).zip(sums) {
                let Group::Codes { scales, mins, .. } = group else { unreachable!("int8 activations meet codes") };
                let scaled = b.fmul(b.to_float(dot, Kind::F32), *scales);
                let mut value = b.fma(scaled, scale, b.get(sum));
                if let Some(mins) = mins {
                    let weighted = b.splat(b.load(Kind::F32, field(*row, GROUP + 4)));
                    value = b.fma(*mins, weighted, value);
                }
                b.set(sum, value);
            }
        }
    }

    fn add_values(&self, loaded: &[Group<'c>], rows: &[PointerValue<'c>], g: Val<'c>, sums: &[Vec<Var<'c>>]) {
        let b = self.b;
        for k in 0..GROUP {
            for (row, sums) in rows.iter().zip(sums) {
                let at = b.offset(b.element(*row, g, 4 * GROUP), b.int(4 * k as i64));
                let x = b.splat(b.load(Kind::F32, at));
                for (group, &sum) in loaded.iter().zip(sums) {
                    let Group::Values(values) = group else { unreachable!("f32 activations meet values") };
                    b.set(sum, b.fma(values[k], x, b.get(sum)));
                }
            }
        }
    }

    /// Bytes from one group of a block to the next, as the tile reads them.
    fn group_stride(&self, tile: Tile) -> usize {
        match tile {
            Tile::Stream { .. } => block_group_bytes(self.scheme),
            Tile::Unpack { .. } => LANES * KernelSpec::unpacked_group_bytes(self.scheme, self.act),
        }
    }

    fn load(&self, tile: Tile, group: PointerValue<'c>) -> Group<'c> {
        let b = self.b;
        let line = |kind, index: usize| b.load_lanes(kind, b.offset(group, b.int((index * LINE) as i64)));
        match (tile, self.act) {
            (Tile::Stream { .. }, Activation::Int8) => Group::Codes {
                quads: quads(b, self.scheme, group),
                scales: scales(b, self.scheme, group),
                mins: mins(b, self.scheme, group),
            },
            (Tile::Stream { .. }, Activation::F32) => Group::Values(values(b, self.scheme, group)),
            (Tile::Unpack { .. }, Activation::Int8) => Group::Codes {
                quads: (0..8).map(|quad| line(Kind::I32, quad)).collect(),
                scales: line(Kind::F32, 8),
                mins: (self.scheme.zero == Zero::Min).then(|| line(Kind::F32, 9)),
            },
            (Tile::Unpack { .. }, Activation::F32) => Group::Values((0..GROUP).map(|k| line(Kind::F32, k)).collect()),
        }
    }

    /// Unpacks the strip to scratch, the last operand, in the order in which [`Linear::load`] reads it.
    fn unpack(&self, weights: PointerValue<'c>, epilogue: &[Stage]) -> PointerValue<'c> {
        let b = self.b;
        let spec = KernelSpec::Linear {
            scheme: self.scheme,
            act: self.act,
            tile: Tile::Unpack { tokens: 1 },
            epilogue: epilogue.to_vec(),
        };
        let scratch = b.operand(spec.operands().len() - 1);
        let stream = Tile::Stream { tokens: 1 };
        let total = b.mul(b.param(2), b.int(self.blocks as i64));
        b.for_range(b.int(0), total, b.int(1), |index| {
            let group = self.load(stream, b.element(weights, index, self.group_stride(stream)));
            let out = b.element(scratch, index, self.group_stride(Tile::Unpack { tokens: 1 }));
            let put = |kind, line: usize, value| {
                b.store_lanes(kind, b.offset(out, b.int((line * LINE) as i64)), value);
            };
            match group {
                Group::Codes { quads, scales, mins } => {
                    quads.into_iter().enumerate().for_each(|(i, quad)| put(Kind::I32, i, quad));
                    put(Kind::F32, 8, scales);
                    if let Some(mins) = mins {
                        put(Kind::F32, 9, mins);
                    }
                }
                Group::Values(values) => {
                    values.into_iter().enumerate().for_each(|(k, value)| put(Kind::F32, k, value));
                }
            }
        });
        scratch
    }
}
