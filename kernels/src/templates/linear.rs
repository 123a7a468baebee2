//! Linear kernels: `out[m, n] = Σ_k x[m, k] · w[n, k]`, then the epilogue.
//!
//! A unit is a strip of one or more blocks of 16 weight rows, for all rows of activations or, where the strip is unpacked
//! first, for a part of them: a worker unpacks each strip of its units once. Where rows are many, all strips come with the
//! first half of the parts before they come with the second, so that two workers find in their own caches what they wrote of
//! their rows before.
//!
//! Lanes are weight rows, so a reduction over K stays in its lane and its order is the recipe: per group of the scheme the
//! integer dot product is exact, then `acc = fma(f32(dot) · scale, x scale, acc)` and, with minima, `acc = fma(min, x scale
//! · x sum, acc)`; for f32 activations one fused multiply-add per element in order of k. Both tiles follow it, hence give
//! the same bits.
//!
//! CPUs with matrix registers take 16 rows at a time through them where a strip is unpacked; see [`tiles`].
//!
//! Activations come in groups of 32 with the sum of their codes. A scheme of groups of 16 makes two dot products of
//! them; the sums of both halves are then a dot product of the first half with ones, and what is left of the whole.

mod tiles;

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::scheme::{Scheme, Zero};

use super::decode::{Columns, LINE, Parameters, block_span_bytes, span_groups};
use super::stages::{Strip, finish};
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::dot::Dot;
use crate::llvm::memory::Var;
use crate::llvm::tiles::TILE_ROWS;
use crate::spec::{Activation, BLOCK_ROWS, GROUP, KernelSpec, Stage, Tile};

/// How far ahead weights are asked for where they are multiplied in one turn of several rows, in bytes: with so many the
/// machine, which looks ahead by itself while weights come line after line, does not keep up.
const AHEAD: usize = 4096;
/// Rows at once from which on that pays.
const AHEAD_ROWS: usize = 4;
/// Turns in which the next strip's weights are asked for.
const AHEAD_TURNS: usize = 2;
/// Rows of activations from which on their halves go one after the other; for fewer, unpacking twice would cost more.
const HALVED_ROWS: i64 = 192;

/// The highest bit of each byte.
const SIGNS: i32 = 0x8080_8080_u32 as i32;

/// Operands: x, w, those of the stages, out, scratch. Params: M, N, G and those of the stages.
pub fn linear(b: &Builder<'_>, scheme: Scheme, act: Activation, tile: Tile, epilogue: &[Stage]) {
    let kernel = Linear { b, scheme, act, blocks: KernelSpec::strip_blocks(epilogue) };
    let tiles = kernel.begin_tiles(tile);
    let registers = b.target.tile;
    let tokens = match tile {
        Tile::Stream { tokens } | Tile::Mma { tokens, .. } | Tile::Staged { tokens, .. } => {
            tokens.min(registers.stream_rows)
        }
        Tile::Unpack { tokens } => tokens.min(registers.unpack_rows),
    };
    let at_once = if tiles.is_some() { TILE_ROWS } else { tokens };
    kernel.for_strips(tile, at_once, |strip, first, last| {
        let block = b.mul(strip, b.int(kernel.blocks as i64));
        let weights = b.element(b.operand(1), b.mul(block, b.param(2)), block_span_bytes(scheme));
        let weights = match tile {
            Tile::Stream { .. } | Tile::Mma { .. } | Tile::Staged { .. } => weights,
            Tile::Unpack { .. } => kernel.unpack(weights),
        };
        // As many rows at once as fit, then what is left by fewer. The first one is a multiple of what fits.
        let mut begin = first;
        let whole = |count: usize| b.sub(last, b.urem(last, b.int(count as i64)));
        let finish = |row, values| finish(b, epilogue, Strip { row, index: strip, values, partners: None });
        if let Some(tiles) = &tiles {
            let end = whole(TILE_ROWS);
            b.for_range(begin, end, b.int(TILE_ROWS as i64), |row| {
                kernel.multiply_by_tiles(tiles, weights, row, finish);
            });
            begin = end;
        }
        for count in kernel.counts(tile, tokens) {
            let end = match count {
                1 => last,
                _ if count == tokens => whole(count),
                _ => b.sub(last, b.urem(b.sub(last, begin), b.int(count as i64))),
            };
            b.for_range(begin, end, b.int(count as i64), |row| {
                for (i, values) in kernel.multiply(tile, weights, row, count).into_iter().enumerate() {
                    finish(b.add(row, b.int(i as i64)), values);
                }
            });
            begin = end;
        }
    });
    if tiles.is_some() {
        b.end_tiles();
    }
}

struct Linear<'b, 'c> {
    b: &'b Builder<'c>,
    scheme: Scheme,
    act: Activation,
    blocks: usize,
}

/// 32 columns of a block: which block of the strip, which span, and which columns of the span.
#[derive(Clone, Copy)]
struct Place<'c> {
    block: usize,
    span: Val<'c>,
    index: Val<'c>,
}

/// 32 columns of a block, ready to be multiplied.
enum Group<'c> {
    /// Byte levels by quad, scales and minima. Where the levels are signed, what dot products with unsigned activations begin
    /// at, for each part.
    Codes { quads: Vec<Val<'c>>, parameters: Parameters<'c>, starts: Vec<Val<'c>> },
    /// Dequantized elements by k.
    Values(Vec<Val<'c>>),
}

impl<'c> Linear<'_, 'c> {
    /// How many rows are multiplied at once, the most first. What a CPU decodes for few rows it decodes once for the rest of
    /// them, too: steps with guesses are often of two or three rows.
    fn counts(&self, tile: Tile, most: usize) -> Vec<usize> {
        let by_all = matches!(tile, Tile::Stream { .. }) && self.b.is_vector();
        (1..=most).rev().filter(|&count| by_all || count == most || count == 1).collect()
    }

    /// Runs `body` with each strip of this worker's units, the first of its rows of activations, a multiple of `at_once`, and
    /// the end of them.
    fn for_strips(&self, tile: Tile, at_once: usize, body: impl FnOnce(Val<'c>, Val<'c>, Val<'c>)) {
        let (b, rows) = (self.b, self.b.param(0));
        if tile.parts() == 1 {
            return b.for_units(|strip| body(strip, b.int(0), rows));
        }
        let (begin, end) = b.unit_range();
        let (parts, at_once) = (b.int(tile.parts() as i64), b.int(at_once as i64));
        let rounded_up = |value, by| b.udiv(b.add(value, b.sub(by, b.int(1))), by);
        let turns = rounded_up(rows, at_once);
        // Where a part of the rows begins, and the one before it ends.
        let edge = |part| {
            let row = b.mul(b.udiv(b.mul(turns, part), parts), at_once);
            b.overloaded("llvm.smin", &[row, rows])
        };
        let strips = b.udiv(b.param(1), b.int((self.blocks * BLOCK_ROWS) as i64));
        let are_many = b.icmp(IntPredicate::SGE, rows, b.int(HALVED_ROWS));
        let of_half = b.select(are_many, b.int(tile.parts() as i64 / 2), parts);
        b.for_range(b.udiv(begin, of_half), rounded_up(end, of_half), b.int(1), |turn| {
            let before = b.mul(turn, of_half);
            let first = b.overloaded("llvm.smax", &[b.sub(begin, before), b.int(0)]);
            let last = b.overloaded("llvm.smin", &[b.sub(end, before), of_half]);
            let part = b.mul(b.udiv(turn, strips), of_half);
            body(b.urem(turn, strips), edge(b.add(part, first)), edge(b.add(part, last)));
        });
    }

    /// Products of the strip with `count` rows from `row`: `[count][blocks]` lane values.
    fn multiply(&self, tile: Tile, weights: PointerValue<'c>, row: Val<'c>, count: usize) -> Vec<Vec<Val<'c>>> {
        let at_once = if matches!(tile, Tile::Unpack { .. }) { self.b.target.tile.unpack_blocks } else { 1 };
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
        let rows: Vec<PointerValue<'c>> = (0..count).map(|i| self.row(row, i)).collect();
        let zero = b.float_lanes(0.0);
        let sums: Vec<Vec<_>> = (0..count).map(|_| blocks.iter().map(|_| b.var(zero)).collect()).collect();
        b.for_range(b.int(0), b.param(2), b.int(1), |span| {
            b.repeat(span_groups(self.scheme), |index| {
                let places = blocks.iter().map(|&block| Place { block, span, index });
                if count >= AHEAD_ROWS {
                    places.clone().for_each(|place| self.look_ahead(tile, weights, row, place));
                }
                let loaded: Vec<Group<'c>> = places.map(|place| self.load(tile, weights, place)).collect();
                let g = self.group_index(span, index);
                match self.act {
                    Activation::Int8 => self.add_codes(&loaded, &rows, g, &sums),
                    Activation::F32 | Activation::Bf16 => self.add_values(&loaded, &rows, g, &sums),
                }
            });
        });
        sums.iter().map(|row| row.iter().map(|&sum| b.get(sum)).collect()).collect()
    }

    /// Where the activations of row `row + i` begin.
    fn row(&self, row: Val<'c>, i: usize) -> PointerValue<'c> {
        let b = self.b;
        b.element(b.operand(0), b.mul(b.add(row, b.int(i as i64)), self.groups()), self.act.group_bytes())
    }

    /// How many times 32 columns a row has.
    fn groups(&self) -> Val<'c> {
        self.group_index(self.b.param(2), self.b.int(0))
    }

    /// The number of 32 columns of a span among all.
    fn group_index(&self, span: Val<'c>, index: Val<'c>) -> Val<'c> {
        let b = self.b;
        match span_groups(self.scheme) {
            1 => span,
            groups => b.add(b.mul(span, b.int(groups as i64)), index),
        }
    }

    fn add_codes(&self, loaded: &[Group<'c>], rows: &[PointerValue<'c>], g: Val<'c>, sums: &[Vec<Var<'c>>]) {
        let b = self.b;
        let mut quads = Vec::new();
        let mut parameters = Vec::new();
        let mut own_starts = Vec::new();
        for group in loaded {
            let Group::Codes { quads: levels, parameters: of_group, starts } = group else {
                unreachable!("int8 activations meet codes")
            };
            quads.push(levels);
            parameters.push(of_group);
            own_starts.push(starts);
        }
        let is_signed = own_starts.iter().any(|starts| !starts.is_empty());
        let parts = GROUP / self.scheme.group;
        let (code_sums, mut dots): (Vec<_>, Vec<Vec<Vec<Dot<'c>>>>) = if is_signed {
            // By part of the columns and block; the same for all rows.
            let of_part = |part: usize| own_starts.iter().map(|starts| Dot::from(starts[part])).collect();
            let dots: Vec<Vec<Dot<'c>>> = (0..parts).map(of_part).collect();
            rows.iter().map(|_| (Vec::new(), dots.clone())).unzip()
        } else {
            // Dot products by row, part of the columns and block.
            let of_row = |&row: &PointerValue<'c>| {
                let (sums, starts) = self.starts(row, g);
                (sums, starts.into_iter().map(|start| vec![Dot::from(start); loaded.len()]).collect())
            };
            rows.iter().map(of_row).unzip()
        };
        let most = self.scheme.most_level();
        let signs = b.int_lanes(SIGNS);
        for quad in 0..GROUP / 4 {
            for (&row, dots) in rows.iter().zip(&mut dots) {
                let activations = self.activations(row, g, quad);
                let unsigned = if is_signed { b.xor(activations, signs) } else { activations };
                for (quads, dot) in quads.iter().zip(&mut dots[quad * parts / (GROUP / 4)]) {
                    *dot = if is_signed {
                        b.dot4(*dot, unsigned, quads[quad], u8::MAX)
                    } else {
                        b.dot4(*dot, quads[quad], activations, most)
                    };
                }
            }
        }
        for (((&row, dots), code_sums), sums) in rows.iter().zip(dots).zip(code_sums).zip(sums) {
            let scale = b.splat(b.load(Kind::F32, self.field(row, GROUP, g)));
            for (part, dots) in dots.into_iter().enumerate() {
                let weighted = || self.weighted(row, g, scale, code_sums.get(part));
                for ((parameters, dot), &sum) in parameters.iter().zip(dots).zip(sums) {
                    self.add_scaled(sum, b.total(dot), scale, (parameters, part), weighted);
                }
            }
        }
    }

    /// A record's scale times the sum of its codes: over a part of the columns if their sum is given, over all otherwise.
    fn weighted(&self, row: PointerValue<'c>, g: Val<'c>, scale: Val<'c>, sum: Option<&Val<'c>>) -> Val<'c> {
        let b = self.b;
        match sum {
            Some(&sum) => b.fmul(scale, b.to_float(sum, Kind::F32)),
            None => b.splat(b.load(Kind::F32, self.field(row, GROUP + 4, g))),
        }
    }

    /// Adds the dot product of a part of the columns to a sum, as the recipe says; `weighted` is what a minimum is
    /// multiplied with.
    fn add_scaled(
        &self,
        sum: Var<'c>,
        dot: Val<'c>,
        scale: Val<'c>,
        (parameters, part): (&Parameters<'c>, usize),
        weighted: impl Fn() -> Val<'c>,
    ) {
        let b = self.b;
        let scaled = b.fmul(b.to_float(dot, Kind::F32), parameters.scales[part]);
        let mut value = b.fma(scaled, scale, b.get(sum));
        if let Some(&min) = parameters.mins.get(part) {
            value = b.fma(min, weighted(), value);
        }
        b.set(sum, value);
    }

    /// The field of a record that follows `bytes` per group, for group `g`.
    fn field(&self, row: PointerValue<'c>, bytes: usize, g: Val<'c>) -> PointerValue<'c> {
        self.b.element(self.b.element(row, self.groups(), bytes), g, 4)
    }

    /// Four codes of a record in every lane.
    fn activations(&self, row: PointerValue<'c>, g: Val<'c>, quad: usize) -> Val<'c> {
        let b = self.b;
        let at = b.offset(b.element(row, g, GROUP), b.int(4 * quad as i64));
        b.splat(b.load(Kind::I32, at))
    }

    /// The sums of a record's codes over each part of the columns (none where the record has the only one, scaled), and
    /// where the parts' dot products begin: at minus zero times the sum.
    fn starts(&self, row: PointerValue<'c>, g: Val<'c>) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        let b = self.b;
        let zero = -i32::from(self.scheme.zero_level());
        let whole = || b.load(Kind::I32, self.field(row, GROUP + 8, g));
        if self.scheme.group == GROUP {
            let start = match self.scheme.zero {
                Zero::Symmetric => b.spread_product(whole(), zero),
                Zero::Min => b.int_lanes(0),
            };
            return (Vec::new(), vec![start]);
        }
        let ones = b.int_lanes(0x0101_0101);
        let quads = (0..GROUP / 8).map(|quad| self.activations(row, g, quad));
        let first = b.total(quads.fold(Dot::from(b.int_lanes(0)), |dot, quad| b.dot4(dot, ones, quad, 1)));
        let sums = vec![first, b.sub(b.splat(whole()), first)];
        let starts = match self.scheme.zero {
            Zero::Symmetric => sums.iter().map(|&sum| b.mul(sum, b.int_lanes(zero))).collect(),
            Zero::Min => vec![b.int_lanes(0); sums.len()],
        };
        (sums, starts)
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

    /// Asks for packed weights that come later. Of one turn of rows, those a little further on. Of several turns only the first
    /// reads weights, and would wait for them: so in the first two turns, those of the next strip, half of them in each.
    fn look_ahead(&self, tile: Tile, weights: PointerValue<'c>, row: Val<'c>, Place { block, span, index }: Place<'c>) {
        let (b, bytes) = (self.b, block_span_bytes(self.scheme));
        let Tile::Stream { tokens } = tile else { return };
        if !b.is_vector() {
            return;
        }
        let spans = b.param(2);
        let span = b.add(b.mul(spans, b.int(block as i64)), span);
        let own = bytes / span_groups(self.scheme);
        let at = b.element(b.element(weights, span, bytes), index, own);
        let fetch = |from: PointerValue<'c>, lines: usize| {
            for line in 0..lines {
                b.prefetch(b.offset(from, b.int((line * LINE) as i64)));
            }
        };
        let lines = own.div_ceil(LINE);
        let of_turn = lines.div_ceil(AHEAD_TURNS);
        let turn = b.udiv(row, b.int(tokens as i64));
        let is_only_turn = b.icmp(IntPredicate::SLE, b.param(0), b.int(tokens as i64));
        b.either(
            is_only_turn,
            || fetch(b.offset(at, b.int(AHEAD as i64)), lines),
            || {
                b.when(b.icmp(IntPredicate::SLT, turn, b.int(AHEAD_TURNS as i64)), || {
                    let strip = b.element(at, b.mul(spans, b.int(self.blocks as i64)), bytes);
                    fetch(b.element(strip, turn, of_turn * LINE), of_turn);
                });
            },
        );
    }

    fn load(&self, tile: Tile, weights: PointerValue<'c>, place: Place<'c>) -> Group<'c> {
        let b = self.b;
        let Place { block, span, index } = place;
        let span = b.add(b.mul(b.param(2), b.int(block as i64)), span);
        match tile {
            Tile::Stream { .. } | Tile::Mma { .. } | Tile::Staged { .. } => self.decode(weights, span, index),
            Tile::Unpack { .. } => self.load_unpacked(self.unpacked(weights, span, index)),
        }
    }

    /// 32 columns of span `span` of the strip, from the packed weights.
    fn decode(&self, weights: PointerValue<'c>, span: Val<'c>, index: Val<'c>) -> Group<'c> {
        let (b, scheme) = (self.b, self.scheme);
        let span = b.element(weights, span, block_span_bytes(scheme));
        let columns = Columns { b, scheme, span, index, row: None };
        match self.act {
            Activation::Int8 => {
                Group::Codes { quads: columns.quads(), parameters: columns.parameters(), starts: Vec::new() }
            }
            Activation::F32 | Activation::Bf16 => Group::Values(columns.values()),
        }
    }

    /// Where 32 columns lie in scratch.
    fn unpacked(&self, scratch: PointerValue<'c>, span: Val<'c>, index: Val<'c>) -> PointerValue<'c> {
        let stride = LANES * KernelSpec::unpacked_group_bytes(self.scheme, self.act);
        self.b.element(scratch, self.group_index(span, index), stride)
    }

    fn load_unpacked(&self, group: PointerValue<'c>) -> Group<'c> {
        let b = self.b;
        let line = |kind, index: usize| b.load_lanes(kind, b.offset(group, b.int((index * LINE) as i64)));
        let parts = GROUP / self.scheme.group.max(1);
        match self.act {
            Activation::Int8 => {
                let quads = (0..GROUP / 4).map(|quad| line(Kind::I32, quad)).collect();
                let mut rest = (GROUP / 4..).map(|index| line(Kind::F32, index));
                let scales = rest.by_ref().take(parts).collect();
                let mins = rest.take(parts * (self.scheme.parameters() - 1)).collect();
                let starts = if self.unpacks_signed() {
                    (0..parts).map(|part| line(Kind::I32, GROUP / 4 + parts + part)).collect()
                } else {
                    Vec::new()
                };
                Group::Codes { quads, parameters: Parameters { scales, mins }, starts }
            }
            Activation::F32 | Activation::Bf16 => Group::Values((0..GROUP).map(|k| line(Kind::F32, k)).collect()),
        }
    }

    /// Unpacks the strip to scratch, the last operand, in the order in which [`Linear::load_unpacked`] reads it.
    fn unpack(&self, weights: PointerValue<'c>) -> PointerValue<'c> {
        let b = self.b;
        let scratch = b.last_operand();
        let total = b.mul(b.param(2), b.int(self.blocks as i64));
        b.for_range(b.int(0), total, b.int(1), |span| {
            b.repeat(span_groups(self.scheme), |index| {
                let out = self.unpacked(scratch, span, index);
                let (integers, floats) = match self.decode(weights, span, index) {
                    Group::Codes { quads, parameters: Parameters { scales, mins }, .. } => {
                        (quads, [scales, mins].concat())
                    }
                    Group::Values(values) => (Vec::new(), values),
                };
                let (integers, starts) =
                    if self.unpacks_signed() { self.signed(&integers) } else { (integers, Vec::new()) };
                let lines = integers.into_iter().map(|value| (Kind::I32, value));
                let lines = lines.chain(floats.into_iter().map(|value| (Kind::F32, value)));
                let lines = lines.chain(starts.into_iter().map(|value| (Kind::I32, value)));
                for (line, (kind, value)) in lines.enumerate() {
                    b.store_lanes(kind, b.offset(out, b.int((line * LINE) as i64)), value);
                }
            });
        });
        scratch
    }

    /// Whether unpacked levels are signed, and activations made unsigned in registers instead. Then what corrects a dot
    /// product depends on the weights alone, where otherwise each row needs the sums of its codes over every group of 16.
    fn unpacks_signed(&self) -> bool {
        let target = self.b.target;
        KernelSpec::has_starts(self.scheme, self.act)
            && (target.has("avx512_vnni") || target.has("avx_vnni"))
            && !self.b.has_tiles()
    }

    /// Levels less the one that means zero, and -128 times their sum over each part of the columns: the products with
    /// activations that are 128 too large come to that much too much.
    fn signed(&self, quads: &[Val<'c>]) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        let b = self.b;
        let (signs, ones) = (b.int_lanes(SIGNS), b.int_lanes(0x0101_0101));
        let zeros = b.int_lanes(0x0101_0101 * i32::from(self.scheme.zero_level()));
        // With the highest bit set no byte borrows from its neighbour.
        let quads: Vec<Val<'c>> = quads.iter().map(|&quad| b.xor(b.sub(b.or(quad, signs), zeros), signs)).collect();
        let starts = quads.chunks(self.scheme.group / 4).map(|quads| {
            let none = Dot::from(b.int_lanes(0));
            let sum = b.total(quads.iter().fold(none, |dot, &quad| b.dot4(dot, ones, quad, 1)));
            b.mul(sum, b.int_lanes(-128))
        });
        (quads.clone(), starts.collect())
    }
}
