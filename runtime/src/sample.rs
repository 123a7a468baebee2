//! Chooses a token from a row of logits.
//!
//! Greedy sampling takes the greatest logit. Otherwise tokens are drawn from `softmax(logits / temperature)`, restricted in
//! this order to
//!
//! 1. **top-k**: the k greatest logits;
//! 2. **top-p**: of those, renormalized, the shortest prefix in descending order whose probabilities reach p;
//! 3. **min-p**: of those, the tokens that are at least p times as likely as the likeliest.
//!
//! Ties go to the lower token id throughout, and the likeliest token always stays.
//!
//! The draw is an argmax: each kept token gets its logit over temperature plus Gumbel noise, and the greatest sum wins,
//! which has exactly the probabilities of the softmax. The noise is a hash of (request seed, choice, position, token id)
//! and nothing else. So a token depends on the request alone, never on the batch, and a draft that samples with the same
//! noise agrees with the target wherever their distributions are close.
//!
//! All arithmetic is in f64 and f32 in a fixed order with the functions of [`crate::math`].

pub mod defaults;
mod select;

use std::{cmp::Ordering, f64::consts::LN_2};

pub(crate) use self::select::greedy;
use self::select::{BLOCK, Select};
use crate::{
    error::{Error, Result},
    math,
};

/// How tokens are sampled. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleParams {
    /// Divides the logits; zero is greedy.
    pub temperature: f32,
    /// How many of the likeliest tokens stay; zero keeps all.
    pub top_k: u32,
    /// The probability that the kept tokens must reach together, in (0, 1]; one keeps all.
    pub top_p: f32,
    /// The least probability of a kept token relative to the likeliest, in [0, 1]; zero keeps all.
    pub min_p: f32,
}

impl Default for SampleParams {
    fn default() -> SampleParams {
        SampleParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

impl SampleParams {
    /// Whether the greatest logit is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Whether no token is left out for being unlikely.
    pub fn keeps_all(&self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0
    }

    /// Refuses what is out of range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name, value, expected| Err(Error::Sampling { name, value, expected });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse("temperature", self.temperature, "a finite number of at least 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top-p", self.top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min-p", self.min_p, "at least 0 and at most 1");
        }
        Ok(())
    }
}

/// What the noise of one row depends on, besides the token id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NoiseKey {
    /// The request's seed.
    pub seed: u64,
    /// Which of several answers to the same request.
    pub choice: u32,
    /// The logical position of the token that is sampled.
    pub position: u32,
}

impl NoiseKey {
    /// The state from which the noise of each token id is hashed.
    pub fn stream(self) -> u64 {
        let place = u64::from(self.choice) << 32 | u64::from(self.position);
        mix(mix(self.seed).wrapping_add(place))
    }
}

/// Scrambles 64 bits; a bijection (the finalizer of `SplitMix64`, Steele, Lea and Flood 2014).
#[inline]
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Samples tokens; owns the memory that it takes, so that sampling allocates nothing once warm.
#[derive(Debug, Default)]
pub struct Sampler {
    kept: Vec<u32>,
    edited: Vec<f32>,
    select: Select,
    in_vectors: bool,
}

impl Sampler {
    /// A sampler that never allocates for vocabularies up to this size.
    pub fn new(vocabulary: usize) -> Sampler {
        let (kept, edited) = (Vec::with_capacity(vocabulary), Vec::with_capacity(vocabulary));
        Sampler { kept, edited, select: Select::new(vocabulary), in_vectors: false }
    }

    /// Says that this CPU hashes in vectors, so that bounding the noise of all tokens first pays.
    pub(crate) fn use_vectors(&mut self) {
        self.in_vectors = true;
    }

    /// Chooses a token. The logits must hold no NaN and no +∞, and one that is finite.
    #[inline]
    pub fn sample(&mut self, logits: &[f32], params: &SampleParams, key: NoiseKey) -> u32 {
        if params.is_greedy() {
            return greedy(logits, math::max(logits));
        }
        let stream = key.stream();
        let temperature = f64::from(params.temperature);
        if params.keeps_all() {
            if self.in_vectors {
                draw_from_all(logits, temperature, stream)
            } else {
                draw(0..logits.len() as u32, logits, temperature, stream)
            }
        } else {
            self.keep(logits, params);
            draw(self.kept.iter().copied(), logits, temperature, stream)
        }
    }

    /// Chooses a token as [`Sampler::sample`] does, after some logits were replaced. One at least must stay finite; where
    /// none does, the replacements are left out.
    pub fn sample_edited(
        &mut self,
        logits: &[f32],
        edits: impl IntoIterator<Item = (u32, f32)>,
        params: &SampleParams,
        key: NoiseKey,
    ) -> u32 {
        let mut edited = std::mem::take(&mut self.edited);
        edited.clear();
        edited.extend_from_slice(logits);
        for (token, logit) in edits {
            edited[token as usize] = logit;
        }
        let is_sound = edited.iter().any(|logit| logit.is_finite());
        let token = self.sample(if is_sound { &edited } else { logits }, params, key);
        self.edited = edited;
        token
    }

    /// The `n` greatest logits' tokens, greatest first.
    #[inline]
    pub fn top(&mut self, logits: &[f32], n: usize) -> &[u32] {
        self.select.greatest(logits, n, &mut self.kept);
        &self.kept
    }

    /// Leaves the tokens in `self.kept` that top-k, top-p and min-p keep.
    #[inline]
    fn keep(&mut self, logits: &[f32], params: &SampleParams) {
        let &SampleParams { temperature, top_k, top_p, min_p } = params;
        let max = math::max(logits);
        let scaled = |logit: f32| (logit - max) / temperature;
        let weight = |token: &u32| math::exp(scaled(logits[*token as usize]));
        let has_k = top_k > 0 && (top_k as usize) < logits.len();
        if has_k {
            self.select.greatest(logits, top_k as usize, &mut self.kept);
        } else if top_p >= 1.0 && min_p <= 0.0 {
            self.select.not_below(logits, f32::NEG_INFINITY, &mut self.kept);
        }
        if top_p < 1.0 {
            let total = if has_k {
                self.kept.iter().map(|token| f64::from(weight(token))).sum()
            } else {
                math::sum(logits, |logit| math::exp(scaled(logit)))
            };
            let wanted = total * f64::from(top_p);
            // The prefix is short as a rule: sort a little, and more only if that does not reach.
            let mut sorted = 64;
            loop {
                if !has_k {
                    self.select.greatest(logits, sorted, &mut self.kept);
                }
                let mut reached = 0.0;
                let enough = self.kept.iter().position(|token| {
                    reached += f64::from(weight(token));
                    reached >= wanted
                });
                if let Some(last) = enough {
                    self.kept.truncate(last + 1);
                }
                if enough.is_some() || has_k || self.kept.len() == logits.len() {
                    break;
                }
                sorted *= 8;
            }
        }
        if min_p > 0.0 {
            if !has_k && top_p >= 1.0 {
                // What lies below is below by more than the rounding of the exponential and of this bound.
                let least = f64::from(max) + f64::from(temperature) * (math::ln(f64::from(min_p)) - 0.01);
                let least = least - 1e-6 * f64::from(max).abs();
                self.select.not_below(logits, least as f32, &mut self.kept);
            }
            self.kept.retain(|token| weight(token) >= min_p);
        }
    }
}

/// The token whose logit over temperature plus noise is greatest, the lowest of equals.
fn draw(tokens: impl Iterator<Item = u32>, logits: &[f32], temperature: f64, stream: u64) -> u32 {
    let mut best = NOBODY;
    for token in tokens {
        let score = f64::from(logits[token as usize]) / temperature;
        let hash = noise(stream, token);
        if score + most_noise(leading_zeros(hash)) >= best.0 {
            best = better(best, (score + gumbel(hash), token));
        }
    }
    best.1
}

/// As [`draw`] from all tokens. Block by block, first bounds, in vectors, and then the few that may win. Where the CPU
/// multiplies 64-bit integers in vectors it takes 0.4 of the time, and elsewhere 1.1 times as long.
#[expect(clippy::inline_always, reason = "to be compiled for the vectors of its caller")]
#[inline(always)]
fn draw_from_all(logits: &[f32], temperature: f64, stream: u64) -> u32 {
    let mut best = NOBODY;
    let inverse = 1.0 / temperature;
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let first = (block * BLOCK) as u32;
        // Separate loops, of which each becomes vector code.
        let mut zeros = [0; BLOCK];
        for (index, zeros) in zeros.iter_mut().enumerate() {
            *zeros = leading_zeros(noise(stream, first + index as u32));
        }
        let mut bounds = [f64::NEG_INFINITY; BLOCK];
        for ((bound, &logit), &zeros) in bounds.iter_mut().zip(values).zip(&zeros) {
            // The score rounded up; infinity minus infinity would be no number.
            let score = f64::from(logit) * inverse;
            *bound = score + score.abs().min(1e300) * 1e-12 + most_noise(zeros);
        }
        let mut lanes = [f64::NEG_INFINITY; 8];
        for chunk in bounds.chunks_exact(lanes.len()) {
            for (lane, &bound) in lanes.iter_mut().zip(chunk) {
                *lane = if bound > *lane { bound } else { *lane };
            }
        }
        let greatest = lanes.into_iter().fold(f64::NEG_INFINITY, f64::max);
        if greatest < best.0 {
            continue;
        }
        for (index, (bound, &logit)) in bounds.iter().zip(values).enumerate() {
            if *bound >= best.0 {
                let token = first + index as u32;
                best = better(best, (f64::from(logit) / temperature + gumbel(noise(stream, token)), token));
            }
        }
    }
    best.1
}

/// What any token beats.
const NOBODY: (f64, u32) = (f64::NEG_INFINITY, u32::MAX);

/// The greater score, the lower token of equals.
fn better(a: (f64, u32), b: (f64, u32)) -> (f64, u32) {
    let order = b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if order == Ordering::Greater { b } else { a }
}

/// The hash from which a token's noise is made.
#[inline]
fn noise(stream: u64, token: u32) -> u64 {
    mix(stream ^ u64::from(token).wrapping_mul(0xd6e8_feb8_6659_fd93))
}

/// The leading zeros that count: `q` of [`gumbel`] has 52 bits.
#[inline]
fn leading_zeros(hash: u64) -> i32 {
    (hash.leading_zeros() as i32).min(52)
}

/// What the noise of a hash with so many leading zeros cannot exceed: it is at most -ln q with q the uniform number of
/// [`gumbel`]. Most tokens of a large vocabulary are out of reach and need no logarithms. It is rounded up.
#[inline]
fn most_noise(zeros: i32) -> f64 {
    f64::from(zeros + 1) * (LN_2 + 1e-9)
}

/// Gumbel noise `-ln(-ln(1 - q))` with q uniform on the odd multiples of 2⁻⁵³, for which `1 - q` is exact.
fn gumbel(hash: u64) -> f64 {
    let q = ((hash >> 12) as f64 + 0.5) * 2f64.powi(-52);
    -math::ln(-math::ln(1.0 - q))
}

#[cfg(test)]
mod tests;
