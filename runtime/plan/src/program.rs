//! The program: the binary facts that the runtime executes. Plain types, shared by the compiler and the runtime.
//!
//! A program declares its step inputs, cache groups, weights and kernels, and per bucket an arena and an ordered list
//! of launches. Everything that the runtime does follows from these types; nothing is decided from the manifest.

/// Values of the symbols of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StepSize {
    /// Tokens, T.
    pub tokens: u32,
    /// Sequences, S.
    pub sequences: u32,
    /// Rows whose logits are wanted, R.
    pub rows: u32,
}

/// `t·T + s·S + r·R + c`, evaluated for each step. Coefficients are never negative, so the value grows with the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affine {
    /// Coefficient of T.
    pub t: u64,
    /// Coefficient of S.
    pub s: u64,
    /// Coefficient of R.
    pub r: u64,
    /// The constant.
    pub c: u64,
}

impl Affine {
    /// A constant.
    pub const fn constant(c: u64) -> Affine {
        Affine { t: 0, s: 0, r: 0, c }
    }

    /// `n·T`.
    pub const fn tokens(n: u64) -> Affine {
        Affine { t: n, s: 0, r: 0, c: 0 }
    }

    /// The value at a step size; `None` when it overflows.
    pub fn eval(&self, size: StepSize) -> Option<u64> {
        let t = self.t.checked_mul(u64::from(size.tokens))?;
        let s = self.s.checked_mul(u64::from(size.sequences))?;
        let r = self.r.checked_mul(u64::from(size.rows))?;
        t.checked_add(s)?.checked_add(r)?.checked_add(self.c)
    }
}

/// One step of inference over one set of weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// `main`, `draft`, …
    pub name: String,
    /// Size of the vocabulary: columns of the logits.
    pub vocabulary: u32,
    /// Most positions that a sequence may have.
    pub max_context: u32,
    /// What the runtime supplies for each step.
    pub inputs: Vec<Input>,
    /// Caches.
    pub cache_groups: Vec<CacheGroup>,
    /// Spans of the weight section.
    pub weights: Vec<WeightSpan>,
    /// Kernels that launches name by index. Every code section of the plan holds all of them, in this order.
    pub kernels: Vec<Kernel>,
    /// Variants of the step by size, smallest first.
    pub buckets: Vec<Bucket>,
}

/// A step input. All are little-endian i32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Token ids, `[T]`, each below the vocabulary.
    Tokens,
    /// Logical positions, `[T]`, each below the maximal context.
    Positions,
    /// Index of the token's sequence within the step, `[T]`, each below S.
    Sequences,
    /// Token indices whose logits are wanted, `[R]`, each below T.
    Rows,
    /// How the device samples each row, `[R, 4]` words: see [`PickWords`].
    Picks,
    /// Page numbers of a cache group, `[S, ceil(max_context / page_tokens)]`; entry `[s, p]` holds positions
    /// `p·page_tokens ..` of sequence `s`. Entries past a sequence's end are not read.
    BlockTable {
        /// The cache group.
        group: u32,
    },
}

/// How a row is sampled by the step itself, as it lies in [`Input::Picks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PickWords {
    /// The bits of the f32 temperature; zero for the greatest logit.
    pub temperature: u32,
    /// The token that is given instead of sampled; all ones where it is sampled.
    pub given: u32,
    /// The state that each token's noise is hashed with, its low half and its high half.
    pub stream: [u32; 2],
}

impl PickWords {
    /// Words of a row.
    pub const COUNT: usize = 4;

    /// The words in order.
    pub fn words(self) -> [u32; Self::COUNT] {
        [self.temperature, self.given, self.stream[0], self.stream[1]]
    }
}

/// What the step leaves in [`Bucket::picks`]: for each of R rows four words, and behind them R token ids of a word each. The
/// words are the f32 of the largest logit, the f32 of the token's logit, and the f64 of the sum of all
/// `exp(logit − largest)`. The id of a row whose logits are not finite is below the vocabulary, and means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked;

impl Picked {
    /// Words of a row before the ids.
    pub const WORDS: usize = 4;
    /// Bytes of a row, its id included.
    pub const BYTES: u64 = 20;
}

/// How long a cache group keeps its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Every token of the sequence.
    All,
    /// At least the last `tokens` tokens.
    Window {
        /// Tokens kept.
        tokens: u32,
    },
}

/// Cache tensors that share a block table.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheGroup {
    /// Name.
    pub name: String,
    /// Tokens per page.
    pub page_tokens: u32,
    /// What is kept.
    pub retention: Retention,
    /// The tensors (one per layer).
    pub tensors: Vec<CacheTensor>,
}

/// One cache tensor: page `p` lies at `p · page_bytes` of its region.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheTensor {
    /// Name (`kv.0`).
    pub name: String,
    /// Bytes of one page.
    pub page_bytes: u64,
}

/// A packed weight inside the weight section.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpan {
    /// Name in the graph.
    pub name: String,
    /// Offset in the weight section, a multiple of 64.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// What a kernel may do with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reads.
    Read,
    /// Only writes.
    Write,
    /// Both.
    ReadWrite,
}

/// One product of a kernel's extent: `coefficient · params[a] · params[b]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// The factor in bytes.
    pub coefficient: u64,
    /// Indices of up to two launch parameters; `None` counts as 1.
    pub factors: [Option<u8>; 2],
}

/// An operand of a kernel: how it is used, and how many bytes from its base the kernel may touch, as a sum of terms over
/// the launch's parameters. For a cache it is the bytes of one page; for scratch, of one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    /// Reads, writes or both.
    pub access: Access,
    /// The extent.
    pub extent: Vec<Term>,
}

/// How blocks of GPU threads cover a launch. CPUs have no use for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Threads of a block.
    pub threads: u32,
    /// Units that a block has threads for.
    pub units: u32,
    /// Rows, by the launch's first parameter, that a block takes; 0 where it takes all of them.
    pub rows: u32,
}

impl Default for Grid {
    /// Eight units of 16 threads each.
    fn default() -> Grid {
        Grid { threads: 128, units: 8, rows: 0 }
    }
}

/// A kernel: its spec's name and its signature.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// The printed kernel spec.
    pub name: String,
    /// The order in which it reduces, as the compiler prints recipes; empty where it adds nothing up. What the numbers of
    /// the plan rest on: for people and for comparing plans.
    pub recipe: String,
    /// How many parameters a launch passes.
    pub params: u32,
    /// How blocks of GPU threads cover a launch.
    pub grid: Grid,
    /// The operands, in order.
    pub operands: Vec<Operand>,
}

/// The steps up to a size: kernels, grid and arena capacity are fixed; T, S and R are values inside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    /// The largest step.
    pub max: StepSize,
    /// Bytes of the arena, shared by all intermediates by liveness.
    pub arena_bytes: u64,
    /// Bytes of scratch per worker.
    pub scratch_bytes: u64,
    /// Where the logits are in the arena: R rows of at least `vocabulary` f32 (see [`Bucket::logits_row`]).
    pub logits: Buffer,
    /// Where the tokens are that the step itself samples, if it does: see [`Picked`]. Such a program has [`Input::Picks`].
    pub picks: Option<Buffer>,
    /// Launches in order.
    pub launches: Vec<Launch>,
}

impl Bucket {
    /// Bytes from one row of the logits to the next: what their buffer takes per R, or a row of the vocabulary where its
    /// size does not depend on R. Rows may be longer than the vocabulary, for weights are stored in whole blocks of rows.
    pub fn logits_row(&self, vocabulary: u32) -> u64 {
        match &self.logits {
            Buffer::Arena { bytes, .. } if bytes.r > 0 => bytes.r,
            _ => 4 * u64::from(vocabulary),
        }
    }
}

/// A buffer that a launch hands to its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// Part of the arena.
    Arena {
        /// Offset, a multiple of 64.
        offset: u64,
        /// Length.
        bytes: Affine,
    },
    /// Part of the worker's own scratch, `bytes` long.
    Scratch {
        /// Length.
        bytes: u64,
    },
    /// A weight, by index.
    Weight(u32),
    /// A step input, by index.
    Input(u32),
    /// A cache tensor.
    Cache {
        /// The group.
        group: u32,
        /// The tensor in the group.
        tensor: u32,
    },
}

/// How a launch's units are divided among the workers. Results never depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Each worker takes one contiguous range, always the same for the same number of units (weight blocks).
    Even,
    /// Workers claim ranges of `grain` units as they get free (units of unequal work), or of fewer where units are few.
    Claim {
        /// Most units per claim.
        grain: u32,
    },
}

/// One kernel launch.
///
/// A CPU kernel is `extern "C" fn(buffers: *const *mut u8, params: *const i64, begin: i64, end: i64)` and computes the
/// units `begin..end`.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Index into [`Program::kernels`].
    pub kernel: u32,
    /// One buffer per operand.
    pub buffers: Vec<Buffer>,
    /// Parameters.
    pub params: Vec<Affine>,
    /// Units of work.
    pub units: Affine,
    /// How units are divided.
    pub share: Share,
    /// Whether all earlier launches must have finished first.
    pub barrier: bool,
    /// Operations, for reports and predictions.
    pub flops: Affine,
    /// Bytes moved, for reports and predictions.
    pub bytes: Affine,
}

/// Machine code for one target, section `Code`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CodeObject {
    /// Name of the target (`x86-64-v4+vnni+bf16`).
    pub target: String,
    /// CPU features that must be present, by the names that `/proc/cpuinfo` uses.
    pub features: Vec<String>,
    /// Offset of each kernel's entry in `code`, in the order of [`Program::kernels`].
    pub entries: Vec<u64>,
    /// Position-independent code, no relocations left.
    pub code: Vec<u8>,
}
