//! Linear kernels on tensor cores for few rows of activations, which live on reading each weight once: integer weights and
//! activations quantized to int8, see [`codes`]; or weights in bf16, see [`floats`]. Then the epilogue.
//!
//! A block of threads takes a strip of the weight and some rows of activations. Columns are cut into [`PARTS`] runs, one
//! for each of its warps: weights stream through all of them at once even where a matrix has few strips. The runs' sums
//! meet in shared memory, where 16 threads add them in order and finish a row of the strip. Nothing of this depends on how
//! many rows there are.
//!
//! A warp takes blocks of 16 weight rows by pairs. Thread `4 g + t` reads four neighbouring rows of each line that it
//! needs, the quarter `g mod 4` of block `g / 4` of a pair, by one load of 16 bytes. Two products of 16 rows make use of
//! them: their rows `g` and `g + 8` are the first two of the four in one product, and the last two in the other. Of a
//! narrow tile, one block, it reads rows `2 g` and `2 g + 1` by 8 bytes, for one product.
//!
//! A row alone has a path of its own where results are scaled one by one: of the two columns of results that a thread has,
//! it takes the first.
//!
//! A thread holds what it has loaded of the next [`Product::depth`] groups of 32 columns, and asks for one more where it
//! multiplies one, so that memory never waits for arithmetic. The first ones are loaded before the kernels that make the
//! activations have finished, where the chip can start kernels early.

mod codes;
mod floats;
pub(super) mod scaled;

use inkwell::IntPredicate;
use inkwell::values::PointerValue;
use lathe_ir::scheme::Scheme;

use super::decode::{block_span_bytes, span_groups};
use super::stages::{Strip, finish};
use crate::llvm::block::WARP;
use crate::llvm::builder::{Builder, Kind, LANES, Val};
use crate::llvm::memory::Var;
use crate::spec::{Activation, BLOCK_ROWS, KernelSpec, PARTS, Stage, Tile};

/// Rows of activations that tensor cores take at once.
const TILE_ROWS: usize = 8;
/// Weight rows of a pair of blocks.
const PAIR_ROWS: usize = 2 * BLOCK_ROWS;
/// Most words of weights that a thread holds before they are multiplied, so that no register spills: of floats, which are
/// multiplied as they are, and of codes, which are unpacked and scaled, where there is one tile of activations and where there
/// are more. See [`KernelSpec::blocks_at_once`] for how many registers a thread has.
const FLOATS_AHEAD: usize = 64;
const CODES_AHEAD: [usize; 2] = [40, 16];
/// Most groups of columns that they are of, by how many parameters scale a group's codes.
const MOST_AHEAD: [usize; 3] = [8, 4, 3];
/// Groups of columns whose activations are loaded together, where there is one tile of them; more tiles have enough loads of
/// their own.
const FLOAT_ROWS_AHEAD: usize = 4;
const CODE_ROWS_AHEAD: usize = 2;
/// Most bytes of shared memory for the sums of all runs; where they take more, runs are added one after the other.
const MOST_SHARED: usize = 48 * 1024;

/// Operands: x, w, those of the stages, out, scratch (unused). Params: M, N, G and those of the stages.
pub fn linear(b: &Builder<'_>, form: (Scheme, Activation), tokens: usize, narrow: bool, epilogue: &[Stage]) {
    let tile = Tile::Mma { tokens, narrow };
    let product = Product::new(b, form, KernelSpec::tile_blocks(tile, epilogue), tokens);
    let apart = KernelSpec::partner_blocks(tile, epilogue);
    // One unit for each block: what a loop over more would hoist takes registers from what is loaded ahead.
    let (unit, _) = b.unit_range();
    // A strip, or of a head one of as many blocks as lie before their partners.
    let (strip, partners) = match apart {
        Some(apart) => {
            let count = b.int(apart as i64);
            (b.udiv(unit, count), Some((b.urem(unit, count), apart)))
        }
        None => (unit, None),
    };
    let compute = |alone: bool| {
        let product = Product { alone, ..product };
        product.share(&product.multiply(strip, partners));
    };
    if form.0.is_integer() && tokens == TILE_ROWS {
        b.either(b.icmp(IntPredicate::EQ, b.param(0), b.int(1)), || compute(true), || compute(false));
    } else {
        compute(false);
    }
    product.each_row(|row, values| finish(b, epilogue, Strip { row, index: strip, values, partners }));
}

/// A product in the making, as one thread sees it.
#[derive(Clone, Copy)]
struct Product<'b, 'c> {
    b: &'b Builder<'c>,
    scheme: Scheme,
    act: Activation,
    blocks: usize,
    tokens: usize,
    /// Whether there is one row of activations.
    alone: bool,
    /// Groups of 32 columns.
    groups: Val<'c>,
    /// The first row of activations of this block of threads.
    first_row: Val<'c>,
    /// Which warp of the block.
    warp: Val<'c>,
    /// Row of activations, 0 to 7, in the fragments, and of which rows of a pair the thread has.
    row: Val<'c>,
    /// Which of four columns and pairs of results, 0 to 3.
    column: Val<'c>,
    /// Sums of the runs: `[PARTS or 1][tokens][stride]` f32.
    shared: PointerValue<'c>,
}

/// What a thread reads of a tile of eight rows of activations.
struct Rows<'c> {
    /// The row of its fragments.
    own: PointerValue<'c>,
    /// The rows of its two columns of results.
    results: [PointerValue<'c>; 2],
}

/// Sums of a thread: `[tiles][pairs][products]`, of each product those of its first row with rows `2 t` and `2 t + 1` of
/// activations, then those of its second.
type Sums<'c> = Vec<Vec<Vec<[Var<'c>; 4]>>>;

impl<'b, 'c> Product<'b, 'c> {
    fn new(b: &'b Builder<'c>, (scheme, act): (Scheme, Activation), blocks: usize, tokens: usize) -> Self {
        let thread = b.special("tid.x");
        let lane = b.urem(thread, b.int(WARP as i64));
        let mut product = Product {
            b,
            scheme,
            act,
            blocks,
            tokens,
            alone: false,
            groups: b.mul(b.param(2), b.int(span_groups(scheme) as i64)),
            first_row: b.mul(b.block_of_rows(), b.int(tokens as i64)),
            warp: b.udiv(thread, b.int(WARP as i64)),
            row: b.udiv(lane, b.int(4)),
            column: b.urem(lane, b.int(4)),
            shared: b.operand(0),
        };
        let runs = if product.keeps_all() { PARTS } else { 1 };
        product.shared = b.shared("sums", runs * tokens * product.stride());
        product
    }

    /// Columns of results that a thread needs.
    fn columns(&self) -> usize {
        if self.alone { 1 } else { 2 }
    }

    /// Pairs of blocks of weight rows; of an odd number of blocks the last one is its own partner.
    fn pairs(&self) -> usize {
        self.blocks.div_ceil(2)
    }

    /// Products of a pair: two, or one of a block alone.
    fn products(&self) -> usize {
        self.blocks.min(2)
    }

    /// Neighbouring weight rows of a thread: two for each product.
    fn thread_rows(&self) -> usize {
        2 * self.products()
    }

    /// Floats from one row of activations to the next in shared memory: with four more than there are weight rows, the
    /// threads of a warp write to different banks.
    fn stride(&self) -> usize {
        self.pairs() * self.products() * BLOCK_ROWS + 4
    }

    /// Whether the sums of all runs fit shared memory together.
    fn keeps_all(&self) -> bool {
        4 * PARTS * self.tokens * self.stride() <= MOST_SHARED
    }

    /// Groups of columns whose weights a thread holds.
    fn depth(&self) -> usize {
        let (words, most) = if self.scheme.is_integer() {
            (self.code_words(), CODES_AHEAD[usize::from(self.tokens > TILE_ROWS)])
        } else {
            (self.float_words(), FLOATS_AHEAD)
        };
        (most / (self.pairs() * words)).clamp(1, MOST_AHEAD[self.scheme.parameters()] * 2 / self.products())
    }

    /// This warp's run of the products of a strip, or of a block of a head with its partner.
    ///
    /// The run is taken in turns of as many groups as a thread holds, which lie where the turn begins, so that they are read
    /// at constant distances from there. The last turn begins early enough to end with the run: what it holds twice is
    /// added once.
    fn multiply(&self, strip: Val<'c>, partners: Option<(Val<'c>, usize)>) -> Sums<'c> {
        let b = self.b;
        let pairs: Vec<PointerValue<'c>> = (0..self.pairs()).map(|pair| self.block(strip, pair, partners)).collect();
        let depth = self.depth();
        let step = b.int(depth as i64);
        let after = |group: Val<'c>, count: usize| b.add(group, b.int(count as i64));
        let fetch =
            |group: Val<'c>| -> Vec<Val<'c>> { pairs.iter().flat_map(|&block| self.fetch(block, group)).collect() };
        let [begin, end] = self.run();
        let turns = b.udiv(b.sub(after(end, depth - 1), begin), step);
        let last = b.add(begin, b.mul(b.overloaded("llvm.smax", &[b.sub(turns, b.int(1)), b.int(0)]), step));
        let latest = b.overloaded("llvm.smax", &[b.sub(end, step), b.int(0)]);
        let held = |first: Val<'c>| b.overloaded("llvm.smin", &[first, latest]);
        // Only a product with fewer columns than a turn has is read behind its end: there its last group is loaded again.
        let final_group = b.sub(self.groups, b.int(1));
        let bounded = |group: Val<'c>| b.overloaded("llvm.smin", &[group, final_group]);
        let first = held(begin);
        let ahead: Vec<Vec<Var<'c>>> =
            (0..depth).map(|i| fetch(bounded(after(first, i))).into_iter().map(|word| b.var(word)).collect()).collect();
        b.await_earlier_kernels();
        let tiles: Vec<Rows<'c>> = (0..self.tokens / TILE_ROWS).map(|tile| self.rows(tile)).collect();
        let sums = self.zeros(tiles.len());
        let rows_of_one =
            |group: Val<'c>| -> Option<Vec<Val<'c>>> { (tiles.len() == 1).then(|| self.fetch_rows(&tiles[0], group)) };
        let add = |i: usize, group: Val<'c>, rows: &Option<Vec<Val<'c>>>| {
            let words: Vec<Val<'c>> = ahead[i].iter().map(|&word| b.get(word)).collect();
            let of = |tile: usize| rows.clone().unwrap_or_else(|| self.fetch_rows(&tiles[tile], group));
            self.add(&words, group, of, &sums);
        };
        let rows_ahead = if self.scheme.is_integer() { CODE_ROWS_AHEAD } else { FLOAT_ROWS_AHEAD };
        let whole_turn = |first: Val<'c>, next: Option<Val<'c>>| {
            for chunk in (0..depth).step_by(rows_ahead) {
                let chunk = chunk..(chunk + rows_ahead).min(depth);
                let rows: Vec<_> = chunk.clone().map(|i| rows_of_one(after(first, i))).collect();
                for (i, rows) in chunk.zip(rows) {
                    add(i, after(first, i), &rows);
                    let Some(next) = next else { continue };
                    for (&word, next) in ahead[i].iter().zip(fetch(after(next, i))) {
                        b.set(word, next);
                    }
                }
            }
        };
        b.for_range(begin, last, step, |first| whole_turn(first, Some(held(b.add(first, step)))));
        // What is left.
        let first = held(last);
        let is_whole = b.icmp(IntPredicate::EQ, b.sub(end, last), step);
        b.either(
            is_whole,
            || whole_turn(last, None),
            || {
                for i in 0..depth {
                    let group = after(first, i);
                    let is_new = b.icmp(IntPredicate::ULT, b.sub(group, last), b.sub(end, last));
                    b.when(is_new, || add(i, group, &rows_of_one(group)));
                }
            },
        );
        sums
    }

    /// Where the first span of this thread's block of a pair lies.
    fn block(&self, strip: Val<'c>, pair: usize, partners: Option<(Val<'c>, usize)>) -> PointerValue<'c> {
        let b = self.b;
        let half = b.udiv(self.row, b.int(4));
        if self.blocks == 1 {
            return b.element(b.operand(1), b.mul(strip, b.param(2)), block_span_bytes(self.scheme));
        }
        let (blocks, block) = match partners {
            Some((first, apart)) => (2 * apart, b.add(first, b.mul(half, b.int(apart as i64)))),
            None if 2 * pair + 1 < self.blocks => (self.blocks, b.add(b.int(2 * pair as i64), half)),
            None => (self.blocks, b.int(2 * pair as i64)),
        };
        let block = b.add(b.mul(strip, b.int(blocks as i64)), block);
        b.element(b.operand(1), b.mul(block, b.param(2)), block_span_bytes(self.scheme))
    }

    /// Which of the rows of a block the thread has: how many times as many lie before them.
    fn place_in_block(&self) -> Val<'c> {
        self.b.urem(self.row, self.b.int((BLOCK_ROWS / self.thread_rows()) as i64))
    }

    /// The words at `from`, one of each of the thread's rows.
    fn load_rows(&self, from: PointerValue<'c>) -> Vec<Val<'c>> {
        match self.thread_rows() {
            2 => self.b.load_together::<2>(Kind::I32, from).to_vec(),
            _ => self.b.load_together::<4>(Kind::I32, from).to_vec(),
        }
    }

    /// Loads what the thread needs of 32 columns of a block.
    fn fetch(&self, block: PointerValue<'c>, group: Val<'c>) -> Vec<Val<'c>> {
        if self.scheme.is_integer() { self.fetch_codes(block, group) } else { self.fetch_floats(block, group) }
    }

    /// Loads what the thread needs of 32 columns of a tile of activations.
    fn fetch_rows(&self, rows: &Rows<'c>, group: Val<'c>) -> Vec<Val<'c>> {
        if self.scheme.is_integer() { self.fetch_records(rows, group) } else { self.fetch_float_rows(rows, group) }
    }

    /// Adds the products of 32 columns: `words` are those of all pairs, `rows` gives those of a tile.
    fn add(&self, words: &[Val<'c>], group: Val<'c>, rows: impl Fn(usize) -> Vec<Val<'c>>, sums: &Sums<'c>) {
        if self.scheme.is_integer() {
            self.add_codes(words, group, rows, sums);
        } else {
            self.add_floats(words, rows, sums);
        }
    }

    /// Sums to begin with.
    fn zeros(&self, tiles: usize) -> Sums<'c> {
        let zero = self.b.float(0.0);
        let pair = || (0..self.products()).map(|_| [(); 4].map(|()| self.b.var(zero))).collect();
        (0..tiles).map(|_| (0..self.pairs()).map(|_| pair()).collect()).collect()
    }

    /// The groups of columns that are this warp's: from the first to before the second, which is not 0.
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
        let row = |within: Val<'c>| {
            let row = b.add(b.add(self.first_row, b.int((TILE_ROWS * tile) as i64)), within);
            let row = b.overloaded("llvm.smin", &[row, last]);
            b.element(b.operand(0), b.mul(row, self.groups), self.act.group_bytes())
        };
        let pair = b.mul(self.column, b.int(2));
        Rows { own: row(self.row), results: [row(pair), row(b.add(pair, b.int(1)))] }
    }

    /// Brings the sums of all runs to shared memory.
    fn share(&self, sums: &Sums<'c>) {
        let b = self.b;
        if self.keeps_all() {
            self.put(sums, self.warp, |_, sums| sums);
            return b.barrier();
        }
        b.for_range(b.int(0), b.int(PARTS as i64), b.int(1), |turn| {
            b.when(b.icmp(IntPredicate::EQ, self.warp, turn), || {
                let first = b.icmp(IntPredicate::EQ, turn, b.int(0));
                let add = |at: PointerValue<'c>, sums: [Val<'c>; 2]| {
                    let before: [Val<'c>; 2] = b.load_together(Kind::F32, at);
                    [0, 1].map(|i| b.fadd(before[i], sums[i]))
                };
                b.either(first, || self.put(sums, b.int(0), |_, sums| sums), || self.put(sums, b.int(0), add));
            });
            b.barrier();
        });
    }

    /// Writes this thread's sums into run `run` of shared memory, two rows at a time, as `combine` makes them of what lies
    /// there.
    fn put(&self, sums: &Sums<'c>, run: Val<'c>, combine: impl Fn(PointerValue<'c>, [Val<'c>; 2]) -> [Val<'c>; 2]) {
        let b = self.b;
        let pair = b.mul(self.column, b.int(2));
        let base = b.element(self.shared, b.add(b.mul(run, b.int(self.tokens as i64)), pair), 4 * self.stride());
        let base = b.element(base, self.row, 4 * self.thread_rows());
        for (tile, sums) in sums.iter().enumerate() {
            for (pair, products) in sums.iter().enumerate() {
                for token in 0..self.columns() {
                    for (product, sums) in products.iter().enumerate() {
                        let at = (TILE_ROWS * tile + token) * self.stride() + pair * PAIR_ROWS + 2 * product;
                        let at = b.offset(base, b.int(4 * at as i64));
                        b.store_together(at, combine(at, [b.get(sums[token]), b.get(sums[2 + token])]));
                    }
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
