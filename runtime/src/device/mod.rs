//! Devices: what executes the steps of a plan's program.
//!
//! A device loads one program, owns its arenas and cache pages, and runs steps asynchronously: [`Device::submit`] hands a
//! [`Step`] over and returns at once, [`Device::collect`] waits for its [`StepOutput`]. A step is ragged: any mix of
//! prefill chunks and decodes, each token with its logical position and its sequence. A token may be named as "what that
//! row of that step samples", so the host can prepare a step while the one before it still runs.
//!
//! [`choice`] loads the one that a plan and a user, by [`options`], ask for:
//!
//! - [`cpu`]: pinned workers that run the plan's x86-64 code.
//! - [`cuda`]: an NVIDIA GPU that runs the plan's PTX.
//! - [`null`]: no arithmetic at all; a stand-in for simulations of everything above the device.
//! - [`fault`]: any of these, failing on purpose.
//!
//! [`room`] says whether a plan fits into memory, and how large its cache is.

pub mod choice;
pub mod cpu;
pub mod cuda;
pub mod fault;
pub mod null;
pub mod options;
mod picks;
pub mod room;
mod tickets;
pub mod timeline;
mod wide;

use lathe_plan::program::{Program, Retention, StepSize};

use crate::{
    error::{Error, Result},
    exec, math,
    sample::{NoiseKey, SampleParams, Sampler, greedy},
};

use self::timeline::Timeline;

/// Runs the steps of one program.
pub trait Device: Send {
    /// What the device was loaded for.
    fn limits(&self) -> &Limits;

    /// Checks a step and starts it. Up to [`IN_FLIGHT`] steps may wait to be collected; they run in order.
    fn submit(&mut self, step: &Step) -> Result<Ticket>;

    /// Waits for a step and puts its output into `output`, whose memory is used again. Each ticket is collected once, in
    /// any order.
    fn collect(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<()>;

    /// Whether the token that a row samples reaches a step behind it without the host, so that such a step may be submitted,
    /// with [`StepToken::SampledBy`], while nobody knows the token yet, and nothing waits for it.
    fn feeds_back(&self, _row: &Row) -> bool {
        false
    }

    /// Whether the steps from now on are to be recorded. Devices that cannot ignore it.
    fn record(&mut self, _on: bool) {}

    /// What the workers did in the last step that was collected, if it was recorded.
    fn timeline(&mut self) -> Option<Timeline> {
        None
    }
}

/// How many steps may be submitted and not yet collected.
pub const IN_FLIGHT: usize = 2;

/// Names a submitted step. Tickets of a device count up from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

/// What a device can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest step.
    pub max: StepSize,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Positions are below this.
    pub max_context: u32,
    /// The cache groups, in the program's order.
    pub groups: Vec<GroupLimits>,
}

impl Limits {
    /// What a device takes for a program, with a cache for so many positions.
    pub(crate) fn of(program: &Program, tokens: usize) -> Limits {
        let max = exec::largest_step(program);
        let groups = program.cache_groups.iter().map(|group| {
            let window = match group.retention {
                Retention::All => None,
                Retention::Window { tokens } => Some(tokens),
            };
            // With a window, no more is ever held than every sequence's window and what a step adds to it.
            let reach = |window: u32| (max.sequences as usize).saturating_mul(window as usize + max.tokens as usize);
            let tokens = window.map_or(tokens, |window| tokens.min(reach(window)));
            GroupLimits {
                page_tokens: group.page_tokens,
                pages: u32::try_from(tokens.div_ceil(group.page_tokens.max(1) as usize)).unwrap_or(u32::MAX).max(1),
                window,
            }
        });
        Limits { max, vocabulary: program.vocabulary, max_context: program.max_context, groups: groups.collect() }
    }

    /// Positions that the cache holds, in the group that holds most.
    pub fn cache_tokens(&self) -> u64 {
        let positions = self.groups.iter().map(|group| u64::from(group.pages) * u64::from(group.page_tokens));
        positions.max().unwrap_or(0)
    }
}

/// The pages of a cache group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Positions per page.
    pub page_tokens: u32,
    /// Page numbers are below this.
    pub pages: u32,
    /// A token looks at most at so many positions before its own; `None` for all. Pages before those are never read.
    pub window: Option<u32>,
}

/// Where a token of a step comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepToken {
    /// This id.
    Known(u32),
    /// What a row of one of the last [`IN_FLIGHT`] steps samples.
    SampledBy(Ticket, u32),
}

/// What is done to one logit before sampling: a positive one is divided by `repetition` and a negative one multiplied,
/// and then `add` is added. It never changes the reported logprobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edit {
    /// The token.
    pub token: u32,
    /// Above one makes the token less likely.
    pub repetition: f32,
    /// Negative infinity forbids the token.
    pub add: f32,
}

impl Edit {
    /// An edit that changes nothing yet.
    pub fn of(token: u32) -> Edit {
        Edit { token, repetition: 1.0, add: 0.0 }
    }

    /// The logit afterwards.
    fn apply(&self, logit: f32) -> f32 {
        (if logit > 0.0 { logit / self.repetition } else { logit * self.repetition }) + self.add
    }
}

/// A row whose logits are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Index of the token in the step whose successor is predicted.
    pub token: u32,
    /// How the successor is chosen.
    pub pick: Pick,
    /// How many of the likeliest tokens to report with their logprobs.
    pub top: u32,
    /// What is done to the logits before the successor is sampled; no token twice.
    pub edits: Vec<Edit>,
    /// How many further tokens to sample: what would have been without the ones before.
    pub rivals: u32,
    /// Whether the row's logits are wanted back.
    pub logits: bool,
}

impl Row {
    /// Picks the row's token from its logits, of which one must exist. With a NaN, a +∞ or nothing but -∞ the row is broken.
    #[expect(clippy::inline_always, reason = "to be compiled for the vectors of its caller")]
    #[inline(always)]
    pub(crate) fn pick(&self, logits: &[f32], sampler: &mut Sampler, output: &mut RowOutput) {
        let (max, log_sum) = math::log_sum_exp(logits);
        let logprob = |token: u32| (f64::from(logits[token as usize]) - f64::from(max) - log_sum) as f32;
        output.top.clear();
        output.rivals.clear();
        output.logits.clear();
        output.is_broken = log_sum.is_nan();
        if output.is_broken {
            (output.token, output.logprob) = (0, 0.0);
            return;
        }
        output.token = match &self.pick {
            Pick::Sample(params, _) if self.edits.is_empty() && params.is_greedy() => greedy(logits, max),
            Pick::Sample(params, key) if self.edits.is_empty() => sampler.sample(logits, params, *key),
            Pick::Sample(params, key) => {
                let edits = self.edits.iter().map(|edit| (edit.token, edit.apply(logits[edit.token as usize])));
                sampler.sample_edited(logits, edits, params, *key)
            }
            Pick::Given(token) => *token,
        };
        output.logprob = logprob(output.token);
        if self.top > 0 {
            let top = sampler.top(logits, self.top as usize);
            output.top.extend(top.iter().map(|&token| (token, logprob(token))));
        }
        if self.rivals > 0 {
            self.pick_rivals(logits, sampler, output, logprob);
        }
        if self.logits {
            output.logits.extend_from_slice(logits);
        }
    }

    /// Samples what would be without the token, what without that as well, and so on.
    fn pick_rivals(&self, logits: &[f32], sampler: &mut Sampler, output: &mut RowOutput, logprob: impl Fn(u32) -> f32) {
        let Pick::Sample(params, key) = &self.pick else { return };
        let edits = self.edits.iter().map(|edit| (edit.token, edit.apply(logits[edit.token as usize])));
        let mut edits: Vec<(u32, f32)> = edits.collect();
        let mut last = output.token;
        for _ in 0..self.rivals {
            edits.retain(|(token, _)| *token != last);
            edits.push((last, f32::NEG_INFINITY));
            last = sampler.sample_edited(logits, edits.iter().copied(), params, *key);
            // Where nothing is left, nothing is ruled out.
            if edits.contains(&(last, f32::NEG_INFINITY)) {
                break;
            }
            output.rivals.push((last, logprob(last)));
        }
    }
}

/// How the successor of a row's token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Pick {
    /// It is sampled.
    Sample(SampleParams, NoiseKey),
    /// It is given, and only its logprob is wanted.
    Given(u32),
}

impl Default for Pick {
    fn default() -> Pick {
        Pick::Given(0)
    }
}

/// Copies one page of every tensor of a cache group onto another, before the step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The cache group.
    pub group: u32,
    /// The page that is read.
    pub from: u32,
    /// The page that is written.
    pub to: u32,
}

/// One ragged step. [`Step::clear`] keeps the memory for the next one.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    /// The tokens, those of a sequence side by side.
    pub tokens: Vec<StepToken>, // [T]
    /// Their logical positions, rising within a sequence.
    pub positions: Vec<u32>, // [T]
    /// Index of each token's sequence within the step; never falls from one token to the next.
    pub sequences: Vec<u32>, // [T]
    /// The pages of the step's sequences, per cache group.
    pub block_tables: Vec<BlockTables>, // [groups]
    /// The rows to sample.
    pub rows: Vec<Row>, // [R]
    /// Copies to make first.
    pub copies: Vec<PageCopy>,
}

impl Clone for Step {
    fn clone(&self) -> Step {
        let mut step = Step::default();
        step.clone_from(self);
        step
    }

    fn clone_from(&mut self, other: &Step) {
        self.tokens.clone_from(&other.tokens);
        self.positions.clone_from(&other.positions);
        self.sequences.clone_from(&other.sequences);
        self.block_tables.clone_from(&other.block_tables);
        self.rows.clone_from(&other.rows);
        self.copies.clone_from(&other.copies);
    }
}

/// The block tables of a cache group, one after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTables {
    pages: Vec<u32>,
    ends: Vec<usize>, // [S] end of each sequence's table in `pages`
}

impl Clone for BlockTables {
    fn clone(&self) -> BlockTables {
        BlockTables { pages: self.pages.clone(), ends: self.ends.clone() }
    }

    fn clone_from(&mut self, other: &BlockTables) {
        self.pages.clone_from(&other.pages);
        self.ends.clone_from(&other.ends);
    }
}

impl BlockTables {
    /// Appends the table of the next sequence: entry `i` is the page of positions `i · page_tokens ..`.
    pub fn push(&mut self, pages: &[u32]) {
        self.pages.extend_from_slice(pages);
        self.ends.push(self.pages.len());
    }

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The table of a sequence; empty when there is no such sequence.
    pub fn of(&self, sequence: usize) -> &[u32] {
        let start = if sequence == 0 { 0 } else { self.ends.get(sequence - 1).copied().unwrap_or(0) };
        let end = self.ends.get(sequence).copied().unwrap_or(start);
        &self.pages[start..end]
    }

    /// The tables in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        (0..self.len()).map(|s| self.of(s))
    }

    fn clear(&mut self) {
        self.pages.clear();
        self.ends.clear();
    }
}

impl Step {
    /// Empties the step for a program with so many cache groups.
    pub fn clear(&mut self, groups: usize) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.rows.clear();
        self.copies.clear();
        self.block_tables.iter_mut().for_each(BlockTables::clear);
        self.block_tables.resize_with(groups, BlockTables::default);
    }

    /// Adds a sequence's tokens at consecutive positions from `first`, and its block table in each cache group.
    pub fn push_sequence<'a>(
        &mut self,
        tokens: impl IntoIterator<Item = StepToken>,
        first: u32,
        tables: impl IntoIterator<Item = &'a [u32]>,
    ) {
        let sequence = self.sequence_count() as u32;
        for (position, token) in (first..).zip(tokens) {
            self.tokens.push(token);
            self.positions.push(position);
            self.sequences.push(sequence);
        }
        for (all, own) in self.block_tables.iter_mut().zip(tables) {
            all.push(own);
        }
    }

    /// How many sequences the step has.
    pub fn sequence_count(&self) -> usize {
        match self.block_tables.first() {
            Some(tables) => tables.len(),
            None => self.sequences.last().map_or(0, |&s| s as usize + 1),
        }
    }

    /// The values of the symbols T, S and R.
    pub fn size(&self) -> StepSize {
        StepSize {
            tokens: self.tokens.len() as u32,
            sequences: self.sequence_count() as u32,
            rows: self.rows.len() as u32,
        }
    }

    /// Checks every number in the step against its range, so that nothing in a step can lead a kernel astray. Tokens that
    /// another step samples are left to the device, which knows its tickets.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        at_most("tokens", self.tokens.len(), limits.max.tokens)?;
        at_most("sequences", self.sequence_count(), limits.max.sequences)?;
        at_most("rows", self.rows.len(), limits.max.rows)?;
        if self.tokens.is_empty() {
            return Err(Error::Step("it has no tokens".into()));
        }
        let lengths = [self.positions.len(), self.sequences.len()];
        if lengths != [self.tokens.len(); 2] {
            let t = self.tokens.len();
            return Err(Error::Step(format!(
                "{t} tokens, but {} positions and {} sequence indices",
                lengths[0], lengths[1]
            )));
        }
        self.check_tables(limits)?;
        self.check_tokens(limits)?;
        self.check_rows(limits)
    }

    fn check_tables(&self, limits: &Limits) -> Result<()> {
        if self.block_tables.len() != limits.groups.len() {
            let (found, wanted) = (self.block_tables.len(), limits.groups.len());
            return Err(Error::Step(format!("it has block tables for {found} cache groups, the program has {wanted}")));
        }
        for (tables, group) in self.block_tables.iter().zip(&limits.groups) {
            if tables.len() != self.sequence_count() {
                return Err(Error::Step("its cache groups have different numbers of block tables".into()));
            }
            let most = limits.max_context.div_ceil(group.page_tokens) as usize;
            for table in tables.iter() {
                at_most("pages in a block table", table.len(), most as u32)?;
            }
            for (index, &page) in tables.pages.iter().enumerate() {
                below("page", index, page, group.pages)?;
            }
        }
        for (index, copy) in self.copies.iter().enumerate() {
            below("cache group of copy", index, copy.group, limits.groups.len() as u32)?;
            let pages = limits.groups[copy.group as usize].pages;
            below("source page of copy", index, copy.from, pages)?;
            below("target page of copy", index, copy.to, pages)?;
        }
        Ok(())
    }

    fn check_tokens(&self, limits: &Limits) -> Result<()> {
        let mut previous: Option<(u32, u32)> = None;
        for (index, (&position, &sequence)) in self.positions.iter().zip(&self.sequences).enumerate() {
            if let StepToken::Known(token) = self.tokens[index] {
                below("token", index, token, limits.vocabulary)?;
            }
            below("position of token", index, position, limits.max_context)?;
            below("sequence of token", index, sequence, self.sequence_count() as u32)?;
            if let Some((s, p)) = previous
                && (sequence < s || (sequence == s && position <= p))
            {
                return Err(Error::Step(format!(
                    "token {index} is at position {position} of sequence {sequence}, \
                     but follows position {p} of sequence {s}; sequences and positions must rise"
                )));
            }
            previous = Some((sequence, position));
            for (tables, group) in self.block_tables.iter().zip(&limits.groups) {
                let pages = tables.of(sequence as usize).len() as u64;
                let covered = pages * u64::from(group.page_tokens);
                if u64::from(position) >= covered {
                    return Err(Error::Step(format!(
                        "token {index} is at position {position}, but the pages of its sequence end at {covered}"
                    )));
                }
            }
        }
        Ok(())
    }

    fn check_rows(&self, limits: &Limits) -> Result<()> {
        for (index, row) in self.rows.iter().enumerate() {
            below("token index of row", index, row.token, self.tokens.len() as u32)?;
            match &row.pick {
                Pick::Sample(params, _) => params.check()?,
                Pick::Given(token) => below("given token of row", index, *token, limits.vocabulary)?,
            }
            for edit in &row.edits {
                below("edited token of row", index, edit.token, limits.vocabulary)?;
                if edit.add.is_nan() || edit.add == f32::INFINITY || edit.repetition.is_nan() || edit.repetition <= 0.0
                {
                    return Err(Error::Step(format!("row {index} edits a logit by {edit:?}")));
                }
            }
        }
        Ok(())
    }
}

fn at_most(what: &'static str, found: usize, limit: u32) -> Result<()> {
    if found > limit as usize { Err(Error::StepTooLarge { what, found, limit: limit as usize }) } else { Ok(()) }
}

fn below(what: &'static str, index: usize, found: u32, limit: u32) -> Result<()> {
    if found < limit { Ok(()) } else { Err(Error::StepRange { what, index, found: found.into(), limit: limit.into() }) }
}

/// What a step computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One entry per row of the step.
    pub rows: Vec<RowOutput>, // [R]
}

/// What a row of a step computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowOutput {
    /// The token that follows: sampled or given.
    pub token: u32,
    /// Its natural log-probability under the model, before temperature.
    pub logprob: f32,
    /// The likeliest tokens with their logprobs, likeliest first, as many as asked for.
    pub top: Vec<(u32, f32)>,
    /// The tokens that would have been sampled without those before them, with their logprobs, as many as asked for.
    pub rivals: Vec<(u32, f32)>,
    /// The logits if they were asked for, else empty.
    pub logits: Vec<f32>, // [V]
    /// Whether the row's logits were not finite. Nothing else in here means anything then, and neither do the keys and
    /// values of its sequence.
    pub is_broken: bool,
}

#[cfg(test)]
mod tests;
