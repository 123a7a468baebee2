//! Rounding of floating-point values to any format in any direction, from IEEE 754's definitions.

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To the nearest, ties to even.
    Nearest,
    /// Toward zero.
    Zero,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
    /// To the nearest, ties away from zero.
    Away,
}

impl Round {
    pub(crate) fn parse(name: &str) -> Option<Round> {
        Some(match name {
            "rn" => Round::Nearest,
            "rz" => Round::Zero,
            "rm" => Round::Down,
            "rp" => Round::Up,
            "rna" => Round::Away,
            _ => return None,
        })
    }

    pub(crate) fn from_flags(flags: u64) -> Round {
        [Round::Nearest, Round::Zero, Round::Down, Round::Up, Round::Away][(flags & 7).min(4) as usize]
    }
}

/// A binary format with an implicit leading bit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) exponent_bits: u32,
    pub(crate) mantissa_bits: u32,
    /// Whether the all-ones exponent holds finite values too and only all ones is NaN (e4m3).
    pub(crate) is_finite: bool,
}

pub(crate) const F16: Format = Format { exponent_bits: 5, mantissa_bits: 10, is_finite: false };
pub(crate) const BF16: Format = Format { exponent_bits: 8, mantissa_bits: 7, is_finite: false };
pub(crate) const F32: Format = Format { exponent_bits: 8, mantissa_bits: 23, is_finite: false };
pub(crate) const TF32: Format = Format { exponent_bits: 8, mantissa_bits: 10, is_finite: false };
pub(crate) const E4M3: Format = Format { exponent_bits: 4, mantissa_bits: 3, is_finite: true };
pub(crate) const E5M2: Format = Format { exponent_bits: 5, mantissa_bits: 2, is_finite: false };

impl Format {
    fn largest(self) -> u64 {
        let all = (1u64 << (self.exponent_bits + self.mantissa_bits)) - 1;
        if self.is_finite { all - 1 } else { all - (1 << self.mantissa_bits) }
    }

    fn infinity(self) -> u64 {
        ((1 << self.exponent_bits) - 1) << self.mantissa_bits
    }

    /// The NaN that the device writes: all ones without a sign.
    fn nan(self) -> u64 {
        (1 << (self.exponent_bits + self.mantissa_bits)) - 1
    }

    /// The bits of a value that is exact, or was rounded to odd so that one more rounding is the only one.
    /// `saturate` replaces infinite results by the largest finite ones.
    pub(crate) fn encode(self, value: f64, round: Round, saturate: bool) -> u64 {
        let sign = value.to_bits() >> 63 << (self.exponent_bits + self.mantissa_bits);
        if value.is_nan() {
            return self.nan();
        }
        let over = |outward: bool| {
            let bits = if saturate || !outward || self.is_finite && value.is_finite() {
                if self.is_finite && !saturate && outward { self.nan() } else { self.largest() }
            } else {
                self.infinity()
            };
            sign | bits
        };
        if value.is_infinite() {
            return if self.is_finite && !saturate { sign | self.nan() } else { over(true) };
        }
        if value == 0.0 {
            return sign;
        }
        let outward = match round {
            Round::Nearest | Round::Away => None,
            Round::Zero => Some(false),
            Round::Down => Some(value < 0.0),
            Round::Up => Some(value > 0.0),
        };
        let bias = (1i32 << (self.exponent_bits - 1)) - 1;
        let (mantissa, exponent) = split(value);
        // Exponent of the result's unit in the last place: fixed below the smallest normal.
        let unit = (exponent + 52 - self.mantissa_bits as i32).max(1 - bias - self.mantissa_bits as i32);
        let shift = (unit - exponent).clamp(0, 63) as u32;
        let (kept, rest) = (mantissa >> shift, mantissa & ((1u64 << shift) - 1));
        let half = if shift == 0 { 0 } else { 1u64 << (shift - 1) };
        let up = match outward {
            Some(outward) => outward && rest != 0,
            None if shift == 0 => false,
            None if round == Round::Away => rest >= half,
            None => rest > half || rest == half && kept & 1 != 0,
        };
        let kept = kept + u64::from(up);
        let field = (unit + self.mantissa_bits as i32 + bias - 1) as u64;
        let bits = if kept >> self.mantissa_bits == 0 { kept } else { (field << self.mantissa_bits) + kept };
        if bits > self.largest() { over(outward.unwrap_or(true)) } else { sign | bits }
    }

    /// The value of bits.
    pub(crate) fn decode(self, bits: u64) -> f64 {
        let bits = bits & ((1 << (1 + self.exponent_bits + self.mantissa_bits)) - 1);
        let negative = bits >> (self.exponent_bits + self.mantissa_bits) != 0;
        let field = (bits >> self.mantissa_bits) as i32 & ((1 << self.exponent_bits) - 1);
        let mantissa = bits & ((1 << self.mantissa_bits) - 1);
        let bias = (1i32 << (self.exponent_bits - 1)) - 1;
        let top = (1 << self.exponent_bits) - 1;
        let magnitude = if field == top && (!self.is_finite || mantissa == (1 << self.mantissa_bits) - 1) {
            if mantissa == 0 { f64::INFINITY } else { f64::NAN }
        } else if field == 0 {
            mantissa as f64 * power(1 - bias - self.mantissa_bits as i32)
        } else {
            (mantissa | 1 << self.mantissa_bits) as f64 * power(field - bias - self.mantissa_bits as i32)
        };
        if negative { -magnitude } else { magnitude }
    }
}

/// Two to an exponent in the range of normal doubles.
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// A finite nonzero value's magnitude as a 53-bit integer with its top bit set, times two to an exponent.
fn split(value: f64) -> (u64, i32) {
    let bits = value.to_bits();
    let field = (bits >> 52) as i32 & 0x7ff;
    let mantissa = bits & ((1 << 52) - 1);
    if field == 0 {
        let shift = mantissa.leading_zeros() - 11;
        (mantissa << shift, -1074 - shift as i32)
    } else {
        (mantissa | 1 << 52, field - 1075)
    }
}

/// `a + b` rounded to odd: a later rounding to a much shorter format rounds the exact sum.
pub(crate) fn odd_sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    if error.is_nan() || error == 0.0 || sum.to_bits() & 1 != 0 {
        return sum;
    }
    let bits = sum.to_bits();
    f64::from_bits(if (error > 0.0) == (sum > 0.0) { bits + 1 } else { bits - 1 })
}

/// `a · b + c` of values whose product is exact in f64, rounded to odd.
pub(crate) fn odd_fma(a: f64, b: f64, c: f64) -> f64 {
    odd_sum(a * b, c)
}

/// `a / b` rounded to odd.
pub(crate) fn odd_div(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    if !quotient.is_finite() || quotient == 0.0 {
        return quotient;
    }
    let rest = (-quotient).mul_add(b, a);
    if rest == 0.0 || rest.is_nan() || quotient.to_bits() & 1 != 0 {
        return quotient;
    }
    let bits = quotient.to_bits();
    f64::from_bits(if ((rest > 0.0) == (b > 0.0)) == (quotient > 0.0) { bits + 1 } else { bits - 1 })
}

/// The square root of a nonnegative value, rounded to odd.
pub(crate) fn odd_sqrt(a: f64) -> f64 {
    let root = a.sqrt();
    if !root.is_finite() || root == 0.0 {
        return root;
    }
    let rest = (-root).mul_add(root, a);
    if rest == 0.0 || root.to_bits() & 1 != 0 {
        return root;
    }
    f64::from_bits(if rest > 0.0 { root.to_bits() + 1 } else { root.to_bits() - 1 })
}

/// A subnormal single becomes a zero of its sign.
pub(crate) fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "conversions are compared exactly")]
mod tests {
    use super::{BF16, E4M3, E5M2, F16, F32, Round, odd_div, odd_fma};
    use half::{bf16, f16};

    #[test]
    fn half_formats_agree_with_another_implementation() {
        for bits in 0..=u16::MAX {
            let (a, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            if !a.is_nan() {
                assert_eq!(F16.decode(u64::from(bits)), a.to_f64(), "{bits:x}");
                assert_eq!(F16.encode(a.to_f64(), Round::Nearest, false), u64::from(bits));
            }
            if !b.is_nan() {
                assert_eq!(BF16.encode(b.to_f64(), Round::Zero, false), u64::from(bits));
            }
        }
        let mut state = 1u32;
        for _ in 0..100_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(state);
            if !value.is_nan() {
                let found = F16.encode(f64::from(value), Round::Nearest, false);
                assert_eq!(found, u64::from(f16::from_f32(value).to_bits()), "{value}");
                let found = BF16.encode(f64::from(value), Round::Nearest, false);
                assert_eq!(found, u64::from(bf16::from_f32(value).to_bits()), "{value}");
            }
        }
    }

    #[test]
    fn singles_agree_with_the_machine() {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            f32::from_bits((state >> 32) as u32)
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next());
            let fused = a.mul_add(b, c);
            if fused.is_nan() {
                continue;
            }
            let odd = odd_fma(f64::from(a), f64::from(b), f64::from(c));
            assert_eq!(F32.encode(odd, Round::Nearest, false), u64::from(fused.to_bits()), "{a} {b} {c}");
            let quotient = a / b;
            if !quotient.is_nan() {
                let odd = odd_div(f64::from(a), f64::from(b));
                assert_eq!(F32.encode(odd, Round::Nearest, false), u64::from(quotient.to_bits()), "{a} {b}");
            }
        }
    }

    #[test]
    fn directions_bracket_the_value() {
        let third = 1.0 / 3.0;
        let at = |round| F32.decode(F32.encode(third, round, false));
        assert!(at(Round::Down) < third && third < at(Round::Up));
        assert_eq!(at(Round::Zero), at(Round::Down));
        assert_eq!(F32.encode(-third, Round::Up, false), F32.encode(-third, Round::Zero, false));
    }

    #[test]
    fn eight_bit_formats_saturate() {
        assert_eq!(E4M3.encode(1e9, Round::Nearest, true), 0x7e, "448");
        assert_eq!(E4M3.decode(0x7e), 448.0);
        assert!(E4M3.decode(0x7f).is_nan());
        assert_eq!(E5M2.decode(0x7b), 57344.0);
        assert_eq!(E5M2.encode(1e9, Round::Nearest, true), 0x7b);
        assert_eq!(E4M3.encode(1.0, Round::Nearest, true), 0x38);
    }
}
