//! Elementary functions with the same bits on every machine. The C library's `exp` and `ln` are not: they pick a variant
//! by the CPU and change between releases, and one changed bit may change a token. These use only additions,
//! multiplications and divisions, which IEEE 754 defines exactly, and never a fused multiply-add.

/// The least exponent whose power of e is not taken for zero.
const LEAST: f32 = -87.0;

/// e to the power of `x`, with a relative error below 2⁻²²; zero below -87. Written without branches, so that loops over
/// slices become vector code.
#[inline]
pub fn exp(x: f32) -> f32 {
    let value = power(x.clamp(LEAST, 88.0));
    if x < LEAST { 0.0 } else { value }
}

/// [`exp`] from -87 to 88.
#[inline]
fn power(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer and leaves it in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4; // 11 bits, so that its product with a small integer is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW; // |r| ≤ ln 2 / 2
    let mut sum = 1.0 / 5040.0;
    for factor in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = sum * r + 1.0 / factor;
    }
    let exponent = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    sum * f32::from_bits(exponent)
}

/// The natural logarithm of a positive normal number, with an error of a few units in the last place.
pub fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52); // [1, 2)
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    // ln m = 2 atanh s = 2 (s + s³/3 + s⁵/5 + …), |s| < 0.172
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for odd in (3..=23).rev().step_by(2) {
        sum = (sum + 1.0 / f64::from(odd)) * square;
    }
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * (s + s * sum)
}

/// Values that are worked on side by side.
const LANES: usize = 16;

/// The largest value; negative infinity where there is none. NaNs are passed over.
#[expect(clippy::inline_always, reason = "to be compiled for the vectors of its caller")]
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = greater(*lane, x);
        }
    }
    lanes.iter().chain(chunks.remainder()).copied().fold(f32::NEG_INFINITY, greater)
}

/// The sum of a function of all values. Its order is fixed: 16 lanes within blocks of 1024, then lanes in order, then blocks in
/// order.
#[expect(clippy::inline_always, reason = "to be compiled for the vectors of its caller")]
#[inline(always)]
pub fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0.0;
    for block in values.chunks(1024) {
        let mut lanes = [0f32; LANES];
        let mut chunks = block.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += of(x);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane += of(x);
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
    }
    total
}

/// The largest value and the logarithm of the sum of the exponentials, relative to the largest: `ln Σ exp(xᵢ - max)`, in
/// the order of [`sum`]. The logarithm is NaN when a value is NaN or +∞, or when all are -∞.
#[expect(clippy::inline_always, reason = "to be compiled for the vectors of its caller")]
#[inline(always)]
pub fn log_sum_exp(values: &[f32]) -> (f32, f64) {
    let max = max(values);
    if !max.is_finite() {
        return (max, f64::NAN);
    }
    // The largest term is one, beside which e⁻⁸⁷ is as good as zero, and saves two instructions.
    let total = sum(values, |x| power(if x - max < LEAST { LEAST } else { x - max }));
    (max, if total.is_finite() { ln(total) } else { f64::NAN })
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these results are exact")]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_c_librarys() {
        for i in -86_999..88_000 {
            let x = i as f32 * 0.001;
            let wanted = f64::from(x).exp();
            let error = (f64::from(exp(x)) - wanted).abs() / wanted;
            assert!(error < 2f64.powi(-22), "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn ln_is_close_to_the_c_librarys() {
        for i in 1..200_000u32 {
            for x in [f64::from(i) / 200_000.0, f64::from(i), 1.0 - f64::from(i) * 2f64.powi(-53)] {
                let (found, wanted) = (ln(x), x.ln());
                assert!(
                    (found - wanted).abs() <= 4e-16 * wanted.abs().max(1e-300) + 1e-300,
                    "ln({x}): {found} {wanted}"
                );
            }
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn max_passes_over_what_is_no_number() {
        for count in [1, 15, 16, 17, 100] {
            for place in 0..count {
                let mut values = vec![-2.0; count];
                values[place] = 3.0;
                assert_eq!(max(&values), 3.0, "{place} of {count}");
                values[place] = f32::NAN;
                assert_eq!(max(&values), if count == 1 { f32::NEG_INFINITY } else { -2.0 });
            }
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn log_sum_exp_of_equal_values_counts_them() {
        for n in [1, 15, 16, 17, 1023, 1025, 5000] {
            let (max, log) = log_sum_exp(&vec![3.5; n]);
            assert_eq!(max, 3.5);
            assert!((log - (n as f64).ln()).abs() < 1e-12, "{n}: {log}");
        }
    }

    #[test]
    fn log_sum_exp_reports_what_is_not_finite() {
        assert!(log_sum_exp(&[0.0, f32::NAN]).1.is_nan());
        assert!(log_sum_exp(&[0.0, f32::INFINITY]).1.is_nan());
        assert!(log_sum_exp(&[f32::NEG_INFINITY; 3]).1.is_nan());
        assert!(log_sum_exp(&[]).1.is_nan());
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 1.0]), (1.0, 0.0));
    }
}
