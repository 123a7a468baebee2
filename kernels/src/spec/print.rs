//! Specs as text: the names of kernels in plans, reports and snapshots.

use std::fmt;

use lathe_ir::ops::rotary::Scaling;

use super::{Activation, BLOCK_ROWS, KernelSpec, MapOp, Norm, SamplePart, Stage, Tile};

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::HeadNorm { head_dim, first, heads, eps } => {
                write!(f, "head_norm({first}+{heads}x{head_dim} {eps:e})")
            }
            Stage::Rope { head_dim, dim, heads } if dim == head_dim => write!(f, "rope({heads}x{head_dim})"),
            Stage::Rope { head_dim, dim, heads } => write!(f, "rope({heads}x{dim}/{head_dim})"),
            Stage::AppendQkv { head_dim, heads, kv_heads, dtype } => {
                write!(f, "append_qkv({heads}+{kv_heads}x{head_dim} {dtype})")
            }
            Stage::Glu(function) => write!(f, "glu({})", function.name()),
            Stage::Quantize => write!(f, "quantize(int8 g32)"),
            Stage::Round => write!(f, "round(bf16)"),
            Stage::Activate(function) => write!(f, "{}", function.name()),
            Stage::Scale(factor) => write!(f, "scale({factor})"),
            Stage::Softcap(cap) => write!(f, "softcap({cap})"),
            Stage::Add => write!(f, "add"),
            Stage::Bias => write!(f, "bias"),
        }
    }
}

impl fmt::Display for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapOp::Add => write!(f, "add"),
            MapOp::Mul => write!(f, "mul"),
            MapOp::Activate(function) => write!(f, "{}", function.name()),
            MapOp::Glu(function) => write!(f, "glu({})", function.name()),
            MapOp::Scale(factor) => write!(f, "scale({factor})"),
            MapOp::Softcap(cap) => write!(f, "softcap({cap})"),
            MapOp::Bias => write!(f, "bias"),
        }
    }
}

impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KernelSpec::Embed { scheme } => write!(f, "embed[{scheme}]"),
            KernelSpec::Rows { gather, norm, add, form } => {
                let mut parts = Vec::new();
                if *gather {
                    parts.push("gather".to_string());
                }
                match norm {
                    Some(Norm::Rms { eps }) => parts.push(format!("rms_norm({eps:e})")),
                    Some(Norm::Layer { eps }) => parts.push(format!("layer_norm({eps:e})")),
                    None => {}
                }
                if *add {
                    parts.push("add".to_string());
                }
                match form {
                    Activation::F32 => {}
                    Activation::Int8 => parts.push("quantize(int8 g32)".to_string()),
                    Activation::Bf16 => parts.push("bf16".to_string()),
                }
                write!(f, "rows[{}]", parts.join(", "))
            }
            KernelSpec::Rotary { dim, theta, scaling: Scaling::None } => write!(f, "rotary[{dim}, theta={theta}]"),
            KernelSpec::Rotary { dim, theta, scaling } => {
                write!(f, "rotary[{dim}, theta={theta}, {}]", scaling.to_attributes())
            }
            KernelSpec::Linear { scheme, act, tile, epilogue } => {
                let act = match act {
                    Activation::F32 => "f32",
                    Activation::Int8 => "int8",
                    Activation::Bf16 => "bf16",
                };
                let tile = match tile {
                    Tile::Stream { tokens } => format!("stream {tokens}"),
                    Tile::Unpack { tokens } => format!("unpack {tokens}"),
                    Tile::Mma { tokens, narrow: false } => format!("mma {tokens}"),
                    Tile::Mma { tokens, narrow: true } => format!("mma {BLOCK_ROWS}x{tokens}"),
                    Tile::Staged { blocks, tokens } => format!("staged {}x{tokens}", blocks * BLOCK_ROWS),
                };
                write!(f, "linear[{scheme} x {act}, {tile}")?;
                for stage in epilogue {
                    write!(f, ", {stage}")?;
                }
                write!(f, "]")
            }
            KernelSpec::Attention { group, head_dim, dtype, scale, window, softcap }
            | KernelSpec::AttentionSplits { group, head_dim, dtype, scale, window, softcap } => {
                let name = if matches!(self, KernelSpec::Attention { .. }) { "attention" } else { "attention_splits" };
                write!(f, "{name}[{group}x{head_dim} {dtype}, scale={scale}")?;
                if let Some(tokens) = window {
                    write!(f, ", window={tokens}")?;
                }
                if let Some(cap) = softcap {
                    write!(f, ", softcap={cap}")?;
                }
                write!(f, "]")
            }
            KernelSpec::AttentionMerge { group, head_dim, window, quantize } => {
                write!(f, "attention_merge[{group}x{head_dim}")?;
                if let Some(tokens) = window {
                    write!(f, ", window={tokens}")?;
                }
                if *quantize {
                    write!(f, ", quantize(int8 g32)")?;
                }
                write!(f, "]")
            }
            KernelSpec::Map { op } => write!(f, "map[{op}]"),
            KernelSpec::Rope { head_dim, dim } if dim == head_dim => write!(f, "rope[{head_dim}]"),
            KernelSpec::Rope { head_dim, dim } => write!(f, "rope[{dim}/{head_dim}]"),
            KernelSpec::HeadNorm { head_dim, eps } => write!(f, "head_norm[{head_dim}, {eps:e}]"),
            KernelSpec::Append { head_dim, dtype } => write!(f, "append[{head_dim} {dtype}]"),
            KernelSpec::AppendQkv { head_dim, dtype } => write!(f, "append_qkv[{head_dim} {dtype}]"),
            KernelSpec::Sample(part) => f.write_str(match part {
                SamplePart::Bounds => "sample_bounds",
                SamplePart::Sums => "sample_sums",
                SamplePart::Merge => "sample_merge",
            }),
        }
    }
}
