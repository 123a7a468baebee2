//! Linear kernels for many rows on tensor cores: the arithmetic of [`super::linear_mma`], bit for bit, with operands that
//! are brought to shared memory once for all warps of a block of threads.
//!
//! A block takes several strips of the weight and many rows of activations, and its warps a rectangle of the results each,
//! over all columns. Columns are cut into the same runs as there; a warp sums a run from zero and adds it to its totals,
//! so that runs meet in the same order. While one piece of 32 columns is multiplied, the next ones are on their way:
//! [`floats`] has a ring of them, [`codes`] unpacks the next one, whatever its width, to bytes and scales.
//!
//! The totals then go through shared memory, some rows of activations at a time, to the teams of 16 threads that finish
//! rows of a strip.
//!
//! In the fragments of a tile of weights, rows `g` and `g + 8` of the tensor cores are rows `2 g` and `2 g + 1` of the
//! block of 16: neighbours in memory, which one load brings, and which leave together.

mod codes;
mod floats;

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::scheme::Scheme;

use super::decode::{block_span_bytes, span_groups};
use super::stages::{Strip, finish};
use crate::llvm::block::WARP;
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{BLOCK_ROWS, KernelSpec, PARTS, Stage, Warps};

/// Rows of activations that tensor cores take at once.
const TILE_ROWS: usize = 8;
/// Threads of a block.
const THREADS: usize = WARP * PARTS;
/// Bytes of shared memory that every chip gives a block without being asked.
const SHARED_BYTES: usize = 48 * 1024;

/// Operands: x, w, those of the stages, out, scratch (unused). Params: M, N, G and those of the stages.
pub fn linear(b: &Builder<'_>, scheme: Scheme, [blocks, tokens]: [usize; 2], epilogue: &[Stage]) {
    let warps = Warps::of(blocks, tokens).expect("the schedule chooses tiles that warps can share");
    let strip_blocks = KernelSpec::strip_blocks(epilogue);
    let kernel = Staged::new(b, scheme, warps);
    b.for_units(|first| {
        let totals = kernel.multiply(b.mul(first, b.int(strip_blocks as i64)));
        kernel.each_row(&totals, strip_blocks, |strip, row, values| {
            let index = b.add(first, strip);
            b.when(b.icmp(IntPredicate::SLT, index, b.unit_range().1), || {
                finish(b, epilogue, Strip { row, index, values, partners: None });
            });
        });
    });
}

/// A product in the making, as one thread sees it.
struct Staged<'b, 'c> {
    b: &'b Builder<'c>,
    scheme: Scheme,
    warps: Warps,
    /// Groups of 32 columns.
    groups: Val<'c>,
    /// The first row of activations of this block of threads.
    first_row: Val<'c>,
    /// This warp's place along the weight rows and along the rows of activations.
    place: [Val<'c>; 2],
    /// Row of weights and of activations, 0 to 7, in the fragments.
    row: Val<'c>,
    /// Which of four columns and pairs of results, 0 to 3.
    column: Val<'c>,
    /// Pieces of the operands, then totals.
    shared: PointerValue<'c>,
}

/// Sums of a thread: `[tiles][blocks][4]`; of weight rows `2 g`, `2 g`, `2 g + 1`, `2 g + 1` with rows `2 t`, `2 t + 1`,
/// `2 t`, `2 t + 1` of activations.
type Sums<'c> = Vec<Vec<[Var<'c>; 4]>>;

impl<'b, 'c> Staged<'b, 'c> {
    fn new(b: &'b Builder<'c>, scheme: Scheme, warps: Warps) -> Staged<'b, 'c> {
        let thread = b.special("tid.x");
        let lane = b.urem(thread, b.int(WARP as i64));
        let warp = b.udiv(thread, b.int(WARP as i64));
        let down = b.int(warps.down as i64);
        let mut kernel = Staged {
            b,
            scheme,
            warps,
            groups: b.mul(b.param(2), b.int(span_groups(scheme) as i64)),
            first_row: b.int(0),
            place: [b.urem(warp, down), b.udiv(warp, down)],
            row: b.udiv(lane, b.int(4)),
            column: b.urem(lane, b.int(4)),
            shared: b.operand(0),
        };
        kernel.first_row = b.mul(b.block_of_rows(), b.int(kernel.tokens() as i64));
        let pieces = if scheme.is_integer() { kernel.code_bytes() } else { kernel.float_bytes() };
        let totals = 4 * kernel.rows_at_once() * kernel.stride();
        kernel.shared = b.shared("pieces", pieces.max(totals) / 4);
        kernel
    }

    /// Blocks of weight rows of this block of threads.
    fn blocks(&self) -> usize {
        self.warps.down * self.warps.blocks
    }

    /// Rows of activations of this block of threads.
    fn tokens(&self) -> usize {
        TILE_ROWS * self.warps.across * self.warps.tiles
    }

    /// Where the first span of a block of weights lies. Blocks past the last are read as the last; their results are
    /// dropped.
    fn block(&self, block: Val<'c>) -> PointerValue<'c> {
        let b = self.b;
        let last = b.sub(b.udiv(b.param(1), b.int(BLOCK_ROWS as i64)), b.int(1));
        let block = b.overloaded("llvm.smin", &[block, last]);
        b.element(b.operand(1), b.mul(block, b.param(2)), block_span_bytes(self.scheme))
    }

    /// A row of activations as memory has it; rows past the last are read as the last.
    fn token(&self, token: Val<'c>) -> Val<'c> {
        let b = self.b;
        b.overloaded("llvm.smin", &[b.add(self.first_row, token), b.sub(b.param(0), b.int(1))])
    }

    /// The totals of the rectangle of this warp, in the strips from block `first` on.
    fn multiply(&self, first: Val<'c>) -> Sums<'c> {
        if self.scheme.is_integer() { self.multiply_codes(first) } else { self.multiply_floats(first) }
    }

    /// Sums that begin with `value`.
    fn sums(&self, value: f32) -> Sums<'c> {
        let b = self.b;
        let value = b.float(value);
        let block = || [(); 4].map(|()| b.var(value));
        (0..self.warps.tiles).map(|_| (0..self.warps.blocks).map(|_| block()).collect()).collect()
    }

    /// Sums every run of columns from zero and adds the runs in order: `body` adds a group of columns to the sums.
    fn sum_runs(&self, body: impl FnOnce(Val<'c>, &Sums<'c>)) -> Sums<'c> {
        let b = self.b;
        // Minus zero and a sum are that sum, whatever its sign.
        let (sums, totals) = (self.sums(0.0), self.sums(-0.0));
        let parts = b.int(PARTS as i64);
        let run = b.udiv(b.add(self.groups, b.int(PARTS as i64 - 1)), parts);
        let least = |value: Val<'c>| b.overloaded("llvm.smin", &[value, self.groups]);
        let each = |of: &Sums<'c>| of.iter().flatten().flatten().copied().collect::<Vec<Var<'c>>>();
        let (sums_of, totals_of) = (each(&sums), each(&totals));
        b.for_range(b.int(0), parts, b.int(1), |part| {
            for &sum in &sums_of {
                b.set(sum, b.float(0.0));
            }
            let begin = b.mul(part, run);
            b.for_range(least(begin), least(b.add(begin, run)), b.int(1), |group| body(group, &sums));
            for (&total, &sum) in totals_of.iter().zip(&sums_of) {
                b.set(total, b.fadd(b.get(total), b.get(sum)));
            }
        });
        totals
    }

    /// Floats from one row of activations to the next where totals lie in shared memory: with four more than there are
    /// weight rows, the threads of a warp write to different banks.
    fn stride(&self) -> usize {
        self.blocks() * BLOCK_ROWS + 4
    }

    /// Rows of activations whose totals lie in shared memory at once: whole warps of them.
    fn rows_at_once(&self) -> usize {
        let mut rows = self.tokens();
        while 4 * rows * self.stride() > SHARED_BYTES {
            rows /= 2;
        }
        rows
    }

    /// Hands each row of each strip on, 16 threads at a time: the number of the strip here, the row, and its blocks.
    fn each_row(&self, totals: &Sums<'c>, strip_blocks: usize, body: impl FnOnce(Val<'c>, Val<'c>, Vec<Val<'c>>)) {
        let b = self.b;
        let (rows, strips) = (self.rows_at_once(), self.blocks() / strip_blocks);
        let warp_rows = TILE_ROWS * self.warps.tiles;
        // No copy is on its way any more, and nobody reads what came.
        b.wait_copies(0);
        b.barrier();
        b.for_range(b.int(0), b.int((self.tokens() / rows) as i64), b.int(1), |turn| {
            let first = b.mul(turn, b.int(rows as i64));
            let own = b.sub(b.mul(self.place[1], b.int(warp_rows as i64)), first);
            // Unsigned: a row before the first wraps to a large number.
            b.when(b.icmp(IntPredicate::ULT, own, b.int(rows as i64)), || self.put(totals, own));
            b.barrier();
            let (first, team) = (b.add(self.first_row, first), b.udiv(b.special("tid.x"), b.int(LANES as i64)));
            let left = b.overloaded("llvm.smin", &[b.sub(b.param(0), first), b.int(rows as i64)]);
            let strips = b.int(strips as i64);
            b.for_range(team, b.mul(left, strips), b.int((THREADS / LANES) as i64), |at| {
                let (token, strip) = (b.udiv(at, strips), b.urem(at, strips));
                let base = b.element(self.shared, token, 4 * self.stride());
                let base = b.element(base, strip, 4 * strip_blocks * BLOCK_ROWS);
                let value = |block: usize| b.load_lanes(Kind::F32, b.offset(base, b.int((4 * block * LANES) as i64)));
                body(strip, b.add(first, token), (0..strip_blocks).map(value).collect());
            });
            b.barrier();
        });
    }

    /// Writes this thread's totals to shared memory; its warp's rows begin at row `first` there.
    fn put(&self, totals: &Sums<'c>, first: Val<'c>) {
        let b = self.b;
        let token = b.add(first, b.mul(self.column, b.int(2)));
        let base = b.element(self.shared, token, 4 * self.stride());
        let base = b.element(base, self.place[0], 4 * BLOCK_ROWS * self.warps.blocks);
        let base = b.element(base, self.row, 8);
        for (tile, totals) in totals.iter().enumerate() {
            for (block, totals) in totals.iter().enumerate() {
                for token in 0..2 {
                    let at = (TILE_ROWS * tile + token) * self.stride() + block * BLOCK_ROWS;
                    let pair = [b.get(totals[token]), b.get(totals[2 + token])];
                    b.store_together(b.offset(base, b.int(4 * at as i64)), pair);
                }
            }
        }
    }
}
