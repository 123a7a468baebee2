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

use std::{cmp::Ordering, f64::consts::LN_2};

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
    fn stream(self) -> u64 {
        let place = u64::from(self.choice) << 32 | u64::from(self.position);
        mix(mix(self.seed).wrapping_add(place))
    }
}

/// Scrambles 64 bits; a bijection (the finalizer of `SplitMix64`, Steele, Lea and Flood 2014).
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
}

impl Sampler {
    /// A sampler that never allocates for vocabularies up to this size.
    pub fn new(vocabulary: usize) -> Sampler {
        Sampler { kept: Vec::with_capacity(vocabulary), edited: Vec::with_capacity(vocabulary) }
    }

    /// Chooses a token. The logits must hold no NaN and no +∞, and one that is finite.
    pub fn sample(&mut self, logits: &[f32], params: &SampleParams, key: NoiseKey) -> u32 {
        if params.temperature == 0.0 || params.top_k == 1 {
            return greedy(logits);
        }
        let stream = key.stream();
        let temperature = f64::from(params.temperature);
        if params.top_k == 0 && params.top_p >= 1.0 && params.min_p <= 0.0 {
            draw(0..logits.len() as u32, logits, temperature, stream)
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
    pub fn top(&mut self, logits: &[f32], n: usize) -> &[u32] {
        self.kept.clear();
        self.kept.extend(0..logits.len() as u32);
        sort_prefix(&mut self.kept, logits, n);
        self.kept.truncate(n);
        &self.kept
    }

    /// Leaves the tokens in `self.kept` that top-k, top-p and min-p keep.
    fn keep(&mut self, logits: &[f32], params: &SampleParams) {
        let kept = &mut self.kept;
        kept.clear();
        kept.extend(0..logits.len() as u32);
        if params.top_k > 0 && (params.top_k as usize) < kept.len() {
            kept.select_nth_unstable_by(params.top_k as usize - 1, |&a, &b| descending(logits, a, b));
            kept.truncate(params.top_k as usize);
            kept.sort_unstable(); // into an order that does not depend on how the selection works
        }
        let max = logits[greedy(logits) as usize];
        let scaled =
            |token: u32| ((f64::from(logits[token as usize]) - f64::from(max)) / f64::from(params.temperature)) as f32;
        if params.top_p < 1.0 {
            let total: f64 = kept.iter().map(|&token| f64::from(math::exp(scaled(token)))).sum();
            let wanted = total * f64::from(params.top_p);
            // The prefix is short as a rule: sort a little, and more only if that does not reach.
            let mut sorted = 64;
            let (mut length, mut reached) = (0, 0.0);
            while reached < wanted && length < kept.len() {
                if length == 0 || length == sorted {
                    sorted = if length == 0 { sorted } else { sorted * 8 };
                    sort_prefix(&mut kept[length..], logits, sorted - length);
                }
                reached += f64::from(math::exp(scaled(kept[length])));
                length += 1;
            }
            kept.truncate(length);
        }
        if params.min_p > 0.0 {
            kept.retain(|&token| math::exp(scaled(token)) >= params.min_p);
        }
    }
}

/// The token with the greatest logit, the lowest of equals.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// Orders tokens by descending logit, equal ones by ascending id.
fn descending(logits: &[f32], a: u32, b: u32) -> Ordering {
    let by_logit = logits[b as usize].partial_cmp(&logits[a as usize]).unwrap_or(Ordering::Equal);
    by_logit.then(a.cmp(&b))
}

/// Brings the first `n` tokens in descending order to the front.
fn sort_prefix(tokens: &mut [u32], logits: &[f32], n: usize) {
    let n = n.min(tokens.len());
    if n > 0 && n < tokens.len() {
        tokens.select_nth_unstable_by(n - 1, |&a, &b| descending(logits, a, b));
    }
    tokens[..n].sort_unstable_by(|&a, &b| descending(logits, a, b));
}

/// The token whose logit over temperature plus noise is greatest, the lowest of equals.
fn draw(tokens: impl Iterator<Item = u32>, logits: &[f32], temperature: f64, stream: u64) -> u32 {
    let mut best = (f64::NEG_INFINITY, u32::MAX);
    for token in tokens {
        let score = f64::from(logits[token as usize]) / temperature;
        let hash = mix(stream ^ u64::from(token).wrapping_mul(0xd6e8_feb8_6659_fd93));
        // With q the uniform number below, the noise is at most -ln q, and the hash's leading zeros bound that. Most tokens
        // of a large vocabulary are out of reach and need no logarithms. The bound is rounded up.
        let zeros = f64::from(hash.leading_zeros().min(52));
        if score + (zeros + 1.0) * (LN_2 + 1e-9) < best.0 {
            continue;
        }
        let noisy = score + gumbel(hash);
        let order = noisy.total_cmp(&best.0).then(best.1.cmp(&token));
        if order == Ordering::Greater {
            best = (noisy, token);
        }
    }
    best.1
}

/// Gumbel noise `-ln(-ln(1 - q))` with q uniform on the odd multiples of 2⁻⁵³, for which `1 - q` is exact.
fn gumbel(hash: u64) -> f64 {
    let q = ((hash >> 12) as f64 + 0.5) * 2f64.powi(-52);
    -math::ln(-math::ln(1.0 - q))
}

#[cfg(test)]
mod tests;
