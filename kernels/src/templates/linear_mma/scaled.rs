//! Integer products of one group of columns, scaled and added up: what all kernels for tensor cores do with them.

use lathe_ir::scheme::{Scheme, Zero};

use crate::llvm::builder::{Builder, Kind, Val};
use crate::llvm::memory::Var;
use crate::spec::GROUP;

/// 1.5 · 2²³: added to an integer below 2²² in magnitude, its bits are those of the sum as an f32.
const MAGIC: f32 = 12_582_912.0;

/// Groups of the scheme in 32 columns.
pub fn parts(scheme: Scheme) -> usize {
    GROUP / scheme.group
}

/// A group's weights in a thread: words of both its rows, their scales and minima.
pub struct Fragment<'c> {
    pub words: Vec<Val<'c>>,
    pub scales: Vec<Val<'c>>,
    pub mins: Vec<Val<'c>>,
}

/// A group's activations in a thread: words of one row, and of the rows of both its columns of results the scales, where
/// dot products begin, and the scaled sums if the weights have minima.
pub struct Activations<'c> {
    pub words: Vec<Val<'c>>,
    scales: [Val<'c>; 2],
    starts: [Val<'c>; 2],
    weighted: Option<[Val<'c>; 2]>,
}

/// Whether a record's scaled sum is needed, and not its sum: see [`activations`].
pub fn wants_scaled_sums(scheme: Scheme) -> bool {
    parts(scheme) == 1 && scheme.zero == Zero::Min
}

/// 32 columns of a tile of activations: one for each group of the scheme. `words` are this thread's of each group;
/// `scales` and `sums` are of the rows of both its columns of results, the sums scaled where [`wants_scaled_sums`].
pub fn activations<'c>(
    b: &Builder<'c>,
    scheme: Scheme,
    words: Vec<Vec<Val<'c>>>,
    scales: [Val<'c>; 2],
    sums: [Val<'c>; 2],
) -> Vec<Activations<'c>> {
    let sums: Vec<[Val<'c>; 2]> = if parts(scheme) == 1 {
        vec![sums]
    } else {
        // The sums of the first half are its products with ones; the second half has what is left.
        let ones = [b.int32(0x0101_0101); 2];
        let [first, second, ..] = b.mma(&ones, &words[0], [b.int32(0); 4]);
        vec![[first, second], [b.sub(sums[0], first), b.sub(sums[1], second)]]
    };
    let magic = b.int32(MAGIC.to_bits() as i32);
    let zero = b.int32(-i32::from(scheme.zero_level()));
    let of = |(words, sums): (Vec<Val<'c>>, [Val<'c>; 2])| {
        let (starts, weighted) = match scheme.zero {
            Zero::Symmetric => (sums.map(|sum| b.add(magic, b.mul(sum, zero))), None),
            Zero::Min if wants_scaled_sums(scheme) => ([magic; 2], Some(sums)),
            Zero::Min => ([magic; 2], Some([0, 1].map(|i| b.fmul(scales[i], b.to_float(sums[i], Kind::F32))))),
        };
        Activations { words, scales, starts, weighted }
    };
    words.into_iter().zip(sums).map(of).collect()
}

/// `sum = fma(f32(dot) · scale, x scale, sum)`, then with minima `sum = fma(min, x scale · x sum, sum)`: for both rows those
/// of the first `columns` columns of results.
pub fn accumulate<'c>(
    b: &Builder<'c>,
    weights: &Fragment<'c>,
    activations: &Activations<'c>,
    sums: &[Var<'c>],
    columns: usize,
) {
    let [start, other] = activations.starts;
    let dots = b.mma(&weights.words, &activations.words, [start, other, start, other]);
    for (i, (dot, &sum)) in dots.into_iter().zip(sums).enumerate() {
        let (row, column) = (i / 2, i % 2);
        if column >= columns {
            continue;
        }
        let dot = b.fsub(b.bitcast(dot, Kind::F32), b.float(MAGIC));
        let mut value = b.fma(b.fmul(dot, weights.scales[row]), activations.scales[column], b.get(sum));
        if let (Some(&min), Some(weighted)) = (weights.mins.get(row), activations.weighted) {
            value = b.fma(min, weighted[column], value);
        }
        b.set(sum, value);
    }
}
