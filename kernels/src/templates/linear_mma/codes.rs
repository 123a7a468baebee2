//! Products of integer weights with activations quantized to int8.
//!
//! Per group of the scheme the tensor cores give the integer dot products of 16 weight rows with 8 rows of activations, which
//! are exact; what follows is the arithmetic of the linear kernels for CPUs. Since integer sums are exact, columns may be
//! taken in any order inside a group: a thread takes two neighbouring quads, which for 4-bit codes lie in one word.

use inkwell::values::PointerValue;
use lathe_ir::scheme::{Code, Scales, TABLE, pieces};

use super::scaled::{Fragment, accumulate, activations, parts, wants_scaled_sums};
use super::{Product, Rows, Sums};
use crate::llvm::builder::{Builder, Kind, Val};
use crate::spec::{ACT_GROUP_BYTES, BLOCK_ROWS, GROUP};
use crate::templates::decode::{HALF_LINE_BITS, LINE, block_span_bytes, span_groups};

/// Weight rows of a thread.
const ROWS: usize = 4;
/// Quads of 32 columns of a row.
const QUADS: usize = GROUP / 4;

/// The lines of a piece of codes that a thread reads: one or two, as `per_line` quads lie in each.
fn lines(per_line: usize, parts: usize) -> usize {
    match (per_line, parts) {
        // Two quads that are neighbours, or one of each half of all.
        (1, _) => 2,
        (_, 1) | (QUADS, _) => 1,
        _ => 2,
    }
}

impl<'c> Product<'_, 'c> {
    /// Words that a thread needs of 32 columns of a pair.
    pub(super) fn code_words(&self) -> usize {
        let of = |width: u8| ROWS * lines(QUADS / usize::from(width), parts(self.scheme));
        let codes: usize = pieces(self.scheme.bits()).iter().map(|&width| of(width)).sum();
        let integers = match self.scheme.scales {
            Scales::Super { bits } => pieces(bits).len(),
            Scales::F16 => 0,
        };
        codes + ROWS / 2 * (self.scheme.parameters() + integers)
    }

    /// The two quads of a row that this thread takes: one of each group of the scheme where there are two.
    fn quads(&self) -> [Val<'c>; 2] {
        let b = self.b;
        if parts(self.scheme) == 1 {
            let first = b.mul(self.column, b.int(2));
            return [first, b.add(first, b.int(1))];
        }
        [self.column, b.add(self.column, b.int(QUADS as i64 / 2))]
    }

    /// The span of a group of 32 columns, and which columns of it they are.
    fn place(&self, group: Val<'c>) -> [Val<'c>; 2] {
        let b = self.b;
        let per_span = b.int(span_groups(self.scheme) as i64);
        [b.udiv(group, per_span), b.urem(group, per_span)]
    }

    /// Of four rows, piece by piece, the lines of codes; the outer scales, then minima; and with super-blocks the half-lines
    /// of integers.
    pub(super) fn fetch_codes(&self, block: PointerValue<'c>, group: Val<'c>) -> Vec<Val<'c>> {
        let (b, scheme) = (self.b, self.scheme);
        let [span, index] = self.place(group);
        let span = b.element(block, span, block_span_bytes(scheme));
        let codes = b.element(span, index, usize::from(scheme.bits()) * LINE);
        let codes = b.element(codes, self.quarter(), 4 * ROWS);
        let mut words = Vec::with_capacity(self.code_words());
        let mut first_line = 0;
        for &width in pieces(scheme.bits()) {
            let width = usize::from(width);
            let per_line = QUADS / width;
            for &quad in &self.quads()[..lines(per_line, parts(scheme))] {
                let at = b.element(codes, b.udiv(quad, b.int(per_line as i64)), LINE);
                let line: [Val<'c>; 4] = b.load_together(Kind::I32, b.offset(at, b.int((first_line * LINE) as i64)));
                words.extend(line);
            }
            first_line += width;
        }
        let own = b.element(span, self.quarter(), 2 * ROWS);
        let mut half_line = |from: PointerValue<'c>, at: usize| {
            let halves: [Val<'c>; 2] = b.load_together(Kind::I32, b.offset(from, b.int(at as i64)));
            words.extend(halves);
        };
        for parameter in (1..=scheme.parameters()).rev() {
            half_line(own, block_span_bytes(scheme) - parameter * 2 * BLOCK_ROWS);
        }
        let Scales::Super { bits } = scheme.scales else { return words };
        let mut at = scheme.span() * usize::from(scheme.bits()) / 8 * BLOCK_ROWS;
        for &width in pieces(bits) {
            let width = usize::from(width) * self.integers();
            let number = b.udiv(index, b.int((HALF_LINE_BITS / width) as i64));
            half_line(b.element(own, number, LINE / 2), at);
            at += span_groups(scheme) * width / 8 * BLOCK_ROWS;
        }
        words
    }

    /// Integer scales and minima of 32 columns of a row.
    fn integers(&self) -> usize {
        parts(self.scheme) * self.scheme.parameters()
    }

    /// Adds the products of 32 columns of all pairs with each tile of activations.
    pub(super) fn add_codes(
        &self,
        words: &[Val<'c>],
        group: Val<'c>,
        rows: impl Fn(usize) -> Vec<Val<'c>>,
        sums: &Sums<'c>,
    ) {
        let b = self.b;
        let [_, index] = self.place(group);
        let pairs = words.chunks(self.code_words());
        let fragments: Vec<Vec<[Fragment<'c>; 2]>> = pairs.map(|words| self.fragments(words, index)).collect();
        for (tile, sums) in sums.iter().enumerate() {
            let rows = rows(tile);
            let of = |part: usize| if parts(self.scheme) == 1 { rows[..2].to_vec() } else { vec![rows[part]] };
            let words = (0..parts(self.scheme)).map(of).collect();
            let activations = activations(b, self.scheme, words, [rows[2], rows[3]], [rows[4], rows[5]]);
            for (parts, sums) in fragments.iter().zip(sums) {
                for (products, activations) in parts.iter().zip(&activations) {
                    for (weights, sums) in products.iter().zip(sums) {
                        accumulate(b, weights, activations, sums);
                    }
                }
            }
        }
    }

    /// The fragments of both products for each group of the scheme, from what [`Product::fetch_codes`] has loaded.
    fn fragments(&self, words: &[Val<'c>], index: Val<'c>) -> Vec<[Fragment<'c>; 2]> {
        let scheme = self.scheme;
        let mut words = words.iter().copied();
        let quads = self.unpack(&mut words);
        let parameters = self.parameters(&mut words, index);
        let parts = parts(scheme);
        let of = |part: usize, product: usize| {
            let rows = 2 * product..2 * product + 2;
            let quads = if parts == 1 { &quads[..] } else { &quads[part..=part] };
            let of_rows = |parameter: &[Val<'c>; ROWS]| parameter[rows.clone()].to_vec();
            Fragment {
                words: quads.iter().flat_map(of_rows).collect(),
                scales: of_rows(&parameters[part * scheme.parameters()]),
                mins: if scheme.parameters() == 2 { of_rows(&parameters[part * 2 + 1]) } else { Vec::new() },
            }
        };
        debug_assert!(words.next().is_none(), "all words are of use");
        (0..parts).map(|part| [of(part, 0), of(part, 1)]).collect()
    }

    /// Four byte levels of each of this thread's rows: of both its quads.
    fn unpack(&self, words: &mut impl Iterator<Item = Val<'c>>) -> [[Val<'c>; ROWS]; 2] {
        let (b, bits) = (self.b, self.scheme.bits());
        let mut quads: [Option<[Val<'c>; ROWS]>; 2] = [None; 2];
        let mut place = 0;
        for &width in pieces(bits) {
            let per_line = QUADS / usize::from(width);
            let count = lines(per_line, parts(self.scheme));
            let loaded: Vec<[Val<'c>; ROWS]> = (0..count).map(|_| four(words)).collect();
            for (i, (quad, number)) in quads.iter_mut().zip(self.quads()).enumerate() {
                let within = b.urem(number, b.int(per_line as i64));
                let shift = b.trunc(b.mul(within, b.int(i64::from(width))), Kind::I32);
                let high = loaded[i.min(count - 1)].map(|word| {
                    if width == 8 {
                        return word;
                    }
                    let mask = ((1u32 << width) - 1) * 0x0101_0101;
                    b.and(b.lshr(word, shift), b.int32(mask as i32))
                });
                *quad = Some(match *quad {
                    None => high,
                    Some(low) => join(b, low, high, place),
                });
            }
            place += width;
        }
        let levels = quads.map(|quad| quad.expect("a code has pieces"));
        if self.scheme.code == Code::Table {
            levels.map(|quad| quad.map(|quad| b.look_up(&TABLE, quad)))
        } else {
            levels
        }
    }

    /// The scale of each of this thread's rows, then its minimum, if it has one, for each group of the scheme.
    fn parameters(&self, words: &mut impl Iterator<Item = Val<'c>>, index: Val<'c>) -> Vec<[Val<'c>; ROWS]> {
        let (b, scheme) = (self.b, self.scheme);
        let outer: Vec<[Val<'c>; ROWS]> = (0..scheme.parameters())
            .map(|_| halves(b, words).map(|half| b.to_width(b.bitcast(half, Kind::F16), Kind::F32)))
            .collect();
        let Scales::Super { bits } = scheme.scales else { return outer };
        let count = self.integers();
        let mut integers: Vec<Option<[Val<'c>; ROWS]>> = vec![None; count];
        let mut place = 0;
        for &width in pieces(bits) {
            let of_group = usize::from(width) * count;
            let shift = b.mul(b.urem(index, b.int((HALF_LINE_BITS / of_group) as i64)), b.int(of_group as i64));
            let shift = b.trunc(shift, Kind::I32);
            let loaded = halves(b, words).map(|half| b.lshr(b.zext(half, Kind::I32), shift));
            for (i, integer) in integers.iter_mut().enumerate() {
                let high = loaded.map(|word| {
                    let word = b.lshr(word, b.int32((i * usize::from(width)) as i32));
                    b.and(word, b.int32((1 << width) - 1))
                });
                *integer = Some(match *integer {
                    None => high,
                    Some(low) => join(b, low, high, place),
                });
            }
            place += width;
        }
        let zero = b.int32(i32::from(scheme.sub_zero()));
        let scaled = |(i, integer): (usize, Option<[Val<'c>; ROWS]>)| {
            let integer = integer.expect("an integer has pieces");
            let outer = &outer[i % outer.len()];
            [0, 1, 2, 3].map(|row| b.fmul(outer[row], b.to_float(b.sub(integer[row], zero), Kind::F32)))
        };
        integers.into_iter().enumerate().map(scaled).collect()
    }

    /// This thread's quads of its row of activations; of the rows of its two columns of results the scales, then the sums.
    pub(super) fn fetch_records(&self, rows: &Rows<'c>, group: Val<'c>) -> Vec<Val<'c>> {
        let b = self.b;
        let codes = b.element(rows.own, group, GROUP);
        // Records begin at multiples of four bytes.
        let mut words = self.quads().map(|quad| b.load(Kind::I32, b.element(codes, quad, 4))).to_vec();
        let (kind, sums) =
            if wants_scaled_sums(self.scheme) { (Kind::F32, GROUP + 4) } else { (Kind::I32, ACT_GROUP_BYTES - 4) };
        for (kind, bytes) in [(Kind::F32, GROUP), (kind, sums)] {
            let field = |row: PointerValue<'c>| b.element(b.element(row, self.groups, bytes), group, 4);
            words.extend(rows.results.map(|row| b.load(kind, field(row))));
        }
        words
    }
}

/// Ors `high << place` onto what lower pieces gave.
fn join<'c>(b: &Builder<'c>, low: [Val<'c>; ROWS], high: [Val<'c>; ROWS], place: u8) -> [Val<'c>; ROWS] {
    [0, 1, 2, 3].map(|row| b.or(low[row], b.shl(high[row], b.int32(i32::from(place)))))
}

/// The next four words.
fn four<'c>(words: &mut impl Iterator<Item = Val<'c>>) -> [Val<'c>; ROWS] {
    [(); ROWS].map(|()| words.next().expect("as many were loaded"))
}

/// The halves of the next two words.
fn halves<'c>(b: &Builder<'c>, words: &mut impl Iterator<Item = Val<'c>>) -> [Val<'c>; ROWS] {
    let [first, second] = [(); 2].map(|()| words.next().expect("as many were loaded"));
    let half = |word: Val<'c>, shift: i32| b.trunc(b.lshr(word, b.int32(shift)), Kind::I16);
    [half(first, 0), half(first, 16), half(second, 0), half(second, 16)]
}
