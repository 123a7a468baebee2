//! Templates: one file per kind of kernel. Each turns a spec into a lane program; one line in [`generate`] each.

mod append;
mod attention;
mod attention_block;
mod attention_mma;
mod attention_split;
mod decode;
mod embed;
mod linear;
mod linear_mma;
mod linear_staged;
mod map;
mod rotary;
mod rows;
mod sample;
mod stages;

use lathe_ir::scheme::Scheme;
use lathe_ir::types::DType;

use crate::llvm::builder::Builder;
use crate::spec::{Activation, KernelSpec, Stage, Tile, attention_rows};

/// Why a spec has no generator on the builder's target, or `None` when it has one.
pub fn missing(spec: &KernelSpec, vector: bool) -> Option<&'static str> {
    match spec {
        KernelSpec::Linear { tile: Tile::Mma { .. } | Tile::Staged { .. }, .. } if vector => {
            Some("CPUs have no tensor cores")
        }
        KernelSpec::Rows { form: Activation::Bf16, .. } if vector => Some("products on CPUs take f32 or int8"),
        KernelSpec::Linear { tile: Tile::Mma { .. }, act, scheme, .. }
            if *scheme != Scheme::BF16 && (*act != Activation::Int8 || !scheme.is_integer()) =>
        {
            Some("on tensor cores, integer weights meet activations quantized to int8, and floats are bf16")
        }
        KernelSpec::Linear { tile: Tile::Mma { narrow: true, .. }, epilogue, .. }
            if !KernelSpec::takes_narrow_tiles(epilogue) =>
        {
            Some("a stage takes more than 16 results of a row at once, and a narrow tile has no more")
        }
        KernelSpec::Linear { tile: Tile::Staged { .. }, act, scheme, .. }
            if !matches!((act, scheme.is_integer()), (Activation::Int8, true) | (Activation::Bf16, false)) =>
        {
            Some("from shared memory, integer weights meet activations quantized to int8, and floats are bf16")
        }
        KernelSpec::AttentionSplits { .. } | KernelSpec::AttentionMerge { .. } if vector => {
            Some("CPUs give a worker all splits of a head")
        }
        KernelSpec::Sample(_) if vector => Some("on CPUs the runtime samples"),
        KernelSpec::Linear { epilogue, .. } if vector && epilogue.contains(&Stage::Round) => {
            Some("products on CPUs take f32 or int8")
        }
        _ if vector => None,
        _ if matches!(spec.cache(), Some(DType::Int8 | DType::Bf16)) => {
            Some("caches of int8 and bf16 are for CPUs only so far; compile with --cache f16")
        }
        KernelSpec::Linear { tile: Tile::Unpack { .. }, .. } => {
            Some("the linear kernel for many tokens is generated for CPUs only so far")
        }
        _ => None,
    }
}

/// Builds the kernel of a spec as function `symbol`.
pub fn generate(b: &mut Builder<'_>, symbol: &str, spec: &KernelSpec) {
    b.begin(symbol, spec);
    match spec {
        KernelSpec::Embed { scheme } => embed::embed(b, *scheme),
        KernelSpec::Rows { gather, norm, add, form } => {
            rows::rows(b, rows::Steps { gather: *gather, norm: *norm, add: *add, form: *form });
        }
        KernelSpec::Rotary { dim, theta, scaling } => rotary::rotary(b, *dim, *theta, scaling),
        KernelSpec::Linear { scheme, act, tile: Tile::Mma { tokens, narrow }, epilogue } => {
            linear_mma::linear(b, (*scheme, *act), *tokens, *narrow, epilogue);
        }
        KernelSpec::Linear { scheme, tile: Tile::Staged { blocks, tokens }, epilogue, .. } => {
            linear_staged::linear(b, *scheme, [*blocks, *tokens], epilogue);
        }
        KernelSpec::Linear { scheme, act, tile, epilogue } => linear::linear(b, *scheme, *act, *tile, epilogue),
        KernelSpec::Attention { group, head_dim, dtype, scale, window, softcap } => {
            let scores = attention::Scores { scale: *scale, window: *window, softcap: *softcap };
            if b.is_vector() {
                attention::attention(b, *group, *head_dim, *dtype, scores);
            } else {
                let shape = attention_block::Shape { group: *group, head_dim: *head_dim, dtype: *dtype };
                match attention_rows(*group, *head_dim, *dtype) {
                    Some(_) => attention_mma::attention(b, shape, scores),
                    None => attention_block::attention(b, shape, scores),
                }
            }
        }
        KernelSpec::AttentionSplits { group, head_dim, dtype, scale, window, softcap } => {
            let shape = attention_block::Shape { group: *group, head_dim: *head_dim, dtype: *dtype };
            let scores = attention::Scores { scale: *scale, window: *window, softcap: *softcap };
            match attention_rows(*group, *head_dim, *dtype) {
                Some(_) => attention_mma::splits(b, shape, scores),
                None => attention_split::splits(b, shape, scores),
            }
        }
        KernelSpec::AttentionMerge { group, head_dim, window, quantize } => {
            attention_split::merge(b, [*group, *head_dim], *window, *quantize);
        }
        KernelSpec::Map { op } => map::map(b, *op),
        KernelSpec::Rope { head_dim, dim } => rotary::rope(b, *head_dim, *dim),
        KernelSpec::HeadNorm { head_dim, eps } => rotary::head_norm(b, *head_dim, *eps),
        KernelSpec::Append { head_dim, dtype } => append::append(b, *head_dim, *dtype),
        KernelSpec::AppendQkv { head_dim, dtype } => append::append_qkv(b, *head_dim, *dtype),
        KernelSpec::Sample(part) => sample::sample(b, *part),
    }
    b.end();
}
