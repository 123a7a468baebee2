//! Integer and bit instructions: from opcode and type to the function that computes 32 lanes.

use crate::exec::regs::{Exec, exec, lanes};
use crate::ptx::tree::Ty;

/// Instantiates an expression for every integer type: the operands have the type, the result is stored zero-extended.
macro_rules! each_int {
    ($ty:expr, |$a:ident| $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => Some(lanes!(r32 <- r32 |$a| { let $a = $a as u16; let v: u16 = $e; v as u32 })),
            Ty::S16 => Some(lanes!(r32 <- r32 |$a| { let $a = $a as i16; let v: i16 = $e; v as u16 as u32 })),
            Ty::U32 | Ty::B32 => Some(lanes!(r32 <- r32 |$a| $e)),
            Ty::S32 => Some(lanes!(r32 <- r32 |$a| { let $a = $a as i32; let v: i32 = $e; v as u32 })),
            Ty::U64 | Ty::B64 => Some(lanes!(r64 <- r64 |$a| $e)),
            Ty::S64 => Some(lanes!(r64 <- r64 |$a| { let $a = $a as i64; let v: i64 = $e; v as u64 })),
            _ => None,
        }
    };
    ($ty:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => Some(lanes!(r32 <- r32 r32 |$a, $b| {
                let ($a, $b) = ($a as u16, $b as u16); let v: u16 = $e; v as u32 })),
            Ty::S16 => Some(lanes!(r32 <- r32 r32 |$a, $b| {
                let ($a, $b) = ($a as i16, $b as i16); let v: i16 = $e; v as u16 as u32 })),
            Ty::U32 | Ty::B32 => Some(lanes!(r32 <- r32 r32 |$a, $b| $e)),
            Ty::S32 => Some(lanes!(r32 <- r32 r32 |$a, $b| {
                let ($a, $b) = ($a as i32, $b as i32); let v: i32 = $e; v as u32 })),
            Ty::U64 | Ty::B64 => Some(lanes!(r64 <- r64 r64 |$a, $b| $e)),
            Ty::S64 => Some(lanes!(r64 <- r64 r64 |$a, $b| {
                let ($a, $b) = ($a as i64, $b as i64); let v: i64 = $e; v as u64 })),
            _ => None,
        }
    };
    ($ty:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => Some(lanes!(r32 <- r32 r32 r32 |$a, $b, $c| {
                let ($a, $b, $c) = ($a as u16, $b as u16, $c as u16); let v: u16 = $e; v as u32 })),
            Ty::S16 => Some(lanes!(r32 <- r32 r32 r32 |$a, $b, $c| {
                let ($a, $b, $c) = ($a as i16, $b as i16, $c as i16); let v: i16 = $e; v as u16 as u32 })),
            Ty::U32 | Ty::B32 => Some(lanes!(r32 <- r32 r32 r32 |$a, $b, $c| $e)),
            Ty::S32 => Some(lanes!(r32 <- r32 r32 r32 |$a, $b, $c| {
                let ($a, $b, $c) = ($a as i32, $b as i32, $c as i32); let v: i32 = $e; v as u32 })),
            Ty::U64 | Ty::B64 => Some(lanes!(r64 <- r64 r64 r64 |$a, $b, $c| $e)),
            Ty::S64 => Some(lanes!(r64 <- r64 r64 r64 |$a, $b, $c| {
                let ($a, $b, $c) = ($a as i64, $b as i64, $c as i64); let v: i64 = $e; v as u64 })),
            _ => None,
        }
    };
}

/// The bits that differ from the sign.
fn unlike_sign32(a: u32) -> u32 {
    if (a as i32) < 0 { !a } else { a }
}

/// The bits that differ from the sign.
fn unlike_sign64(a: u64) -> u64 {
    if (a as i64) < 0 { !a } else { a }
}

/// `f(a)`.
pub(super) fn unary(name: &str, ty: Ty) -> Option<Exec> {
    match name {
        "neg" => each_int!(ty, |a| a.wrapping_neg()),
        "abs" => match ty {
            Ty::S16 => Some(lanes!(r32 <- r32 |a| u32::from((a as i16).wrapping_abs() as u16))),
            Ty::S32 => Some(lanes!(r32 <- r32 |a| (a as i32).wrapping_abs() as u32)),
            Ty::S64 => Some(lanes!(r64 <- r64 |a| (a as i64).wrapping_abs() as u64)),
            _ => None,
        },
        "not" => each_int!(ty, |a| !a),
        "cnot" => each_int!(ty, |a| (a == 0).into()),
        "popc" => match ty {
            Ty::B32 => Some(lanes!(r32 <- r32 |a| a.count_ones())),
            Ty::B64 => Some(lanes!(r32 <- r64 |a| a.count_ones())),
            _ => None,
        },
        "clz" => match ty {
            Ty::B32 => Some(lanes!(r32 <- r32 |a| a.leading_zeros())),
            Ty::B64 => Some(lanes!(r32 <- r64 |a| a.leading_zeros())),
            _ => None,
        },
        "brev" => match ty {
            Ty::B32 => Some(lanes!(r32 <- r32 |a| a.reverse_bits())),
            Ty::B64 => Some(lanes!(r64 <- r64 |a| a.reverse_bits())),
            _ => None,
        },
        "bfind" => match ty {
            Ty::U32 => Some(lanes!(r32 <- r32 |a| 31u32.wrapping_sub(a.leading_zeros()))),
            Ty::S32 => Some(lanes!(r32 <- r32 |a| 31u32.wrapping_sub(unlike_sign32(a).leading_zeros()))),
            Ty::U64 => Some(lanes!(r32 <- r64 |a| 63u32.wrapping_sub(a.leading_zeros()))),
            Ty::S64 => Some(lanes!(r32 <- r64 |a| 63u32.wrapping_sub(unlike_sign64(a).leading_zeros()))),
            _ => None,
        },
        // How far to the top the bit is that `bfind` finds.
        "bfind.shiftamt" => match ty {
            Ty::U32 => Some(lanes!(r32 <- r32 |a| if a == 0 { u32::MAX } else { a.leading_zeros() })),
            Ty::S32 => Some(lanes!(r32 <- r32 |a| {
                let a = unlike_sign32(a);
                if a == 0 { u32::MAX } else { a.leading_zeros() }
            })),
            Ty::U64 => Some(lanes!(r32 <- r64 |a| if a == 0 { u32::MAX } else { a.leading_zeros() })),
            Ty::S64 => Some(lanes!(r32 <- r64 |a| {
                let a = unlike_sign64(a);
                if a == 0 { u32::MAX } else { a.leading_zeros() }
            })),
            _ => None,
        },
        _ => None,
    }
}

/// `f(a, b)` with operands and result of one width. Division by zero gives all ones, as on the device.
pub(super) fn binary(name: &str, ty: Ty) -> Option<Exec> {
    match name {
        "add" => each_int!(ty, |a, b| a.wrapping_add(b)),
        "sub" => each_int!(ty, |a, b| a.wrapping_sub(b)),
        "mul.lo" => each_int!(ty, |a, b| a.wrapping_mul(b)),
        "div" => each_int!(ty, |a, b| if b == 0 { !b } else { a.wrapping_div(b) }),
        "rem" => each_int!(ty, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        "min" => each_int!(ty, |a, b| a.min(b)),
        "max" => each_int!(ty, |a, b| a.max(b)),
        "and" => each_int!(ty, |a, b| a & b),
        "or" => each_int!(ty, |a, b| a | b),
        "xor" => each_int!(ty, |a, b| a ^ b),
        "mul.hi" => match ty {
            Ty::U16 => Some(lanes!(r32 <- r32 r32 |a, b| (a * b) >> 16)),
            Ty::S16 => Some(
                lanes!(r32 <- r32 r32 |a, b| u32::from(((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16)),
            ),
            Ty::U32 => Some(lanes!(r32 <- r32 r32 |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32)),
            Ty::S32 => Some(lanes!(r32 <- r32 r32 |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32)),
            Ty::U64 => Some(lanes!(r64 <- r64 r64 |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64)),
            Ty::S64 => Some(lanes!(r64 <- r64 r64 |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64)),
            _ => None,
        },
        "mul.wide" => match ty {
            Ty::U16 => Some(lanes!(r32 <- r32 r32 |a, b| a.wrapping_mul(b))),
            Ty::S16 => Some(lanes!(r32 <- r32 r32 |a, b| (i32::from(a as i16) * i32::from(b as i16)) as u32)),
            Ty::U32 => Some(lanes!(r64 <- r32 r32 |a, b| u64::from(a) * u64::from(b))),
            Ty::S32 => Some(lanes!(r64 <- r32 r32 |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64)),
            _ => None,
        },
        "shl" => match ty {
            Ty::B16 => Some(lanes!(r32 <- r32 r32 |a, b| (a.checked_shl(b).unwrap_or(0)) & 0xffff)),
            Ty::B32 => Some(lanes!(r32 <- r32 r32 |a, b| if b > 31 { 0 } else { a << b })),
            Ty::B64 => Some(lanes!(r64 <- r64 r32 |a, b| if b > 63 { 0 } else { a << b })),
            _ => None,
        },
        "shr" => match ty {
            Ty::U16 | Ty::B16 => Some(lanes!(r32 <- r32 r32 |a, b| a.checked_shr(b).unwrap_or(0))),
            Ty::S16 => Some(lanes!(r32 <- r32 r32 |a, b| u32::from((i32::from(a as i16) >> b.min(31)) as u16))),
            Ty::U32 | Ty::B32 => Some(lanes!(r32 <- r32 r32 |a, b| if b > 31 { 0 } else { a >> b })),
            Ty::S32 => Some(lanes!(r32 <- r32 r32 |a, b| ((a as i32) >> b.min(31)) as u32)),
            Ty::U64 | Ty::B64 => Some(lanes!(r64 <- r64 r32 |a, b| if b > 63 { 0 } else { a >> b })),
            Ty::S64 => Some(lanes!(r64 <- r64 r32 |a, b| ((a as i64) >> b.min(63)) as u64)),
            _ => None,
        },
        _ => None,
    }
}

/// `f(a, b, c)`; the shift of funnels and the like is in `flags` where it is no operand.
pub(super) fn ternary(name: &str, ty: Ty) -> Option<Exec> {
    match name {
        "mad.lo" => each_int!(ty, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "mad.hi" => match ty {
            Ty::U32 => Some(
                lanes!(r32 <- r32 r32 r32 |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)),
            ),
            Ty::S32 => Some(
                lanes!(r32 <- r32 r32 r32 |a, b, c| (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).wrapping_add(c)),
            ),
            Ty::U64 => Some(
                lanes!(r64 <- r64 r64 r64 |a, b, c| (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c)),
            ),
            Ty::S64 => Some(
                lanes!(r64 <- r64 r64 r64 |a, b, c| (((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64).wrapping_add(c)),
            ),
            _ => None,
        },
        "mad.wide" => match ty {
            Ty::U16 => Some(lanes!(r32 <- r32 r32 r32 |a, b, c| a.wrapping_mul(b).wrapping_add(c))),
            Ty::S16 => Some(
                lanes!(r32 <- r32 r32 r32 |a, b, c| ((i32::from(a as i16) * i32::from(b as i16)) as u32).wrapping_add(c)),
            ),
            Ty::U32 => Some(lanes!(r64 <- r32 r32 r64 |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c))),
            Ty::S32 => Some(
                lanes!(r64 <- r32 r32 r64 |a, b, c| ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c)),
            ),
            _ => None,
        },
        "sad" => match ty {
            Ty::U32 => Some(lanes!(r32 <- r32 r32 r32 |a, b, c| a.abs_diff(b).wrapping_add(c))),
            Ty::S32 => Some(lanes!(r32 <- r32 r32 r32 |a, b, c| (a as i32).abs_diff(b as i32).wrapping_add(c))),
            _ => None,
        },
        "bfe" => match ty {
            Ty::U32 => Some(lanes!(r32 <- r32 r32 r32 |a, b, c| extract(u64::from(a), 32, b, c, false) as u32)),
            Ty::S32 => {
                Some(lanes!(r32 <- r32 r32 r32 |a, b, c| extract(i64::from(a as i32) as u64, 32, b, c, true) as u32))
            }
            Ty::U64 => Some(lanes!(r64 <- r64 r32 r32 |a, b, c| extract(a, 64, b, c, false))),
            Ty::S64 => Some(lanes!(r64 <- r64 r32 r32 |a, b, c| extract(a, 64, b, c, true))),
            _ => None,
        },
        "prmt" => (ty == Ty::B32).then_some(lanes!(r32 <- r32 r32 r32 |a, b, c| permute(a, b, c))),
        "lop3" => (ty == Ty::B32).then_some(lanes!(r32 <- r32 r32 r32 |a, b, c; x| logic3(a, b, c, x.flags as u32))),
        "shf.l.wrap" => {
            (ty == Ty::B32).then_some(lanes!(r32 <- r32 r32 r32 |a, b, c| ((pair(a, b) << (c & 31)) >> 32) as u32))
        }
        "shf.l.clamp" => {
            (ty == Ty::B32).then_some(lanes!(r32 <- r32 r32 r32 |a, b, c| ((pair(a, b) << c.min(32)) >> 32) as u32))
        }
        "shf.r.wrap" => (ty == Ty::B32).then_some(lanes!(r32 <- r32 r32 r32 |a, b, c| (pair(a, b) >> (c & 31)) as u32)),
        "shf.r.clamp" => {
            (ty == Ty::B32).then_some(lanes!(r32 <- r32 r32 r32 |a, b, c| (pair(a, b) >> c.min(32)) as u32))
        }
        "dp4a.u32.u32" => Some(lanes!(r32 <- r32 r32 r32 |a, b, c| dot4(a, b, c, false, false))),
        "dp4a.u32.s32" => Some(lanes!(r32 <- r32 r32 r32 |a, b, c| dot4(a, b, c, false, true))),
        "dp4a.s32.u32" => Some(lanes!(r32 <- r32 r32 r32 |a, b, c| dot4(a, b, c, true, false))),
        "dp4a.s32.s32" => Some(lanes!(r32 <- r32 r32 r32 |a, b, c| dot4(a, b, c, true, true))),
        _ => None,
    }
}

/// `bfi`: the low `len` bits of `a` inserted into `b` at `pos`. Position in `c`, length in `d2`.
pub(super) fn insert(ty: Ty) -> Option<Exec> {
    match ty {
        Ty::B32 => Some(exec!(|regs, x, mask| {
            let (a, b) = (regs.r32[x.a as usize], regs.r32[x.b as usize]);
            let (pos, len) = (regs.r32[x.c as usize], regs.r32[x.d2 as usize]);
            let out = std::array::from_fn(|i| insert_bits(u64::from(a[i]), u64::from(b[i]), pos[i], len[i], 32) as u32);
            regs.put32(x.d, &out, mask);
        })),
        Ty::B64 => Some(exec!(|regs, x, mask| {
            let (a, b) = (regs.r64[x.a as usize], regs.r64[x.b as usize]);
            let (pos, len) = (regs.r32[x.c as usize], regs.r32[x.d2 as usize]);
            let out = std::array::from_fn(|i| insert_bits(a[i], b[i], pos[i], len[i], 64));
            regs.put64(x.d, &out, mask);
        })),
        _ => None,
    }
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn insert_bits(a: u64, b: u64, pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= width || len == 0 {
        return b;
    }
    let mask = (if len >= 64 { u64::MAX } else { (1 << len) - 1 }) << pos;
    b & !mask | (a << pos) & mask
}

/// A field of `len` bits at `pos`; signed fields past the top repeat the sign.
fn extract(a: u64, width: u32, pos: u32, len: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    if !signed {
        let value = if pos >= width { 0 } else { a >> pos };
        return if len >= 64 { value } else { value & ((1 << len) - 1) };
    }
    // The operand is sign-extended to 64 bits already.
    let value = (a as i64) >> pos.min(63);
    if len >= 64 || pos + len >= width { value as u64 } else { ((value << (64 - len)) >> (64 - len)) as u64 }
}

fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = pair(a, b);
    (0..4).fold(0, |out, i| {
        let select = selector >> (4 * i);
        let byte = (bytes >> (8 * (select & 7))) as u8;
        let byte = if select & 8 != 0 { if byte & 0x80 != 0 { 0xff } else { 0 } } else { byte };
        out | u32::from(byte) << (8 * i)
    })
}

fn logic3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|row| table >> row & 1 != 0).fold(0, |out, row| {
        let pick = |value: u32, bit: u32| if row & bit != 0 { value } else { !value };
        out | pick(a, 4) & pick(b, 2) & pick(c, 1)
    })
}

fn dot4(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let byte = |value: u32, i: u32, signed: bool| {
        let byte = (value >> (8 * i)) as u8;
        if signed { i32::from(byte as i8) } else { i32::from(byte) }
    };
    (0..4).fold(c, |sum, i| sum.wrapping_add((byte(a, i, a_signed) * byte(b, i, b_signed)) as u32))
}
