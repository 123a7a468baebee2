//! How blocks of GPU threads cover a launch, and how the warps of a block share a tile.

use lathe_ir::recipe::ATTENTION_SPLIT;
use lathe_ir::types::DType;

use super::{BLOCK_ROWS, GROUP, KernelSpec, PAGE_TOKENS, Tile};

/// Columns of a product on tensor cores are cut into this many parts, one for each warp of a block. (Blocks that take many
/// rows have as many warps, each of which takes all parts.)
pub const PARTS: usize = 8;

/// Teams of 16 threads that share a row of which a GPU computes the norm.
pub const ROW_TEAMS: usize = 32;

/// How blocks of GPU threads cover a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Threads of a block.
    pub threads: u32,
    /// Units that a block takes at once.
    pub units: u32,
    /// Rows, by the kernel's first parameter, that a block takes; 0 where it takes all of them.
    pub rows: u32,
}

impl Grid {
    /// Whether all threads of a block share its units, instead of 16 threads having one each.
    pub fn is_shared(self) -> bool {
        self.units as usize * BLOCK_ROWS != self.threads as usize
    }
}

/// How the [`PARTS`] warps of a block share the results of [`Tile::Staged`]: a grid of them, each with a rectangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warps {
    /// Warps along the weight rows.
    pub down: usize,
    /// Warps along the rows of activations.
    pub across: usize,
    /// Blocks of 16 weight rows of a warp.
    pub blocks: usize,
    /// Tiles of eight rows of activations of a warp.
    pub tiles: usize,
}

impl Warps {
    /// Most sums of a thread: as many totals lie beside them, and together they are half of its registers.
    const MOST_SUMS: usize = 64;

    /// The warps of a tile of `blocks` blocks of weight rows and `tokens` rows of activations; none where they cannot share
    /// it evenly, in pairs of tiles, or it takes too many registers.
    pub fn of(blocks: usize, tokens: usize) -> Option<Warps> {
        let down = if blocks.is_multiple_of(2) { 2 } else { 1 };
        let across = PARTS / down;
        let warps = Warps { down, across, blocks: blocks / down, tiles: tokens / (8 * across) };
        let is_even = tokens.is_multiple_of(16 * across);
        (is_even && warps.tiles > 0 && 4 * warps.blocks * warps.tiles <= Self::MOST_SUMS).then_some(warps)
    }
}

/// Tokens of the history that a block of threads attends to at once on tensor cores.
pub const ATTENTION_BLOCK: usize = 64;
/// Threads of a block that attends on tensor cores.
const ATTENTION_THREADS: u32 = 128;
/// Rows, query heads of tokens, of such a block.
const ATTENTION_ROWS: usize = 64;

/// Tokens that a block of GPU threads takes where it attends on tensor cores; none where heads or the cache's type do not
/// suit them: a token's query heads of a key/value head are rows of one product, whose sums stay in registers.
pub fn attention_rows(group: usize, head_dim: usize, dtype: DType) -> Option<usize> {
    (dtype == DType::F16 && group <= 16 && head_dim <= 128).then_some(ATTENTION_ROWS / group)
}

impl KernelSpec {
    /// How blocks of GPU threads cover a launch: some units of 16 threads each, or some units by all of their threads.
    pub fn grid(&self) -> Grid {
        let whole = |threads| Grid { threads, units: 1, rows: 0 };
        match self {
            KernelSpec::Linear { tile: Tile::Mma { tokens, .. }, .. } => {
                Grid { threads: 32 * PARTS as u32, units: 1, rows: *tokens as u32 }
            }
            KernelSpec::Linear { tile: Tile::Staged { blocks, tokens }, epilogue, .. } => Grid {
                threads: 32 * PARTS as u32,
                units: (blocks / Self::strip_blocks(epilogue)) as u32,
                rows: *tokens as u32,
            },
            KernelSpec::Rows { norm: Some(_), .. } => whole((ROW_TEAMS * BLOCK_ROWS) as u32),
            KernelSpec::Embed { .. } => whole(128),
            KernelSpec::Attention { group, head_dim, dtype, .. }
            | KernelSpec::AttentionSplits { group, head_dim, dtype, .. } => {
                match attention_rows(*group, *head_dim, *dtype) {
                    Some(rows) if matches!(self, KernelSpec::Attention { .. }) => {
                        Grid { rows: rows as u32, ..whole(ATTENTION_THREADS) }
                    }
                    Some(_) => whole(ATTENTION_THREADS),
                    // A team of 16 threads for each page of a split.
                    None => whole((ATTENTION_SPLIT / PAGE_TOKENS * BLOCK_ROWS) as u32),
                }
            }
            // A warp by itself, so that the blocks of one row lie on many multiprocessors.
            KernelSpec::Sample(_) => Grid { threads: 32, units: 32 / BLOCK_ROWS as u32, rows: 0 },
            _ => Grid { threads: 128, units: 128 / BLOCK_ROWS as u32, rows: 0 },
        }
    }

    /// Whether a GPU's units are groups of 32 columns of rows: nothing of a row without a norm depends on the rest of it.
    pub fn takes_groups(&self) -> bool {
        matches!(self, KernelSpec::Rows { norm: None, .. })
    }

    /// Whether a block takes one unit and no more, so that a launch has as many blocks as units.
    pub fn takes_one_unit(&self) -> bool {
        matches!(self, KernelSpec::Linear { tile: Tile::Mma { .. }, .. })
    }

    /// Whether blocks of threads that follow each other take the same units of other rows.
    pub fn takes_rows_first(&self) -> bool {
        match self {
            KernelSpec::Linear { tile: Tile::Staged { .. }, .. } => true,
            // Codes leave no register to spare.
            KernelSpec::Linear { tile: Tile::Mma { .. }, scheme, .. } => !scheme.is_integer(),
            _ => false,
        }
    }

    /// Whether the kernel loads weights before it waits for the kernels before it to end.
    pub fn loads_weights_early(&self) -> bool {
        matches!(self, KernelSpec::Linear { tile: Tile::Mma { .. }, .. } | KernelSpec::Rows { norm: Some(_), .. })
    }

    /// Whether all threads of a GPU's warp go through the kernel together, but for loops in which they exchange nothing.
    pub fn runs_whole_warps(&self) -> bool {
        match self {
            KernelSpec::Rows { norm, .. } => norm.is_some(),
            KernelSpec::Attention { group, head_dim, dtype, .. }
            | KernelSpec::AttentionSplits { group, head_dim, dtype, .. } => {
                attention_rows(*group, *head_dim, *dtype).is_some()
            }
            // Two units that follow each other are of one head.
            KernelSpec::AttentionMerge { head_dim, quantize, .. } => {
                head_dim.is_multiple_of(2 * if *quantize { GROUP } else { BLOCK_ROWS })
            }
            _ => false,
        }
    }

    /// Blocks that a multiprocessor must have registers for, where the assembler's own guess leaves too few to a thread.
    pub fn blocks_at_once(&self) -> Option<u32> {
        match self {
            KernelSpec::Attention { group, head_dim, .. } if group * head_dim >= 1024 => Some(1),
            // The sums of many results, and where their rows are, take what two blocks would share.
            KernelSpec::Linear { tile: tile @ Tile::Mma { tokens, .. }, epilogue, .. } => {
                let is_small = |blocks: usize| tokens * blocks <= if Self::is_formed(epilogue) { 32 } else { 16 };
                Some(if is_small(Self::tile_blocks(*tile, epilogue)) { 2 } else { 1 })
            }
            KernelSpec::Rows { norm: Some(_), .. }
            | KernelSpec::AttentionSplits { .. }
            | KernelSpec::Linear { tile: Tile::Staged { .. }, .. } => Some(1),
            _ => None,
        }
    }
}
