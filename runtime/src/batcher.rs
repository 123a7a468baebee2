//! Continuous batching: which tokens of which requests make up the next step.
//!
//! A pure, synchronous core without clocks, threads or IO: the caller says what time it is. Requests wait in the order of a
//! [`Policy`]. Every step carries the next token of each running answer and as many prompt tokens as the step's budget
//! allows, fewer when they would hold up answers in progress. A prompt whose beginning is in the cache starts after it;
//! further answers to one prompt share its pages. When pages run out, the answer of the highest rank gives its pages back,
//! waits in its place, and is computed again later; noise keyed by position makes it continue with the same tokens. What a
//! step has left takes guesses of the tokens that follow.
//!
//! The batcher decides when a token is computed, never what it is.

mod ahead;
mod branch;
mod draft;
mod policy;
mod predict;
mod request;
mod rule;
mod sequence;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub use self::{
    policy::Policy,
    predict::{Load, Predictor},
    request::{Event, FinishReason, Penalties, Request, RequestId},
    rule::Rule,
};
use self::{
    policy::{Arrival, Rank},
    sequence::{Sequence, State},
};
use crate::{
    device::{Limits, PageCopy, Step, StepOutput},
    error::{Error, Result},
    kv::{BlockTable, Cache, CacheOptions, Chain},
    speculate::{self, Speculation, Tally, worth::Record},
};

/// How steps are composed, besides the device's limits. None of it changes a token.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchOptions {
    /// The most tokens of one prompt in a step.
    pub prefill_chunk: usize,
    /// The most tokens in a step.
    pub token_budget: usize,
    /// How many times longer a step may get by prompt tokens than it is for the answers in progress alone, when hardly any
    /// answer waits for its first token; as many wait as are in progress, twice that, and so on.
    pub stretch: f64,
    /// The order of the queue.
    pub policy: Policy,
    /// Starts no request before all that run have ended: how batches were made once, for comparison.
    pub is_static: bool,
    /// The most answers that run side by side.
    pub max_running: usize,
    /// The most answers that wait.
    pub max_waiting: usize,
    /// The most prompt tokens that wait.
    pub max_waiting_tokens: usize,
    /// What the cache remembers.
    pub cache: CacheOptions,
    /// Whether and how the tokens that follow are guessed.
    pub speculation: Speculation,
}

impl Default for BatchOptions {
    fn default() -> BatchOptions {
        BatchOptions {
            prefill_chunk: usize::MAX,
            token_budget: usize::MAX,
            stretch: f64::INFINITY,
            policy: Policy::default(),
            is_static: false,
            max_running: usize::MAX,
            max_waiting: usize::MAX,
            max_waiting_tokens: usize::MAX,
            cache: CacheOptions::default(),
            speculation: Speculation::default(),
        }
    }
}

/// Prompt tokens that always may join answers in progress, or a prompt would never end.
const LEAST_PROMPT_TOKENS: usize = 16;

/// The state of the core in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Answers that run.
    pub running: usize,
    /// Answers that wait.
    pub waiting: usize,
    /// Tokens that those have, prompts included.
    pub waiting_tokens: usize,
    /// Pages in all cache groups.
    pub pages: usize,
    /// Pages that running answers hold.
    pub held_pages: usize,
    /// Pages that nobody holds and that remember tokens.
    pub idle_pages: usize,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Answers that gave their pages back for others.
    pub preemptions: u64,
    /// Tokens that were looked up in the cache.
    pub prefix_queries: u64,
    /// Tokens that were found there.
    pub prefix_hits: u64,
    /// Tokens computed: of prompts, and again after a preemption.
    pub prompt_tokens: u64,
    /// Tokens sampled and reported.
    pub generated_tokens: u64,
    /// Steps that were composed before the tokens of the one before them were known.
    pub steps_ahead: u64,
    /// What came of guesses.
    pub speculation: Tally,
    /// Guesses that were verified and those of them that were right, by the kinds of their drafters.
    pub by_drafter: [[u64; 2]; speculate::Kind::ALL.len()],
}

/// The requests and the pages that they hold.
#[derive(Debug)]
pub struct Batcher {
    limits: Limits,
    options: BatchOptions,
    cache: Cache,
    waiting: BTreeMap<Rank, Sequence>,
    waiting_tokens: usize,
    running: Vec<Sequence>, // by rank
    starved: bool,          // whether a running request found no pages in the last step
    cancelled: BTreeSet<(RequestId, Option<u32>)>,
    next_id: u64,
    load: Load,          // of the step under way
    ahead: Option<Load>, // of the step behind it, if that is under way as well
    steps_ahead: usize,  // that were composed in a row like that one
    predictor: Predictor,
    counters: Counters,
    guesses: Record,            // how many were right, of all answers
    ended: Vec<speculate::Key>, // answers that a drafter has not forgotten yet
    copies: Vec<PageCopy>,      // that the next step must make
}

impl Batcher {
    /// A batcher for a device with these limits.
    pub fn new(limits: &Limits, options: BatchOptions) -> Batcher {
        let most = limits.max.tokens.max(1) as usize;
        let token_budget = options.token_budget.clamp(1, most);
        let prefill_chunk = options.prefill_chunk.clamp(1, token_budget);
        let max_running = options.max_running.clamp(1, limits.max.sequences.min(limits.max.rows).max(1) as usize);
        let cache = CacheOptions { chunk: prefill_chunk, ..options.cache.clone() };
        // Each running request must get its token in every step, so no more may run than fit one.
        let max_running = max_running.min(token_budget);
        let options = BatchOptions { prefill_chunk, token_budget, max_running, ..options };
        Batcher {
            cache: Cache::with_options(&limits.groups, cache),
            limits: limits.clone(),
            options,
            waiting: BTreeMap::new(),
            waiting_tokens: 0,
            running: Vec::new(),
            starved: false,
            cancelled: BTreeSet::new(),
            next_id: 0,
            load: Load::default(),
            ahead: None,
            steps_ahead: 0,
            predictor: Predictor::default(),
            counters: Counters::default(),
            guesses: Record::default(),
            ended: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// Queues a request, or refuses one that could never run, that would miss its deadline or that finds the queue full.
    pub fn submit(&mut self, now: Duration, request: Request) -> Result<RequestId> {
        request.check(self.limits.vocabulary)?;
        let limit = self.length_limit(request.tokens.len(), request.max_tokens)?;
        let answers = request.more as usize + 1;
        if answers > self.options.max_running {
            return Err(Error::TooManyChoices { found: answers, limit: self.options.max_running });
        }
        let new_tokens = request.tokens.len().saturating_mul(answers);
        let (waiting, tokens) = (self.waiting.len(), self.waiting_tokens);
        // An empty queue takes any request, or a long one would be turned away for ever.
        let fits = waiting + answers <= self.options.max_waiting
            && tokens.saturating_add(new_tokens) <= self.options.max_waiting_tokens;
        if waiting > 0 && !fits {
            return Err(Error::QueueFull { requests: waiting, tokens });
        }
        let time = self.options.policy.rank(&request, now);
        let done = request.deadline.and_then(|_| self.estimate(&request, time)).map(|takes| now + takes);
        self.options.policy.admit(&request, &Arrival { now, done })?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let request = Arc::new(request);
        for more in 0..=request.more {
            let choice = request.choice.wrapping_add(more);
            self.park(Sequence {
                id,
                choice,
                rank: Rank { time, id, choice: more },
                tokens: request.tokens.clone(),
                request: Arc::clone(&request),
                arrival: now,
                limit,
                computed: 0,
                table: self.cache.table(),
                chain: Chain::default(),
                in_step: 0,
                guesses: Vec::new(),
                branches: Vec::new(),
                drafted: 0,
                forks: Vec::new(),
                record: Record::default(),
                is_drafted: false,
                row: None,
                ahead: None,
                prompt_row: None,
                judged: 0,
                generated: BTreeMap::new(),
                started: false,
                follows: more > 0,
                state: State::Active,
            });
        }
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

    /// How long a request of this place in the queue will take, as far as past steps tell.
    fn estimate(&self, request: &Request, time: i64) -> Option<Duration> {
        let ahead = self.waiting.range(..Rank { time, id: RequestId(u64::MAX), choice: 0 });
        let (count, waiting) = ahead.fold((0, 0), |(count, sum), (_, s)| (count + 1, sum + s.pending()));
        let beside = self.running.len();
        let prompts: usize = waiting + self.running.iter().map(Sequence::pending).sum::<usize>();
        let own = request.tokens.len();
        let prefill = self.predictor.step(Load::of(0, own).and(Load { tokens: prompts, attended: 0 }))?;
        let together = (beside + count + 1).min(self.options.max_running);
        let context: usize = self.running.iter().map(|s| s.tokens.len()).sum::<usize>() + own;
        let step = self.predictor.step(Load { tokens: together, attended: context })?;
        let generated = request.max_tokens.unwrap_or(1).max(1) - 1;
        // Those that find no place wait until as many answers of about this length have ended before them.
        let rounds = (beside + count) / self.options.max_running;
        Some(prefill + step.saturating_mul((generated * (rounds + 1)) as u32))
    }

    /// Ends a request, or one of its answers, at the next step. Unknown and finished ones are ignored.
    pub fn cancel(&mut self, request: RequestId, choice: Option<u32>) {
        self.cancelled.insert((request, choice));
    }

    /// Answers that have not ended.
    pub fn unfinished(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Ends what was cancelled or is late, and lets waiting requests run while a step has room for one more.
    pub fn admit(&mut self, now: Duration, events: &mut Vec<Event>) {
        self.end_unwanted(now, events);
        if self.options.is_static && !self.running.is_empty() {
            return;
        }
        // None starts while one that runs lacks pages, or newcomers could keep it waiting forever.
        while self.running.len() < self.options.max_running && !self.starved {
            let ready = |sequence: &&Sequence| !sequence.follows || self.is_ready_to_follow(sequence);
            let Some(rank) = self.waiting.values().find(ready).map(|sequence| sequence.rank) else { break };
            let Some(mut sequence) = self.unpark(rank) else { break };
            let has_work = sequence.tokens.len() < sequence.limit || sequence.judges();
            if !has_work {
                sequence.end(FinishReason::Length, events);
                continue;
            }
            self.find_pages(&mut sequence);
            let promise = |s: &Sequence| (s.tokens.len() + 1).min(s.limit);
            let mut promises: Vec<(&BlockTable, usize)> = self.running.iter().map(|s| (&s.table, promise(s))).collect();
            promises.push((&sequence.table, promise(&sequence)));
            if !self.cache.has_room_for(&promises) {
                self.give_back(&mut sequence);
                self.park(sequence);
                break;
            }
            if self.cache.remembers() {
                self.counters.prefix_queries += sequence.tokens.len() as u64;
                self.counters.prefix_hits += sequence.computed as u64;
            }
            if !std::mem::replace(&mut sequence.started, true) {
                let (request, choice, cached) = (sequence.id, sequence.choice, sequence.computed);
                events.push(Event::Started { request, choice, cached });
            }
            sequence.follows = false;
            let place = self.running.partition_point(|other| other.rank < sequence.rank);
            self.running.insert(place, sequence);
        }
    }

    /// Whether the first answer of the same request has computed the prompt, or is gone.
    fn is_ready_to_follow(&self, sequence: &Sequence) -> bool {
        let first = Rank { choice: 0, ..sequence.rank };
        let is_computed = |lead: &Sequence| lead.computed >= lead.request.tokens.len();
        !self.waiting.contains_key(&first) && self.running.iter().all(|lead| lead.rank != first || is_computed(lead))
    }

    /// Gives a sequence the pages of what was computed already: by the answer that it follows, or by any other.
    fn find_pages(&mut self, sequence: &mut Sequence) {
        let first = Rank { choice: 0, ..sequence.rank };
        // The last token is always computed, for the sake of its row.
        let most = sequence.tokens.len() - 1;
        if sequence.follows
            && let Some(lead) = self.running.iter().find(|lead| lead.rank == first && lead.computed > most)
            && let Some(table) = self.cache.fork(&lead.table, most)
        {
            sequence.table = table;
            sequence.computed = most;
        } else if self.cache.remembers() && !sequence.judges() {
            self.cache.extend(&mut sequence.chain, sequence.request.root, &sequence.tokens);
            let (tokens, pages) = self.cache.look_up(&sequence.chain, most);
            self.cache.adopt(&mut sequence.table, tokens, pages);
            sequence.computed = tokens;
        }
    }

    /// Fills a step with the next tokens of the running requests; false when there is nothing to run.
    pub fn compose(&mut self, step: &mut Step) -> bool {
        step.clear(self.limits.groups.len());
        step.copies.append(&mut self.copies);
        self.starved = false;
        self.load = Load::default();
        self.steps_ahead = 0;
        let mut budget = self.options.token_budget;
        let mut rows = self.limits.max.rows as usize;
        let mut order = Vec::with_capacity(self.running.len());
        let mut guesses = Vec::new();
        // Those that wait for one token go first, so that a long prompt never delays an answer in progress.
        for decoding in [true, false] {
            if !decoding {
                let behind = self.running.iter().filter(|s| s.pending() > 1).count() + self.waiting.len();
                guesses = self.choose_guesses(rows, behind > 0);
                // What guesses add to a step is added to the part of prompts as well.
                budget = self.prompt_budget(budget, self.with_guesses(&guesses), behind);
            }
            for index in 0..self.running.len() {
                let sequence = &self.running[index];
                if (sequence.pending() == 1) != decoding || sequence.state != State::Active || sequence.in_step > 0 {
                    continue;
                }
                let mut tokens = sequence.pending().min(self.options.prefill_chunk).min(budget);
                // Each token whose likelihood is wanted takes a row, and so does the last one.
                while tokens > 0 && sequence.rows(tokens) > rows {
                    tokens -= 1;
                }
                if tokens == 0 {
                    continue;
                }
                if self.make_room(index, tokens, step) {
                    let sequence = &mut self.running[index];
                    self.load = self.load.and(Load::of(sequence.computed, tokens));
                    self.counters.prompt_tokens += if decoding { 0 } else { tokens as u64 };
                    rows -= sequence.rows(tokens);
                    sequence.in_step = tokens;
                    budget -= tokens;
                    order.push(index);
                } else {
                    self.starved = true;
                }
            }
        }
        self.add_guesses(guesses, rows, step);
        for index in order {
            self.running[index].join(step);
        }
        let preempted: Vec<Sequence> =
            self.running.extract_if(.., |sequence| sequence.state == State::Preempted).collect();
        for mut sequence in preempted {
            sequence.state = State::Active;
            self.counters.preemptions += 1;
            self.park(sequence);
        }
        !step.tokens.is_empty()
    }

    /// How many of the tokens that a step has left may be of prompts, beside answers with this load, while so many requests
    /// wait for their first token. The more of them there are, the more of the step is theirs.
    fn prompt_budget(&self, left: usize, answers: Load, behind: usize) -> usize {
        if self.load.tokens == 0 || !self.options.stretch.is_finite() {
            return left;
        }
        let first = self.running.iter().find(|sequence| sequence.pending() > 1).map_or(0, |sequence| sequence.computed);
        let stretch = self.options.stretch * (1.0 + behind as f64 / self.load.tokens as f64);
        self.predictor.room(answers, first, stretch, LEAST_PROMPT_TOKENS.min(left), left)
    }

    /// Grants pages for the next tokens of a running request, if need be at the cost of those of higher rank. Those that
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

    /// Records what a step computed, which took so long: new tokens and answers that ended.
    pub fn retire(&mut self, took: Duration, output: &StepOutput, events: &mut Vec<Event>) {
        self.predictor.learn(self.load, took);
        let before = events.len();
        for sequence in self.running.iter_mut().filter(|sequence| sequence.in_step > 0) {
            let from = events.len();
            if sequence.is_broken(&output.rows) {
                sequence.end(FinishReason::NotFinite, events);
            } else {
                sequence.report_prompt(&output.rows, events);
                sequence.computed += std::mem::take(&mut sequence.in_step);
                if let Some(row) = sequence.row.take() {
                    sequence.record(&output.rows, row, &mut self.guesses, &mut self.counters, events);
                } else if sequence.pending() == 0 {
                    sequence.end(FinishReason::Length, events);
                }
            }
            sequence.end_forks(&mut self.cache);
            if matches!(events[from..].last(), Some(Event::Finished { reason: FinishReason::NotFinite, .. })) {
                // What it left in the cache may be as broken as its logits.
                self.cache.disown(&sequence.table);
            } else if self.cache.remembers() {
                let (root, computed) = (sequence.request.root, sequence.computed);
                self.cache.extend(&mut sequence.chain, root, &sequence.tokens[..computed]);
                self.cache.remember(&mut sequence.table, &sequence.chain, computed);
            }
            if sequence.state == State::Ended {
                self.cache.release(&mut sequence.table);
            } else {
                // What the step behind this one writes, if it is under way, it goes on with.
                sequence.row = sequence.ahead.take();
                sequence.in_step = usize::from(sequence.row.is_some());
                self.cache.shrink(&mut sequence.table, sequence.computed + sequence.in_step);
                self.cache.slide(&mut sequence.table, sequence.computed);
            }
        }
        self.load = self.ahead.take().unwrap_or_default();
        let ended = self.running.iter().filter(|sequence| sequence.state == State::Ended && sequence.is_drafted);
        self.ended.extend(ended.map(Sequence::key));
        self.running.retain(|sequence| sequence.state != State::Ended);
        let tokens = events[before..].iter().filter(|event| matches!(event, Event::Token { .. }));
        self.counters.generated_tokens += tokens.count() as u64;
    }

    /// Ends every request after the device failed; the pages go back and are forgotten.
    pub fn abort(&mut self, events: &mut Vec<Event>) {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_tokens = 0;
        self.ahead = None;
        for mut sequence in self.running.drain(..).chain(waiting.into_values()) {
            sequence.end_forks(&mut self.cache);
            self.cache.release(&mut sequence.table);
            sequence.end(FinishReason::Failed, events);
            self.ended.extend(sequence.is_drafted.then(|| sequence.key()));
        }
        self.cache.forget();
    }

    /// The state in numbers.
    pub fn gauges(&self) -> Gauges {
        let pages = self.cache.pages();
        Gauges {
            running: self.running.len(),
            waiting: self.waiting.len(),
            waiting_tokens: self.waiting_tokens,
            pages,
            held_pages: pages - self.cache.free_pages(),
            idle_pages: self.cache.idle_pages(),
        }
    }

    /// What happened since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How long the composed step is predicted to take.
    pub fn predicted(&self) -> Option<Duration> {
        self.predictor.step(self.load)
    }

    /// When the answer that waits longest arrived.
    pub fn oldest_arrival(&self) -> Option<Duration> {
        self.waiting.values().map(|sequence| sequence.arrival).min()
    }

    /// Checks that pages, requests and gauges agree, for simulations.
    pub fn check_integrity(&self) -> Result<(), String> {
        let all = || self.running.iter().chain(self.waiting.values());
        let forks = self.running.iter().flat_map(|sequence| &sequence.forks).map(|fork| &fork.table);
        let tables: Vec<&BlockTable> = all().map(|sequence| &sequence.table).chain(forks).collect();
        self.cache.check_integrity(&tables)?;
        if self.waiting.values().any(|sequence| sequence.table.tokens() > 0) {
            return Err("a request that waits holds pages".into());
        }
        let tokens: usize = self.waiting.values().map(|sequence| sequence.tokens.len()).sum();
        if tokens != self.waiting_tokens {
            return Err(format!("{tokens} tokens wait, and {} are counted", self.waiting_tokens));
        }
        if !self.running.is_sorted_by_key(|sequence| sequence.rank) {
            return Err("those that run are out of order".into());
        }
        Ok(())
    }

    /// The tokens that the pages of a cache group remember, by page, for simulations.
    pub fn remembered(&self, group: usize) -> impl Iterator<Item = (u32, &[u32])> {
        self.cache.remembered(group)
    }

    /// The cache, for a caller that needs pages while no request runs.
    pub(crate) fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }

    /// The number of tokens that a step takes of one prompt.
    pub(crate) fn prefill_chunk(&self) -> usize {
        self.options.prefill_chunk
    }

    fn park(&mut self, sequence: Sequence) {
        self.waiting_tokens += sequence.tokens.len();
        self.waiting.insert(sequence.rank, sequence);
    }

    fn unpark(&mut self, rank: Rank) -> Option<Sequence> {
        let sequence = self.waiting.remove(&rank)?;
        self.waiting_tokens -= sequence.tokens.len();
        Some(sequence)
    }

    fn give_back(&mut self, sequence: &mut Sequence) {
        self.cache.release(&mut sequence.table);
        sequence.computed = 0;
    }

    /// Ends what was cancelled and what is late.
    fn end_unwanted(&mut self, now: Duration, events: &mut Vec<Event>) {
        let cancelled = std::mem::take(&mut self.cancelled);
        let reason = |sequence: &Sequence| {
            let named = |choice| cancelled.contains(&(sequence.id, choice));
            let is_late = sequence.request.deadline.is_some_and(|deadline| deadline <= now);
            if named(None) || named(Some(sequence.choice)) {
                Some(FinishReason::Cancelled)
            } else {
                is_late.then_some(FinishReason::Late)
            }
        };
        let ranks: Vec<Rank> = self.waiting.values().filter(|s| reason(s).is_some()).map(|s| s.rank).collect();
        let waiting: Vec<Sequence> = ranks.into_iter().filter_map(|rank| self.unpark(rank)).collect();
        let running = self.running.extract_if(.., |sequence| reason(sequence).is_some());
        for mut sequence in running.chain(waiting) {
            self.cache.release(&mut sequence.table);
            self.ended.extend(sequence.is_drafted.then(|| sequence.key()));
            if let Some(reason) = reason(&sequence) {
                sequence.end(reason, events);
            }
        }
    }
}

#[cfg(test)]
mod tests;
