//! A device without arithmetic, for simulations of everything above it.
//!
//! Its cache pages hold the tokens themselves. The token that a row gets is a hash of the row's whole history as the pages
//! tell it, so a page that is shared, freed or overwritten too early changes tokens, like on a real device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, IN_FLIGHT, Limits, Pick, Row, RowOutput, Step, StepOutput, StepToken, Ticket};
use crate::{
    error::{Error, Result},
    sample::mix,
};
use lathe_plan::program::StepSize;

/// The null device.
#[derive(Debug)]
pub struct NullDevice {
    limits: Limits,
    seed: u64,
    feeds_back: bool,
    breaks: Option<u64>,               // of so many histories one has a row that is not finite
    groups: Arc<Mutex<Vec<Vec<u32>>>>, // per cache group [pages · page_tokens] tokens
    steps: Vec<StepSize>,
    outputs: Vec<(Ticket, StepOutput, bool)>, // the last IN_FLIGHT, and whether they wait to be collected
}

impl NullDevice {
    /// A device with these limits. The seed stands for the weights.
    pub fn new(limits: Limits, seed: u64) -> NullDevice {
        let slots = |group: &super::GroupLimits| vec![u32::MAX; group.pages as usize * group.page_tokens as usize];
        let groups = Arc::new(Mutex::new(limits.groups.iter().map(slots).collect()));
        NullDevice { limits, seed, feeds_back: false, breaks: None, groups, steps: Vec::new(), outputs: Vec::new() }
    }

    /// Another program in the same cache.
    #[must_use]
    pub fn beside(&self) -> NullDevice {
        let NullDevice { limits, seed, groups, feeds_back, .. } = self;
        let (limits, seed, feeds_back, groups) = (limits.clone(), *seed, *feeds_back, Arc::clone(groups));
        NullDevice { limits, seed, feeds_back, breaks: None, groups, steps: Vec::new(), outputs: Vec::new() }
    }

    /// The same, but tokens reach the next step without the host, as on a GPU.
    #[must_use]
    pub fn that_feeds_back(self) -> NullDevice {
        NullDevice { feeds_back: true, ..self }
    }

    /// The same, but after one in so many histories the logits are not finite.
    #[must_use]
    pub fn that_breaks(self, one_in: u64) -> NullDevice {
        NullDevice { breaks: Some(one_in), ..self }
    }

    /// Whether the logits after a history with this hash are not finite.
    pub fn is_broken(hash: u64, one_in: u64) -> bool {
        mix(hash ^ 1 << 41).is_multiple_of(one_in)
    }

    /// The sizes of all steps so far.
    pub fn steps(&self) -> &[StepSize] {
        &self.steps
    }

    /// The token that follows a history under a seed.
    pub fn next_token(seed: u64, history: impl IntoIterator<Item = u32>, vocabulary: u32) -> u32 {
        NullDevice::choose(NullDevice::hash(NullDevice::start(seed), history), 0, vocabulary, |_| false)
    }

    /// The hash of a history, from which tokens and logprobs follow. Hashing goes on where it stopped.
    pub fn hash(state: u64, history: impl IntoIterator<Item = u32>) -> u64 {
        history.into_iter().fold(state, |hash, token| mix(hash ^ u64::from(token)))
    }

    /// The state of a hash before the first token.
    pub fn start(seed: u64) -> u64 {
        mix(seed)
    }

    /// The token that a row with this hash gets as one of several choices, when `is_forbidden` rules some out.
    pub fn choose(hash: u64, choice: u32, vocabulary: u32, is_forbidden: impl Fn(u32) -> bool) -> u32 {
        let hash = if choice == 0 { hash } else { mix(hash ^ u64::from(choice)) };
        let first = (hash % u64::from(vocabulary)) as u32;
        let mut tokens = (first..vocabulary).chain(0..first);
        tokens.find(|token| !is_forbidden(*token)).unwrap_or(first)
    }

    /// The logprob of a token after a history with this hash.
    pub fn logprob(hash: u64, token: u32) -> f32 {
        (mix(hash ^ 1 << 40 ^ u64::from(token)) % 1000) as f32 / -100.0
    }

    /// What a page of a cache group holds: `u32::MAX` where nothing was written.
    pub fn page(&self, group: usize, page: u32) -> Vec<u32> {
        let tokens = self.limits.groups[group].page_tokens as usize;
        self.pages()[group][page as usize * tokens..][..tokens].to_vec()
    }

    fn pages(&self) -> MutexGuard<'_, Vec<Vec<u32>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token(&self, token: StepToken) -> Result<u32> {
        match token {
            StepToken::Known(token) => Ok(token),
            StepToken::SampledBy(ticket, row) => {
                let output = self.outputs.iter().find(|(known, ..)| *known == ticket).ok_or(Error::Ticket(ticket.0))?;
                let row = output.1.rows.get(row as usize);
                row.map(|row| row.token).ok_or_else(|| Error::Step(format!("step {} has no such row", ticket.0)))
            }
        }
    }

    /// What the pages of every cache group hold within its window up to a token, its own position included.
    fn history(&self, step: &Step, token: usize) -> Vec<u32> {
        let (sequence, last) = (step.sequences[token], step.positions[token]);
        let mut history = Vec::new();
        for (group, pages) in self.pages().iter().enumerate() {
            let window = self.limits.groups[group].window.unwrap_or(u32::MAX);
            let positions = last.saturating_sub(window - 1)..=last;
            history.extend(positions.map(|position| pages[self.slot(step, group, sequence, position)]));
        }
        history
    }

    /// The slot of a position in a cache group.
    fn slot(&self, step: &Step, group: usize, sequence: u32, position: u32) -> usize {
        let page_tokens = self.limits.groups[group].page_tokens;
        let page = step.block_tables[group].of(sequence as usize)[(position / page_tokens) as usize];
        (page * page_tokens + position % page_tokens) as usize
    }
}

impl Device for NullDevice {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn feeds_back(&self, _row: &Row) -> bool {
        self.feeds_back
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket> {
        step.check(&self.limits)?;
        if self.outputs.iter().filter(|(.., waiting)| *waiting).count() == IN_FLIGHT {
            return Err(Error::InFlight(IN_FLIGHT));
        }
        for copy in &step.copies {
            let tokens = self.limits.groups[copy.group as usize].page_tokens as usize;
            let from = copy.from as usize * tokens;
            self.pages()[copy.group as usize].copy_within(from..from + tokens, copy.to as usize * tokens);
        }
        for (index, &token) in step.tokens.iter().enumerate() {
            let token = self.token(token)?;
            for group in 0..self.limits.groups.len() {
                let slot = self.slot(step, group, step.sequences[index], step.positions[index]);
                self.pages()[group][slot] = token;
            }
        }
        let mut output = StepOutput::default();
        for row in &step.rows {
            let hash = NullDevice::hash(NullDevice::start(self.seed), self.history(step, row.token as usize));
            let is_forbidden =
                |token| row.edits.iter().any(|edit| edit.token == token && edit.add == f32::NEG_INFINITY);
            let token = match row.pick {
                Pick::Sample(_, key) => NullDevice::choose(hash, key.choice, self.limits.vocabulary, is_forbidden),
                Pick::Given(token) => token,
            };
            let mut rivals: Vec<(u32, f32)> = Vec::new();
            while let Pick::Sample(_, key) = row.pick
                && rivals.len() < row.rivals as usize
            {
                let is_passed = |other: u32| other == token || rivals.iter().any(|(known, _)| *known == other);
                let next = NullDevice::choose(hash, key.choice, self.limits.vocabulary, |other| {
                    is_forbidden(other) || is_passed(other)
                });
                rivals.push((next, NullDevice::logprob(hash, next)));
            }
            let is_broken = self.breaks.is_some_and(|one_in| NullDevice::is_broken(hash, one_in));
            output.rows.push(RowOutput {
                token,
                logprob: NullDevice::logprob(hash, token),
                is_broken,
                rivals,
                ..RowOutput::default()
            });
        }
        let ticket = Ticket(self.steps.len() as u64);
        self.steps.push(step.size());
        self.outputs.retain(|(old, _, waiting)| *waiting || old.0 + IN_FLIGHT as u64 > ticket.0);
        self.outputs.push((ticket, output, true));
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<()> {
        let found = self.outputs.iter_mut().find(|(known, _, waiting)| *known == ticket && *waiting);
        let (_, computed, waiting) = found.ok_or(Error::Ticket(ticket.0))?;
        *waiting = false;
        output.clone_from(computed);
        Ok(())
    }
}
