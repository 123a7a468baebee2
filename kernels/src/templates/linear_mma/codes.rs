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
        let rows = self.thread_rows();
        let of = |width: u8| rows * lines(QUADS / usize::from(width), parts(self.scheme));
        let codes: usize = pieces(self.scheme.bits()).iter().map(|&width| of(width)).sum();
        let integers = match self.scheme.scales {
            Scales::Super { bits } => pieces(bits).len(),
            Scales::F16 => 0,
        };
        codes + rows / 2 * (self.scheme.parameters() + integers)
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
        let rows = self.thread_rows();
        let codes = b.element(codes, self.place_in_block(), 4 * rows);
        let mut words = Vec::with_capacity(self.code_words());
        let mut first_line = 0;
        for &width in pieces(scheme.bits()) {
            let width = usize::from(width);
            let per_line = QUADS / width;
            for &quad in &self.quads()[..lines(per_line, parts(scheme))] {
                let at = b.element(codes, b.udiv(quad, b.int(per_line as i64)), LINE);
                words.extend(self.load_rows(b.offset(at, b.int((first_line * LINE) as i64))));
            }
            first_line += width;
        }
        let own = b.element(span, self.place_in_block(), 2 * rows);
        let mut half_line = |from: PointerValue<'c>, at: usize| {
            let from = b.offset(from, b.int(at as i64));
            match rows {
                2 => words.push(b.load(Kind::I32, from)),
                _ => words.extend(b.load_together::<2>(Kind::I32, from)),
            }
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
        let fragments: Vec<Vec<Vec<Fragment<'c>>>> = pairs.map(|words| self.fragments(words, index)).collect();
        for (tile, sums) in sums.iter().enumerate() {
            let rows = rows(tile);
            let of = |part: usize| if parts(self.scheme) == 1 { rows[..2].to_vec() } else { vec![rows[part]] };
            let words = (0..parts(self.scheme)).map(of).collect();
            let fields: Vec<[Val<'c>; 2]> =
                rows[2..].chunks(self.columns()).map(|field| [field[0], field[field.len() - 1]]).collect();
            let activations = activations(b, self.scheme, words, fields[0], fields[1]);
            for (parts, sums) in fragments.iter().zip(sums) {
                for (products, activations) in parts.iter().zip(&activations) {
                    for (weights, sums) in products.iter().zip(sums) {
                        accumulate(b, weights, activations, &sums[..], self.columns());
                    }
                }
            }
        }
    }

    /// The fragments of its products for each group of the scheme, from what [`Product::fetch_codes`] has loaded.
    fn fragments(&self, words: &[Val<'c>], index: Val<'c>) -> Vec<Vec<Fragment<'c>>> {
        let scheme = self.scheme;
        let mut words = words.iter().copied();
        let quads = self.unpack(&mut words);
        let parameters = self.parameters(&mut words, index);
        let parts = parts(scheme);
        let of = |part: usize, product: usize| {
            let rows = 2 * product..2 * product + 2;
            let quads = if parts == 1 { &quads[..] } else { &quads[part..=part] };
            let of_rows = |parameter: &Vec<Val<'c>>| parameter[rows.clone()].to_vec();
            Fragment {
                words: quads.iter().flat_map(of_rows).collect(),
                scales: of_rows(&parameters[part * scheme.parameters()]),
                mins: if scheme.parameters() == 2 { of_rows(&parameters[part * 2 + 1]) } else { Vec::new() },
            }
        };
        debug_assert!(words.next().is_none(), "all words are of use");
        (0..parts).map(|part| (0..self.products()).map(|product| of(part, product)).collect()).collect()
    }

    /// Four byte levels of each of this thread's rows: of both its quads.
    fn unpack(&self, words: &mut impl Iterator<Item = Val<'c>>) -> [Vec<Val<'c>>; 2] {
        let (b, bits) = (self.b, self.scheme.bits());
        let mut quads: [Option<Vec<Val<'c>>>; 2] = [None, None];
        let mut place = 0;
        for &width in pieces(bits) {
            let per_line = QUADS / usize::from(width);
            let count = lines(per_line, parts(self.scheme));
            let loaded: Vec<Vec<Val<'c>>> = (0..count).map(|_| words.take(self.thread_rows()).collect()).collect();
            for (i, (quad, number)) in quads.iter_mut().zip(self.quads()).enumerate() {
                let within = b.urem(number, b.int(per_line as i64));
                let shift = b.trunc(b.mul(within, b.int(i64::from(width))), Kind::I32);
                let level = |&word: &Val<'c>| {
                    if width == 8 {
                        return word;
                    }
                    let mask = ((1u32 << width) - 1) * 0x0101_0101;
                    b.and(b.lshr(word, shift), b.int32(mask as i32))
                };
                let high: Vec<Val<'c>> = loaded[i.min(count - 1)].iter().map(level).collect();
                *quad = Some(match quad.take() {
                    None => high,
                    Some(low) => join(b, low, high, place),
                });
            }
            place += width;
        }
        let levels = quads.map(|quad| quad.expect("a code has pieces"));
        if self.scheme.code == Code::Table {
            levels.map(|quad| quad.into_iter().map(|quad| b.look_up(&TABLE, quad)).collect())
        } else {
            levels
        }
    }

    /// The scale of each of this thread's rows, then its minimum, if it has one, for each group of the scheme.
    fn parameters(&self, words: &mut impl Iterator<Item = Val<'c>>, index: Val<'c>) -> Vec<Vec<Val<'c>>> {
        let (b, scheme) = (self.b, self.scheme);
        let mut halves = || halves(b, words.take(self.thread_rows() / 2));
        let wide = |half: Val<'c>| b.to_width(b.bitcast(half, Kind::F16), Kind::F32);
        let outer: Vec<Vec<Val<'c>>> =
            (0..scheme.parameters()).map(|_| halves().into_iter().map(wide).collect()).collect();
        let Scales::Super { bits } = scheme.scales else { return outer };
        let count = self.integers();
        let mut integers: Vec<Option<Vec<Val<'c>>>> = vec![None; count];
        let mut place = 0;
        for &width in pieces(bits) {
            let of_group = usize::from(width) * count;
            let shift = b.mul(b.urem(index, b.int((HALF_LINE_BITS / of_group) as i64)), b.int(of_group as i64));
            let shift = b.trunc(shift, Kind::I32);
            let loaded: Vec<Val<'c>> =
                halves().into_iter().map(|half| b.lshr(b.zext(half, Kind::I32), shift)).collect();
            for (i, integer) in integers.iter_mut().enumerate() {
                let field = |&word: &Val<'c>| {
                    let word = b.lshr(word, b.int32((i * usize::from(width)) as i32));
                    b.and(word, b.int32((1 << width) - 1))
                };
                let high: Vec<Val<'c>> = loaded.iter().map(field).collect();
                *integer = Some(match integer.take() {
                    None => high,
                    Some(low) => join(b, low, high, place),
                });
            }
            place += width;
        }
        let zero = b.int32(i32::from(scheme.sub_zero()));
        let scaled = |(i, integer): (usize, Option<Vec<Val<'c>>>)| {
            let integers = integer.expect("an integer has pieces");
            let rows = outer[i % outer.len()].iter().zip(integers);
            rows.map(|(&outer, integer)| b.fmul(outer, b.to_float(b.sub(integer, zero), Kind::F32))).collect()
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
            words.extend(rows.results[..self.columns()].iter().map(|&row| b.load(kind, field(row))));
        }
        words
    }
}

/// Ors `high << place` onto what lower pieces gave.
fn join<'c>(b: &Builder<'c>, low: Vec<Val<'c>>, high: Vec<Val<'c>>, place: u8) -> Vec<Val<'c>> {
    low.into_iter().zip(high).map(|(low, high)| b.or(low, b.shl(high, b.int32(i32::from(place))))).collect()
}

/// The halves of words.
fn halves<'c>(b: &Builder<'c>, words: impl Iterator<Item = Val<'c>>) -> Vec<Val<'c>> {
    let half = |word: Val<'c>, shift: i32| b.trunc(b.lshr(word, b.int32(shift)), Kind::I16);
    words.flat_map(|word| [half(word, 0), half(word, 16)]).collect()
}
