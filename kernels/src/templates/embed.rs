//! Embedding: one row of the packed table per token, dequantized to f32.

use lathe_ir::scheme::{Code, Scheme, Zero};
use lathe_ir::types::DType;

use super::decode::{LINE, bf16_pair, block_group_bytes, dequantize};
use crate::llvm::builder::{Builder, Kind, Val};
use crate::spec::{BLOCK_ROWS, GROUP, group_bytes};

/// Operands: tokens, table, out. Params: T, N, G.
pub fn embed<'c>(b: &Builder<'c>, scheme: Scheme) {
    let (tokens, table, out) = (b.operand(0), b.operand(1), b.operand(2));
    let groups = b.param(2);
    let block_rows = b.int(BLOCK_ROWS as i64);
    b.for_units(|token| {
        let id = b.load_index(tokens, token);
        let block = b.mul(b.udiv(id, block_rows), groups);
        let row = b.urem(id, block_rows);
        let row_out = b.element(out, b.mul(token, groups), 4 * GROUP);
        b.for_range(b.int(0), groups, b.int(1), |g| {
            let group = b.element(table, b.add(block, g), block_group_bytes(scheme));
            let out = b.element(row_out, g, 4 * GROUP);
            let word = |line: usize| {
                let at = b.add(b.int((line * LINE) as i64), b.mul(row, b.int(4)));
                b.load(Kind::I32, b.offset(group, at))
            };
            let put = |k: usize, value: Val<'c>| b.store(Kind::F32, b.offset(out, b.int(4 * k as i64)), value);
            match scheme.code {
                Code::Float(DType::Bf16) => {
                    for pair in 0..GROUP / 2 {
                        let [low, high] = bf16_pair(b, word(pair));
                        put(2 * pair, low);
                        put(2 * pair + 1, high);
                    }
                }
                Code::Float(_) => (0..GROUP).for_each(|k| put(k, b.bitcast(word(k), Kind::F32))),
                Code::Uniform { bits } => {
                    let codes = GROUP * BLOCK_ROWS * usize::from(bits) / 8;
                    let half = |base: usize| {
                        let at = b.add(b.int(base as i64), b.mul(row, b.int(2)));
                        b.to_width(b.load(Kind::F16, b.offset(group, at)), Kind::F32)
                    };
                    let scale = half(codes);
                    let min = (scheme.zero == Zero::Min).then(|| half(codes + 2 * BLOCK_ROWS));
                    debug_assert_eq!(group_bytes(scheme) * BLOCK_ROWS, block_group_bytes(scheme));
                    for k in 0..GROUP {
                        let (line, shift) =
                            if bits == 8 { (k / 4, 8 * (k % 4)) } else { (k / 8, 8 * (k % 4) + k / 4 % 2 * 4) };
                        let mask = (1 << bits) - 1;
                        let code = b.and(b.lshr(word(line), b.int32(shift as i32)), b.int32(mask));
                        put(k, dequantize(b, scheme, code, scale, min));
                    }
                }
            }
        });
    });
}
