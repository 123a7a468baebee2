//! Kernel specs: what a kernel computes, as data. The printed spec is the cache key, the name in the plan and the name
//! of the snapshot.
//!
//! A spec also states its calling convention: the operands in order, the launch parameters, and how many bytes of each
//! operand the kernel may touch as a polynomial of the parameters. The runtime checks every launch against it.
//!
//! Conventions: `M` rows of activations, `N` weight rows (outputs, a multiple of 16), `G` spans of the weight scheme along
//! K (32 columns, or 256 with super-blocks; 32 where there is no weight),
//! `T` tokens, `S` sequences, `B` pages per sequence in the block table, `D` head size.

mod grid;
mod page;
mod print;
mod strips;

pub use grid::{ATTENTION_BLOCK, Grid, PARTS, ROW_TEAMS, Warps, attention_rows};
use lathe_ir::ops::glu::Function;
use lathe_ir::ops::rotary::Scaling;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::DType;

pub use page::{CodePage, PAGE_TOKENS, SCALE_BYTES, page_bytes, paired_key_bytes};

/// Rows of a weight block.
pub const BLOCK_ROWS: usize = 16;
/// Stored matrices are padded with rows of zeros to a multiple of this, so that products walk whole strips.
pub const STRIP_ROWS: usize = 2 * BLOCK_ROWS;
/// Elements along K that kernels take at once: a span of every scheme without super-blocks, a group of activations.
pub const GROUP: usize = 32;
/// Parts into which a product with unpacked weights divides the rows of activations, so that many workers find work of
/// equal size in few strips.
pub const UNPACK_PARTS: usize = 16;
/// Bytes of a quantized activation record per group of 32: codes, scale, scale · sum, sum.
pub const ACT_GROUP_BYTES: usize = 32 + 4 + 4 + 4;

/// The form in which a linear kernel reads its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Activation {
    /// f32, `[M, K]`.
    F32,
    /// Quantized records in groups of 32, `[M, G · 44 bytes]`.
    Int8,
    /// bf16, `[M, K]`, for the tensor cores of a GPU. Of each 32 columns, columns `8 j + 2 t` and `8 j + 2 t + 1` are word
    /// `4 t + j`: the four words that a thread takes of them lie side by side.
    Bf16,
}

impl Activation {
    /// Bytes of 32 columns of a row.
    pub fn group_bytes(self) -> usize {
        match self {
            Activation::F32 => 4 * GROUP,
            Activation::Int8 => ACT_GROUP_BYTES,
            Activation::Bf16 => 2 * GROUP,
        }
    }
}

/// How a linear kernel walks its matrix. Every tile follows the same recipe and gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tile {
    /// For few rows: weights are decoded in registers, `tokens` rows of activations at a time.
    Stream {
        /// Rows of activations per pass over a strip.
        tokens: usize,
    },
    /// For many rows: a strip of weights is unpacked once to scratch, then multiplied `tokens` rows at a time.
    Unpack {
        /// Rows of activations per inner tile.
        tokens: usize,
    },
    /// For the tensor cores of a GPU: a block of threads multiplies a strip with `tokens` rows of activations, each of
    /// its warps a part of the columns.
    Mma {
        /// Rows of activations per block of threads, a multiple of 8.
        tokens: usize,
        /// Whether a block of threads takes one block of 16 weight rows instead of a strip, so that a product with few
        /// rows of weights keeps more multiprocessors busy; see [`KernelSpec::takes_narrow_tiles`].
        narrow: bool,
    },
    /// For many rows on tensor cores: a block of threads brings pieces of weights and activations to shared memory, where
    /// its warps, each with a part of the results, find them.
    Staged {
        /// Blocks of 16 weight rows per block of threads: whole strips.
        blocks: usize,
        /// Rows of activations per block of threads.
        tokens: usize,
    },
}

impl Tile {
    /// Units of a strip: parts of the rows of activations, one after the other.
    pub fn parts(self) -> usize {
        if matches!(self, Tile::Unpack { .. }) { UNPACK_PARTS } else { 1 }
    }
}

/// A norm of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// Divides by the root mean square. Operand: norm (weight).
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
    /// Centres and divides by the standard deviation. Operands: the weight and `norm_bias`.
    Layer {
        /// Added to the variance.
        eps: f32,
    },
}

/// A stage that a linear kernel applies to each strip of its result before it leaves the first-level cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// Norms the heads `first .. first + heads`, each by its root mean square. Operand: norm (weight, one head wide).
    HeadNorm {
        /// Elements per head.
        head_dim: usize,
        /// The first head that is normed.
        first: usize,
        /// Heads that are normed.
        heads: usize,
        /// Added to the mean square.
        eps: f32,
    },
    /// Rotates the first `heads` heads. Operand: rotary.
    Rope {
        /// Elements per head.
        head_dim: usize,
        /// Elements of a head that turn, its first ones.
        dim: usize,
        /// Heads that turn.
        heads: usize,
    },
    /// Writes key and value heads to the cache and passes the query heads on. Operands: positions, sequences, block
    /// table, cache.
    AppendQkv {
        /// Elements per head.
        head_dim: usize,
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// Element type of the cache.
        dtype: DType,
    },
    /// `function(gate) · up` over rows that alternate 16 gates and 16 ups.
    Glu(Function),
    /// A function of each element.
    Activate(Function),
    /// Multiplies by a constant.
    Scale(f32),
    /// `cap · tanh(x / cap)`.
    Softcap(f32),
    /// Adds the residual. Operand: residual.
    Add,
    /// Adds one vector to every row. Operand: bias.
    Bias,
    /// Quantizes the result in groups of 32 as a row kernel does, for the product that reads it. It comes last, after
    /// stages that leave no heads.
    Quantize,
    /// Rounds the result to bf16 in the order of [`Activation::Bf16`], for the product of a GPU that reads it. It comes last,
    /// as [`Stage::Quantize`] does.
    Round,
}

/// An element-wise operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MapOp {
    /// `a + b`.
    Add,
    /// `a · b`.
    Mul,
    /// A function of each element.
    Activate(Function),
    /// `function(gate) · up` of rows that alternate 16 gates and 16 ups.
    Glu(Function),
    /// Multiplies by a constant.
    Scale(f32),
    /// `cap · tanh(a / cap)`.
    Softcap(f32),
    /// `a + b` with one vector b for every row.
    Bias,
}

/// What a kernel computes.
#[derive(Clone, Debug, PartialEq)]
pub enum KernelSpec {
    /// Rows of a table by token id. Params T, N (vocabulary), G. Units: tokens.
    Embed {
        /// Scheme of the table.
        scheme: Scheme,
    },
    /// Row by row: gather, then a norm, then a residual, each optional, in the form in which a product reads it. Params M,
    /// T (rows of the input), G. Units: rows; see [`KernelSpec::takes_groups`].
    Rows {
        /// Whether row `m` of the result comes from row `rows[m]`.
        gather: bool,
        /// The norm.
        norm: Option<Norm>,
        /// Whether a residual is added after the norm. Operand: residual.
        add: bool,
        /// The form of the result.
        form: Activation,
    },
    /// Cosines and sines of each token's rotary angles. Params T. Units: tokens.
    Rotary {
        /// Elements that turn.
        dim: usize,
        /// Base of the frequencies.
        theta: f32,
        /// What changes the frequencies.
        scaling: Scaling,
    },
    /// A matrix product with a packed weight. Params M, N, G, and S, B where a stage names the cache. Units: strips,
    /// times the tile's parts.
    Linear {
        /// Scheme of the weight.
        scheme: Scheme,
        /// Form of the activations.
        act: Activation,
        /// How the matrix is walked.
        tile: Tile,
        /// Stages in order.
        epilogue: Vec<Stage>,
    },
    /// Causal attention over the paged cache. Params T, KV (key/value heads), S, B. Units: tokens · key/value heads.
    Attention {
        /// Query heads per key/value head.
        group: usize,
        /// Elements per head.
        head_dim: usize,
        /// Element type of the cache.
        dtype: DType,
        /// Factor on the scores.
        scale: f32,
        /// Tokens that a token sees, itself included; pages before them are not touched.
        window: Option<usize>,
        /// Bound of the scores.
        softcap: Option<f32>,
    },
    /// The first half of the same attention on a GPU where tokens are few: splits of their histories by themselves. Params
    /// T, KV, S, B, Z (units of a head), W (splits of all key/value heads of a token). Units: tokens · key/value heads · Z.
    AttentionSplits {
        /// Query heads per key/value head.
        group: usize,
        /// Elements per head.
        head_dim: usize,
        /// Element type of the cache.
        dtype: DType,
        /// Factor on the scores.
        scale: f32,
        /// Tokens that a token sees, itself included; pages before them are not touched.
        window: Option<usize>,
        /// Bound of the scores.
        softcap: Option<f32>,
    },
    /// The second half: merges splits in order. Params T, KV, W. Units: tokens · query heads · blocks of 16 elements, or
    /// groups of 32 where the result is quantized.
    AttentionMerge {
        /// Query heads per key/value head.
        group: usize,
        /// Elements per head.
        head_dim: usize,
        /// Tokens that a token sees, itself included.
        window: Option<usize>,
        /// Whether the result is quantized in groups of 32, as a row kernel does it, for the product that reads it. Heads
        /// are then whole groups.
        quantize: bool,
    },
    /// Element-wise. Params M, N (columns of the result). Units: rows.
    Map {
        /// The operation.
        op: MapOp,
    },
    /// Rotates heads. Params T, H (heads), HR (heads that turn). Units: tokens.
    Rope {
        /// Elements per head.
        head_dim: usize,
        /// Elements of a head that turn, its first ones.
        dim: usize,
    },
    /// Norms heads by their root mean squares. Params T, H (heads), HF (first that is normed), HN (how many are). Units:
    /// tokens.
    HeadNorm {
        /// Elements per head.
        head_dim: usize,
        /// Added to the mean square.
        eps: f32,
    },
    /// Writes keys and values to the cache. Params T, KV, S, B. Units: tokens.
    Append {
        /// Elements per head.
        head_dim: usize,
        /// Element type of the cache.
        dtype: DType,
    },
    /// Splits a merged projection: keys and values to the cache, queries to the result. Params T, H, KV, S, B. Units:
    /// tokens.
    AppendQkv {
        /// Elements per head.
        head_dim: usize,
        /// Element type of the cache.
        dtype: DType,
    },
    /// Samples rows of logits on a GPU, with the bits of the runtime's sampler, in three parts. Params R, V (vocabulary), N
    /// (floats from a row of logits to the next), C (blocks of a row).
    Sample(SamplePart),
}

/// A part of sampling; see [`KernelSpec::Sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplePart {
    /// Of each block of logits the largest, and what the largest score of all its tokens is at the least. Units: rows ·
    /// blocks.
    Bounds,
    /// Of each block the sum of exponentials, and the token of the largest score. Units: rows · blocks.
    Sums,
    /// Of each row the token, and what its likelihood follows from. Units: rows.
    Merge,
}

/// Logits of a block that one team samples from: as many as the runtime's sampler adds up before it goes on in f64.
pub const SAMPLE_BLOCK: usize = 1024;
/// Bytes of a block's bounds: the largest logit, its token, and the least of the largest score.
pub const SAMPLE_BOUND_BYTES: usize = 16;
/// Bytes of a block's sums: of exponentials, the largest score, its token and nothing.
pub const SAMPLE_SUM_BYTES: usize = 24;
/// Bytes by which a row is told how to sample: temperature, given token, state of the noise.
pub const PICK_BYTES: usize = 16;
/// Bytes of a row's result: largest logit, the token's logit, sum of exponentials, and the token elsewhere.
pub const PICKED_BYTES: usize = 20;

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

/// `coefficient · params[a] · params[b]` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// Bytes.
    pub coefficient: u64,
    /// Indices of up to two parameters.
    pub factors: [Option<u8>; 2],
}

/// An operand of a kernel. For a cache the extent is of one page, for scratch of one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    /// Name in generated code and messages.
    pub name: &'static str,
    /// Reads, writes or both.
    pub access: Access,
    /// Bytes that the kernel may touch from the operand's base.
    pub extent: Vec<Term>,
}

fn operand(name: &'static str, access: Access, coefficient: usize, factors: &[u8]) -> Operand {
    let factors = [factors.first().copied(), factors.get(1).copied()];
    Operand { name, access, extent: vec![Term { coefficient: coefficient as u64, factors }] }
}

fn read(name: &'static str, coefficient: usize, factors: &[u8]) -> Operand {
    operand(name, Access::Read, coefficient, factors)
}

fn write(name: &'static str, coefficient: usize, factors: &[u8]) -> Operand {
    operand(name, Access::Write, coefficient, factors)
}

/// Bytes of a packed weight per row and span.
pub fn span_bytes(scheme: Scheme) -> usize {
    scheme.row_bytes(scheme.span())
}

/// Floats that a split of attention leaves for a query head: the weighted sums of values, then 16 lanes of the sum of
/// weights, and the maximum 16 times.
pub fn partial_floats(head_dim: usize) -> usize {
    head_dim + 2 * BLOCK_ROWS
}

/// Floats of a token's row in the table that a rotary kernel writes for rope kernels. Where the halves of the `dim`
/// turning elements are whole blocks of 16 lanes, it holds the cosines of one half, then the sines. Otherwise partners
/// lie in different lanes, and it holds two factors for each of the elements, filled up to whole blocks: of the element
/// itself (the cosine) and of its partner (minus or plus the sine).
pub fn rotary_columns(dim: usize) -> usize {
    if rotary_is_aligned(dim) { dim } else { 2 * dim.next_multiple_of(BLOCK_ROWS) }
}

/// Whether rotating partners lie in the same lane of two blocks.
pub fn rotary_is_aligned(dim: usize) -> bool {
    dim.is_multiple_of(2 * BLOCK_ROWS)
}

impl Stage {
    fn operands(self, operands: &mut Vec<Operand>) {
        match self {
            Stage::HeadNorm { head_dim, .. } => operands.push(read("norm", 4 * head_dim, &[])),
            Stage::Rope { dim, .. } => operands.push(read("rotary", 4 * rotary_columns(dim), &[0])),
            Stage::AppendQkv { head_dim, kv_heads, dtype, .. } => {
                operands.push(read("positions", 4, &[0]));
                operands.push(read("sequences", 4, &[0]));
                operands.push(read("block_table", 4, &[3, 4]));
                operands.push(operand("cache", Access::ReadWrite, page_bytes(kv_heads, head_dim, dtype), &[]));
            }
            Stage::Glu(_)
            | Stage::Activate(_)
            | Stage::Scale(_)
            | Stage::Softcap(_)
            | Stage::Quantize
            | Stage::Round => {}
            Stage::Add => operands.push(read("residual", 4, &[0, 1])),
            Stage::Bias => operands.push(read("bias", 4, &[1])),
        }
    }
}

impl KernelSpec {
    /// Element type of the cache that the kernel reads or writes.
    pub fn cache(&self) -> Option<DType> {
        match self {
            KernelSpec::Attention { dtype, .. }
            | KernelSpec::AttentionSplits { dtype, .. }
            | KernelSpec::Append { dtype, .. }
            | KernelSpec::AppendQkv { dtype, .. } => Some(*dtype),
            KernelSpec::Linear { epilogue, .. } => epilogue.iter().find_map(|stage| match stage {
                Stage::AppendQkv { dtype, .. } => Some(*dtype),
                _ => None,
            }),
            _ => None,
        }
    }

    /// Consecutive tokens that a CPU's attention kernel takes together where it can, for `group` heads each: as many as
    /// make 16 rows of queries, at most 4.
    pub fn attention_tokens(group: usize) -> usize {
        match group {
            0..=4 => 4,
            5..=8 => 2,
            _ => 1,
        }
    }

    /// Names of the launch parameters, in order.
    pub fn params(&self) -> &'static [&'static str] {
        match self {
            KernelSpec::Embed { .. } => &["T", "N", "G"],
            KernelSpec::Rows { .. } => &["M", "T", "G"],
            KernelSpec::Rotary { .. } => &["T"],
            KernelSpec::Linear { epilogue, .. } => {
                if epilogue.iter().any(|stage| matches!(stage, Stage::AppendQkv { .. })) {
                    &["M", "N", "G", "S", "B"]
                } else {
                    &["M", "N", "G"]
                }
            }
            KernelSpec::Attention { .. } | KernelSpec::Append { .. } => &["T", "KV", "S", "B"],
            KernelSpec::AttentionSplits { .. } => &["T", "KV", "S", "B", "Z", "W"],
            KernelSpec::AttentionMerge { .. } => &["T", "KV", "W"],
            KernelSpec::Map { .. } => &["M", "N"],
            KernelSpec::Rope { .. } => &["T", "H", "HR"],
            KernelSpec::HeadNorm { .. } => &["T", "H", "HF", "HN"],
            KernelSpec::AppendQkv { .. } => &["T", "H", "KV", "S", "B"],
            KernelSpec::Sample(_) => &["R", "V", "N", "C"],
        }
    }

    /// The operands, in order.
    pub fn operands(&self) -> Vec<Operand> {
        match self {
            KernelSpec::Embed { scheme } => vec![
                read("tokens", 4, &[0]),
                read("table", span_bytes(*scheme), &[1, 2]),
                write("out", 4 * scheme.span(), &[0, 2]),
            ],
            KernelSpec::Rows { gather, norm, add, form } => {
                let mut operands = vec![read("x", 4 * GROUP, &[1, 2])];
                if *gather {
                    operands.push(read("rows", 4, &[0]));
                }
                if norm.is_some() {
                    operands.push(read("norm", 4 * GROUP, &[2]));
                }
                if let Some(Norm::Layer { .. }) = norm {
                    operands.push(read("norm_bias", 4 * GROUP, &[2]));
                }
                if *add {
                    operands.push(read("residual", 4 * GROUP, &[0, 2]));
                }
                operands.push(write("out", form.group_bytes(), &[0, 2]));
                operands
            }
            KernelSpec::Rotary { dim, .. } => {
                vec![read("positions", 4, &[0]), write("out", 4 * rotary_columns(*dim), &[0])]
            }
            KernelSpec::Linear { scheme, act, tile, epilogue } => {
                let x_bytes = act.group_bytes() * (scheme.span() / GROUP);
                let mut operands = vec![read("x", x_bytes, &[0, 2]), read("w", span_bytes(*scheme), &[1, 2])];
                for stage in epilogue {
                    stage.operands(&mut operands);
                }
                operands.push(Self::linear_out(epilogue));
                operands.push(Self::linear_scratch(*scheme, *act, *tile, epilogue));
                operands
            }
            KernelSpec::Attention { group, head_dim, dtype, .. } => vec![
                read("q", 4 * head_dim * group, &[0, 1]),
                read("positions", 4, &[0]),
                read("sequences", 4, &[0]),
                read("block_table", 4, &[2, 3]),
                read("cache", page_bytes(1, *head_dim, *dtype), &[1]),
                write("out", 4 * head_dim * group, &[0, 1]),
            ],
            KernelSpec::AttentionSplits { group, head_dim, dtype, .. } => vec![
                read("q", 4 * head_dim * group, &[0, 1]),
                read("positions", 4, &[0]),
                read("sequences", 4, &[0]),
                read("block_table", 4, &[2, 3]),
                read("cache", page_bytes(1, *head_dim, *dtype), &[1]),
                write("out", 4 * partial_floats(*head_dim) * group, &[0, 5]),
            ],
            KernelSpec::AttentionMerge { group, head_dim, quantize, .. } => {
                let bytes = if *quantize { head_dim / GROUP * ACT_GROUP_BYTES } else { 4 * head_dim };
                vec![
                    read("positions", 4, &[0]),
                    read("partials", 4 * partial_floats(*head_dim) * group, &[0, 2]),
                    write("out", bytes * group, &[0, 1]),
                ]
            }
            KernelSpec::Map { op } => match op {
                MapOp::Add | MapOp::Mul => {
                    vec![read("a", 4, &[0, 1]), read("b", 4, &[0, 1]), write("out", 4, &[0, 1])]
                }
                MapOp::Activate(_) | MapOp::Scale(_) | MapOp::Softcap(_) => {
                    vec![read("a", 4, &[0, 1]), write("out", 4, &[0, 1])]
                }
                MapOp::Bias => vec![read("a", 4, &[0, 1]), read("b", 4, &[1]), write("out", 4, &[0, 1])],
                MapOp::Glu(_) => vec![read("a", 8, &[0, 1]), write("out", 4, &[0, 1])],
            },
            KernelSpec::HeadNorm { head_dim, .. } => vec![
                read("x", 4 * head_dim, &[0, 1]),
                read("norm", 4 * head_dim, &[]),
                write("out", 4 * head_dim, &[0, 1]),
            ],
            KernelSpec::Rope { head_dim, dim } => vec![
                read("x", 4 * head_dim, &[0, 1]),
                read("rotary", 4 * rotary_columns(*dim), &[0]),
                write("out", 4 * head_dim, &[0, 1]),
            ],
            KernelSpec::Append { head_dim, dtype } => vec![
                read("k", 4 * head_dim, &[0, 1]),
                read("v", 4 * head_dim, &[0, 1]),
                read("positions", 4, &[0]),
                read("sequences", 4, &[0]),
                read("block_table", 4, &[2, 3]),
                operand("cache", Access::ReadWrite, page_bytes(1, *head_dim, *dtype), &[1]),
            ],
            KernelSpec::AppendQkv { head_dim, dtype } => {
                let mut qkv = read("qkv", 4 * head_dim, &[0, 1]);
                qkv.extent.push(Term { coefficient: 8 * *head_dim as u64, factors: [Some(0), Some(2)] });
                vec![
                    qkv,
                    read("positions", 4, &[0]),
                    read("sequences", 4, &[0]),
                    read("block_table", 4, &[3, 4]),
                    operand("cache", Access::ReadWrite, page_bytes(1, *head_dim, *dtype), &[2]),
                    write("out", 4 * head_dim, &[0, 1]),
                ]
            }
            KernelSpec::Sample(part) => {
                let mut operands = vec![read("logits", 4, &[0, 2]), read("picks", PICK_BYTES, &[0])];
                if *part != SamplePart::Bounds {
                    operands.push(read("bounds", SAMPLE_BOUND_BYTES, &[0, 3]));
                }
                if *part == SamplePart::Merge {
                    operands.push(read("sums", SAMPLE_SUM_BYTES, &[0, 3]));
                }
                operands.push(match part {
                    SamplePart::Bounds => write("out", SAMPLE_BOUND_BYTES, &[0, 3]),
                    SamplePart::Sums => write("out", SAMPLE_SUM_BYTES, &[0, 3]),
                    SamplePart::Merge => write("out", PICKED_BYTES, &[0]),
                });
                operands
            }
        }
    }
}
