//! Mathematics of lane programs: lane trees, exponential, sine and cosine. No library calls.

use inkwell::{FloatPredicate, IntPredicate};

use super::builder::{Builder, Kind, Val};

/// Below this argument `exp` is zero: the result would be subnormal.
const EXP_MIN: f32 = -87.0;
/// Above this argument `exp` saturates just below infinity.
const EXP_MAX: f32 = 88.0;
/// ln 2 in two parts: the first has few bits, so that its product with a small integer is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 · 2^23: a float of this size counts in steps of one.
const NO_FRACTION: f32 = 12_582_912.0;
/// π/2 in three parts of 33, 33 and 53 bits (Cody and Waite), for arguments up to 2^20.
const HALF_PI: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_7e-21];

impl<'c> Builder<'c> {
    /// The sum of all lanes by the lane tree: distances 8, 4, 2, 1.
    pub fn sum(&self, value: Val<'c>) -> Val<'c> {
        self.tree(value, |a, b| self.fadd(a, b))
    }

    /// The integer sum of all lanes.
    pub fn sum_int(&self, value: Val<'c>) -> Val<'c> {
        self.tree(value, |a, b| self.add(a, b))
    }

    /// The maximum of all lanes.
    pub fn max(&self, value: Val<'c>) -> Val<'c> {
        self.tree(value, |a, b| self.fmax(a, b))
    }

    /// The largest magnitude of all lanes of two f32 values, by its bits, which sort as the numbers do; a NaN is larger than
    /// every number.
    pub fn max_magnitude(&self, halves: [Val<'c>; 2]) -> Val<'c> {
        let larger = |a, b| self.overloaded("llvm.smax", &[a, b]);
        let bits = halves.map(|value| self.bitcast(self.overloaded("llvm.fabs", &[value]), Kind::I32));
        self.bitcast(self.tree(larger(bits[0], bits[1]), larger), Kind::F32)
    }

    fn tree(&self, value: Val<'c>, combine: impl Fn(Val<'c>, Val<'c>) -> Val<'c>) -> Val<'c> {
        let mut value = value;
        for distance in [8, 4, 2, 1] {
            value = combine(value, self.butterfly(value, distance));
        }
        self.first(value)
    }

    /// A polynomial by Horner's rule, highest coefficient first, one fused multiply-add per step.
    pub(super) fn horner(&self, x: Val<'c>, kind: Kind, coefficients: &[f64]) -> Val<'c> {
        let constant = |c: f64| match kind {
            Kind::F64 => Val(self.context.f64_type().const_float(c).into()),
            _ => self.float(c as f32),
        };
        let lanes = |c: f64| if x.0.is_vector_value() { self.splat(constant(c)) } else { constant(c) };
        let mut result = lanes(coefficients[0]);
        for &coefficient in &coefficients[1..] {
            result = self.fma(result, x, lanes(coefficient));
        }
        result
    }

    /// `e^x` per lane, relative error under 2e-7; 0 below −87, finite above 88. Range reduction by ln 2 in two parts,
    /// then the Taylor polynomial of degree 7 on ±ln 2 / 2.
    pub fn exp(&self, x: Val<'c>) -> Val<'c> {
        let underflow = self.fcmp(FloatPredicate::OLT, x, self.float_lanes(EXP_MIN));
        let clamped = self.overloaded("llvm.minnum", &[x, self.float_lanes(EXP_MAX)]);
        let clamped = self.fmax(clamped, self.float_lanes(EXP_MIN));
        let n = self.overloaded("llvm.roundeven", &[self.fmul(clamped, self.float_lanes(std::f32::consts::LOG2_E))]);
        let minus_n = self.fsub(self.float_lanes(0.0), n);
        let r = self.fma(minus_n, self.float_lanes(LN2_HIGH), clamped);
        let r = self.fma(minus_n, self.float_lanes(LN2_LOW), r);
        let p =
            self.horner(r, Kind::F32, &[1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]);
        let exponent = self.add(self.to_int(n, Kind::I32), self.int_lanes(127));
        let power = self.bitcast(self.shl(exponent, self.int_lanes(23)), Kind::F32);
        self.select(underflow, self.float_lanes(0.0), self.fmul(p, power))
    }

    /// `e^x` per lane for `x ≤ 0`, relative error under 5e-6: for weights that are rounded to bf16. 0 below −87. The number of
    /// halvings is found by adding a number so large that its sum has no fraction; then the Taylor polynomial of degree 5.
    pub fn exp_coarse(&self, x: Val<'c>) -> Val<'c> {
        let shifted = self.fma(x, self.float_lanes(std::f32::consts::LOG2_E), self.float_lanes(NO_FRACTION));
        let n = self.fsub(shifted, self.float_lanes(NO_FRACTION));
        let r = self.fma(n, self.float_lanes(-std::f32::consts::LN_2), x);
        let p = self.horner(r, Kind::F32, &[1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]);
        let exponent = self.shl(self.bitcast(shifted, Kind::I32), self.int_lanes(23));
        let power = self.bitcast(self.add(exponent, self.int_lanes(1.0f32.to_bits() as i32)), Kind::F32);
        let underflow = self.fcmp(FloatPredicate::OLT, x, self.float_lanes(EXP_MIN));
        self.select(underflow, self.float_lanes(0.0), self.fmul(p, power))
    }

    /// `e^x` of a uniform value, with the same bits as a lane would get.
    pub fn exp_uniform(&self, x: Val<'c>) -> Val<'c> {
        self.first(self.exp(self.splat(x)))
    }

    /// Cosine and sine of f64 lanes in `[0, 2^20)`, rounded to f32. Taylor polynomials on ±π/4 in f64.
    pub fn cos_sin(&self, angle: Val<'c>) -> (Val<'c>, Val<'c>) {
        let f64_lanes = |value: f64| self.splat(Val(self.context.f64_type().const_float(value).into()));
        let n = self.overloaded("llvm.roundeven", &[self.fmul(angle, f64_lanes(std::f64::consts::FRAC_2_PI))]);
        let minus_n = self.fsub(f64_lanes(0.0), n);
        let mut r = angle;
        for part in HALF_PI {
            r = self.fma(minus_n, f64_lanes(part), r);
        }
        let r2 = self.fmul(r, r);
        let factorials = |from: u32| {
            let coefficients = (0..7).map(move |i| {
                let order = from + 2 * (6 - i);
                let sign = if (order / 2).is_multiple_of(2) { 1.0 } else { -1.0 };
                sign / (1..=order).map(f64::from).product::<f64>()
            });
            coefficients.collect::<Vec<f64>>()
        };
        let cos = self.horner(r2, Kind::F64, &factorials(0));
        let sin = self.fmul(r, self.horner(r2, Kind::F64, &factorials(1)));
        let quadrant = self.and(self.to_int(n, Kind::I32), self.int_lanes(3));
        let bit = |value: Val<'c>, mask: i32| {
            self.icmp(IntPredicate::NE, self.and(value, self.int_lanes(mask)), self.int_lanes(0))
        };
        let swapped = bit(quadrant, 1);
        let negate = |flag: Val<'c>, value: Val<'c>| self.select(flag, self.fsub(f64_lanes(0.0), value), value);
        let cos_result = negate(bit(self.add(quadrant, self.int_lanes(1)), 2), self.select(swapped, sin, cos));
        let sin_result = negate(bit(quadrant, 2), self.select(swapped, cos, sin));
        (self.to_width(cos_result, Kind::F32), self.to_width(sin_result, Kind::F32))
    }

    /// Replaces each byte of 32-bit values, a number below 16, by its entry of a table.
    pub fn look_up(&self, table: &[u8; 16], indices: Val<'c>) -> Val<'c> {
        if indices.0.is_vector_value() {
            let byte = self.context.i8_type();
            let entries: Vec<_> = (0..64).map(|i| byte.const_int(u64::from(table[i % 16]), false)).collect();
            let entries = Val(inkwell::types::VectorType::const_vector(&entries).into());
            let found = self.on_registers(
                ["llvm.x86.avx2.pshuf.b", "llvm.x86.avx512.pshuf.b.512"],
                &[entries, self.recast(indices, Kind::I8)],
            );
            return self.recast(found, Kind::I32);
        }
        if self.is_vector() { self.look_up_by_shifts(table, indices) } else { self.look_up_by_permutes(table, indices) }
    }

    /// The same for one value of a CPU: two 64-bit words hold the table, and a byte is shifted out of one of them.
    fn look_up_by_shifts(&self, table: &[u8; 16], indices: Val<'c>) -> Val<'c> {
        let half = |entries: &[u8]| self.int(entries.iter().rev().fold(0, |word, &entry| word << 8 | i64::from(entry)));
        let (low, high) = (half(&table[..8]), half(&table[8..]));
        let entry = |i: i32| {
            let index = self.and(self.lshr(indices, self.int32(8 * i)), self.int32(0xf));
            let in_low = self.icmp(IntPredicate::ULT, index, self.int32(8));
            let shift = self.zext(self.shl(self.and(index, self.int32(7)), self.int32(3)), Kind::I64);
            let byte = self.and(self.lshr(self.select(in_low, low, high), shift), self.int(0xff));
            self.shl(self.trunc(byte, Kind::I32), self.int32(8 * i))
        };
        (1..4).fold(entry(0), |word, i| self.or(word, entry(i)))
    }

    /// The same for a thread of a GPU. Eight bytes are looked up at once, by three bits of a nibble for each (PTX ISA,
    /// `prmt`; its fourth bit asks for copies of the sign): so in both halves of the table, and the fourth bit of each index
    /// chooses.
    fn look_up_by_permutes(&self, table: &[u8; 16], indices: Val<'c>) -> Val<'c> {
        let word = |at: usize| {
            let bytes = [0, 1, 2, 3].map(|i| table[at + i]);
            self.int32(i32::from_le_bytes(bytes))
        };
        let mask = |value: Val<'c>, mask: u32| self.and(value, self.int32(mask as i32));
        let permute =
            |low: Val<'c>, high: Val<'c>, by: Val<'c>| self.intrinsic("llvm.nvvm.prmt", &[], &[low, high, by]);
        // Nibbles of two bytes, then of four, side by side.
        let pairs = mask(self.or(indices, self.lshr(indices, self.int32(4))), 0x00ff_00ff);
        let nibbles = self.or(pairs, self.lshr(pairs, self.int32(8)));
        let within = mask(nibbles, 0x7777);
        let (low, high) = (permute(word(0), word(4), within), permute(word(8), word(12), within));
        let chosen = self.or(self.lshr(mask(nibbles, 0x8888), self.int32(1)), self.int32(0x3210));
        permute(low, high, chosen)
    }
}
