//! Reading packed weights: a group of 32 elements along K of a block of 16 rows, one row per lane.
//!
//! A group of a block is a run of 64-byte lines, then 16 f16 scales, then 16 f16 minima where the scheme has them.
//! Line contents by code: f32: one element of each row; bf16: two (low half first); 8 bits: four; 4 bits: eight (low
//! nibbles are the even quad, high nibbles the odd one).

use inkwell::values::PointerValue;
use lathe_ir::scheme::{Code, Scheme, Zero};
use lathe_ir::types::DType;

use crate::llvm::builder::{Builder, Kind, Val};
use crate::spec::{BLOCK_ROWS, GROUP, group_bytes};

/// Bytes of a line: four for each of the 16 rows.
pub const LINE: usize = 64;

/// Bytes of a group of a block.
pub fn block_group_bytes(scheme: Scheme) -> usize {
    group_bytes(scheme) * BLOCK_ROWS
}

/// Bytes of the lines of a group of a block, before its scales.
fn code_bytes(scheme: Scheme) -> usize {
    match scheme.code {
        Code::Float(dtype) => GROUP * BLOCK_ROWS * dtype.bytes(),
        Code::Uniform { bits } => GROUP * BLOCK_ROWS * usize::from(bits) / 8,
    }
}

fn line<'c>(b: &Builder<'c>, group: PointerValue<'c>, index: usize) -> Val<'c> {
    b.load_lanes(Kind::I32, b.offset(group, b.int((index * LINE) as i64)))
}

/// The eight quads of a group: four unsigned byte codes per row each.
pub fn quads<'c>(b: &Builder<'c>, scheme: Scheme, group: PointerValue<'c>) -> Vec<Val<'c>> {
    let Code::Uniform { bits } = scheme.code else { unreachable!("float weights have no codes") };
    if bits == 8 {
        return (0..8).map(|q| line(b, group, q)).collect();
    }
    let nibbles = b.int_lanes(0x0f0f_0f0f);
    let halves = |j: usize| {
        let packed = line(b, group, j);
        [b.and(packed, nibbles), b.and(b.lshr(packed, b.int_lanes(4)), nibbles)]
    };
    (0..4).flat_map(halves).collect()
}

/// The scales of a group.
pub fn scales<'c>(b: &Builder<'c>, scheme: Scheme, group: PointerValue<'c>) -> Val<'c> {
    let at = b.offset(group, b.int(code_bytes(scheme) as i64));
    b.to_width(b.load_lanes(Kind::F16, at), Kind::F32)
}

/// The minima of a group; `None` for a symmetric scheme.
pub fn mins<'c>(b: &Builder<'c>, scheme: Scheme, group: PointerValue<'c>) -> Option<Val<'c>> {
    (scheme.zero == Zero::Min).then(|| {
        let at = b.offset(group, b.int((code_bytes(scheme) + 2 * BLOCK_ROWS) as i64));
        b.to_width(b.load_lanes(Kind::F16, at), Kind::F32)
    })
}

/// The 32 dequantized elements of a group as f32, in order of k.
pub fn values<'c>(b: &Builder<'c>, scheme: Scheme, group: PointerValue<'c>) -> Vec<Val<'c>> {
    match scheme.code {
        Code::Float(DType::Bf16) => (0..GROUP / 2).flat_map(|pair| bf16_pair(b, line(b, group, pair))).collect(),
        Code::Float(_) => (0..GROUP).map(|k| b.bitcast(line(b, group, k), Kind::F32)).collect(),
        Code::Uniform { .. } => {
            let scale = scales(b, scheme, group);
            let min = mins(b, scheme, group);
            let dequantize = |code: Val<'c>| dequantize(b, scheme, code, scale, min);
            let elements =
                |quad: Val<'c>| (0..4).map(move |i| b.and(b.lshr(quad, b.int_lanes(8 * i)), b.int_lanes(0xff)));
            quads(b, scheme, group).into_iter().flat_map(elements).map(dequantize).collect()
        }
    }
}

/// Two bfloat16 of a 32-bit lane as f32, low half first.
pub fn bf16_pair<'c>(b: &Builder<'c>, pair: Val<'c>) -> [Val<'c>; 2] {
    let uniform = !pair.0.is_vector_value();
    let constant = |value: i32| if uniform { b.int32(value) } else { b.int_lanes(value) };
    let low = b.shl(pair, constant(16));
    let high = b.and(pair, constant(0xffff_0000_u32 as i32));
    [b.bitcast(low, Kind::F32), b.bitcast(high, Kind::F32)]
}

/// One element from its code: `scale · (code − zero)`, or `scale · code + min`.
pub fn dequantize<'c>(b: &Builder<'c>, scheme: Scheme, code: Val<'c>, scale: Val<'c>, min: Option<Val<'c>>) -> Val<'c> {
    let Some(min) = min else {
        let zero = if code.0.is_vector_value() { b.int_lanes(half_range(scheme)) } else { b.int32(half_range(scheme)) };
        return b.fmul(scale, b.to_float(b.sub(code, zero), Kind::F32));
    };
    b.fadd(b.fmul(scale, b.to_float(code, Kind::F32)), min)
}

/// The code that means zero in a symmetric scheme.
pub fn half_range(scheme: Scheme) -> i32 {
    match scheme.code {
        Code::Uniform { bits } => 1 << (bits - 1),
        Code::Float(_) => 0,
    }
}
