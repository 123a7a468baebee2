//! What a load asks for and when, decided by a seed alone, so that every server gets the same.

use std::ops::RangeInclusive;

/// Tokens below this are often control tokens or single bytes, which no prompt is made of.
const FIRST_TOKEN: u32 = 1000;

/// Requests of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// Tokens of a prompt, each length as likely as the others.
    pub prompt: RangeInclusive<usize>,
    /// Tokens to generate.
    pub generate: usize,
    /// How many tokens at the beginning of all prompts are the same.
    pub prefix: usize,
    /// Prompt tokens lie below this.
    pub vocabulary: u32,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate.
    pub generate: usize,
    /// When it arrives, as a multiple of the mean time between arrivals of a Poisson process.
    pub arrival: f64,
}

/// The requests of a seed.
pub fn requests(kind: &Kind, count: usize, seed: u64) -> Vec<Ask> {
    let mut noise = Noise(seed);
    let prefix: Vec<u32> = (0..kind.prefix).map(|_| noise.token(kind.vocabulary)).collect();
    let mut clock = 0.0;
    let mut ask = || {
        let (least, most) = (*kind.prompt.start(), *kind.prompt.end());
        let length = least + noise.below((most - least) as u64 + 1) as usize;
        let own = (prefix.len()..length).map(|_| noise.token(kind.vocabulary));
        let prompt: Vec<u32> = prefix.iter().copied().take(length).chain(own.collect::<Vec<_>>()).collect();
        let arrival = clock;
        clock -= (1.0 - noise.uniform()).ln();
        Ask { prompt, generate: kind.generate, arrival }
    };
    (0..count).map(|_| ask()).collect()
}

/// A seed for each part of a run, none of which repeats another's prompts.
pub fn seed_of(seed: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(seed, |seed, part| Noise(seed ^ part.wrapping_mul(0x9E37_79B9_7F4A_7C15)).next())
}

/// The generator `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, by the high half of a product; its bias is far below what a load could show.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `0.0..1.0`.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn token(&mut self, vocabulary: u32) -> u32 {
        let first = FIRST_TOKEN.min(vocabulary / 2);
        first + self.below(u64::from((vocabulary - first).max(1))) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(prefix: usize) -> Kind {
        Kind { prompt: 128..=512, generate: 128, prefix, vocabulary: 30_000 }
    }

    #[test]
    fn a_seed_decides_everything() {
        let once = requests(&kind(0), 50, 1);
        assert_eq!(once, requests(&kind(0), 50, 1));
        assert_ne!(once, requests(&kind(0), 50, 2));
        assert_ne!(seed_of(1, &[0, 1]), seed_of(1, &[1, 0]));
    }

    #[test]
    fn lengths_and_tokens_fill_their_ranges() {
        let asks = requests(&Kind { prompt: 128..=135, ..kind(0) }, 2000, 7);
        for length in 128..=135 {
            let count = asks.iter().filter(|ask| ask.prompt.len() == length).count();
            // A binomial distribution of mean 250, five of whose deviations are 74.
            assert!((176..=324).contains(&count), "{count} prompts of {length} tokens");
        }
        assert!(asks.iter().flat_map(|ask| &ask.prompt).all(|token| (1000..30_000).contains(token)));
    }

    #[test]
    fn arrivals_are_those_of_a_poisson_process() {
        let asks = requests(&kind(0), 4000, 3);
        let gaps: Vec<f64> = asks.windows(2).map(|pair| pair[1].arrival - pair[0].arrival).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        // Of an exponential distribution 1 - 1/e lie below the mean.
        let below = gaps.iter().filter(|gap| **gap < 1.0).count() as f64 / gaps.len() as f64;
        assert!((mean - 1.0).abs() < 0.05 && (below - 0.632).abs() < 0.03, "{mean} {below}");
    }

    #[test]
    fn prompts_share_their_beginning_and_nothing_else() {
        let asks = requests(&kind(100), 3, 5);
        assert_eq!(asks[0].prompt[..100], asks[1].prompt[..100]);
        assert_ne!(asks[0].prompt[100..128], asks[1].prompt[100..128]);
        let short = requests(&Kind { prompt: 4..=4, ..kind(100) }, 2, 5);
        assert_eq!((short[0].prompt.len(), &short[0].prompt), (4, &short[1].prompt));
    }
}
