//! How the next tokens of an answer are chosen: one rule for the model and for those that guess what it will say.

use std::collections::BTreeMap;

use super::request::Request;
use crate::{
    device::{Edit, Pick, Row},
    sample::NoiseKey,
    speculate::Guess,
};

/// What decides an answer's next tokens, besides logits.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// The request.
    pub request: &'a Request,
    /// Which of its answers.
    pub choice: u32,
    /// Prompt and answer so far.
    pub tokens: &'a [u32],
    /// How often each token was generated, where penalties ask for it.
    pub generated: &'a BTreeMap<u32, u32>,
}

impl Rule<'_> {
    /// The row that samples the token behind some guesses, at the step's token of this index.
    pub fn row(&self, token: u32, guessed: &[Guess]) -> Row {
        Row { edits: self.edits(guessed), ..self.unedited_row(token, guessed.len()) }
    }

    /// The row that samples the token behind the next one, which nobody knows yet; `None` where that token has a say in what
    /// is done to the logits.
    pub fn row_behind_next(&self, token: u32) -> Option<Row> {
        let Request { penalties, bias, stop, min_tokens, .. } = self.request;
        let is_early = self.tokens.len() + 1 - self.request.tokens.len() < *min_tokens && !stop.is_empty();
        let edits = penalties.repeats() || penalties.counts() || !bias.is_empty() || is_early;
        (!edits).then(|| self.unedited_row(token, 1))
    }

    /// The row that samples the token behind so many others, of logits as they are.
    fn unedited_row(&self, token: u32, behind: usize) -> Row {
        let position = (self.tokens.len() + behind) as u32;
        let key = NoiseKey { seed: self.request.seed, choice: self.choice, position };
        Row {
            token,
            pick: Pick::Sample(self.request.sampling, key),
            top: self.request.top_logprobs,
            edits: Vec::new(),
            rivals: 0,
            logits: false,
        }
    }

    /// What bias, penalties and the least length do to the logits of the token behind some guesses, as it will be when all
    /// of them were right.
    fn edits(&self, guessed: &[Guess]) -> Vec<Edit> {
        let Rule { request, tokens, generated, .. } = *self;
        let mut edits: BTreeMap<u32, Edit> = BTreeMap::new();
        let penalties = &request.penalties;
        let guesses = || guessed.iter().map(|guess| guess.token);
        if penalties.repeats() {
            for token in tokens.iter().copied().chain(guesses()) {
                edits.insert(token, Edit { repetition: penalties.repetition, ..Edit::of(token) });
            }
        }
        if penalties.counts() {
            let mut counts = generated.clone();
            guesses().for_each(|token| *counts.entry(token).or_insert(0) += 1);
            for (token, count) in counts {
                let edit = edits.entry(token).or_insert(Edit::of(token));
                edit.add -= penalties.presence + penalties.frequency * count as f32;
            }
        }
        for &(token, bias) in &request.bias {
            edits.entry(token).or_insert(Edit::of(token)).add += bias;
        }
        if tokens.len() + guessed.len() - request.tokens.len() < request.min_tokens {
            for &token in &request.stop {
                edits.entry(token).or_insert(Edit::of(token)).add = f32::NEG_INFINITY;
            }
        }
        edits.into_values().collect()
    }
}
