//! Finds the tokens of the greatest logits without sorting the vocabulary: the greatest of each block of logits bounds from
//! below what must be looked at.

use std::cmp::Ordering;

/// Logits in a block.
pub const BLOCK: usize = 64;

/// Looks for great logits; owns the memory that it takes.
#[derive(Debug, Default)]
pub struct Select {
    maxima: Vec<f32>, // [ceil(V / BLOCK)]
    order: Vec<f32>,  // [ceil(V / BLOCK)]
}

impl Select {
    /// A selection that never allocates for vocabularies up to this size.
    pub fn new(vocabulary: usize) -> Select {
        let blocks = vocabulary.div_ceil(BLOCK);
        Select { maxima: Vec::with_capacity(blocks), order: Vec::with_capacity(blocks) }
    }

    /// Leaves the tokens of the `n` greatest logits in `kept`, greatest first, equal ones by ascending id.
    #[inline]
    pub fn greatest(&mut self, logits: &[f32], n: usize, kept: &mut Vec<u32>) {
        kept.clear();
        if n == 0 {
            return;
        }
        block_maxima(logits, &mut self.maxima);
        // As many blocks hold a logit of at least the n-th greatest maximum, so the n-th greatest logit is no less.
        let mut least = f32::NEG_INFINITY;
        if n <= self.maxima.len() {
            self.order.clone_from(&self.maxima);
            let descending = |a: &f32, b: &f32| b.partial_cmp(a).unwrap_or(Ordering::Equal);
            least = *self.order.select_nth_unstable_by(n - 1, descending).1;
        }
        self.at_least(logits, least, kept);
        sort_prefix(kept, logits, n);
        kept.truncate(n);
    }

    /// Leaves the tokens whose logits are at least this in `kept`, by ascending id.
    #[inline]
    pub fn not_below(&mut self, logits: &[f32], least: f32, kept: &mut Vec<u32>) {
        kept.clear();
        block_maxima(logits, &mut self.maxima);
        self.at_least(logits, least, kept);
    }

    fn at_least(&self, logits: &[f32], least: f32, kept: &mut Vec<u32>) {
        for ((block, values), &max) in logits.chunks(BLOCK).enumerate().zip(&self.maxima) {
            if max >= least {
                let tokens = (block * BLOCK) as u32..;
                kept.extend(tokens.zip(values).filter(|&(_, &value)| value >= least).map(|(token, _)| token));
            }
        }
    }
}

/// The token with the greatest logit, which is `max`, the lowest of equals.
#[expect(clippy::inline_always, reason = "to be compiled for the vectors of its caller")]
#[inline(always)]
pub fn greedy(logits: &[f32], max: f32) -> u32 {
    // Any in a block first, without branches.
    let found = |values: &[f32]| values.iter().fold(0, |found, &value| found | u8::from(value >= max)) != 0;
    let block = logits.chunks(BLOCK).position(found).unwrap_or(0) * BLOCK;
    let place = logits.iter().skip(block).position(|&value| value >= max);
    place.map_or(0, |place| (block + place) as u32)
}

/// The greatest logit of each block.
#[expect(clippy::inline_always, reason = "to be compiled for the vectors of its caller")]
#[inline(always)]
fn block_maxima(logits: &[f32], maxima: &mut Vec<f32>) {
    maxima.clear();
    maxima.extend(logits.chunks(BLOCK).map(crate::math::max));
}

/// Orders tokens by descending logit, equal ones by ascending id.
fn descending(logits: &[f32], a: u32, b: u32) -> Ordering {
    let by_logit = logits[b as usize].partial_cmp(&logits[a as usize]).unwrap_or(Ordering::Equal);
    by_logit.then(a.cmp(&b))
}

/// Brings the first `n` tokens in descending order to the front.
pub fn sort_prefix(tokens: &mut [u32], logits: &[f32], n: usize) {
    let n = n.min(tokens.len());
    if n > 0 && n < tokens.len() {
        tokens.select_nth_unstable_by(n - 1, |&a, &b| descending(logits, a, b));
    }
    tokens[..n].sort_unstable_by(|&a, &b| descending(logits, a, b));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::mix;

    /// Logits with many ties, and some that are forbidden.
    fn logits(count: u64, seed: u64) -> Vec<f32> {
        let logit = |token: u64| {
            let hash = mix(token ^ mix(seed));
            if hash.is_multiple_of(17) { f32::NEG_INFINITY } else { (hash % 500) as f32 / 16.0 - 15.0 }
        };
        (0..count).map(logit).collect()
    }

    #[test]
    fn the_greatest_are_those_of_a_full_sort() {
        for count in [1, 2, 63, 64, 65, 1000, 10_000] {
            let logits = logits(count, count);
            let mut all: Vec<u32> = (0..count as u32).collect();
            all.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            assert_eq!(greedy(&logits, logits[all[0] as usize]), all[0], "{count}");
            for n in [0, 1, 2, 7, 40, 160, 5000, 20_000] {
                let mut kept = vec![7; 3];
                Select::new(0).greatest(&logits, n, &mut kept);
                assert_eq!(kept, all[..n.min(count as usize)], "{n} of {count}");
            }
        }
    }

    #[test]
    fn none_below_the_bound_is_kept_and_all_others_are() {
        let logits = logits(3000, 5);
        for least in [f32::NEG_INFINITY, -3.0, 10.0, 16.0, 17.0] {
            let mut kept = Vec::new();
            Select::new(3000).not_below(&logits, least, &mut kept);
            let wanted: Vec<u32> = (0..3000).filter(|&token| logits[token as usize] >= least).collect();
            assert_eq!(kept, wanted, "{least}");
        }
    }
}
