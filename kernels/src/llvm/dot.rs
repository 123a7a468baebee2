//! Integer dot products of weights and activations, exact on every machine, and what else depends on the width of vector
//! registers.
//!
//! Weights are unsigned bytes, activations signed bytes of at most 127 in magnitude, four of each in every 32-bit lane.
//! With VNNI (and on GPUs) one instruction adds four products. Without, `vpmaddubsw` adds two products to 16 bits, which
//! saturate. Weights of up to 6 bits leave room for that, and for sums of more such pairs before they must be widened;
//! above that, even and odd bytes are widened to 16 bits first.
//!
//! Products of bf16 pairs have the same bits with and without an instruction for them.

use inkwell::FloatPredicate;
use inkwell::types::VectorType;
use inkwell::values::{BasicValueEnum, PointerValue};

use super::builder::{Builder, Kind, LANES, Val, ok};
use crate::targets::Machine;

/// The largest magnitude of an activation.
const MAX_ACTIVATION: i32 = 127;
/// Bytes of a lane value of 32-bit elements.
const LANE_BYTES: usize = 4 * LANES;

/// A dot product in the making, per lane.
#[derive(Clone, Copy, Debug)]
pub struct Dot<'c> {
    sum: Val<'c>,
    /// Sums of pairs in 16 bits, and of how many quads.
    pairs: Option<(Val<'c>, i32)>,
}

impl<'c> Dot<'c> {
    /// A dot product that begins at `sum`.
    pub fn from(sum: Val<'c>) -> Dot<'c> {
        Dot { sum, pairs: None }
    }
}

impl<'c> Builder<'c> {
    /// Adds, per lane, the products of four unsigned bytes of `weights`, none above `most`, with four signed bytes of
    /// `activations`.
    pub fn dot4(&self, dot: Dot<'c>, weights: Val<'c>, activations: Val<'c>, most: u8) -> Dot<'c> {
        if self.target.machine == Machine::Nvptx {
            return Dot::from(self.intrinsic("llvm.nvvm.idp4a.u.s", &[], &[weights, activations, dot.sum]));
        }
        let (weight_bytes, activation_bytes) = (self.recast(weights, Kind::I8), self.recast(activations, Kind::I8));
        if self.target.has("avx512_vnni") || self.target.has("avx_vnni") {
            let names = ["llvm.x86.avx512.vpdpbusd.256", "llvm.x86.avx512.vpdpbusd.512"];
            return Dot::from(self.on_registers(names, &[dot.sum, weight_bytes, activation_bytes]));
        }
        let quads = i32::from(i16::MAX) / (2 * MAX_ACTIVATION * i32::from(most));
        if quads == 0 {
            return Dot::from(self.dot4_by_halves(dot.sum, weights, activations));
        }
        let names = ["llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx512.pmaddubs.w.512"];
        let pairs = self.on_registers(names, &[weight_bytes, activation_bytes]);
        let (pairs, count) = match dot.pairs {
            Some((sum, count)) => (self.add(sum, pairs), count + 1),
            None => (pairs, 1),
        };
        let dot = Dot { pairs: Some((pairs, count)), ..dot };
        if count < quads { dot } else { Dot::from(self.total(dot)) }
    }

    /// The dot product.
    pub fn total(&self, dot: Dot<'c>) -> Val<'c> {
        let Some((pairs, _)) = dot.pairs else { return dot.sum };
        let ones = self.recast(self.int_lanes(0x0001_0001), Kind::I16);
        self.add(dot.sum, self.multiply_pairs(pairs, ones))
    }

    /// The products of bytes as those of 16-bit numbers: the even ones, then the odd ones.
    fn dot4_by_halves(&self, sum: Val<'c>, weights: Val<'c>, activations: Val<'c>) -> Val<'c> {
        let eight = self.recast(self.int_lanes(0x0008_0008), Kind::I16);
        let odd = self.lshr(self.recast(weights, Kind::I16), eight);
        let even = self.recast(self.and(weights, self.int_lanes(0x00ff_00ff)), Kind::I16);
        let halves = self.recast(activations, Kind::I16);
        let (odd_activations, even_activations) = (self.ashr(halves, eight), self.ashr(self.shl(halves, eight), eight));
        let sum = self.add(sum, self.multiply_pairs(even, even_activations));
        self.add(sum, self.multiply_pairs(odd, odd_activations))
    }

    /// Per 32-bit lane the sum of the products of both 16-bit numbers.
    fn multiply_pairs(&self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.on_registers(["llvm.x86.avx2.pmadd.wd", "llvm.x86.avx512.pmaddw.d.512"], &[a, b])
    }

    /// A uniform i32 times a constant, both within 16 bits, in every lane. On x86 it is spread first: a product in a register
    /// of integers takes so long on its way to the vectors that dot products which begin with it wait.
    pub fn spread_product(&self, value: Val<'c>, constant: i32) -> Val<'c> {
        if !self.is_vector() {
            return self.mul(value, self.int32(constant));
        }
        // The upper half of a lane is multiplied with zero.
        let factor = self.recast(self.int_lanes(constant & 0xffff), Kind::I16);
        self.dot2(self.int_lanes(0), factor, self.splat(value))
    }

    /// Thirty-two consecutive signed bytes as 16-bit numbers, two in every lane; x86 only.
    pub fn load_pairs(&self, pointer: PointerValue<'c>) -> Val<'c> {
        let count = (2 * LANES) as u32;
        let bytes = self.aligned_load(self.context.i8_type().vec_type(count).into(), pointer, 1);
        let ty = self.context.i16_type().vec_type(count);
        Val(ok(self.llvm.build_int_s_extend(bytes.0.into_vector_value(), ty, "")).into())
    }

    /// Adds, per 32-bit lane, the products of both 16-bit numbers, of `a` as loaded in pairs and of `b` in lanes; x86 only.
    /// The caller sees to it that sums stay within 32 bits.
    pub fn dot2(&self, sum: Val<'c>, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        let b = self.recast(b, Kind::I16);
        if self.target.has("avx512_vnni") || self.target.has("avx_vnni") {
            let names = ["llvm.x86.avx512.vpdpwssd.256", "llvm.x86.avx512.vpdpwssd.512"];
            return self.on_registers(names, &[sum, a, b]);
        }
        self.add(sum, self.multiply_pairs(a, b))
    }

    /// The bits of lanes rounded to bf16, to even, in the low halves of 32-bit lanes; x86 only. A NaN stays one.
    pub fn to_bf16(&self, value: Val<'c>) -> Val<'c> {
        if self.target.has("avx512_bf16") {
            let rounded = self.intrinsic("llvm.x86.avx512bf16.cvtneps2bf16.512", &[], &[value]);
            let ty = self.context.i16_type().vec_type(LANES as u32);
            let bits = Val(ok(self.llvm.build_bit_cast(rounded.0.into_vector_value(), ty, "")));
            return self.zext(bits, Kind::I32);
        }
        let bits = self.bitcast(value, Kind::I32);
        let high = self.lshr(bits, self.int_lanes(16));
        let odd = self.and(high, self.int_lanes(1));
        let carried = self.add(bits, self.add(odd, self.int_lanes(0x7fff)));
        let is_number = self.fcmp(FloatPredicate::ORD, value, value);
        let quiet = self.or(high, self.int_lanes(0x40));
        self.select(is_number, self.lshr(carried, self.int_lanes(16)), quiet)
    }

    /// Pairs of bf16 in 32-bit lanes: the elements of one block and, in the upper halves, those of the next, or zeros where
    /// there is none.
    pub fn bf16_pairs(&self, blocks: &[Val<'c>]) -> Val<'c> {
        let upper = blocks.get(1).map_or(self.int_lanes(0), |&block| self.shl(self.to_bf16(block), self.int_lanes(16)));
        self.or(self.to_bf16(blocks[0]), upper)
    }

    /// Adds, per 32-bit lane, the products of both bf16 halves of `a` and `b`: the upper ones, then the lower ones, each
    /// rounded, as `vdpbf16ps` does; x86 only.
    pub fn dot_bf16(&self, sum: Val<'c>, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        if self.target.has("avx512_bf16") {
            let ty = self.context.bf16_type().vec_type(2 * LANES as u32);
            let pairs = |value: Val<'c>| Val(ok(self.llvm.build_bit_cast(value.0.into_vector_value(), ty, "")));
            return self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", &[], &[sum, pairs(a), pairs(b)]);
        }
        let upper = |value| self.bitcast(self.and(value, self.int_lanes(0xffff_0000_u32 as i32)), Kind::F32);
        let lower = |value| self.bitcast(self.shl(value, self.int_lanes(16)), Kind::F32);
        self.fma(lower(a), lower(b), self.fma(upper(a), upper(b), sum))
    }

    /// The 64 bytes of a lane value as elements of another kind.
    pub(super) fn recast(&self, value: Val<'c>, kind: Kind) -> Val<'c> {
        let BasicValueEnum::VectorValue(vector) = value.0 else { return value };
        let count = (LANE_BYTES / kind.bytes()) as u32;
        let ty = match kind {
            Kind::I8 => self.context.i8_type().vec_type(count),
            Kind::I16 => self.context.i16_type().vec_type(count),
            _ => self.context.i32_type().vec_type(count),
        };
        Val(ok(self.llvm.build_bit_cast(vector, ty, "")))
    }

    /// Calls an x86 intrinsic that takes whole registers on values of 64 bytes: by its name for 256 bits twice, or by
    /// that for 512 bits.
    pub(super) fn on_registers(&self, [half, whole]: [&str; 2], args: &[Val<'c>]) -> Val<'c> {
        if self.target.vector_bits == 512 {
            return self.intrinsic(whole, &[], args);
        }
        let part = |high: bool| {
            let args: Vec<_> = args.iter().map(|&arg| self.half(arg, high)).collect();
            self.intrinsic(half, &[], &args).0.into_vector_value()
        };
        let (low, high) = (part(false), part(true));
        let order = self.indices(0..2 * low.get_type().get_size());
        Val(ok(self.llvm.build_shuffle_vector(low, high, order, "")).into())
    }

    /// The lower or upper half of a vector.
    fn half(&self, value: Val<'c>, high: bool) -> Val<'c> {
        let vector = value.0.into_vector_value();
        let count = vector.get_type().get_size() / 2;
        let first = if high { count } else { 0 };
        let order = self.indices(first..first + count);
        Val(ok(self.llvm.build_shuffle_vector(vector, vector.get_type().get_poison(), order, "")).into())
    }

    fn indices(&self, range: std::ops::Range<u32>) -> inkwell::values::VectorValue<'c> {
        let i32_type = self.context.i32_type();
        VectorType::const_vector(&range.map(|i| i32_type.const_int(u64::from(i), false)).collect::<Vec<_>>())
    }
}
