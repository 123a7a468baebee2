//! Pieces of integer weights and of activations quantized to int8: two of each in shared memory, one of which is multiplied
//! while the other is made.
//!
//! Weights are unpacked by all threads, each some quads, in the order in which the fragments of a thread lie: both rows of
//! one quad, then of the other, so that a thread has all of its words by one load.

use inkwell::values::PointerValue;

use super::{Staged, Sums, THREADS, TILE_ROWS};
use crate::llvm::builder::{Kind, Val};
use crate::spec::{ACT_GROUP_BYTES, BLOCK_ROWS, GROUP};
use crate::templates::decode::{Columns, Parameters, block_span_bytes, span_groups};
use crate::templates::linear_mma::scaled::{Activations, Fragment, accumulate, activations, parts, wants_scaled_sums};

/// Quads of 32 columns of a row, and of a block.
const ROW_QUADS: usize = GROUP / 4;
const BLOCK_QUADS: usize = ROW_QUADS * BLOCK_ROWS;

/// Where the fields of a piece begin, in bytes, and how long a piece is.
struct Fields {
    /// `[parameters][groups][weight rows]` f32: scales, then minima.
    parameters: usize,
    /// `[rows of activations][32]` codes.
    codes: usize,
    /// `[rows of activations]` f32.
    scales: usize,
    /// `[rows of activations]` sums of codes, or scaled sums.
    sums: usize,
    end: usize,
}

/// A thread's part of the weights of a piece.
struct Unpacked<'c> {
    quads: Vec<Val<'c>>,
    parameters: Vec<Val<'c>>,
}

impl<'c> Staged<'_, 'c> {
    fn fields(&self) -> Fields {
        let parameters = 4 * self.blocks() * BLOCK_QUADS;
        let codes = parameters + 4 * self.parameter_count() * self.blocks() * BLOCK_ROWS;
        let scales = codes + self.tokens() * GROUP;
        let sums = scales + 4 * self.tokens();
        Fields { parameters, codes, scales, sums, end: sums + 4 * self.tokens() }
    }

    /// Scales and minima of 32 columns of a row.
    fn parameter_count(&self) -> usize {
        self.scheme.parameters() * parts(self.scheme)
    }

    /// Bytes of shared memory for two pieces.
    pub(super) fn code_bytes(&self) -> usize {
        2 * self.fields().end
    }

    /// The totals of this warp in the strips from block `first` on.
    pub(super) fn multiply_codes(&self, first: Val<'c>) -> Sums<'c> {
        let b = self.b;
        let bytes = b.int(self.fields().end as i64);
        let last = b.sub(self.groups, b.int(1));
        self.bring_rows(b.int(0), b.int(0));
        self.put_weights(&self.unpack(first, b.int(0)), b.int(0));
        let slot = b.var(b.int(0));
        self.sum_runs(|group, sums| {
            b.wait_copies(0);
            b.barrier();
            // All have read what lay in the other slot. Behind the last group that one is brought again, for nobody.
            let here = b.get(slot);
            let other = b.sub(bytes, here);
            let next = b.overloaded("llvm.smin", &[b.add(group, b.int(1)), last]);
            self.bring_rows(next, other);
            let unpacked = self.unpack(first, next);
            self.add_codes(here, sums);
            self.put_weights(&unpacked, other);
            b.set(slot, other);
        })
    }

    /// Begins the copies of a group of columns of all rows of activations to a slot.
    fn bring_rows(&self, group: Val<'c>, slot: Val<'c>) {
        let b = self.b;
        let fields = self.fields();
        let row = |token: Val<'c>| b.element(b.operand(0), b.mul(self.token(token), self.groups), ACT_GROUP_BYTES);
        let to = b.offset(self.shared, slot);
        b.for_pieces(self.tokens() * ROW_QUADS, THREADS, |_, piece| {
            let (token, quad) = (b.udiv(piece, b.int(ROW_QUADS as i64)), b.urem(piece, b.int(ROW_QUADS as i64)));
            let from = b.element(b.element(row(token), group, GROUP), quad, 4);
            b.copy_4(b.offset(b.element(to, piece, 4), b.int(fields.codes as i64)), from);
        });
        let sums = if wants_scaled_sums(self.scheme) { GROUP + 4 } else { GROUP + 8 };
        let tokens = b.int(self.tokens() as i64);
        b.for_pieces(2 * self.tokens(), THREADS, |_, piece| {
            // Scales, then sums, one behind the other here as there.
            let (field, token) = (b.udiv(piece, tokens), b.urem(piece, tokens));
            let skipped = b.add(b.int(GROUP as i64), b.mul(field, b.int((sums - GROUP) as i64)));
            let from = b.element(b.offset(row(token), b.mul(self.groups, skipped)), group, 4);
            b.copy_4(b.offset(b.element(to, piece, 4), b.int(fields.scales as i64)), from);
        });
        b.commit_copies();
    }

    /// Unpacks this thread's quads and parameters of a group of columns.
    fn unpack(&self, first: Val<'c>, group: Val<'c>) -> Unpacked<'c> {
        let b = self.b;
        let per_span = b.int(span_groups(self.scheme) as i64);
        let (span, index) = (b.udiv(group, per_span), b.urem(group, per_span));
        let columns = |block: Val<'c>, row: Val<'c>| {
            let span = b.element(self.block(b.add(first, block)), span, block_span_bytes(self.scheme));
            Columns { b, scheme: self.scheme, span, index, row: Some(row) }
        };
        let mut unpacked = Unpacked { quads: Vec::new(), parameters: Vec::new() };
        // Threads for which no quad is left unpack one of a block past the last, and drop it.
        let turns = (self.blocks() * BLOCK_QUADS).next_multiple_of(THREADS);
        b.for_pieces(turns, THREADS, |_, piece| {
            let [block, quad, row] = place(self, piece);
            unpacked.quads.push(columns(block, row).quad(quad));
        });
        let thread = b.special("tid.x");
        let (block, row) = (b.udiv(thread, b.int(BLOCK_ROWS as i64)), b.urem(thread, b.int(BLOCK_ROWS as i64)));
        let Parameters { scales, mins } = columns(block, row).parameters();
        unpacked.parameters.extend(scales.into_iter().chain(mins));
        unpacked
    }

    /// Stores what a thread unpacked in a slot.
    fn put_weights(&self, unpacked: &Unpacked<'c>, slot: Val<'c>) {
        let b = self.b;
        let to = b.offset(self.shared, slot);
        b.for_pieces(self.blocks() * BLOCK_QUADS, THREADS, |turn, piece| {
            let [block, quad, row] = place(self, piece);
            let (g, h) = (b.udiv(row, b.int(2)), b.urem(row, b.int(2)));
            // Quads 2 t and 2 t + 1 of one product of 32 columns, or t and 4 + t of two of 16.
            let (t, j) = if parts(self.scheme) == 1 {
                (b.udiv(quad, b.int(2)), b.urem(quad, b.int(2)))
            } else {
                (b.urem(quad, b.int(4)), b.udiv(quad, b.int(4)))
            };
            let word = b.add(b.mul(b.add(b.mul(slot_of(self, g, t), b.int(2)), j), b.int(2)), h);
            let at = b.add(b.mul(block, b.int(BLOCK_QUADS as i64)), word);
            b.plain_store(Kind::I32, b.element(to, at, 4), unpacked.quads[turn]);
        });
        let rows = self.blocks() * BLOCK_ROWS;
        b.for_pieces(rows, THREADS, |_, row| {
            for (i, &parameter) in unpacked.parameters.iter().enumerate() {
                let at = self.fields().parameters + 4 * i * rows;
                b.plain_store(Kind::F32, b.offset(b.element(to, row, 4), b.int(at as i64)), parameter);
            }
        });
    }

    /// Adds the products of the piece in a slot.
    fn add_codes(&self, slot: Val<'c>, sums: &Sums<'c>) {
        let b = self.b;
        let from = b.offset(self.shared, slot);
        let fragments: Vec<Vec<Fragment<'c>>> =
            (0..self.warps.blocks).map(|block| self.code_fragments(from, block)).collect();
        let first = b.mul(self.place[1], b.int((TILE_ROWS * self.warps.tiles) as i64));
        for (tile, sums) in sums.iter().enumerate() {
            let first = b.add(first, b.int((TILE_ROWS * tile) as i64));
            let activations = self.code_activations(from, first);
            for (fragments, sums) in fragments.iter().zip(sums) {
                for (weights, activations) in fragments.iter().zip(&activations) {
                    accumulate(b, weights, activations, &sums[..], 2);
                }
            }
        }
    }

    /// This thread's fragments of a block of weights, one for each group of the scheme.
    fn code_fragments(&self, from: PointerValue<'c>, block: usize) -> Vec<Fragment<'c>> {
        let b = self.b;
        let block = b.add(b.mul(self.place[0], b.int(self.warps.blocks as i64)), b.int(block as i64));
        let own = b.element(b.element(from, block, 4 * BLOCK_QUADS), slot_of(self, self.row, self.column), 16);
        let words: [Val<'c>; 4] = b.load_together(Kind::I32, own);
        let own = b.element(b.element(from, block, 4 * BLOCK_ROWS), self.row, 8);
        let parameters: Vec<[Val<'c>; 2]> = (0..self.parameter_count())
            .map(|i| {
                let at = self.fields().parameters + 4 * i * self.blocks() * BLOCK_ROWS;
                b.load_together(Kind::F32, b.offset(own, b.int(at as i64)))
            })
            .collect();
        let parts = parts(self.scheme);
        let words = words.chunks(words.len() / parts).enumerate();
        let of = |(part, words): (usize, &[Val<'c>])| Fragment {
            words: words.to_vec(),
            scales: parameters[part].to_vec(),
            mins: parameters.get(parts + part).into_iter().flatten().copied().collect(),
        };
        words.map(of).collect()
    }

    /// This thread's activations of the tile from row `first` on.
    fn code_activations(&self, from: PointerValue<'c>, first: Val<'c>) -> Vec<Activations<'c>> {
        let b = self.b;
        let fields = self.fields();
        let field = |at: usize| b.offset(from, b.int(at as i64));
        let codes = b.element(field(fields.codes), b.add(first, self.row), GROUP);
        let words = if parts(self.scheme) == 1 {
            let words: [Val<'c>; 2] = b.load_together(Kind::I32, b.element(codes, self.column, 8));
            vec![words.to_vec()]
        } else {
            let own = b.element(codes, self.column, 4);
            [0, GROUP / 2].map(|at| vec![b.load(Kind::I32, b.offset(own, b.int(at as i64)))]).to_vec()
        };
        let pair = |kind: Kind, at: usize| -> [Val<'c>; 2] {
            b.load_together(kind, b.element(b.element(field(at), first, 4), self.column, 8))
        };
        let kind = if wants_scaled_sums(self.scheme) { Kind::F32 } else { Kind::I32 };
        activations(b, self.scheme, words, pair(Kind::F32, fields.scales), pair(kind, fields.sums))
    }
}

/// The block, quad and row of a piece: neighbouring threads take neighbouring rows.
fn place<'c>(kernel: &Staged<'_, 'c>, piece: Val<'c>) -> [Val<'c>; 3] {
    let b = kernel.b;
    let rows = b.int(BLOCK_ROWS as i64);
    let within = b.urem(piece, b.int(BLOCK_QUADS as i64));
    [b.udiv(piece, b.int(BLOCK_QUADS as i64)), b.udiv(within, rows), b.urem(within, rows)]
}

/// Where the words of a fragment's thread with row `g` and columns `t` lie in a block: eight threads that follow each other
/// read from different banks, and those of a `t` write to different ones.
fn slot_of<'c>(kernel: &Staged<'_, 'c>, g: Val<'c>, t: Val<'c>) -> Val<'c> {
    let b = kernel.b;
    b.add(b.mul(t, b.int(8)), b.xor(g, b.mul(t, b.int(2))))
}
