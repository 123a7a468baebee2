//! Continuous batching: which tokens of which requests make up the next step.
//!
//! A pure, synchronous core without clocks or threads. Requests are admitted first come, first served. Every step carries
//! the next token of each running request and as many prompt tokens as the step's token budget allows, a prompt at most
//! `prefill_chunk` at a time. When pages run out, the request admitted last gives its pages back, waits in front, and is
//! computed again later; noise keyed by position makes it continue with the same tokens.
//!
//! The batcher decides when a token is computed, never what it is.

use std::collections::VecDeque;

use crate::{
    device::{Limits, Pick, Row, RowOutput, Step, StepOutput, StepToken},
    error::{Error, Result},
    kv::{BlockTable, Cache},
    sample::{NoiseKey, SampleParams},
};

/// A request to continue a sequence of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// The most tokens to generate; `None` for as many as the context and the cache hold.
    pub max_tokens: Option<usize>,
    /// How tokens are sampled.
    pub sampling: SampleParams,
    /// The seed of the sampling noise.
    pub seed: u64,
    /// Which of several answers to the same prompt and seed this is.
    pub choice: u32,
    /// Tokens that end the answer. They are not reported as part of it.
    pub stop: Vec<u32>,
    /// How many of the likeliest tokens to report with each token.
    pub top_logprobs: u32,
}

/// Names a request within an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What happened to a request in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It got its next token.
    Token {
        /// The request.
        request: RequestId,
        /// The token.
        token: u32,
        /// Its natural log-probability under the model, before temperature.
        logprob: f32,
        /// The likeliest tokens with their logprobs, likeliest first.
        top: Vec<(u32, f32)>,
    },
    /// It ended; nothing follows.
    Finished {
        /// The request.
        request: RequestId,
        /// Why it ended.
        reason: FinishReason,
    },
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model produced this stop token.
    Stop(u32),
    /// It has all the tokens that it may have.
    Length,
    /// The caller cancelled it.
    Cancelled,
    /// A step failed; the engine's error says why.
    Failed,
}

/// Limits of a step that the batcher keeps, besides the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// The most tokens of one prompt in a step.
    pub prefill_chunk: usize,
    /// The most tokens in a step.
    pub token_budget: usize,
}

/// A request in progress.
#[derive(Debug)]
struct Sequence {
    id: RequestId,
    request: Request,
    tokens: Vec<u32>, // the prompt and what was generated
    limit: usize,     // tokens that it may have in the end
    computed: usize,  // tokens whose keys and values are in the cache
    table: BlockTable,
    in_step: usize,     // tokens in the step under way
    row: Option<usize>, // its row in that step
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Active,
    Preempted,
    Ended,
}

/// The requests and the pages that they hold.
#[derive(Debug)]
pub struct Batcher {
    limits: Limits,
    options: BatchOptions,
    cache: Cache,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>, // in the order of admission
    starved: bool,          // whether a running request found no pages in the last step
    cancelled: Vec<RequestId>,
    next_id: u64,
}

impl Batcher {
    /// A batcher for a device with these limits.
    pub fn new(limits: &Limits, options: BatchOptions) -> Batcher {
        let most = limits.max.tokens.max(1) as usize;
        let options = BatchOptions {
            prefill_chunk: options.prefill_chunk.clamp(1, most),
            token_budget: options.token_budget.clamp(1, most),
        };
        Batcher {
            cache: Cache::new(&limits.groups),
            limits: limits.clone(),
            options,
            waiting: VecDeque::new(),
            running: Vec::new(),
            starved: false,
            cancelled: Vec::new(),
            next_id: 0,
        }
    }

    /// Queues a request, or refuses one that could never run.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        request.sampling.check()?;
        if request.tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let vocabulary = self.limits.vocabulary;
        if let Some((index, &token)) = request.tokens.iter().enumerate().find(|&(_, &token)| token >= vocabulary) {
            return Err(Error::UnknownToken { index, token, vocabulary });
        }
        let limit = self.length_limit(request.tokens.len(), request.max_tokens)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let mut tokens = Vec::with_capacity(limit);
        tokens.extend_from_slice(&request.tokens);
        let table = self.cache.table();
        let (in_step, row, state) = (0, None, State::Active);
        self.waiting.push_back(Sequence { id, request, tokens, limit, computed: 0, table, in_step, row, state });
        Ok(id)
    }

    /// How many tokens a request may have in the end, prompt included.
    pub(crate) fn length_limit(&self, prompt: usize, max_tokens: Option<usize>) -> Result<usize> {
        let context = self.limits.max_context as usize;
        let cache = self.cache.capacity().unwrap_or(context);
        let (limit, bound) = if cache < context {
            (cache, "the cache's size, --cache-tokens")
        } else {
            (context, "the model's context")
        };
        let needed = prompt.saturating_add(max_tokens.unwrap_or(1));
        if needed > limit {
            return Err(Error::TooLong { needed, prompt, limit, bound });
        }
        Ok(max_tokens.map_or(limit, |_| needed))
    }

    /// Ends a request at the next step. Unknown and finished ones are ignored.
    pub fn cancel(&mut self, request: RequestId) {
        self.cancelled.push(request);
    }

    /// Requests that have not ended.
    pub fn unfinished(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Ends cancelled requests, and lets waiting ones run while a step has room for one more sequence.
    pub fn admit(&mut self, events: &mut Vec<Event>) {
        self.end_cancelled(events);
        // Each running request must get its token in every step, so no more may run than fit one. And none starts while
        // one that runs lacks pages, or newcomers could keep it waiting forever.
        let max = self.limits.max;
        let most = (max.sequences.min(max.rows) as usize).min(self.options.token_budget);
        while self.running.len() < most
            && !self.starved
            && let Some(next) = self.waiting.front()
            && (self.running.is_empty() || self.cache.has_room(next.tokens.len() + 1))
            && let Some(sequence) = self.waiting.pop_front()
        {
            if sequence.tokens.len() < sequence.limit {
                self.running.push(sequence);
            } else {
                events.push(Event::Finished { request: sequence.id, reason: FinishReason::Length });
            }
        }
    }

    /// Fills a step with the next tokens of the running requests; false when there is nothing to run.
    pub fn compose(&mut self, step: &mut Step) -> bool {
        step.clear(self.limits.groups.len());
        self.starved = false;
        let mut budget = self.options.token_budget;
        // Those that wait for one token go first, so that a long prompt never delays an answer in progress.
        for decoding in [true, false] {
            for index in 0..self.running.len() {
                let sequence = &self.running[index];
                let pending = sequence.tokens.len() - sequence.computed;
                let tokens = pending.min(self.options.prefill_chunk).min(budget);
                if (pending == 1) != decoding || sequence.state != State::Active || sequence.in_step > 0 || tokens == 0
                {
                    continue;
                }
                if self.make_room(index, tokens, step) {
                    self.running[index].join(tokens, step);
                    budget -= tokens;
                } else {
                    self.starved = true;
                }
            }
        }
        // Backwards, so that those admitted first come to the front.
        for mut sequence in self
            .running
            .extract_if(.., |sequence| sequence.state == State::Preempted)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            sequence.state = State::Active;
            self.waiting.push_front(sequence);
        }
        !step.tokens.is_empty()
    }

    /// Grants pages for the next tokens of a running request, if need be at the cost of those admitted after it. Those that
    /// are in the step already are safe.
    fn make_room(&mut self, index: usize, tokens: usize, step: &mut Step) -> bool {
        loop {
            let sequence = &mut self.running[index];
            if self.cache.grow(&mut sequence.table, sequence.computed + tokens, &mut step.copies) {
                return true;
            }
            let victim =
                self.running[index + 1..].iter_mut().rev().find(|other| other.in_step == 0 && other.table.tokens() > 0);
            let Some(victim) = victim else { return false };
            self.cache.release(&mut victim.table);
            victim.computed = 0;
            victim.state = State::Preempted;
        }
    }

    /// Records what a step computed: new tokens and requests that ended.
    pub fn retire(&mut self, output: &StepOutput, events: &mut Vec<Event>) {
        for sequence in &mut self.running {
            sequence.computed += std::mem::take(&mut sequence.in_step);
            if let Some(row) = sequence.row.take().and_then(|row| output.rows.get(row)) {
                sequence.record(row, events);
            }
            if sequence.state == State::Ended {
                self.cache.release(&mut sequence.table);
            }
        }
        self.running.retain(|sequence| sequence.state != State::Ended);
    }

    /// Ends every request after the device failed; the pages go back.
    pub fn abort(&mut self, events: &mut Vec<Event>) {
        for mut sequence in self.running.drain(..).chain(self.waiting.drain(..)) {
            self.cache.release(&mut sequence.table);
            events.push(Event::Finished { request: sequence.id, reason: FinishReason::Failed });
        }
    }

    /// Checks that pages and requests agree, for simulations.
    pub fn check_integrity(&self) -> Result<(), String> {
        let tables: Vec<&BlockTable> =
            self.running.iter().chain(&self.waiting).map(|sequence| &sequence.table).collect();
        self.cache.check_integrity(&tables)
    }

    /// The cache, for a caller that needs pages while no request runs.
    pub(crate) fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }

    /// The number of tokens that a step takes of one prompt.
    pub(crate) fn prefill_chunk(&self) -> usize {
        self.options.prefill_chunk.min(self.options.token_budget)
    }

    fn end_cancelled(&mut self, events: &mut Vec<Event>) {
        for request in std::mem::take(&mut self.cancelled) {
            let found = self
                .running
                .iter()
                .position(|sequence| sequence.id == request)
                .map(|index| self.running.remove(index))
                .or_else(|| {
                    let index = self.waiting.iter().position(|sequence| sequence.id == request)?;
                    self.waiting.remove(index)
                });
            if let Some(mut sequence) = found {
                self.cache.release(&mut sequence.table);
                events.push(Event::Finished { request, reason: FinishReason::Cancelled });
            }
        }
    }
}

impl Sequence {
    /// Adds its next tokens to a step, and a row when they are its last.
    fn join(&mut self, tokens: usize, step: &mut Step) {
        let end = self.computed + tokens;
        let known = self.tokens[self.computed..end].iter().map(|&token| StepToken::Known(token));
        step.push_sequence(known, self.computed as u32, self.table.groups());
        self.in_step = tokens;
        if end == self.tokens.len() {
            let key = NoiseKey { seed: self.request.seed, choice: self.request.choice, position: end as u32 };
            self.row = Some(step.rows.len());
            step.rows.push(Row {
                token: step.tokens.len() as u32 - 1,
                pick: Pick::Sample(self.request.sampling, key),
                top: self.request.top_logprobs,
                logits: false,
            });
        }
    }

    /// Takes the token that its row got.
    fn record(&mut self, row: &RowOutput, events: &mut Vec<Event>) {
        let (request, token) = (self.id, row.token);
        let reason = if self.request.stop.contains(&token) {
            Some(FinishReason::Stop(token))
        } else {
            self.tokens.push(token);
            events.push(Event::Token { request, token, logprob: row.logprob, top: row.top.clone() });
            (self.tokens.len() >= self.limit).then_some(FinishReason::Length)
        };
        if let Some(reason) = reason {
            events.push(Event::Finished { request, reason });
            self.state = State::Ended;
        }
    }
}

#[cfg(test)]
mod tests;
