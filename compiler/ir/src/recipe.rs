//! Recipes: the written order of each reduction.
//!
//! A recipe fixes every rounding step of an op, so that a request's numbers never depend on what shares its step, on
//! the prefill chunk or on the thread count. Every kernel of the op on a target implements it exactly, for one token
//! and for thousands. The plan stores it by its printed form.

use std::fmt;

use crate::scheme::Scheme;

/// Lanes of the lane tree: a row is summed as 16 interleaved partial sums, then as a binary tree.
pub const LANES: usize = 16;

/// Tokens of the cache that one attention split covers; partial results merge in split order.
pub const ATTENTION_SPLIT: usize = 256;

/// The order in which a reduction adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recipe {
    /// A sum over a row: lane `i` adds elements `i, i+16, i+32, …` from zero by fused multiply-add, then lanes add
    /// pairwise at distance 8, 4, 2, 1.
    LaneTree,
    /// A sum over a row by several teams of 16 lanes: team `j` sums the blocks of 16 elements `j, j+teams, …` as
    /// [`Recipe::LaneTree`] does, and the teams' sums are added up in the same way.
    TeamTree {
        /// How many teams.
        teams: usize,
    },
    /// A sum over a row in f64, in order, of blocks of so many elements, each of which 16 interleaved partial sums in f32 add
    /// up, whose sums follow one another in f64.
    Blocks {
        /// Elements of a block.
        elements: usize,
    },
    /// A dot product over K with f32 activations: from zero, one fused multiply-add per element in order of k, with
    /// the weight first dequantized to f32.
    Sequential,
    /// A dot product over K with int8 activations: per group of the weight scheme the exact integer dot product `i` of
    /// levels less zero, then `acc = fma(f32(i) · d, s, acc)` and, with minima, `acc = fma(m, s · f32(sum), acc)`, where
    /// `sum` adds the activation codes of the group; groups in order from zero. With super-blocks `d` and `m` are the
    /// products of f16 and integer, which f32 holds exactly.
    Groups {
        /// The weight scheme.
        scheme: Scheme,
    },
    /// As [`Recipe::Groups`], but columns are cut into `parts` runs of equally many groups of 32 (the last ones may have
    /// fewer, or none); each run is summed from zero, and the runs' sums are added in order. With bf16 a run is summed by
    /// products of 16 columns, as the tensor cores of the target's generation round them, of activations rounded to bf16.
    Parts {
        /// The weight scheme.
        scheme: Scheme,
        /// How many runs.
        parts: usize,
    },
    /// Attention over cached tokens in order: pages of 16 tokens; online softmax inside a split of
    /// [`ATTENTION_SPLIT`] tokens; splits merged in order.
    Splits {
        /// Tokens per split.
        tokens: usize,
    },
    /// As [`Recipe::Splits`] by tensor cores: queries are rounded to f16, and their products with keys are added 16 elements
    /// at once, in order. Inside a split the largest score of each block of tokens moves the maximum; weights are summed in
    /// f32, by four lanes each its columns of the pages in order, which then add pairwise, and rounded to f16; sums of values
    /// are scaled to the new maximum and added to by a page of products at once, in order.
    BlockSplits {
        /// Tokens per split.
        tokens: usize,
        /// Tokens per block.
        block: usize,
    },
    /// Attention by products of bf16, to which queries and weights are rounded. A dot product with a key adds, from zero, the
    /// pairs of an element of a group of 32 and the one 16 further on, in order; a sum of values those of a token at an even
    /// position and the next. Of a pair the second is added first, each by a fused multiply-add. In a split weights are
    /// relative to its largest score; before they are rounded they are summed lane by lane in order of pages, then as a
    /// binary tree. Splits merge in order.
    PairSplits {
        /// Tokens per split.
        tokens: usize,
    },
    /// Attention over int8 codes, by integers whose sums are exact: a query is rounded to 16 bits with one scale, its dot
    /// products with the codes of a key are summed per group of [`crate::types::KEY_GROUP`] elements, and the groups'
    /// sums times their scales by fused multiply-add in order from zero. In a split weights are relative to its largest
    /// score; they are summed lane by lane in order of pages, then as a binary tree. Times the scales of their values
    /// they are rounded to 15 bits with one scale per split, and their products with the codes of values are summed.
    /// Splits merge in order.
    CodeSplits {
        /// Tokens per split.
        tokens: usize,
    },
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recipe::LaneTree => write!(f, "lane_tree(16)"),
            Recipe::TeamTree { teams } => write!(f, "lane_tree(16) by {teams} teams"),
            Recipe::Blocks { elements } => write!(f, "lanes(16) in blocks of {elements}"),
            Recipe::Sequential => write!(f, "sequential"),
            Recipe::Groups { scheme } => write!(f, "groups({scheme})"),
            Recipe::Parts { scheme, parts } => write!(f, "groups({scheme}) in {parts} parts"),
            Recipe::Splits { tokens } => write!(f, "splits({tokens})"),
            Recipe::BlockSplits { tokens, block } => write!(f, "splits({tokens}) in blocks of {block}"),
            Recipe::PairSplits { tokens } => write!(f, "splits({tokens}) of bf16 pairs"),
            Recipe::CodeSplits { tokens } => write!(f, "splits({tokens}) of codes"),
        }
    }
}
