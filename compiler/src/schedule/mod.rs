//! The schedule: for each bucket of step sizes an ordered list of kernel launches over an arena whose layout is fixed.
//!
//! [`build`] lowers the graph once per bucket ([`lower`]), puts barriers where a launch depends on one that may still run
//! ([`barriers`]), and places every intermediate in the arena by liveness ([`arena`]). Grids and the arena's capacity
//! belong to the bucket; `T`, `S` and `R` are values inside it, so nothing is padded.
//!
//! On a GPU the launches end with those that sample the rows ([`lower`]), so that what comes back is a few bytes a row. They
//! are no ops of the graph: no pass has anything to say of them, and on CPUs the runtime samples.

pub mod arena;
pub mod barriers;
pub mod cost;
pub mod lower;
pub mod print;

use lathe_ir::graph::{Graph, NodeId, StepInput, Weight};
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{CacheType, Dim, StepSize, Type};
use lathe_kernels::spec::{
    Access, Activation, BLOCK_ROWS, GROUP, KernelSpec, PAGE_TOKENS, STRIP_ROWS, Stage, Tile, Warps,
};
use lathe_kernels::targets::Machine;

/// Rows of activations that a streaming kernel multiplies by each decoded weight: four rows of accumulators fit the 32
/// vector registers beside the weights and their scales.
pub const STREAM_ROWS: usize = 4;
/// Rows per inner tile over an unpacked strip. With two blocks of weights that is 8 sums and 8 dot products in the 32
/// vector registers; 6 and 8 rows spill and measured 5 to 8 % slower at 512 tokens on Zen 4.
pub const UNPACK_ROWS: usize = 4;
/// Rows of activations that tensor cores multiply at the least.
const MMA_FEW_ROWS: usize = 8;
/// Sums of a warp of GPU threads for many rows: half of a thread's registers hold its share.
const MMA_SUMS: usize = 32 * 32;
/// Weight rows and rows of activations of the tiles for many rows, from the one that reads least on.
const STAGED_FLOATS: [[usize; 2]; 4] = [[128, 128], [64, 128], [64, 64], [32, 64]];
/// The same for codes, whose scales take registers, too.
const STAGED_CODES: [[usize; 2]; 4] = [[128, 64], [64, 128], [64, 64], [32, 64]];
/// About as many multiprocessors as a large chip has: 108 to 148.
const MULTIPROCESSORS: usize = 128;
/// The largest step of the small bucket: a decode step of a small batch, which lives on reading each weight once.
pub const DECODE: StepSize = StepSize { tokens: 16, sequences: 16, rows: 16 };
/// The largest step of the middle bucket: a decode step of a large batch, where most weights are still decoded faster than
/// unpacked. GPUs have no such choice.
pub const BATCH: StepSize = StepSize { tokens: 32, sequences: 32, rows: 32 };
/// The largest step: a prefill chunk long enough that arithmetic, not the weights, takes the time, and a bounded number
/// of logit rows, because each is as wide as the vocabulary.
pub const PREFILL: StepSize = StepSize { tokens: 512, sequences: 64, rows: 64 };
/// What a GPU decodes in one step at the most: attention is still by splits.
pub const GPU_BATCH: StepSize = StepSize { tokens: 128, sequences: 128, rows: 128 };
/// A GPU's largest step: each weight is read once for it, which takes less time than the arithmetic from some hundred
/// tokens on.
pub const GPU_PREFILL: StepSize = StepSize { tokens: 2048, sequences: 128, rows: 128 };
/// Most rows for which streaming is faster than unpacking a strip first. On Zen 4, 32 rows of `int4:g32+min` or `int5:g32`
/// stream 15 % faster; groups of 16, whose activations need sums of their halves, take 16 % longer.
const STREAM_MAX_ROWS: usize = BATCH.tokens;
const FEW_ROWS: usize = DECODE.tokens;

/// A program with its memory and its launches.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Name of the program.
    pub name: String,
    /// The kind of machine that it is for.
    pub machine: Machine,
    /// Weights in the order in which launches first read them.
    pub weights: Vec<ScheduledWeight>,
    /// Caches by name, in the order of their layers.
    pub caches: Vec<ScheduledCache>,
    /// Groups of caches with one block table each, in the order of their first use.
    pub groups: Vec<CacheGroup>,
    /// Most positions of a sequence.
    pub max_context: usize,
    /// Variants by step size, smallest first.
    pub buckets: Vec<Bucket>,
}

impl Schedule {
    /// Pages per sequence in the block table.
    pub fn pages(&self) -> usize {
        pages(self.max_context)
    }

    /// Whether steps sample their rows.
    pub fn samples(&self) -> bool {
        self.buckets.iter().any(|bucket| bucket.picks.is_some())
    }

    /// Every kernel that some launch needs, each once, in the order of their first launch.
    pub fn kernels(&self) -> Vec<KernelSpec> {
        let mut kernels: Vec<KernelSpec> = Vec::new();
        for launch in self.buckets.iter().flat_map(|bucket| &bucket.launches) {
            if !kernels.contains(&launch.kernel) {
                kernels.push(launch.kernel.clone());
            }
        }
        kernels
    }
}

/// A weight as the plan stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduledWeight {
    /// Its node in the graph.
    pub node: NodeId,
    /// What it is made from.
    pub weight: Weight,
    /// Its type: a packed matrix or a vector of f32.
    pub ty: Type,
    /// Stored bytes.
    pub bytes: u64,
}

/// A cache as the plan declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduledCache {
    /// Its name (`kv.0`).
    pub name: String,
    /// Its type.
    pub ty: CacheType,
    /// Its group, by index into [`Schedule::groups`].
    pub group: usize,
}

/// Caches whose tokens are kept equally long, so that they share page numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheGroup {
    /// Its name.
    pub name: String,
    /// Tokens that attention still reads; all where there is none.
    pub window: Option<usize>,
}

/// The steps up to a size.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    /// The largest step.
    pub max: StepSize,
    /// Intermediates.
    pub buffers: Vec<ArenaBuffer>,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bytes of scratch per worker.
    pub scratch_bytes: u64,
    /// The logits, `[R, vocabulary]` f32.
    pub logits: Buffer,
    /// The tokens that the step samples from them, where it does.
    pub picks: Option<Buffer>,
    /// Launches in order.
    pub launches: Vec<Launch>,
}

/// An intermediate in the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct ArenaBuffer {
    /// What it holds, for people.
    pub name: String,
    /// Its bytes in a step.
    pub bytes: Dim,
    /// Where it lies: a multiple of [`arena::ALIGN`].
    pub offset: u64,
    /// First and last phase in which it is needed; phases are what barriers separate.
    pub phases: (usize, usize),
}

/// What a launch hands to its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Buffer {
    /// An intermediate, by index into [`Bucket::buffers`].
    Arena(usize),
    /// The worker's own scratch.
    Scratch(u64),
    /// A weight, by index into [`Schedule::weights`].
    Weight(usize),
    /// What the runtime supplies.
    Input(StepInput),
    /// Page numbers of each sequence in a group of caches, by index into [`Schedule::groups`].
    BlockTable(usize),
    /// How each row is to be sampled: the runtime supplies it.
    Picks,
    /// A cache, by index into [`Schedule::caches`].
    Cache(usize),
}

/// How the units of a launch are divided among workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// One contiguous range each.
    Even,
    /// Ranges of this many units, claimed as workers get free.
    Claim(u32),
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// What it computes, for people: the weight's name, or the op's.
    pub label: String,
    /// Its kernel.
    pub kernel: KernelSpec,
    /// One per operand of the kernel.
    pub buffers: Vec<Buffer>,
    /// One per parameter of the kernel.
    pub params: Vec<Dim>,
    /// Units of work.
    pub units: Dim,
    /// How they are divided.
    pub share: Share,
    /// Whether all earlier launches must have finished.
    pub barrier: bool,
    /// Operations.
    pub flops: Dim,
    /// Bytes moved.
    pub bytes: Dim,
}

impl Launch {
    /// Each buffer with what the kernel does to it.
    pub fn accesses(&self) -> impl Iterator<Item = (Buffer, Access)> {
        self.buffers.iter().copied().zip(self.kernel.operands().into_iter().map(|operand| operand.access))
    }
}

/// Why a graph cannot be scheduled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A weight whose shape kernels cannot walk.
    #[error(
        "weight '{weight}' has {found} {what}, but kernels need a multiple of {expected}; \
         models of this width are not supported yet"
    )]
    Shape {
        /// Name of the weight.
        weight: String,
        /// Rows or columns.
        what: &'static str,
        /// What the number must be a multiple of.
        expected: usize,
        /// The number.
        found: usize,
    },
    /// A weight in a scheme or type that no kernel reads.
    #[error("weight '{weight}' is of type {found}, expected {expected}; leave the pass choose_weight_format enabled")]
    Weight {
        /// Name of the weight.
        weight: String,
        /// The types that kernels read.
        expected: &'static str,
        /// Its type.
        found: String,
    },
    /// A part of the graph that no kernel computes.
    #[error("no kernel computes {what}: {message}; please report it with the output of --emit fused")]
    Unsupported {
        /// The op.
        what: String,
        /// What was expected.
        message: String,
    },
}

/// Lowers the graph to launches for every bucket on a kind of machine.
///
/// # Errors
/// When a weight has a shape that kernels cannot walk, or no kernel computes an op.
pub fn build(graph: &Graph, max_context: usize, machine: Machine) -> Result<Schedule, ScheduleError> {
    let program = lower::Program::of(graph)?;
    let mut buckets = Vec::new();
    let steps = match machine {
        Machine::X86 => [DECODE, BATCH, PREFILL].as_slice(),
        Machine::Nvptx => &[DECODE, GPU_BATCH, GPU_PREFILL],
    };
    for &max in steps {
        let mut bucket = lower::bucket(graph, &program, max, pages(max_context), machine)?;
        let phases = barriers::place(&mut bucket.launches);
        arena::place(&mut bucket, &phases, machine);
        buckets.push(bucket);
    }
    let lower::Program { weights, caches, groups } = program;
    Ok(Schedule { name: graph.name.clone(), machine, weights, caches, groups, max_context, buckets })
}

/// The tile for a product over at most `rows` rows of activations and `n` rows of weights, with these stages behind it. Rows
/// whose logits are wanted are few even where tokens are many. A GPU's tensor cores take what is quantized, and bf16; the
/// operands of large steps come by shared memory.
fn tile(
    [rows, n]: [Dim; 2],
    epilogue: &[Stage],
    scheme: Scheme,
    act: Activation,
    max: StepSize,
    machine: Machine,
) -> Tile {
    let most = match (machine, act) {
        (Machine::X86, Activation::Int8) if scheme.group == GROUP => STREAM_MAX_ROWS,
        _ => FEW_ROWS,
    };
    let few = rows.t == 0 || rows.eval(max) <= most;
    match (machine, act) {
        (Machine::Nvptx, Activation::F32) if scheme != Scheme::BF16 => Tile::Stream { tokens: STREAM_ROWS },
        (Machine::Nvptx, _) if few => {
            let is_short = n.c < 2 * MULTIPROCESSORS * STRIP_ROWS;
            Tile::Mma { tokens: MMA_FEW_ROWS, narrow: is_short && KernelSpec::takes_narrow_tiles(epilogue) }
        }
        (Machine::Nvptx, _) => {
            let is_large = rows.eval(max) > GPU_BATCH.tokens;
            let staged = is_large.then(|| staged(KernelSpec::strip_blocks(epilogue), n.c, act)).flatten();
            let blocks = KernelSpec::tile_blocks(Tile::Mma { tokens: MMA_FEW_ROWS, narrow: false }, epilogue);
            staged.unwrap_or(Tile::Mma { tokens: (MMA_SUMS / BLOCK_ROWS / blocks).max(MMA_FEW_ROWS), narrow: false })
        }
        (Machine::X86, _) if few => Tile::Stream { tokens: STREAM_ROWS },
        (Machine::X86, _) => Tile::Unpack { tokens: UNPACK_ROWS },
    }
}

/// Whether a product over at most `rows` rows may walk strips of twice as many weight rows as it must, which leave groups
/// of results: on a GPU not where a block's registers are full with many rows of activations.
fn takes_wide_strips(rows: Dim, max: StepSize, machine: Machine) -> bool {
    let most = rows.eval(max);
    machine == Machine::X86 || most <= FEW_ROWS || most > GPU_BATCH.tokens
}

/// The largest tile that leaves every multiprocessor something to do in a prompt of some hundred tokens, for a product
/// with `n` rows of weights in strips of `strip` blocks; or the smallest one that there is.
fn staged(strip: usize, n: usize, act: Activation) -> Option<Tile> {
    let tiles = if act == Activation::Int8 { STAGED_CODES } else { STAGED_FLOATS };
    let mut tiles = tiles.into_iter().filter_map(|[rows, tokens]| {
        let blocks = strip * (rows / BLOCK_ROWS / strip).max(1);
        Warps::of(blocks, tokens).map(|_| [blocks, tokens])
    });
    let fills = |&[blocks, tokens]: &[usize; 2]| {
        n.div_ceil(blocks * BLOCK_ROWS) * PREFILL.tokens.div_ceil(tokens) >= MULTIPROCESSORS
    };
    let [blocks, tokens] = tiles.clone().find(fills).or_else(|| tiles.next_back())?;
    Some(Tile::Staged { blocks, tokens })
}

fn pages(max_context: usize) -> usize {
    max_context.div_ceil(PAGE_TOKENS)
}

/// `dim · n`.
fn times(dim: Dim, n: usize) -> Dim {
    Dim { t: dim.t * n, s: dim.s * n, r: dim.r * n, c: dim.c * n }
}

/// `a + b`.
fn plus(a: Dim, b: Dim) -> Dim {
    Dim { t: a.t + b.t, s: a.s + b.s, r: a.r + b.r, c: a.c + b.c }
}

/// `a · b` where one of them is a constant.
fn product(a: Dim, b: Dim) -> Option<Dim> {
    match (a.constant(), b.constant()) {
        (_, Some(n)) => Some(times(a, n)),
        (Some(n), None) => Some(times(b, n)),
        (None, None) => None,
    }
}
