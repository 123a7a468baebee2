//! Embedding: one row of the packed table per token, dequantized to f32.

use lathe_ir::scheme::Scheme;

use super::decode::{Columns, block_span_bytes, span_groups};
use crate::llvm::builder::{Builder, Kind};
use crate::spec::{BLOCK_ROWS, GROUP};

/// Operands: tokens, table, out. Params: T, N, G.
pub fn embed(b: &Builder<'_>, scheme: Scheme) {
    let (tokens, table, out) = (b.operand(0), b.operand(1), b.operand(2));
    let spans = b.param(2);
    let block_rows = b.int(BLOCK_ROWS as i64);
    b.for_units(|token| {
        let id = b.load_index(tokens, token);
        let block = b.mul(b.udiv(id, block_rows), spans);
        let row = b.urem(id, block_rows);
        let row_out = b.element(out, b.mul(token, spans), 4 * scheme.span());
        b.for_team(spans, |s| {
            let span = b.element(table, b.add(block, s), block_span_bytes(scheme));
            let out = b.element(row_out, s, 4 * scheme.span());
            b.repeat(span_groups(scheme), |index| {
                let out = b.element(out, index, 4 * GROUP);
                let columns = Columns { b, scheme, span, index, row: Some(row) };
                for (k, value) in columns.values().into_iter().enumerate() {
                    b.store(Kind::F32, b.offset(out, b.int(4 * k as i64)), value);
                }
            });
        });
    });
}
