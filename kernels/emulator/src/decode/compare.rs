//! `setp`, `set` and conversions: what needs two types or gives predicates.

use super::flags::{COMPARE, FROM, FTZ, INTEGER, RELU, SAT, TO};
use super::floating;
use crate::exec::regs::{Args, Exec, Regs, exec, lanes};
use crate::float::{BF16, E4M3, E5M2, F16, F32, Round, TF32, flush};
use crate::ptx::tree::Ty;

/// The comparisons by their codes.
const COMPARISONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

/// The code of a comparison's name.
pub(super) fn comparison(name: &str) -> Option<u64> {
    COMPARISONS.iter().position(|&known| known == name).map(|code| code as u64)
}

const TYPES: [Ty; 20] = [
    Ty::B8,
    Ty::B16,
    Ty::B32,
    Ty::B64,
    Ty::U8,
    Ty::U16,
    Ty::U32,
    Ty::U64,
    Ty::S8,
    Ty::S16,
    Ty::S32,
    Ty::S64,
    Ty::F16,
    Ty::Bf16,
    Ty::F32,
    Ty::F64,
    Ty::Tf32,
    Ty::Pred,
    Ty::F16x2,
    Ty::Bf16x2,
];

/// The code of a type, for `Args::flags`.
pub(super) fn type_code(ty: Ty) -> u64 {
    TYPES.iter().position(|&known| known == ty).unwrap_or(0) as u64
}

fn type_at(flags: u64, shift: u32) -> Ty {
    TYPES[((flags >> shift) & 0xff) as usize % TYPES.len()]
}

fn ordered<T: PartialOrd + Copy>(code: u64, a: T, b: T) -> bool {
    match code {
        0 => a == b,
        1 => a != b,
        2 | 6 => a < b,
        3 | 7 => a <= b,
        4 | 8 => a > b,
        _ => a >= b,
    }
}

fn compare_floats(code: u64, a: f64, b: f64) -> bool {
    let unordered = a.is_nan() || b.is_nan();
    match code {
        0..=5 => !unordered && ordered(code, a, b),
        10..=15 => unordered || ordered(code - 10, a, b),
        16 => !unordered,
        17 => unordered,
        _ => ordered(code, a, b),
    }
}

/// Bits of the lanes where a comparison of `a` and `b` holds.
macro_rules! compare {
    ($regs:ident, $x:ident, $bank:ident, $convert:expr, $f:expr) => {{
        let (a, b) = (&$regs.$bank[$x.a as usize], &$regs.$bank[$x.b as usize]);
        let convert = $convert;
        let f = $f;
        let mut bits = 0;
        for lane in 0..32 {
            bits |= u32::from(f(convert(a[lane]), convert(b[lane]))) << lane;
        }
        bits
    }};
}

/// Comparison of integers of one type with the code monomorphic, so that it runs as a vector.
macro_rules! compare_fast {
    ($ty:expr, $op:tt) => {
        match $ty {
            Ty::U32 | Ty::B32 => Some(exec!(|r, x, m| {
                let bits = compare!(r, x, r32, |v: u32| v, |a: u32, b: u32| a $op b);
                r.put_pred(x.d, bits, m);
            })),
            Ty::S32 => Some(exec!(|r, x, m| {
                let bits = compare!(r, x, r32, |v: u32| v as i32, |a: i32, b: i32| a $op b);
                r.put_pred(x.d, bits, m);
            })),
            Ty::U64 | Ty::B64 => Some(exec!(|r, x, m| {
                let bits = compare!(r, x, r64, |v: u64| v, |a: u64, b: u64| a $op b);
                r.put_pred(x.d, bits, m);
            })),
            Ty::S64 => Some(exec!(|r, x, m| {
                let bits = compare!(r, x, r64, |v: u64| v as i64, |a: i64, b: i64| a $op b);
                r.put_pred(x.d, bits, m);
            })),
            _ => None,
        }
    };
}

/// The same for f32, by what holds of two values.
macro_rules! compare_f32 {
    (|$a:ident, $b:ident| $holds:expr) => {
        Some(exec!(|r, x, m| {
            let bits = compare!(r, x, r32, f32::from_bits, |$a: f32, $b: f32| $holds);
            r.put_pred(x.d, bits, m);
        }))
    };
}

/// Comparisons of f32 with subnormals kept. A NaN fails the first six and passes those that end in `u`.
#[expect(clippy::float_cmp, reason = "the instruction compares exactly")]
fn setp_f32(code: u64) -> Option<Exec> {
    match code {
        0 => compare_f32!(|a, b| a == b),
        1 => compare_f32!(|a, b| a != b && !a.is_nan() && !b.is_nan()),
        2 => compare_f32!(|a, b| a < b),
        3 => compare_f32!(|a, b| a <= b),
        4 => compare_f32!(|a, b| a > b),
        5 => compare_f32!(|a, b| a >= b),
        10 => compare_f32!(|a, b| a == b || a.is_nan() || b.is_nan()),
        11 => compare_f32!(|a, b| a != b),
        12 => compare_f32!(|a, b| a.is_nan() || b.is_nan() || a < b),
        13 => compare_f32!(|a, b| a.is_nan() || b.is_nan() || a <= b),
        14 => compare_f32!(|a, b| a.is_nan() || b.is_nan() || a > b),
        15 => compare_f32!(|a, b| a.is_nan() || b.is_nan() || a >= b),
        _ => None,
    }
}

/// `setp` with one result and no boolean operation.
pub(super) fn setp(code: u64, ty: Ty, flushes: bool) -> Option<Exec> {
    let fast: Option<Exec> = match code {
        _ if ty == Ty::F32 && !flushes => setp_f32(code),
        0 => compare_fast!(ty, ==),
        1 => compare_fast!(ty, !=),
        2 | 6 => compare_fast!(ty, <),
        3 | 7 => compare_fast!(ty, <=),
        4 | 8 => compare_fast!(ty, >),
        5 | 9 => compare_fast!(ty, >=),
        _ => None,
    };
    fast.or_else(|| general(ty).map(|()| setp_general as Exec))
}

fn general(ty: Ty) -> Option<()> {
    (ty.is_float() && ty != Ty::Tf32 || !matches!(ty, Ty::Pred | Ty::B128 | Ty::B8 | Ty::U8 | Ty::S8)).then_some(())
}

/// Lanes where the comparison in `flags` holds.
fn compared(regs: &Regs, x: &Args) -> u32 {
    let (ty, code) = (type_at(x.flags, FROM), x.flags >> COMPARE & 0xff);
    (0..32).fold(0, |bits, lane| {
        let read = |r: u32| {
            if ty.bytes() == 8 { regs.r64[r as usize][lane] } else { u64::from(regs.r32[r as usize][lane]) }
        };
        let (a, b) = (read(x.a), read(x.b));
        let holds = if ty.is_float() {
            compare_floats(code, floating::value(ty, a, x.flags), floating::value(ty, b, x.flags))
        } else if ty.is_signed() {
            ordered(code, signed(ty, a), signed(ty, b))
        } else {
            ordered(code, a, b)
        };
        bits | u32::from(holds) << lane
    })
}

fn signed(ty: Ty, bits: u64) -> i64 {
    match ty.bytes() {
        1 => i64::from(bits as i8),
        2 => i64::from(bits as i16),
        4 => i64::from(bits as i32),
        _ => bits as i64,
    }
}

fn setp_general(regs: &mut Regs, x: &Args, mask: u32) {
    let bits = compared(regs, x);
    regs.put_pred(x.d, bits, mask);
}

/// `setp.cmp.bool p|q, a, b, c`: the boolean operation is in bits 40 and 41 (1 and, 2 or, 3 xor), a negated `c` in bit
/// 42, a second result in bit 43.
pub(super) fn setp_with(regs: &mut Regs, x: &Args, mask: u32) {
    let bits = compared(regs, x);
    let other = regs.p[x.c as usize] ^ if x.flags >> 42 & 1 != 0 { u32::MAX } else { 0 };
    let combine = |bits: u32| match x.flags >> 40 & 3 {
        1 => bits & other,
        2 => bits | other,
        3 => bits ^ other,
        _ => bits,
    };
    regs.put_pred(x.d, combine(bits), mask);
    if x.flags >> 43 & 1 != 0 {
        regs.put_pred(x.d2, combine(!bits), mask);
    }
}

/// `set.cmp.dtype.stype d, a, b`: all ones, or one as f32.
pub(super) fn set(regs: &mut Regs, x: &Args, mask: u32) {
    let bits = compared(regs, x);
    let one = match type_at(x.flags, TO) {
        Ty::F32 => 1.0f32.to_bits(),
        Ty::F16 => 0x3c00,
        Ty::Bf16 => 0x3f80,
        Ty::U16 | Ty::S16 | Ty::B16 => 0xffff,
        _ => u32::MAX,
    };
    let out = std::array::from_fn(|lane| if bits >> lane & 1 != 0 { one } else { 0 });
    regs.put32(x.d, &out, mask);
}

/// `testp` with the property in bits 40 and up.
pub(super) fn testp(regs: &mut Regs, x: &Args, mask: u32) {
    let ty = type_at(x.flags, FROM);
    let bits = (0..32).fold(0, |bits, lane| {
        let (value, subnormal) = if ty == Ty::F64 {
            let value = f64::from_bits(regs.r64[x.a as usize][lane]);
            (value, value.is_subnormal())
        } else {
            let value = f32::from_bits(regs.r32[x.a as usize][lane]);
            (f64::from(value), value.is_subnormal())
        };
        let holds = match x.flags >> 40 {
            0 => value.is_finite(),
            1 => value.is_infinite(),
            2 => !value.is_nan(),
            3 => value.is_nan(),
            4 => value.is_finite() && !subnormal && value != 0.0,
            _ => subnormal,
        };
        bits | u32::from(holds) << lane
    });
    regs.put_pred(x.d, bits, mask);
}

/// The function of `cvt.to.from`, fast where no modifier matters.
pub(super) fn convert(to: Ty, from: Ty, flags: u64) -> Exec {
    let plain = flags & (FTZ | SAT | RELU | INTEGER | 7) == 0;
    match (to, from) {
        (Ty::U64 | Ty::B64 | Ty::S64, Ty::U32 | Ty::B32) => lanes!(r64 <- r32 |a| u64::from(a)),
        (Ty::S64 | Ty::U64, Ty::S32) if plain => lanes!(r64 <- r32 |a| i64::from(a as i32) as u64),
        (Ty::U32 | Ty::S32 | Ty::B32, Ty::U64 | Ty::S64 | Ty::B64) if plain => lanes!(r32 <- r64 |a| a as u32),
        (Ty::F32, Ty::S32) if plain => lanes!(r32 <- r32 |a| (a as i32 as f32).to_bits()),
        (Ty::F32, Ty::U32) if plain => lanes!(r32 <- r32 |a| (a as f32).to_bits()),
        (Ty::F16, Ty::F32) if plain => lanes!(r32 <- r32 |a| half_of(a)),
        (Ty::Bf16, Ty::F32) if plain => lanes!(r32 <- r32 |a| bfloat_of(a)),
        (Ty::S32, Ty::F32) if flags & (FTZ | SAT | RELU) == 0 && flags & INTEGER != 0 => match Round::from_flags(flags)
        {
            // A cast clamps, and makes NaN zero, as the device does.
            Round::Nearest => lanes!(r32 <- r32 |a| f32::from_bits(a).round_ties_even() as i32 as u32),
            Round::Zero => lanes!(r32 <- r32 |a| f32::from_bits(a) as i32 as u32),
            Round::Down => lanes!(r32 <- r32 |a| f32::from_bits(a).floor() as i32 as u32),
            _ => lanes!(r32 <- r32 |a| f32::from_bits(a).ceil() as i32 as u32),
        },
        (Ty::F32, Ty::Bf16) if plain => lanes!(r32 <- r32 |a| quiet(a << 16)),
        (Ty::F32, Ty::F16) if plain => lanes!(r32 <- r32 |a| quiet(half::f16::from_bits(a as u16).to_f32().to_bits())),
        _ => convert_general,
    }
}

/// f32 to f16, to nearest: in the range of normal halves by adding half of the last place, elsewhere as a sum that
/// makes the machine round at the right place.
fn half_of(bits: u32) -> u32 {
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // 0.5 has the last place of half subnormals as its own; what is added is rounded there.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let rounded = magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)).wrapping_sub(0x3800_0000) >> 13;
    let normal = if magnitude >= 0x477f_f000 { 0x7c00 } else { rounded };
    let finite = if magnitude < 0x3880_0000 { small } else { normal };
    if magnitude > 0x7f80_0000 { 0x7fff } else { sign | finite }
}

/// f32 to bf16, to nearest.
fn bfloat_of(bits: u32) -> u32 {
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
}

/// A NaN as the device writes it.
fn quiet(bits: u32) -> u32 {
    if f32::from_bits(bits).is_nan() { 0x7fff_ffff } else { bits }
}

fn convert_general(regs: &mut Regs, x: &Args, mask: u32) {
    let (from, to) = (type_at(x.flags, FROM), type_at(x.flags, TO));
    let mut out = [0u64; 32];
    for (lane, out) in out.iter_mut().enumerate() {
        let bits =
            if from.bytes() == 8 { regs.r64[x.a as usize][lane] } else { u64::from(regs.r32[x.a as usize][lane]) };
        *out = convert_one(to, from, bits, x.flags);
    }
    if to.bytes() == 8 {
        regs.put64(x.d, &out, mask);
    } else {
        regs.put32(x.d, &out.map(|bits| bits as u32), mask);
    }
}

/// One conversion. Integer results are sign- or zero-extended to 64 bits; the caller cuts them to the register.
fn convert_one(to: Ty, from: Ty, bits: u64, flags: u64) -> u64 {
    let round = Round::from_flags(flags);
    if from.is_float() {
        let value = floating::value(from, bits, flags);
        if to.is_float() {
            let value = if flags & INTEGER != 0 { to_integer(value, round) } else { value };
            let value = if flags & SAT != 0 { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
            let value = if flags & RELU != 0 && value < 0.0 { 0.0 } else { value };
            return encode(to, value, round, flags);
        }
        return float_to_int(to, value, round);
    }
    let value: i128 = if from.is_signed() {
        i128::from(signed(from, bits))
    } else {
        i128::from(bits & if from.bytes() == 8 { u64::MAX } else { (1 << (8 * from.bytes())) - 1 })
    };
    if to.is_float() {
        return int_to_float(to, value, round);
    }
    let value = if flags & SAT != 0 { clamp(to, value) } else { value };
    extend(to, value as u64)
}

fn extend(to: Ty, bits: u64) -> u64 {
    match to.bytes() {
        1 if to.is_signed() => i64::from(bits as i8) as u64,
        1 => bits & 0xff,
        2 if to.is_signed() => i64::from(bits as i16) as u64,
        2 => bits & 0xffff,
        4 if to.is_signed() => i64::from(bits as i32) as u64,
        4 => bits & 0xffff_ffff,
        _ => bits,
    }
}

fn clamp(to: Ty, value: i128) -> i128 {
    let width = 8 * to.bytes();
    if to.is_signed() {
        value.clamp(-(1 << (width - 1)), (1 << (width - 1)) - 1)
    } else {
        value.clamp(0, (1 << width) - 1)
    }
}

fn to_integer(value: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => value.round_ties_even(),
        Round::Zero => value.trunc(),
        Round::Down => value.floor(),
        Round::Up => value.ceil(),
        Round::Away => value.round(),
    }
}

/// Out-of-range values clamp; NaN gives zero for results to 32 bits and the top bit for 64, as on the device.
fn float_to_int(to: Ty, value: f64, round: Round) -> u64 {
    if value.is_nan() {
        return if to.bytes() == 8 { 1 << 63 } else { 0 };
    }
    extend(to, clamp(to, to_integer(value, round) as i128) as u64)
}

fn int_to_float(to: Ty, value: i128, round: Round) -> u64 {
    // To odd in f64, so that the rounding to the result is the only one.
    let near = value as f64;
    let rest = value - near as i128;
    let odd = if rest != 0 && near.to_bits() & 1 == 0 {
        f64::from_bits(if (rest > 0) == (near > 0.0) { near.to_bits() + 1 } else { near.to_bits() - 1 })
    } else {
        near
    };
    if to == Ty::F64 {
        let away = match round {
            Round::Down => rest < 0,
            Round::Up => rest > 0,
            Round::Zero => (rest < 0) == (near > 0.0) && rest != 0,
            _ => false,
        };
        let step = if (rest > 0) == (near > 0.0) { 1 } else { u64::MAX };
        return if away { near.to_bits().wrapping_add(step) } else { near.to_bits() };
    }
    encode(to, odd, round, 0)
}

fn encode(to: Ty, value: f64, round: Round, flags: u64) -> u64 {
    match to {
        Ty::F64 if value.is_nan() => 0x7fff_ffff_ffff_ffff,
        Ty::F64 => value.to_bits(),
        Ty::F16 => F16.encode(value, round, false),
        Ty::Bf16 => BF16.encode(value, round, false),
        Ty::Tf32 => TF32.encode(value, round, false) << 13 | if value.is_nan() { 0x1fff } else { 0 },
        _ => {
            let bits = F32.encode(value, round, false) as u32;
            u64::from(if flags & FTZ != 0 { flush(f32::from_bits(bits)).to_bits() } else { bits })
        }
    }
}

/// `cvt.f16x2.f32 d, a, b` and its kin: `a` above, `b` below. The format is in bits 40 and up.
pub(super) fn convert_pair(regs: &mut Regs, x: &Args, mask: u32) {
    let (upper, lower) = (regs.r32[x.a as usize], regs.r32[x.b as usize]);
    let round = Round::from_flags(x.flags);
    let (format, width, saturate) = match x.flags >> 40 {
        0 => (F16, 16, false),
        1 => (BF16, 16, false),
        2 => (E4M3, 8, true),
        _ => (E5M2, 8, true),
    };
    let one = |bits: u32| {
        let value = f64::from(f32::from_bits(bits));
        let value = if x.flags & RELU != 0 && value < 0.0 { 0.0 } else { value };
        format.encode(value, round, saturate || x.flags & SAT != 0) as u32
    };
    let out = std::array::from_fn(|lane| one(upper[lane]) << width | one(lower[lane]));
    regs.put32(x.d, &out, mask);
}

/// `cvt.f16x2.e4m3x2 d, a`: two small floats to two halves; bit 40 set for e5m2.
pub(super) fn widen_pair(regs: &mut Regs, x: &Args, mask: u32) {
    let format = if x.flags >> 40 & 1 != 0 { E5M2 } else { E4M3 };
    let source = regs.r32[x.a as usize];
    let one = |bits: u32| F16.encode(format.decode(u64::from(bits & 0xff)), Round::Nearest, false) as u32;
    let out = std::array::from_fn(|lane| one(source[lane]) | one(source[lane] >> 8) << 16);
    regs.put32(x.d, &out, mask);
}
