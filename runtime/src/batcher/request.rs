//! What a caller asks for and what it hears back.

use std::time::Duration;

use crate::{
    error::{Error, Result},
    kv::prefix::Root,
    sample::SampleParams,
};

/// A request to continue a sequence of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// The most tokens to generate; `None` for as many as the context and the cache hold.
    pub max_tokens: Option<usize>,
    /// The least tokens to generate: until then no stop token is sampled.
    pub min_tokens: usize,
    /// How tokens are sampled.
    pub sampling: SampleParams,
    /// What is added to single logits before sampling.
    pub bias: Vec<(u32, f32)>,
    /// How tokens that occurred already are made less likely.
    pub penalties: Penalties,
    /// The seed of the sampling noise.
    pub seed: u64,
    /// Which of several answers to the same prompt and seed this is; the first of them where there are [`Request::more`].
    pub choice: u32,
    /// How many further answers to give, with the choices that follow. They share the prompt's pages.
    pub more: u32,
    /// Tokens that end the answer. They are not reported as part of it.
    pub stop: Vec<u32>,
    /// How many of the likeliest tokens to report with each token.
    pub top_logprobs: u32,
    /// Reports how likely each token of the prompt is, with so many of the likeliest in its place.
    pub prompt_logprobs: Option<u32>,
    /// Smaller numbers go first under the policy of that name.
    pub priority: i32,
    /// When the whole answer must be there, on the batcher's clock.
    pub deadline: Option<Duration>,
    /// With whom pages of the cache are shared.
    pub root: Root,
}

/// How tokens that occurred already are made less likely. The default changes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Subtracted from the logit of each token that was generated.
    pub presence: f32,
    /// Subtracted once for each time that a token was generated.
    pub frequency: f32,
    /// Divides positive logits and multiplies negative ones of tokens in the prompt or the answer.
    pub repetition: f32,
}

impl Default for Penalties {
    fn default() -> Penalties {
        Penalties { presence: 0.0, frequency: 0.0, repetition: 1.0 }
    }
}

impl Penalties {
    /// Whether tokens of the prompt count.
    pub(super) fn repeats(&self) -> bool {
        (self.repetition - 1.0).abs() > 0.0
    }

    /// Whether it counts how often a token was generated.
    pub(super) fn counts(&self) -> bool {
        self.presence.abs() > 0.0 || self.frequency.abs() > 0.0
    }

    /// Refuses what is out of range.
    fn check(&self) -> Result<()> {
        let refuse = |name, value, expected| Err(Error::Sampling { name, value, expected });
        for (name, value) in [("presence-penalty", self.presence), ("frequency-penalty", self.frequency)] {
            if !(-2.0..=2.0).contains(&value) {
                return refuse(name, value, "between -2 and 2");
            }
        }
        if !(0.01..=10.0).contains(&self.repetition) {
            return refuse("repetition-penalty", self.repetition, "between 0.01 and 10");
        }
        Ok(())
    }
}

impl Request {
    /// Refuses what is out of range for a vocabulary of this size.
    pub(super) fn check(&self, vocabulary: u32) -> Result<()> {
        self.sampling.check()?;
        self.penalties.check()?;
        if self.tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some((index, &token)) = self.tokens.iter().enumerate().find(|&(_, &token)| token >= vocabulary) {
            return Err(Error::UnknownToken { index, token, vocabulary });
        }
        if let Some(&(token, _)) = self.bias.iter().find(|(token, _)| *token >= vocabulary) {
            return Err(Error::UnknownBias { token, vocabulary });
        }
        if let Some(&(_, value)) = self.bias.iter().find(|(_, value)| !(-100.0..=100.0).contains(value)) {
            return Err(Error::Sampling { name: "logit-bias", value, expected: "between -100 and 100" });
        }
        Ok(())
    }
}

/// Names a request within an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What happened to a request in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It left the queue for the first time.
    Started {
        /// The request.
        request: RequestId,
        /// Which of its answers.
        choice: u32,
        /// Tokens of the prompt that were in the cache.
        cached: usize,
    },
    /// How likely part of its prompt is: one entry for each token from `first` on. The first token of a prompt has none.
    Prompt {
        /// The request.
        request: RequestId,
        /// Index of the first entry's token.
        first: usize,
        /// Natural log-probability of each token, and the likeliest in its place.
        entries: Vec<(f32, Vec<(u32, f32)>)>,
    },
    /// It got its next token.
    Token {
        /// The request.
        request: RequestId,
        /// Which of its answers.
        choice: u32,
        /// The token.
        token: u32,
        /// Its natural log-probability under the model, before temperature, bias and penalties.
        logprob: f32,
        /// The likeliest tokens with their logprobs, likeliest first.
        top: Vec<(u32, f32)>,
    },
    /// A step verified guesses for an answer; the tokens that it gave follow.
    Verified {
        /// The request.
        request: RequestId,
        /// Which of its answers.
        choice: u32,
        /// How many tokens were guessed.
        drafted: usize,
        /// How many were right, as all before them.
        accepted: usize,
        /// Of those, how many lay on a branch.
        branched: usize,
    },
    /// One of its answers ended; nothing follows for that one.
    Finished {
        /// The request.
        request: RequestId,
        /// Which of its answers.
        choice: u32,
        /// Why it ended.
        reason: FinishReason,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model produced this stop token.
    Stop(u32),
    /// It has all the tokens that it may have.
    Length,
    /// The caller cancelled it.
    Cancelled,
    /// Its deadline passed.
    Late,
    /// The model's arithmetic overflowed: the logits of its next token held a NaN or an infinity.
    NotFinite,
    /// A step failed; the engine's error says why.
    Failed,
}
