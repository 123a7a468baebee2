//! Seeded data for kernel tests, and the comparisons.

use lathe_ir::eval::{Data, Tensor};
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};
use lathe_ir::types::DType;
use lathe_kernels::packing::{pack, quantize};

/// Relative error allowed where a kernel computes in f32 with roundings of its own (own exponential, other order).
pub const F32_BOUND: f64 = 2e-6;

/// Relative error allowed over caches of codes, where a kernel also rounds queries to 16 bits and weights to 15.
pub const CODES_BOUND: f64 = 6e-5;

/// Relative error allowed over caches of bf16, where a kernel also rounds queries and weights to 8 bits.
pub const PAIRS_BOUND: f64 = 1.0 / 256.0;

/// The error allowed of an attention, by the element type of its cache.
pub fn attention_bound(dtype: DType) -> f64 {
    match dtype {
        DType::Int8 => CODES_BOUND,
        DType::Bf16 => PAIRS_BOUND,
        _ => F32_BOUND,
    }
}

/// A small generator of seeded values (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A value below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// A float in ±2.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    }

    /// Many floats.
    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// Little-endian bytes of floats.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Little-endian bytes of indices.
pub fn i32_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Floats from little-endian bytes.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// A random matrix in a scheme, and its packed form.
pub fn weight(random: &mut Random, scheme: Scheme, rows: usize, cols: usize) -> (Matrix, Vec<u8>) {
    let mut values = random.floats(rows * cols);
    for value in &mut values {
        match scheme {
            Scheme::BF16 => *value = half::bf16::from_f32(*value).to_f32(),
            Scheme::F16 => *value = half::f16::from_f32(*value).to_f32(),
            _ => {}
        }
    }
    let matrix = quantize(&Matrix { rows, cols, data: MatrixData::Float(values) }, scheme);
    let mut packed = Vec::new();
    pack(&matrix, scheme, &mut packed);
    (matrix, packed)
}

/// The records of a quantized activation, as kernels read them.
pub fn act_records(act: &Tensor) -> Vec<u8> {
    let Data::Act { codes, scales, group } = &act.data else { panic!("not a quantized activation") };
    let k = act.cols();
    let mut out = Vec::new();
    for (codes, scales) in codes.chunks(k).zip(scales.chunks(k / group)) {
        let sums: Vec<i32> =
            codes.chunks(*group).map(|group| group.iter().map(|&code| i32::from(code)).sum()).collect();
        out.extend(codes.iter().map(|&code| code as u8));
        out.extend(f32_bytes(scales));
        out.extend(scales.iter().zip(&sums).flat_map(|(scale, &sum)| (scale * sum as f32).to_le_bytes()));
        out.extend(i32_bytes(&sums));
    }
    out
}

/// Asserts `‖found − expected‖ / ‖expected‖ ≤ bound`.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], bound: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = square(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let norm = square(&mut expected.iter().map(|&value| f64::from(value)));
    let error = (difference / norm).sqrt();
    assert!(error <= bound, "{what}: relative error {error:.3e} above {bound:.1e}");
}
