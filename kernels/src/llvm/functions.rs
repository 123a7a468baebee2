//! Functions of lane programs beside the exponential: activations, tanh, and powers in f64. No library calls.

use inkwell::{FloatPredicate, IntPredicate};
use lathe_ir::ops::glu::Function;

use super::builder::{Builder, Kind, Val};

/// `ln(erfc(a) / t) + a²` as a polynomial in `t = 1 / (1 + a/2)`, highest power first: a fit at Chebyshev points of
/// `0 ≤ a ≤ 10`, within 5e-8 everywhere.
const ERFC: [f64; 10] = [
    0.144_930_213_788,
    -0.680_827_178_178,
    1.156_733_758_123,
    -0.696_251_900_325,
    -0.080_280_430_944,
    0.001_267_585_678,
    0.034_602_800_249,
    0.386_640_412_096,
    0.998_632_783_345,
    -1.265_447_899_690,
];
/// `(tanh(x) / x − 1) / x²` as a polynomial in x², highest power first: a fit at Chebyshev points of
/// `|x| ≤` [`TANH_SMALL`], within 2e-8 of tanh.
const TANH: [f64; 5] =
    [-0.006_104_947_938, 0.021_003_641_156, -0.053_852_497_450, 0.133_327_822_638, -0.333_333_290_996];
/// Up to here tanh is a polynomial, because `1 − 2 / (exp(2x) + 1)` loses digits near zero.
const TANH_SMALL: f32 = 0.625;
/// ln 2 in two parts: the first has 32 bits, so that its product with a small integer is exact.
const LN2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];

impl<'c> Builder<'c> {
    /// A function per lane; the error of each is that of [`Builder::silu`], [`Builder::gelu`] and [`Builder::gelu_tanh`].
    pub fn activate(&self, function: Function, x: Val<'c>) -> Val<'c> {
        match function {
            Function::Silu => self.silu(x),
            Function::Gelu => self.gelu(x),
            Function::GeluTanh => self.gelu_tanh(x),
        }
    }

    /// `x · sigmoid(x)` per lane, relative error under 1e-6.
    pub fn silu(&self, x: Val<'c>) -> Val<'c> {
        let e = self.exp(self.fsub(self.float_lanes(0.0), x));
        self.fdiv(x, self.fadd(self.float_lanes(1.0), e))
    }

    /// `x · Φ(x)` per lane: relative error under 3e-6 above −4, under 1e-5 down to −8, of no size
    /// further down.
    pub fn gelu(&self, x: Val<'c>) -> Val<'c> {
        let one = self.float_lanes(1.0);
        let a = self.fmul(self.magnitude(x), self.float_lanes(std::f32::consts::FRAC_1_SQRT_2));
        let t = self.fdiv(one, self.fma(a, self.float_lanes(0.5), one));
        let minus_a = self.fsub(self.float_lanes(0.0), a);
        let exponent = self.fma(minus_a, a, self.horner(t, Kind::F32, &ERFC));
        // Half of erfc(|x| / √2): Φ of −|x|.
        let tail = self.fmul(self.fmul(self.float_lanes(0.5), t), self.exp(exponent));
        let positive = self.fcmp(FloatPredicate::OGT, x, self.float_lanes(0.0));
        self.fmul(x, self.select(positive, self.fsub(one, tail), tail))
    }

    /// Gelu approximated by tanh, per lane, as `x · sigmoid(2u)` with `u = √(2/π) (x + 0.044715 x³)`: relative error under
    /// 3e-6 above −4, under 1e-5 down to −8, of no size further down.
    pub fn gelu_tanh(&self, x: Val<'c>) -> Val<'c> {
        let twice = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
        let square = self.fmul(x, x);
        let factor = self.horner(square, Kind::F32, &[-twice * 0.044_715, -twice]);
        let e = self.exp(self.fmul(x, factor));
        self.fdiv(x, self.fadd(self.float_lanes(1.0), e))
    }

    /// `tanh(x)` per lane, relative error under 3e-7.
    pub fn tanh(&self, x: Val<'c>) -> Val<'c> {
        let one = self.float_lanes(1.0);
        let square = self.fmul(x, x);
        let near = self.fma(self.fmul(x, square), self.horner(square, Kind::F32, &TANH), x);
        let magnitude = self.magnitude(x);
        let e = self.exp(self.fadd(magnitude, magnitude));
        let far = self.fsub(one, self.fdiv(self.float_lanes(2.0), self.fadd(e, one)));
        let far = self.overloaded("llvm.copysign", &[far, x]);
        let small = self.fcmp(FloatPredicate::OLT, magnitude, self.float_lanes(TANH_SMALL));
        self.select(small, near, far)
    }

    /// `cap · tanh(x / cap)` per lane.
    pub fn softcap(&self, x: Val<'c>, cap: f32) -> Val<'c> {
        let cap = self.float_lanes(cap);
        self.fmul(cap, self.tanh(self.fdiv(x, cap)))
    }

    fn magnitude(&self, x: Val<'c>) -> Val<'c> {
        self.overloaded("llvm.fabs", &[x])
    }

    fn f64(&self, value: f64) -> Val<'c> {
        Val(self.context.f64_type().const_float(value).into())
    }

    /// `ln(x)` of a uniform f64 of at least 1, to a few of its last bits: exponent and mantissa, then the series of
    /// `2 atanh((m − 1) / (m + 1))` for m from √½ to √2.
    pub fn ln_uniform(&self, x: Val<'c>) -> Val<'c> {
        let bits = self.bitcast(x, Kind::I64);
        let exponent = self.sub(self.lshr(bits, self.int(52)), self.int(1023));
        let fraction = self.and(bits, self.int((1 << 52) - 1));
        let mantissa = self.bitcast(self.or(fraction, self.int(1023 << 52)), Kind::F64);
        let large = self.fcmp(FloatPredicate::OGT, mantissa, self.f64(std::f64::consts::SQRT_2));
        let mantissa = self.select(large, self.fmul(mantissa, self.f64(0.5)), mantissa);
        let exponent = self.select(large, self.add(exponent, self.int(1)), exponent);
        let s = self.fdiv(self.fsub(mantissa, self.f64(1.0)), self.fadd(mantissa, self.f64(1.0)));
        let series: Vec<f64> = (0..12).rev().map(|i| 2.0 / f64::from(2 * i + 1)).collect();
        let mantissa = self.fmul(s, self.horner(self.fmul(s, s), Kind::F64, &series));
        let exponent = self.to_float(exponent, Kind::F64);
        let low = self.fma(exponent, self.f64(LN2[1]), mantissa);
        self.fma(exponent, self.f64(LN2[0]), low)
    }

    /// `e^x` of f64 lanes between −700 and 700, to a few of their last bits: Taylor polynomial on ±ln 2 / 2.
    pub fn exp_f64(&self, x: Val<'c>) -> Val<'c> {
        let lanes = |value: f64| self.splat(self.f64(value));
        let n = self.overloaded("llvm.roundeven", &[self.fmul(x, lanes(std::f64::consts::LOG2_E))]);
        let minus_n = self.fsub(lanes(0.0), n);
        let r = LN2.into_iter().fold(x, |r, part| self.fma(minus_n, lanes(part), r));
        let taylor: Vec<f64> = (0..14).rev().map(|k| 1.0 / (1..=k).map(f64::from).product::<f64>()).collect();
        let exponent = self.add(self.to_int(n, Kind::I64), self.splat(self.int(1023)));
        let power = self.bitcast(self.shl(exponent, self.splat(self.int(52))), Kind::F64);
        self.fmul(self.horner(r, Kind::F64, &taylor), power)
    }

    /// Lanes `first .. first + 16` of the 32 lanes of `low` and `high`; `first` is below 16.
    pub fn straddle(&self, low: Val<'c>, high: Val<'c>, first: usize) -> Val<'c> {
        if first == 0 {
            return low;
        }
        if let Some(lane) = self.lane {
            // Both values move by the same distance around the half warp; each lane then takes the one that it needs.
            let from = self.and(self.add(self.trunc(lane, Kind::I32), self.int32(first as i32)), self.int32(15));
            let wraps = self.icmp(IntPredicate::ULT, from, self.int32(first as i32));
            return self.select(wraps, self.shuffle("idx", high, from), self.shuffle("idx", low, from));
        }
        self.pick(low, high, first)
    }
}
