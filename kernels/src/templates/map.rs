//! Element-wise kernels. Params: M, N (columns of the result).

use crate::llvm::builder::{Builder, Kind, LANES};
use crate::spec::MapOp;

/// Operands: one or two inputs, out.
pub fn map(b: &Builder<'_>, op: MapOp) {
    let columns = b.param(1);
    let binary = matches!(op, MapOp::Add | MapOp::Mul | MapOp::Bias);
    let out = b.operand(if binary { 2 } else { 1 });
    b.for_units(|row| {
        let base = b.mul(row, columns);
        b.for_range(b.int(0), columns, b.int(LANES as i64), |column| {
            let at = b.add(base, column);
            let load = |operand: usize, index| b.load_lanes(Kind::F32, b.element(b.operand(operand), index, 4));
            let result = match op {
                MapOp::Add => b.fadd(load(0, at), load(1, at)),
                MapOp::Mul => b.fmul(load(0, at), load(1, at)),
                MapOp::Bias => b.fadd(load(0, at), load(1, column)),
                MapOp::Activate(function) => b.activate(function, load(0, at)),
                MapOp::Scale(factor) => b.fmul(load(0, at), b.float_lanes(factor)),
                MapOp::Softcap(cap) => b.softcap(load(0, at), cap),
                MapOp::Glu(function) => {
                    let gate = b.mul(at, b.int(2));
                    b.fmul(b.activate(function, load(0, gate)), load(0, b.add(gate, b.int(LANES as i64))))
                }
            };
            b.store_lanes(Kind::F32, b.element(out, at, 4), result);
        });
    });
}
