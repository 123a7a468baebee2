//! Linear kernels on tensor cores: integer weights and activations quantized to int8, then the epilogue; or weights in
//! bf16, see [`floats`].
//!
//! A block of threads takes a strip of the weight and some rows of activations. Columns are cut into [`PARTS`] runs, one
//! for each of its warps: weights stream through all of them at once even where a matrix has few strips. Per group of
//! the scheme the tensor cores give the integer dot products of 16 weight rows with 8 rows of activations, which are
//! exact; what follows is the arithmetic of the linear kernels for CPUs. The runs' sums meet in shared memory, where 16
//! threads add them in order and finish a row of the strip. Nothing of this depends on how many rows there are.
//!
//! Since integer sums are exact, columns may be taken in any order inside a group: a thread takes eight neighbouring ones,
//! which for 4-bit codes lie in one word.

mod floats;
pub(super) mod scaled;

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::scheme::Scheme;

use super::decode::{Columns, Parameters, block_span_bytes, span_groups};
use super::stages::{Strip, finish};
use crate::llvm::block::WARP;
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{ACT_GROUP_BYTES, BLOCK_ROWS, GROUP, KernelSpec, PARTS, Stage};
use scaled::{Activations, Fragment, accumulate, activations, parts, wants_scaled_sums};

/// Rows of activations that tensor cores take at once.
const TILE_ROWS: usize = 8;
/// Groups of columns whose loads are under way together where one tile of activations is multiplied; more tiles have
/// enough loads of their own, and need the registers.
const UNROLL: usize = 2;
/// Most bytes of shared memory for the sums of all runs; where they take more, runs are added one after the other.
const MOST_SHARED: usize = 32 * 1024;

/// Operands: x, w, those of the stages, out, scratch (unused). Params: M, N, G and those of the stages.
pub fn linear(b: &Builder<'_>, scheme: Scheme, tokens: usize, epilogue: &[Stage]) {
    let blocks = KernelSpec::strip_blocks(epilogue);
    let product = Product::new(b, scheme, blocks, tokens);
    b.for_units(|strip| {
        let sums = if scheme.is_integer() { product.multiply(strip) } else { product.multiply_floats(strip) };
        product.share(&sums);
        product.each_row(|row, values| finish(b, epilogue, Strip { row, index: strip, values }));
        b.barrier();
    });
}

/// A product in the making, as one thread sees it.
struct Product<'b, 'c> {
    b: &'b Builder<'c>,
    scheme: Scheme,
    blocks: usize,
    tokens: usize,
    /// Groups of 32 columns.
    groups: Val<'c>,
    /// The first row of activations of this block of threads.
    first_row: Val<'c>,
    /// Which warp of the block.
    warp: Val<'c>,
    /// Row of weights and of activations, 0 to 7, in the fragments.
    row: Val<'c>,
    /// Which of four columns and pairs of results, 0 to 3.
    column: Val<'c>,
    /// Sums of the runs: `[PARTS or 1][tokens][stride]` f32.
    shared: PointerValue<'c>,
}

/// What a thread reads of a tile of eight rows of activations.
struct Rows<'c> {
    /// The row whose codes it reads.
    codes: PointerValue<'c>,
    /// The rows of its two columns of results.
    results: [PointerValue<'c>; 2],
}

/// Sums of a thread: `[tiles][blocks][4]`.
type Sums<'c> = Vec<Vec<[Var<'c>; 4]>>;

impl<'b, 'c> Product<'b, 'c> {
    fn new(b: &'b Builder<'c>, scheme: Scheme, blocks: usize, tokens: usize) -> Product<'b, 'c> {
        let thread = b.special("tid.x");
        let lane = b.urem(thread, b.int(WARP as i64));
        let mut product = Product {
            b,
            scheme,
            blocks,
            tokens,
            groups: b.mul(b.param(2), b.int(span_groups(scheme) as i64)),
            first_row: b.mul(b.special("ctaid.y"), b.int(tokens as i64)),
            warp: b.udiv(thread, b.int(WARP as i64)),
            row: b.udiv(lane, b.int(4)),
            column: b.urem(lane, b.int(4)),
            shared: b.operand(0),
        };
        let runs = if product.keeps_all() { PARTS } else { 1 };
        product.shared = b.shared("sums", runs * tokens * product.stride());
        product
    }

    /// Floats from one row of activations to the next in shared memory: with four more than there are weight rows, the
    /// threads of a warp write to different banks.
    fn stride(&self) -> usize {
        self.blocks * BLOCK_ROWS + 4
    }

    /// Whether the sums of all runs fit shared memory together.
    fn keeps_all(&self) -> bool {
        4 * PARTS * self.tokens * self.stride() <= MOST_SHARED
    }

    /// This warp's run of the products of a strip.
    fn multiply(&self, strip: Val<'c>) -> Sums<'c> {
        let b = self.b;
        let block = b.mul(strip, b.int(self.blocks as i64));
        let weights = b.element(b.operand(1), b.mul(block, b.param(2)), block_span_bytes(self.scheme));
        let tiles: Vec<Rows<'c>> = (0..self.tokens / TILE_ROWS).map(|tile| self.rows(tile)).collect();
        let sums = self.zeros(tiles.len());
        let times = if tiles.len() == 1 { UNROLL } else { 1 };
        b.unrolled(self.run(), 1, times, |group| self.add_group(weights, &tiles, group, &sums));
        sums
    }

    /// Sums to begin with.
    fn zeros(&self, tiles: usize) -> Sums<'c> {
        let zero = self.b.float(0.0);
        let block = || [(); 4].map(|()| self.b.var(zero));
        (0..tiles).map(|_| (0..self.blocks).map(|_| block()).collect()).collect()
    }

    /// The groups of columns that are this warp's: from the first to before the second.
    fn run(&self) -> [Val<'c>; 2] {
        let b = self.b;
        let run = b.udiv(b.add(self.groups, b.int(PARTS as i64 - 1)), b.int(PARTS as i64));
        let least = |value: Val<'c>| b.overloaded("llvm.smin", &[value, self.groups]);
        let begin = least(b.mul(self.warp, run));
        [begin, least(b.add(begin, run))]
    }

    /// Where a thread reads a tile of activations. Rows past the last are read as the last; their results are dropped.
    fn rows(&self, tile: usize) -> Rows<'c> {
        let b = self.b;
        let last = b.sub(b.param(0), b.int(1));
        let record = |within: Val<'c>| {
            let row = b.add(b.add(self.first_row, b.int((TILE_ROWS * tile) as i64)), within);
            let row = b.overloaded("llvm.smin", &[row, last]);
            b.element(b.operand(0), b.mul(row, self.groups), ACT_GROUP_BYTES)
        };
        let pair = b.mul(self.column, b.int(2));
        Rows { codes: record(self.row), results: [record(pair), record(b.add(pair, b.int(1)))] }
    }

    /// Adds the products of 32 columns.
    fn add_group(&self, weights: PointerValue<'c>, tiles: &[Rows<'c>], group: Val<'c>, sums: &Sums<'c>) {
        let b = self.b;
        let per_span = b.int(span_groups(self.scheme) as i64);
        let (span, index) = (b.udiv(group, per_span), b.urem(group, per_span));
        let fragments: Vec<Vec<Fragment<'c>>> = (0..self.blocks)
            .map(|block| {
                let span = b.add(b.mul(b.param(2), b.int(block as i64)), span);
                self.weights(b.element(weights, span, block_span_bytes(self.scheme)), index)
            })
            .collect();
        for (rows, sums) in tiles.iter().zip(sums) {
            let activations = self.activations(rows, group);
            for (parts, sums) in fragments.iter().zip(sums) {
                for (weights, activations) in parts.iter().zip(&activations) {
                    accumulate(b, weights, activations, sums);
                }
            }
        }
    }

    /// The quads of a group's columns that this thread takes.
    fn quads(&self, part: usize) -> Vec<Val<'c>> {
        let b = self.b;
        if self.scheme.group == GROUP {
            let first = b.mul(self.column, b.int(2));
            return vec![first, b.add(first, b.int(1))];
        }
        vec![b.add(self.column, b.int((part * self.scheme.group / 4) as i64))]
    }

    /// 32 columns of a block of weights, as this thread holds them: one fragment for each group of the scheme.
    fn weights(&self, span: PointerValue<'c>, index: Val<'c>) -> Vec<Fragment<'c>> {
        let b = self.b;
        let rows = [self.row, b.add(self.row, b.int(8))];
        let columns = rows.map(|row| Columns { b, scheme: self.scheme, span, index, row: Some(row) });
        let parameters: Vec<Parameters<'c>> = columns.iter().map(Columns::parameters).collect();
        (0..parts(self.scheme))
            .map(|part| {
                let quads = self.quads(part);
                let words = quads.iter().flat_map(|&quad| columns.iter().map(move |columns| columns.quad(quad)));
                Fragment {
                    words: words.collect(),
                    scales: parameters.iter().map(|of| of.scales[part]).collect(),
                    mins: parameters.iter().filter_map(|of| of.mins.get(part).copied()).collect(),
                }
            })
            .collect()
    }

    /// 32 columns of a tile of activations: one for each group of the scheme.
    fn activations(&self, rows: &Rows<'c>, group: Val<'c>) -> Vec<Activations<'c>> {
        let b = self.b;
        let field = |row: PointerValue<'c>, bytes: usize| b.element(b.element(row, self.groups, bytes), group, 4);
        let codes = b.element(rows.codes, group, GROUP);
        let scales = rows.results.map(|row| b.load(Kind::F32, field(row, GROUP)));
        let word = |quad: Val<'c>| b.load(Kind::I32, b.element(codes, quad, 4));
        let words = (0..parts(self.scheme)).map(|part| self.quads(part).into_iter().map(word).collect()).collect();
        let (kind, at) = if wants_scaled_sums(self.scheme) { (Kind::F32, GROUP + 4) } else { (Kind::I32, GROUP + 8) };
        let sums = rows.results.map(|row| b.load(kind, field(row, at)));
        activations(b, self.scheme, words, scales, sums)
    }

    /// Brings the sums of all runs to shared memory.
    fn share(&self, sums: &Sums<'c>) {
        let b = self.b;
        if self.keeps_all() {
            self.put(sums, self.warp, |_, sum| sum);
            return b.barrier();
        }
        b.for_range(b.int(0), b.int(PARTS as i64), b.int(1), |turn| {
            b.when(b.icmp(IntPredicate::EQ, self.warp, turn), || {
                let first = b.icmp(IntPredicate::EQ, turn, b.int(0));
                let add = |at: PointerValue<'c>, sum: Val<'c>| b.fadd(b.load(Kind::F32, at), sum);
                b.either(first, || self.put(sums, b.int(0), |_, sum| sum), || self.put(sums, b.int(0), add));
            });
            b.barrier();
        });
    }

    /// Writes this thread's sums into run `run` of shared memory, as `combine` makes them of what lies there.
    fn put(&self, sums: &Sums<'c>, run: Val<'c>, combine: impl Fn(PointerValue<'c>, Val<'c>) -> Val<'c>) {
        let b = self.b;
        let pair = b.mul(self.column, b.int(2));
        let base = b.element(self.shared, b.add(b.mul(run, b.int(self.tokens as i64)), pair), 4 * self.stride());
        let base = b.element(base, self.row, 4);
        for (tile, sums) in sums.iter().enumerate() {
            for (block, sums) in sums.iter().enumerate() {
                for (i, &sum) in sums.iter().enumerate() {
                    let token = TILE_ROWS * tile + i % 2;
                    let at = token * self.stride() + block * BLOCK_ROWS + 8 * (i / 2);
                    let at = b.offset(base, b.int(4 * at as i64));
                    b.plain_store(Kind::F32, at, combine(at, b.get(sum)));
                }
            }
        }
    }

    /// Adds the runs of each row of activations and hands it on, 16 threads at a time: the blocks of the strip.
    fn each_row(&self, body: impl FnOnce(Val<'c>, Vec<Val<'c>>)) {
        let b = self.b;
        let rows = b.sub(b.param(0), self.first_row);
        let rows = b.overloaded("llvm.smin", &[rows, b.int(self.tokens as i64)]);
        let first = b.udiv(b.special("tid.x"), b.int(LANES as i64));
        b.for_range(first, rows, b.int((WARP * PARTS / LANES) as i64), |token| {
            let base = b.element(self.shared, token, 4 * self.stride());
            let run = |block: usize, run: usize| {
                let at = run * self.tokens * self.stride() + block * BLOCK_ROWS;
                b.load_lanes(Kind::F32, b.offset(base, b.int(4 * at as i64)))
            };
            let runs = if self.keeps_all() { PARTS } else { 1 };
            let values =
                (0..self.blocks).map(|block| (1..runs).fold(run(block, 0), |sum, next| b.fadd(sum, run(block, next))));
            body(b.add(self.first_row, token), values.collect());
        });
    }
}
