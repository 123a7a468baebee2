//! Which recipe each kernel implements.

use lathe_ir::recipe::{ATTENTION_SPLIT, Recipe};
use lathe_ir::types::DType;

use crate::spec::{
    ATTENTION_BLOCK, Activation, KernelSpec, PARTS, ROW_TEAMS, SAMPLE_BLOCK, SamplePart, Tile, attention_rows,
};
use crate::targets::Machine;

/// The order in which a kernel reduces on a kind of machine; `None` when each of its results comes from one element of
/// each operand. A tile is no part of it, but for those of tensor cores: all tiles of a product on one kind of machine
/// give the same bits.
pub fn recipe(spec: &KernelSpec, machine: Machine) -> Option<Recipe> {
    match spec {
        KernelSpec::Rows { norm: Some(_), .. } if machine == Machine::Nvptx => {
            Some(Recipe::TeamTree { teams: ROW_TEAMS })
        }
        KernelSpec::Rows { norm: Some(_), .. } | KernelSpec::HeadNorm { .. } => Some(Recipe::LaneTree),
        KernelSpec::Linear { scheme, tile: Tile::Mma { .. } | Tile::Staged { .. }, .. } => {
            Some(Recipe::Parts { scheme: *scheme, parts: PARTS })
        }
        KernelSpec::Linear { act: Activation::F32 | Activation::Bf16, .. } => Some(Recipe::Sequential),
        KernelSpec::Linear { act: Activation::Int8, scheme, .. } => Some(Recipe::Groups { scheme: *scheme }),
        KernelSpec::Attention { dtype: DType::Int8, .. } => Some(Recipe::CodeSplits { tokens: ATTENTION_SPLIT }),
        KernelSpec::Attention { group, head_dim, dtype, .. }
        | KernelSpec::AttentionSplits { group, head_dim, dtype, .. }
            if machine == Machine::Nvptx && attention_rows(*group, *head_dim, *dtype).is_some() =>
        {
            Some(Recipe::BlockSplits { tokens: ATTENTION_SPLIT, block: ATTENTION_BLOCK })
        }
        KernelSpec::Attention { dtype: DType::Bf16, .. } => Some(Recipe::PairSplits { tokens: ATTENTION_SPLIT }),
        KernelSpec::Attention { .. } | KernelSpec::AttentionSplits { .. } | KernelSpec::AttentionMerge { .. } => {
            Some(Recipe::Splits { tokens: ATTENTION_SPLIT })
        }
        KernelSpec::Sample(SamplePart::Sums | SamplePart::Merge) => Some(Recipe::Blocks { elements: SAMPLE_BLOCK }),
        KernelSpec::Sample(SamplePart::Bounds)
        | KernelSpec::Rows { norm: None, .. }
        | KernelSpec::Embed { .. }
        | KernelSpec::Rotary { .. }
        | KernelSpec::Map { .. }
        | KernelSpec::Rope { .. }
        | KernelSpec::Append { .. }
        | KernelSpec::AppendQkv { .. } => None,
    }
}
