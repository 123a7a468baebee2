//! Rotary position embedding: the table of angles of a step, and the rotation of heads in halves layout (Su et al.,
//! 2021): element `i` pairs with `i + D/2`.

use super::stages::rotate;
use crate::llvm::builder::{Builder, Kind, LANES};

/// Operands: positions, out. Params: T. Angles are computed in f64 as position · theta^(−2i/D).
pub fn rotary(b: &Builder<'_>, head_dim: usize, theta: f32) {
    let half = head_dim / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64)).collect();
    let table = b.table("frequencies", &frequencies);
    let (positions, out) = (b.operand(0), b.operand(1));
    b.for_units(|token| {
        let position = b.splat(b.to_float(b.load_index(positions, token), Kind::F64));
        let out = b.element(out, token, 4 * head_dim);
        for first in (0..half).step_by(LANES) {
            let frequency = b.load_lanes(Kind::F64, b.offset(table, b.int(8 * first as i64)));
            let (cos, sin) = b.cos_sin(b.fmul(position, frequency));
            b.store_lanes(Kind::F32, b.offset(out, b.int(4 * first as i64)), cos);
            b.store_lanes(Kind::F32, b.offset(out, b.int(4 * (half + first) as i64)), sin);
        }
    });
}

/// Operands: x, rotary, out. Params: T, H, HR.
pub fn rope(b: &Builder<'_>, head_dim: usize) {
    let (x, table, out) = (b.operand(0), b.operand(1), b.operand(2));
    let (heads, turning) = (b.param(1), b.param(2));
    b.for_units(|token| {
        let table = b.element(table, token, 4 * head_dim);
        b.for_range(b.int(0), heads, b.int(1), |head| {
            let at = b.add(b.mul(token, heads), head);
            let (x, out) = (b.element(x, at, 4 * head_dim), b.element(out, at, 4 * head_dim));
            let block = |i: usize| b.int((4 * LANES * i) as i64);
            let mut values: Vec<_> =
                (0..head_dim / LANES).map(|i| b.load_lanes(Kind::F32, b.offset(x, block(i)))).collect();
            rotate(b, &mut values, table, b.icmp(inkwell::IntPredicate::SLT, head, turning));
            for (i, value) in values.into_iter().enumerate() {
                b.store_lanes(Kind::F32, b.offset(out, block(i)), value);
            }
        });
    });
}
