//! Floating-point instructions. The common forms of f32 (nearest, subnormals kept) run as plain vectors; other roundings
//! and the short formats go through an exact result that is rounded once. Approximate functions are correctly rounded.

use std::cmp::Ordering;

use super::flags::{FTZ, NAN, RELU, SAT, XORSIGN};
use crate::exec::regs::{Exec, lanes};
use crate::float::{BF16, F16, F32, Format, Round, flush, odd_div, odd_fma, odd_sqrt, odd_sum};
use crate::ptx::tree::Ty;

const NAN32: u32 = 0x7fff_ffff;

/// Bits of a single result: the device has one NaN.
fn bits(value: f32) -> u32 {
    if value.is_nan() { NAN32 } else { value.to_bits() }
}

fn bits64(value: f64) -> u64 {
    if value.is_nan() { 0x7fff_ffff_ffff_ffff } else { value.to_bits() }
}

/// An operand under `.ftz`.
fn input(value: u32, flags: u64) -> f32 {
    let value = f32::from_bits(value);
    if flags & FTZ != 0 { flush(value) } else { value }
}

/// Rounds an exact (or odd) result of singles.
fn result(value: f64, flags: u64) -> u32 {
    let rounded = if value.is_nan() { NAN32 } else { F32.encode(value, Round::from_flags(flags), false) as u32 };
    finish(f32::from_bits(rounded), flags)
}

fn finish(value: f32, flags: u64) -> u32 {
    let value = if flags & FTZ != 0 { flush(value) } else { value };
    if flags & SAT != 0 {
        // NaN saturates to zero.
        return if value > 0.0 { value.min(1.0).to_bits() } else { 0 };
    }
    bits(value)
}

/// `min` or `max` with PTX's rules: the number wins over NaN unless `.NaN`, and −0 is below +0.
fn extreme(a: f32, b: f32, flags: u64, largest: bool) -> f32 {
    let sign = if flags & XORSIGN != 0 { Some((a.to_bits() ^ b.to_bits()) & 1 << 31) } else { None };
    let (a, b) = if sign.is_some() { (a.abs(), b.abs()) } else { (a, b) };
    let value = if a.is_nan() || b.is_nan() {
        if flags & NAN != 0 || a.is_nan() && b.is_nan() {
            f32::from_bits(NAN32)
        } else if a.is_nan() {
            b
        } else {
            a
        }
    } else if a.partial_cmp(&b) == Some(Ordering::Equal) {
        if a.is_sign_negative() == largest { b } else { a }
    } else if (a > b) == largest {
        a
    } else {
        b
    };
    match sign {
        Some(sign) => f32::from_bits(value.to_bits() & !(1 << 31) | sign),
        None => value,
    }
}

/// `min` and `max` without modifiers: the number wins over NaN; of two zeros the one with the sign of `equal`.
#[expect(clippy::float_cmp, reason = "the instruction compares exactly")]
fn number_first(a: u32, b: u32, better: impl Fn(f32, f32) -> bool, equal: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let of_numbers = if better(x, y) { a } else { b };
    let of_numbers = if x == y { equal } else { of_numbers };
    let of_one = if x.is_nan() { b } else { a };
    let chosen = if x.is_nan() || y.is_nan() { of_one } else { of_numbers };
    if x.is_nan() && y.is_nan() { NAN32 } else { chosen }
}

fn extreme64(a: f64, b: f64, largest: bool) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a.partial_cmp(&b) == Some(Ordering::Equal) {
        if a.is_sign_negative() == largest { b } else { a }
    } else if (a > b) == largest {
        a
    } else {
        b
    }
}

/// `f(a)` of f32 in f64, which is then rounded once.
fn approximate(name: &str, a: f64) -> f64 {
    match name {
        "sin" => a.sin(),
        "cos" => a.cos(),
        "lg2" => a.log2(),
        "ex2" => a.exp2(),
        "tanh" => a.tanh(),
        "rsqrt" => 1.0 / a.sqrt(),
        _ => f64::NAN,
    }
}

macro_rules! approximated {
    ($name:literal) => {
        Some(lanes!(r32 <- r32 |a; x| finish(approximate($name, f64::from(input(a, x.flags))) as f32, x.flags)))
    };
}

/// One-operand instructions on floats.
pub(super) fn unary(name: &str, ty: Ty) -> Option<Exec> {
    match (name, ty) {
        ("neg", Ty::F32) => Some(lanes!(r32 <- r32 |a; x| (input(a, x.flags)).to_bits() ^ 1 << 31)),
        ("abs", Ty::F32) => Some(lanes!(r32 <- r32 |a; x| (input(a, x.flags)).to_bits() & !(1 << 31))),
        ("neg", Ty::F64) => Some(lanes!(r64 <- r64 |a| a ^ 1 << 63)),
        ("abs", Ty::F64) => Some(lanes!(r64 <- r64 |a| a & !(1 << 63))),
        ("neg", Ty::F16 | Ty::Bf16) => Some(lanes!(r32 <- r32 |a| a ^ 0x8000)),
        ("abs", Ty::F16 | Ty::Bf16) => Some(lanes!(r32 <- r32 |a| a & 0x7fff)),
        ("neg", Ty::F16x2 | Ty::Bf16x2) => Some(lanes!(r32 <- r32 |a| a ^ 0x8000_8000)),
        ("abs", Ty::F16x2 | Ty::Bf16x2) => Some(lanes!(r32 <- r32 |a| a & 0x7fff_7fff)),
        ("sqrt", Ty::F32) => Some(lanes!(r32 <- r32 |a; x| {
            let a = f64::from(input(a, x.flags));
            result(if a < 0.0 { f64::NAN } else { odd_sqrt(a) }, x.flags) })),
        ("rcp", Ty::F32) => Some(lanes!(r32 <- r32 |a; x| result(odd_div(1.0, f64::from(input(a, x.flags))), x.flags))),
        ("sqrt", Ty::F64) => Some(lanes!(r64 <- r64 |a| bits64(f64::from_bits(a).sqrt()))),
        ("rcp", Ty::F64) => Some(lanes!(r64 <- r64 |a| bits64(1.0 / f64::from_bits(a)))),
        ("rsqrt", Ty::F64) => Some(lanes!(r64 <- r64 |a| bits64(1.0 / f64::from_bits(a).sqrt()))),
        ("rsqrt", Ty::F32) => approximated!("rsqrt"),
        ("sin", Ty::F32) => approximated!("sin"),
        ("cos", Ty::F32) => approximated!("cos"),
        ("lg2", Ty::F32) => approximated!("lg2"),
        ("ex2", Ty::F32) => approximated!("ex2"),
        ("tanh", Ty::F32) => approximated!("tanh"),
        ("ex2", Ty::F16) => Some(lanes!(r32 <- r32 |a| half1(F16, a, f64::exp2))),
        ("tanh", Ty::F16) => Some(lanes!(r32 <- r32 |a| half1(F16, a, f64::tanh))),
        ("ex2", Ty::F16x2) => Some(lanes!(r32 <- r32 |a| both1(F16, a, f64::exp2))),
        ("tanh", Ty::F16x2) => Some(lanes!(r32 <- r32 |a| both1(F16, a, f64::tanh))),
        ("ex2", Ty::Bf16) => Some(lanes!(r32 <- r32 |a| half1(BF16, a, f64::exp2))),
        ("tanh", Ty::Bf16) => Some(lanes!(r32 <- r32 |a| half1(BF16, a, f64::tanh))),
        ("ex2", Ty::Bf16x2) => Some(lanes!(r32 <- r32 |a| both1(BF16, a, f64::exp2))),
        ("tanh", Ty::Bf16x2) => Some(lanes!(r32 <- r32 |a| both1(BF16, a, f64::tanh))),
        _ => None,
    }
}

fn half1(format: Format, a: u32, f: fn(f64) -> f64) -> u32 {
    format.encode(f(format.decode(u64::from(a & 0xffff))), Round::Nearest, false) as u32
}

fn both1(format: Format, a: u32, f: fn(f64) -> f64) -> u32 {
    half1(format, a, f) | half1(format, a >> 16, f) << 16
}

/// A short-format operation on one pair (or triple): exact in f64 or rounded to odd.
fn short(format: Format, exact: f64, flags: u64) -> u32 {
    let bits = format.encode(exact, Round::from_flags(flags), false) as u32;
    let sign = 1u32 << (format.exponent_bits + format.mantissa_bits);
    let value = format.decode(u64::from(bits));
    if flags & SAT != 0 {
        return format.encode(if value > 0.0 { value.min(1.0) } else { 0.0 }, Round::Nearest, false) as u32;
    }
    if flags & RELU != 0 && bits & sign != 0 && !value.is_nan() {
        return 0;
    }
    bits
}

fn short_extreme(format: Format, a: u32, b: u32, flags: u64, largest: bool) -> u32 {
    let value = extreme(
        format.decode(u64::from(a & 0xffff)) as f32,
        format.decode(u64::from(b & 0xffff)) as f32,
        flags,
        largest,
    );
    format.encode(f64::from(value), Round::Nearest, false) as u32
}

macro_rules! short_ops {
    ($name:expr, $format:expr, $ty:expr, $one:ident, $two:ident) => {
        match ($name, $ty) {
            ("add", Ty::$one) => Some(lanes!(r32 <- r32 r32 |a, b; x| short($format, odd_sum(at($format, a), at($format, b)), x.flags))),
            ("sub", Ty::$one) => Some(lanes!(r32 <- r32 r32 |a, b; x| short($format, odd_sum(at($format, a), -at($format, b)), x.flags))),
            ("mul", Ty::$one) => Some(lanes!(r32 <- r32 r32 |a, b; x| short($format, at($format, a) * at($format, b), x.flags))),
            ("min", Ty::$one) => Some(lanes!(r32 <- r32 r32 |a, b; x| short_extreme($format, a, b, x.flags, false))),
            ("max", Ty::$one) => Some(lanes!(r32 <- r32 r32 |a, b; x| short_extreme($format, a, b, x.flags, true))),
            ("add", Ty::$two) => Some(lanes!(r32 <- r32 r32 |a, b; x| both(a, b, |a, b| short($format, odd_sum(at($format, a), at($format, b)), x.flags)))),
            ("sub", Ty::$two) => Some(lanes!(r32 <- r32 r32 |a, b; x| both(a, b, |a, b| short($format, odd_sum(at($format, a), -at($format, b)), x.flags)))),
            ("mul", Ty::$two) => Some(lanes!(r32 <- r32 r32 |a, b; x| both(a, b, |a, b| short($format, at($format, a) * at($format, b), x.flags)))),
            ("min", Ty::$two) => Some(lanes!(r32 <- r32 r32 |a, b; x| both(a, b, |a, b| short_extreme($format, a, b, x.flags, false)))),
            ("max", Ty::$two) => Some(lanes!(r32 <- r32 r32 |a, b; x| both(a, b, |a, b| short_extreme($format, a, b, x.flags, true)))),
            _ => None,
        }
    };
}

fn at(format: Format, value: u32) -> f64 {
    format.decode(u64::from(value & 0xffff))
}

fn both(a: u32, b: u32, f: impl Fn(u32, u32) -> u32) -> u32 {
    f(a & 0xffff, b & 0xffff) & 0xffff | f(a >> 16, b >> 16) << 16
}

/// Two-operand instructions on floats; `plain` says that no modifier changes the result.
pub(super) fn binary(name: &str, ty: Ty, plain: bool) -> Option<Exec> {
    match ty {
        Ty::F32 if plain => match name {
            "add" => return Some(lanes!(r32 <- r32 r32 |a, b| bits(f32::from_bits(a) + f32::from_bits(b)))),
            "sub" => return Some(lanes!(r32 <- r32 r32 |a, b| bits(f32::from_bits(a) - f32::from_bits(b)))),
            "mul" => return Some(lanes!(r32 <- r32 r32 |a, b| bits(f32::from_bits(a) * f32::from_bits(b)))),
            "div" => return Some(lanes!(r32 <- r32 r32 |a, b| bits(f32::from_bits(a) / f32::from_bits(b)))),
            "min" => return Some(lanes!(r32 <- r32 r32 |a, b| number_first(a, b, |a, b| a < b, a | b))),
            "max" => return Some(lanes!(r32 <- r32 r32 |a, b| number_first(a, b, |a, b| a > b, a & b))),
            _ => {}
        },
        Ty::F16 | Ty::F16x2 => return short_ops!(name, F16, ty, F16, F16x2),
        Ty::Bf16 | Ty::Bf16x2 => return short_ops!(name, BF16, ty, Bf16, Bf16x2),
        _ => {}
    }
    match (name, ty) {
        ("add", Ty::F32) => Some(lanes!(r32 <- r32 r32 |a, b; x| {
            result(odd_sum(f64::from(input(a, x.flags)), f64::from(input(b, x.flags))), x.flags) })),
        ("sub", Ty::F32) => Some(lanes!(r32 <- r32 r32 |a, b; x| {
            result(odd_sum(f64::from(input(a, x.flags)), -f64::from(input(b, x.flags))), x.flags) })),
        ("mul", Ty::F32) => Some(lanes!(r32 <- r32 r32 |a, b; x| {
            result(f64::from(input(a, x.flags)) * f64::from(input(b, x.flags)), x.flags) })),
        ("div", Ty::F32) => Some(lanes!(r32 <- r32 r32 |a, b; x| {
            result(odd_div(f64::from(input(a, x.flags)), f64::from(input(b, x.flags))), x.flags) })),
        ("min", Ty::F32) => Some(lanes!(r32 <- r32 r32 |a, b; x| {
            extreme(input(a, x.flags), input(b, x.flags), x.flags, false).to_bits() })),
        ("max", Ty::F32) => Some(lanes!(r32 <- r32 r32 |a, b; x| {
            extreme(input(a, x.flags), input(b, x.flags), x.flags, true).to_bits() })),
        ("copysign", Ty::F32) => Some(lanes!(r32 <- r32 r32 |a, b| b & !(1 << 31) | a & 1 << 31)),
        ("copysign", Ty::F64) => Some(lanes!(r64 <- r64 r64 |a, b| b & !(1 << 63) | a & 1 << 63)),
        ("add", Ty::F64) => Some(lanes!(r64 <- r64 r64 |a, b| bits64(f64::from_bits(a) + f64::from_bits(b)))),
        ("sub", Ty::F64) => Some(lanes!(r64 <- r64 r64 |a, b| bits64(f64::from_bits(a) - f64::from_bits(b)))),
        ("mul", Ty::F64) => Some(lanes!(r64 <- r64 r64 |a, b| bits64(f64::from_bits(a) * f64::from_bits(b)))),
        ("div", Ty::F64) => Some(lanes!(r64 <- r64 r64 |a, b| bits64(f64::from_bits(a) / f64::from_bits(b)))),
        ("min", Ty::F64) => {
            Some(lanes!(r64 <- r64 r64 |a, b| bits64(extreme64(f64::from_bits(a), f64::from_bits(b), false))))
        }
        ("max", Ty::F64) => {
            Some(lanes!(r64 <- r64 r64 |a, b| bits64(extreme64(f64::from_bits(a), f64::from_bits(b), true))))
        }
        _ => None,
    }
}

/// `fma` (and `mad` on floats).
pub(super) fn fma(ty: Ty, plain: bool) -> Option<Exec> {
    Some(match ty {
        Ty::F32 if plain => lanes!(r32 <- r32 r32 r32 |a, b, c| {
            bits(f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c))) }),
        Ty::F32 => lanes!(r32 <- r32 r32 r32 |a, b, c; x| {
            let [a, b, c] = [a, b, c].map(|v| f64::from(input(v, x.flags)));
            result(odd_fma(a, b, c), x.flags) }),
        Ty::F64 => lanes!(r64 <- r64 r64 r64 |a, b, c| {
            bits64(f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c))) }),
        Ty::F16 => {
            lanes!(r32 <- r32 r32 r32 |a, b, c; x| short(F16, odd_fma(at(F16, a), at(F16, b), at(F16, c)), x.flags))
        }
        Ty::Bf16 => {
            lanes!(r32 <- r32 r32 r32 |a, b, c; x| short(BF16, odd_fma(at(BF16, a), at(BF16, b), at(BF16, c)), x.flags))
        }
        Ty::F16x2 => lanes!(r32 <- r32 r32 r32 |a, b, c; x| both_fma(F16, a, b, c, x.flags)),
        Ty::Bf16x2 => lanes!(r32 <- r32 r32 r32 |a, b, c; x| both_fma(BF16, a, b, c, x.flags)),
        _ => return None,
    })
}

fn both_fma(format: Format, a: u32, b: u32, c: u32, flags: u64) -> u32 {
    let one = |shift: u32| {
        let value = odd_fma(at(format, a >> shift), at(format, b >> shift), at(format, c >> shift));
        short(format, value, flags) & 0xffff
    };
    one(0) | one(16) << 16
}

/// What an atomic addition on floats gives; f32 flushes subnormals where the device does.
pub(crate) fn add_bits(ty: Ty, a: u64, b: u64, flushes: bool) -> u64 {
    let flags = if flushes { FTZ } else { 0 };
    match ty {
        Ty::F32 => {
            let (a, b) = (input(a as u32, flags), input(b as u32, flags));
            u64::from(finish(a + b, flags))
        }
        Ty::F64 => bits64(f64::from_bits(a) + f64::from_bits(b)),
        Ty::F16 => u64::from(short(F16, odd_sum(at(F16, a as u32), at(F16, b as u32)), 0)),
        Ty::Bf16 => u64::from(short(BF16, odd_sum(at(BF16, a as u32), at(BF16, b as u32)), 0)),
        Ty::F16x2 => u64::from(both(a as u32, b as u32, |a, b| short(F16, odd_sum(at(F16, a), at(F16, b)), 0))),
        _ => u64::from(both(a as u32, b as u32, |a, b| short(BF16, odd_sum(at(BF16, a), at(BF16, b)), 0))),
    }
}

/// The value of a float of a type, for comparisons and conversions.
pub(super) fn value(ty: Ty, bits: u64, flags: u64) -> f64 {
    match ty {
        Ty::F16 => F16.decode(bits),
        Ty::Bf16 => BF16.decode(bits),
        Ty::F64 => f64::from_bits(bits),
        _ => f64::from(input(bits as u32, flags)),
    }
}
