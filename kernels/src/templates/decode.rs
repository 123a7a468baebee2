//! Reading packed weights: 32 elements along K of a block of 16 rows, one row per lane, or of one row.
//!
//! A span of a block (see `Scheme::span`) is a run of lines of four bytes for each of the 16 rows: those of the first 32
//! columns, then those of the next. 32 columns of integer codes are their pieces, low bits first; in a piece of `p`
//! bits, a line holds `8 / p` quads of codes from its low bits up. After the lines of a span come its integer scales and
//! minima, by pieces too, in half-lines of two bytes per row; then 16 f16 scales; then 16 f16 minima.
//! A line of f32 holds one element of each row; of bf16 and f16 two, low half first.

use inkwell::values::PointerValue;
use lathe_ir::scheme::{Code, Scales, Scheme, TABLE, Zero, pieces};
use lathe_ir::types::DType;

use crate::llvm::builder::{Builder, Kind, Val};
use crate::spec::{BLOCK_ROWS, GROUP};

/// Bytes of a line: four for each of the 16 rows.
pub const LINE: usize = 64;
/// Bits that a half-line holds of each row.
pub const HALF_LINE_BITS: usize = 16;

/// Bytes of a span of a block.
pub fn block_span_bytes(scheme: Scheme) -> usize {
    scheme.row_bytes(scheme.span()) * BLOCK_ROWS
}

/// How many times 32 columns a span has.
pub fn span_groups(scheme: Scheme) -> usize {
    scheme.span() / GROUP
}

/// Scales and minima of 32 columns, one for each group of the scheme.
#[derive(Clone)]
pub struct Parameters<'c> {
    /// f32 scales.
    pub scales: Vec<Val<'c>>,
    /// f32 minima; none for a symmetric scheme.
    pub mins: Vec<Val<'c>>,
}

/// 32 columns of a span of a block.
#[derive(Clone, Copy)]
pub struct Columns<'b, 'c> {
    /// The builder.
    pub b: &'b Builder<'c>,
    /// The scheme.
    pub scheme: Scheme,
    /// Where the span begins.
    pub span: PointerValue<'c>,
    /// Which 32 columns of the span.
    pub index: Val<'c>,
    /// The row to read; all rows, as lanes, if none.
    pub row: Option<Val<'c>>,
}

impl<'c> Columns<'_, 'c> {
    /// The elements at `base + bytes`, one for each row that is read.
    fn read(&self, kind: Kind, base: PointerValue<'c>, bytes: usize) -> Val<'c> {
        let b = self.b;
        let at = b.offset(base, b.int(bytes as i64));
        match self.row {
            None => b.load_lanes(kind, at),
            Some(row) => b.load(kind, b.element(at, row, kind.bytes())),
        }
    }

    fn constant(&self, value: i32) -> Val<'c> {
        if self.row.is_some() { self.b.int32(value) } else { self.b.int_lanes(value) }
    }

    /// A uniform i32 for every row that is read.
    fn everywhere(&self, value: Val<'c>) -> Val<'c> {
        if self.row.is_some() { value } else { self.b.splat(value) }
    }

    /// `(value >> shift) & mask` with constants.
    fn field(&self, value: Val<'c>, shift: usize, mask: u32) -> Val<'c> {
        let b = self.b;
        let shifted = if shift == 0 { value } else { b.lshr(value, self.constant(shift as i32)) };
        b.and(shifted, self.constant(mask as i32))
    }

    /// Ors `high << place` onto what lower pieces gave.
    fn join(&self, low: Option<Val<'c>>, high: Val<'c>, place: u8) -> Val<'c> {
        let Some(low) = low else { return high };
        let b = self.b;
        b.or(low, b.shl(high, self.constant(i32::from(place))))
    }

    /// Where the lines of these columns begin.
    fn lines(&self) -> PointerValue<'c> {
        if span_groups(self.scheme) == 1 {
            return self.span;
        }
        self.b.element(self.span, self.index, usize::from(self.scheme.bits()) * LINE)
    }

    /// The eight quads: four unsigned byte levels per row each.
    pub fn quads(&self) -> Vec<Val<'c>> {
        let bits = self.scheme.bits();
        let lines = self.lines();
        if bits == 8 {
            return (0..8).map(|q| self.read(Kind::I32, lines, q * LINE)).collect();
        }
        let mut quads: Vec<Option<Val<'c>>> = vec![None; 8];
        let (mut first_line, mut place) = (0, 0);
        for &piece in pieces(bits) {
            let width = usize::from(piece);
            let mask = ((1u32 << piece) - 1) * 0x0101_0101;
            let loaded: Vec<_> = (0..width).map(|i| self.read(Kind::I32, lines, (first_line + i) * LINE)).collect();
            for (q, quad) in quads.iter_mut().enumerate() {
                let per_line = 8 / width;
                let high = self.field(loaded[q / per_line], width * (q % per_line), mask);
                *quad = Some(self.join(*quad, high, place));
            }
            first_line += width;
            place += piece;
        }
        let codes = quads.into_iter().map(|quad| quad.expect("a code has pieces"));
        if self.scheme.code == Code::Table {
            codes.map(|quad| self.b.look_up(&TABLE, quad)).collect()
        } else {
            codes.collect()
        }
    }

    /// Quad `q`, a uniform i64, of one row.
    pub fn quad(&self, q: Val<'c>) -> Val<'c> {
        let b = self.b;
        let (bits, lines) = (self.scheme.bits(), self.lines());
        let mut quad = None;
        let (mut first_line, mut place) = (0, 0);
        for &piece in pieces(bits) {
            let width = usize::from(piece);
            let per_line = b.int((8 / width) as i64);
            let line = b.element(lines, b.udiv(q, per_line), LINE);
            let word = self.read(Kind::I32, line, first_line * LINE);
            let shift = b.trunc(b.mul(b.urem(q, per_line), b.int(width as i64)), Kind::I32);
            let mask = ((1u32 << (piece - 1)) - 1) << 1 | 1;
            let high = b.and(b.lshr(word, shift), b.int32((mask * 0x0101_0101) as i32));
            quad = Some(self.join(quad, high, place));
            first_line += width;
            place += piece;
        }
        let quad = quad.expect("a code has pieces");
        if self.scheme.code == Code::Table { b.look_up(&TABLE, quad) } else { quad }
    }

    /// The parameters of each group.
    pub fn parameters(&self) -> Parameters<'c> {
        let b = self.b;
        let scheme = self.scheme;
        let end = block_span_bytes(scheme);
        let outer =
            |from_end: usize| b.to_width(self.read(Kind::F16, self.span, end - from_end * 2 * BLOCK_ROWS), Kind::F32);
        let scale = outer(scheme.parameters());
        let min = (scheme.zero == Zero::Min).then(|| outer(1));
        let Scales::Super { bits } = scheme.scales else {
            return Parameters { scales: vec![scale], mins: min.into_iter().collect() };
        };
        let integers = self.integers(bits).into_iter().map(|integer| b.to_float(integer, Kind::F32));
        let mut parameters = Parameters { scales: Vec::new(), mins: Vec::new() };
        for (i, integer) in integers.enumerate() {
            match min {
                Some(min) if i % 2 == 1 => parameters.mins.push(b.fmul(min, integer)),
                _ => parameters.scales.push(b.fmul(scale, integer)),
            }
        }
        parameters
    }

    /// The integer scales and minima of each group: those of 32 columns lie in one half-line of each piece.
    fn integers(&self, bits: u8) -> Vec<Val<'c>> {
        let b = self.b;
        let scheme = self.scheme;
        let count = GROUP / scheme.group * scheme.parameters();
        let mut integers: Vec<Option<Val<'c>>> = vec![None; count];
        let mut at = scheme.span() * usize::from(scheme.bits()) / 8 * BLOCK_ROWS;
        let mut place = 0;
        for &piece in pieces(bits) {
            let width = usize::from(piece) * count;
            let per_half_line = b.int((HALF_LINE_BITS / width) as i64);
            let half_line = b.element(self.span, b.udiv(self.index, per_half_line), LINE / 2);
            let word = b.zext(self.read(Kind::I16, half_line, at), Kind::I32);
            let shift = b.mul(b.urem(self.index, per_half_line), b.int(width as i64));
            let word = b.lshr(word, self.everywhere(b.trunc(shift, Kind::I32)));
            for (i, integer) in integers.iter_mut().enumerate() {
                let high = self.field(word, i * usize::from(piece), (1 << piece) - 1);
                *integer = Some(self.join(*integer, high, place));
            }
            at += span_groups(scheme) * width / 8 * BLOCK_ROWS;
            place += piece;
        }
        let zero = self.constant(i32::from(scheme.sub_zero()));
        let signed = |integer: Option<Val<'c>>| b.sub(integer.expect("an integer has pieces"), zero);
        integers.into_iter().map(signed).collect()
    }

    /// The 32 dequantized elements as f32, in order of k.
    pub fn values(&self) -> Vec<Val<'c>> {
        let b = self.b;
        let words = |count: usize| (0..count).map(|i| self.read(Kind::I32, self.lines(), i * LINE));
        match self.scheme.code {
            Code::Float(DType::Bf16) => words(GROUP / 2).flat_map(|pair| self.bf16_pair(pair)).collect(),
            Code::Float(DType::F16) => words(GROUP / 2).flat_map(|pair| self.f16_pair(pair)).collect(),
            Code::Float(_) => words(GROUP).map(|word| b.bitcast(word, Kind::F32)).collect(),
            Code::Uniform { .. } | Code::Table => {
                let parameters = self.parameters();
                let quads = self.quads();
                (0..GROUP)
                    .map(|k| self.dequantize(self.field(quads[k / 4], 8 * (k % 4), 0xff), &parameters, k))
                    .collect()
            }
        }
    }

    fn bf16_pair(&self, pair: Val<'c>) -> [Val<'c>; 2] {
        let b = self.b;
        let (low, high) = (b.shl(pair, self.constant(16)), b.and(pair, self.constant(0xffff_0000_u32 as i32)));
        [low, high].map(|bits| b.bitcast(bits, Kind::F32))
    }

    fn f16_pair(&self, pair: Val<'c>) -> [Val<'c>; 2] {
        let b = self.b;
        let high = b.lshr(pair, self.constant(16));
        [pair, high].map(|bits| b.to_width(b.bitcast(b.trunc(bits, Kind::I16), Kind::F16), Kind::F32))
    }

    /// Element k from its level: `scale · (level − zero)`, or `scale · level + min`.
    fn dequantize(&self, level: Val<'c>, parameters: &Parameters<'c>, k: usize) -> Val<'c> {
        let b = self.b;
        let group = k / self.scheme.group;
        let scale = parameters.scales[group];
        if let Some(&min) = parameters.mins.get(group) {
            return b.fadd(b.fmul(scale, b.to_float(level, Kind::F32)), min);
        }
        let zero = self.constant(i32::from(self.scheme.zero_level()));
        b.fmul(scale, b.to_float(b.sub(level, zero), Kind::F32))
    }
}
