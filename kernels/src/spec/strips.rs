//! How the weight rows of a product are cut into strips, and what a kernel of it writes.

use lathe_ir::scheme::{Scheme, Zero};
use lathe_ir::types::DType;

use super::{
    Access, Activation, BLOCK_ROWS, GROUP, KernelSpec, Operand, STRIP_ROWS, Stage, Tile, operand, rotary_is_aligned,
    write,
};

impl KernelSpec {
    /// Blocks of 16 weight rows that a linear kernel finishes at once.
    pub fn strip_blocks(epilogue: &[Stage]) -> usize {
        let head = epilogue.iter().find_map(|stage| match stage {
            Stage::HeadNorm { head_dim, .. } | Stage::Rope { head_dim, .. } | Stage::AppendQkv { head_dim, .. } => {
                Some(head_dim / BLOCK_ROWS)
            }
            _ => None,
        });
        // A group of activations in the form that a product reads is the result of a whole strip.
        let is_halved = epilogue.iter().any(|stage| matches!(stage, Stage::Glu(_)));
        let strips = if is_halved && Self::is_formed(epilogue) { 2 } else { 1 };
        head.unwrap_or(strips * STRIP_ROWS / BLOCK_ROWS)
    }

    /// Blocks of 16 weight rows that a block of threads, or a worker, finishes at once: a strip, or less of one, see
    /// [`KernelSpec::partner_blocks`].
    pub fn tile_blocks(tile: Tile, epilogue: &[Stage]) -> usize {
        match tile {
            Tile::Mma { narrow: true, .. } => 1,
            _ => Self::partner_blocks(tile, epilogue).map_or_else(|| Self::strip_blocks(epilogue), |_| 2),
        }
    }

    /// Whether every stage takes blocks of 16 results alone, as narrow tiles give them.
    pub fn takes_narrow_tiles(epilogue: &[Stage]) -> bool {
        let alone = |stage: &Stage| {
            matches!(stage, Stage::Activate(_) | Stage::Scale(_) | Stage::Softcap(_) | Stage::Add | Stage::Bias)
        };
        epilogue.iter().all(alone)
    }

    /// Where a tile for few rows takes a block of a head together with its rotary partner alone, so that heads keep more
    /// multiprocessors busy: blocks from the one to the other.
    pub fn partner_blocks(tile: Tile, epilogue: &[Stage]) -> Option<usize> {
        let stages = match epilogue {
            [Stage::Bias, rest @ ..] => rest,
            all => all,
        };
        match (tile, stages) {
            (Tile::Mma { narrow: false, .. }, &[Stage::Rope { head_dim, dim, .. }, Stage::AppendQkv { dtype, .. }]) => {
                let suits = dim == head_dim && rotary_is_aligned(dim) && dtype != DType::Int8;
                (suits && dim > STRIP_ROWS).then_some(dim / STRIP_ROWS)
            }
            _ => None,
        }
    }

    /// Whether the result is left in the form in which a product reads it.
    pub fn is_formed(epilogue: &[Stage]) -> bool {
        epilogue.iter().any(|stage| matches!(stage, Stage::Quantize | Stage::Round))
    }

    pub(super) fn linear_out(epilogue: &[Stage]) -> Operand {
        let is_formed = Self::is_formed(epilogue);
        for stage in epilogue {
            match stage {
                Stage::AppendQkv { head_dim, heads, .. } => return write("out", 4 * head_dim * heads, &[0]),
                // Records have 44 bytes for 32 columns, and bf16 64: no more than what is said here.
                Stage::Glu(_) => return write("out", if is_formed { 1 } else { 2 }, &[0, 1]),
                _ => {}
            }
        }
        write("out", if is_formed { 2 } else { 4 }, &[0, 1])
    }

    /// Bytes per row and group of 32 of weights unpacked to scratch: f32 elements, or bytes with f32 scales and minima and what
    /// dot products begin at.
    pub fn unpacked_group_bytes(scheme: Scheme, act: Activation) -> usize {
        let starts = usize::from(Self::has_starts(scheme, act));
        match act {
            Activation::F32 | Activation::Bf16 => 4 * GROUP,
            Activation::Int8 => GROUP + 4 * (GROUP / scheme.group * (scheme.parameters() + starts)),
        }
    }

    /// Whether dot products with unpacked weights may begin at what the weights say: where each row would have to add its
    /// codes over parts of its groups otherwise, and levels leave the highest bit of a byte free.
    pub fn has_starts(scheme: Scheme, act: Activation) -> bool {
        act == Activation::Int8 && scheme.group < GROUP && scheme.zero == Zero::Symmetric && scheme.most_level() < 128
    }

    /// The unpacked weights of a strip; nothing for [`Tile::Stream`].
    pub(super) fn linear_scratch(scheme: Scheme, act: Activation, tile: Tile, epilogue: &[Stage]) -> Operand {
        let rows = Self::strip_blocks(epilogue) * BLOCK_ROWS;
        let bytes = match tile {
            Tile::Stream { .. } | Tile::Mma { .. } | Tile::Staged { .. } => 0,
            Tile::Unpack { .. } => rows * Self::unpacked_group_bytes(scheme, act) * (scheme.span() / GROUP),
        };
        operand("scratch", Access::ReadWrite, bytes, &[2])
    }
}
