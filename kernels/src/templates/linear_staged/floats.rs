//! Pieces of weights and activations in bf16: a ring of them in shared memory, filled by asynchronous copies.
//!
//! A line of weights holds two columns of each of 16 rows, so the words of two neighbouring rows are one load. Of four
//! lines that are read together the halves of the last two change places: threads of a warp then read from different banks.
//! Of a row of activations a thread reads a quarter: its words of 32 columns, as the row's maker has laid them.

use inkwell::IntPredicate;
use inkwell::values::PointerValue;

use super::{SHARED_BYTES, Staged, Sums, THREADS, TILE_ROWS};
use crate::llvm::builder::{Kind, LANES, Val};
use crate::spec::GROUP;

/// Columns of a product of the tensor cores.
const STEP: usize = 16;
/// Bytes of a line of packed weights: two columns of 16 rows.
const LINE: usize = 4 * LANES;
/// Bytes of a piece of a block of weights, and of a row of activations.
const BLOCK_PIECE: usize = GROUP / 2 * LINE;
const ROW_PIECE: usize = 2 * GROUP;
/// Bytes of a copy.
const COPY: usize = 16;
/// Most pieces in the ring.
const MOST_PIECES: usize = 4;

/// Copies of a thread: where each comes from in the first group of columns, bytes to the same place of the next one, and
/// where it goes in a piece of the ring; and how many copies all threads make, of which this one may lack the last.
struct Copies<'c> {
    from: Vec<PointerValue<'c>>,
    step: usize,
    to: Vec<Val<'c>>,
    count: usize,
}

impl<'c> Staged<'_, 'c> {
    /// Bytes of a piece of the ring: of all blocks of weights, then of all rows of activations.
    fn piece_bytes(&self) -> usize {
        self.blocks() * BLOCK_PIECE + self.tokens() * ROW_PIECE
    }

    /// Pieces of the ring.
    fn pieces(&self) -> usize {
        (SHARED_BYTES / self.piece_bytes()).min(MOST_PIECES)
    }

    /// Bytes of shared memory for the ring.
    pub(super) fn float_bytes(&self) -> usize {
        self.pieces() * self.piece_bytes()
    }

    /// The totals of this warp in the strips from block `first` on.
    pub(super) fn multiply_floats(&self, first: Val<'c>) -> Sums<'c> {
        let b = self.b;
        let (pieces, bytes) = (self.pieces(), self.piece_bytes() as i64);
        let end = b.int(pieces as i64 * bytes);
        let copies = [self.weight_copies(first), self.row_copies()];
        let bring = |group: Val<'c>, slot: Val<'c>| {
            b.when(b.icmp(IntPredicate::SLT, group, self.groups), || {
                for copies in &copies {
                    self.bring(copies, group, slot);
                }
            });
            b.commit_copies();
        };
        for piece in 0..pieces - 1 {
            bring(b.int(piece as i64), b.int(piece as i64 * bytes));
        }
        let slot = b.var(b.int(0));
        let reads = self.reads();
        self.sum_runs(|group, sums| {
            b.wait_copies(pieces - 2);
            b.barrier();
            // All have read what lay in the slot before this one.
            let here = b.get(slot);
            let is_first = b.icmp(IntPredicate::EQ, here, b.int(0));
            let before = b.sub(b.select(is_first, end, here), b.int(bytes));
            bring(b.add(group, b.int(pieces as i64 - 1)), before);
            self.add_piece(&reads, here, sums);
            let next = b.add(here, b.int(bytes));
            b.set(slot, b.select(b.icmp(IntPredicate::EQ, next, end), b.int(0), next));
        })
    }

    /// The copies of weights: 64 of each block.
    fn weight_copies(&self, first: Val<'c>) -> Copies<'c> {
        let b = self.b;
        let per_block = b.int((BLOCK_PIECE / COPY) as i64);
        let count = self.blocks() * BLOCK_PIECE / COPY;
        let mut copies = Copies { from: Vec::new(), step: BLOCK_PIECE, to: Vec::new(), count };
        b.for_pieces(count.next_multiple_of(THREADS), THREADS, |_, copy| {
            let (block, within) = (b.udiv(copy, per_block), b.urem(copy, per_block));
            let (line, quarter) = (b.udiv(within, b.int(4)), b.urem(within, b.int(4)));
            let turned = b.mul(b.urem(b.udiv(line, b.int(2)), b.int(2)), b.int(2));
            let from = b.element(self.block(b.add(first, block)), within, COPY);
            let to = b.add(b.mul(line, b.int(LINE as i64)), b.mul(b.xor(quarter, turned), b.int(COPY as i64)));
            copies.from.push(from);
            copies.to.push(b.add(b.mul(block, b.int(BLOCK_PIECE as i64)), to));
        });
        copies
    }

    /// The copies of activations: four of each row.
    fn row_copies(&self) -> Copies<'c> {
        let b = self.b;
        let count = self.tokens() * ROW_PIECE / COPY;
        let mut copies = Copies { from: Vec::new(), step: ROW_PIECE, to: Vec::new(), count };
        b.for_pieces(count.next_multiple_of(THREADS), THREADS, |_, copy| {
            let (token, quarter) = (b.udiv(copy, b.int(4)), b.urem(copy, b.int(4)));
            let row = b.element(b.operand(0), b.mul(self.token(token), self.groups), ROW_PIECE);
            copies.from.push(b.element(row, quarter, COPY));
            copies.to.push(b.add(b.int(self.rows_at() as i64), b.mul(copy, b.int(COPY as i64))));
        });
        copies
    }

    /// Where the rows of activations begin in a piece.
    fn rows_at(&self) -> usize {
        self.blocks() * BLOCK_PIECE
    }

    /// Begins the copies of a group of columns to a slot of the ring.
    fn bring(&self, copies: &Copies<'c>, group: Val<'c>, slot: Val<'c>) {
        let b = self.b;
        b.for_pieces(copies.count, THREADS, |turn, _| {
            let from = b.element(copies.from[turn], group, copies.step);
            b.copy_16(b.offset(self.shared, b.add(slot, copies.to[turn])), from);
        });
    }

    /// Where this thread reads in a piece: its words of weights, and of its row of activations.
    fn reads(&self) -> [Val<'c>; 2] {
        let b = self.b;
        let first = b.mul(self.place[0], b.int((self.warps.blocks * BLOCK_PIECE) as i64));
        let turned = b.mul(b.urem(b.udiv(self.column, b.int(2)), b.int(2)), b.int(2 * COPY as i64));
        let within = b.xor(b.mul(self.row, b.int(8)), turned);
        let weights = b.add(first, b.add(b.mul(self.column, b.int(LINE as i64)), within));
        let token = b.add(self.row, b.mul(self.place[1], b.int((TILE_ROWS * self.warps.tiles) as i64)));
        let row = b.add(b.int(self.rows_at() as i64), b.mul(token, b.int(ROW_PIECE as i64)));
        [weights, b.add(row, b.mul(self.column, b.int(COPY as i64)))]
    }

    /// Adds the products of a piece.
    fn add_piece(&self, &[weights, rows]: &[Val<'c>; 2], slot: Val<'c>, sums: &Sums<'c>) {
        let b = self.b;
        let at = |from: Val<'c>| b.offset(self.shared, b.add(slot, from));
        let (weights, rows) = (at(weights), at(rows));
        // This thread's words of all tiles, of both steps.
        let rows: Vec<[Val<'c>; 4]> = (0..self.warps.tiles)
            .map(|tile| b.load_together(Kind::I32, b.offset(rows, b.int((tile * TILE_ROWS * ROW_PIECE) as i64))))
            .collect();
        for step in 0..GROUP / STEP {
            let fragments: Vec<[Val<'c>; 4]> =
                (0..self.warps.blocks).map(|block| self.float_weights(weights, block, step)).collect();
            for (words, sums) in rows.iter().zip(sums) {
                let activations = [words[2 * step], words[2 * step + 1]];
                for (weights, sums) in fragments.iter().zip(sums) {
                    let products = b.mma_bf16(weights, &activations, sums.map(|sum| b.get(sum)));
                    for (&sum, product) in sums.iter().zip(products) {
                        b.set(sum, product);
                    }
                }
            }
        }
    }

    /// Sixteen columns of a block of weights: of rows `2 g` and `2 g + 1`, columns `2 t` and `2 t + 8` with those after.
    fn float_weights(&self, own: PointerValue<'c>, block: usize, step: usize) -> [Val<'c>; 4] {
        let b = self.b;
        let pair = |line: usize| -> [Val<'c>; 2] {
            let at = block * BLOCK_PIECE + (step * STEP / 2 + line) * LINE;
            b.load_together(Kind::I32, b.offset(own, b.int(at as i64)))
        };
        let ([first, second], [third, fourth]) = (pair(0), pair(4));
        [first, second, third, fourth]
    }
}
