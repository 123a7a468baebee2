//! How far two sets of logits lie apart.

/// ‖found − expected‖ / ‖expected‖ over all elements.
///
/// # Panics
/// When the lengths differ, or the expected values are all zero.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "as many values found as expected");
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(&f, &e)| square(f64::from(f) - f64::from(e))).sum();
    let norm: f64 = expected.iter().map(|&e| square(f64::from(e))).sum();
    assert!(norm > 0.0, "expected values that are all zero say nothing");
    (difference / norm).sqrt()
}

/// Mean over the rows of the Kullback–Leibler divergence, in nats, of `found`'s distribution from `expected`'s.
///
/// # Panics
/// When the shapes differ.
pub fn mean_divergence(found: &[f32], expected: &[f32], vocabulary: usize) -> f64 {
    mean_over_rows(found, expected, vocabulary, |found, expected| {
        let (found, expected) = (log_softmax(found), log_softmax(expected));
        expected.iter().zip(&found).map(|(e, f)| e.exp() * (e - f)).sum()
    })
}

/// The share of rows whose largest logit has the same index; ties go to the lowest.
///
/// # Panics
/// When the shapes differ.
pub fn top_1_agreement(found: &[f32], expected: &[f32], vocabulary: usize) -> f64 {
    mean_over_rows(found, expected, vocabulary, |found, expected| f64::from(argmax(found) == argmax(expected)))
}

/// The index of the largest value, the lowest of them on a tie.
pub fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn mean_over_rows(found: &[f32], expected: &[f32], vocabulary: usize, of: impl Fn(&[f32], &[f32]) -> f64) -> f64 {
    assert_eq!(found.len(), expected.len(), "as many logits found as expected");
    assert!(!expected.is_empty() && expected.len().is_multiple_of(vocabulary), "whole rows of {vocabulary} logits");
    let rows = found.chunks(vocabulary).zip(expected.chunks(vocabulary));
    rows.map(|(f, e)| of(f, e)).sum::<f64>() / (expected.len() / vocabulary) as f64
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted: Vec<f64> = row.iter().map(|&x| f64::from(x) - f64::from(largest)).collect();
    let log_sum = shifted.iter().map(|x| x.exp()).sum::<f64>().ln();
    shifted.iter().map(|x| x - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Room for the rounding of the f32 inputs below.
    const CLOSE: f64 = 1e-6;

    #[test]
    fn relative_error_is_the_ratio_of_norms() {
        assert!((relative_error(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < CLOSE);
    }

    #[test]
    fn divergence_of_a_fair_and_a_biased_coin() {
        // A fair coin against one that falls 3 to 1: (ln(2/3) + ln 2) / 2.
        let expected = 0.5 * ((2.0f64 / 3.0).ln() + 2.0f64.ln());
        let found = mean_divergence(&[3.0f32.ln(), 0.0], &[7.0, 7.0], 2);
        assert!((found - expected).abs() < CLOSE, "{found} and {expected}");
    }

    #[test]
    fn agreement_counts_rows_and_ties_go_low() {
        let expected = [1.0, 1.0, 0.0, /**/ 0.0, 2.0, 1.0];
        let found = [5.0, 4.0, 0.0, /**/ 0.0, 1.0, 3.0];
        assert!((top_1_agreement(&found, &expected, 3) - 0.5).abs() < CLOSE);
    }
}
