//! Speculation's part of a step: which answers a drafter is asked about, and which of its guesses join.
//!
//! Guesses come last. They take tokens, rows and pages that the step has left and displace nothing, so that neither
//! fairness nor progress depends on them.

use super::{Batcher, Load, Sequence};
use crate::{
    device::{PageCopy, Step},
    error::Result,
    kv::Cache,
    speculate::{
        Drafter, Kind, Mode, Speculation, USUAL_DEPTH,
        worth::{self, Odds, Reach},
    },
};

/// How many times longer guesses make a step of answers that prompts share, at most.
const LONGEST: f64 = 2.0;
/// Where a model is to make so many guesses, it does while they are right, with all before them, with this chance.
const LEAST: f64 = 0.3;
/// Tokens that a model may lack of an answer without thinking about what computing them takes.
const NEAR: usize = 16;
/// Tokens that an answer is expected to have still, at most, when a model begins to guess for it.
const HORIZON: usize = 256;

/// A guess that might join the step.
pub(super) struct Candidate {
    index: usize, // of its answer among those that run
    depth: usize, // guesses before it
    chance: f64,  // that it is right, and so are all before it
}

impl Batcher {
    /// Changes how tokens are guessed, while nothing runs.
    pub(crate) fn set_speculation(&mut self, speculation: Speculation, drafters: &mut [Box<dyn Drafter>]) {
        self.forget_ended(drafters);
        self.options.speculation = speculation;
    }

    fn forget_ended(&mut self, drafters: &mut [Box<dyn Drafter>]) {
        for key in self.ended.drain(..) {
            for drafter in drafters.iter_mut() {
                drafter.forget(key);
            }
        }
    }

    /// Asks drafters about every answer that goes on with one token, the next one where those before had no guess, or none
    /// as likely to be right. Comes between [`Batcher::admit`] and [`Batcher::compose`].
    pub fn draft(&mut self, drafters: &mut [Box<dyn Drafter>]) -> Result<()> {
        self.forget_ended(drafters);
        let mode = self.options.speculation.mode;
        self.running.iter_mut().for_each(|sequence| sequence.guesses.clear());
        for drafter in drafters.iter_mut().filter(|drafter| mode.takes(drafter.kind())) {
            let reach = self.reach(drafter.as_ref());
            let in_place = drafter.kind() == Kind::Own;
            let (all, cache) = (&self.guesses, &mut self.cache);
            let mut asks = Vec::new();
            for sequence in &mut self.running {
                let most = sequence.most_guesses().min(reach.depth);
                let odds = Odds { own: &sequence.record, all };
                let class = drafter.kind().class();
                let is_better =
                    |class| sequence.guesses.first().is_none_or(|guess| odds.of(guess) < odds.of_model(class));
                let is_open = class.map_or(sequence.guesses.is_empty(), is_better);
                if most > 0 && is_open && (mode != Mode::Auto || pays(sequence, drafter.as_ref(), &reach)) {
                    let mut copies = Vec::new();
                    let most = if in_place { grant(sequence, cache, most, &mut copies) } else { most };
                    if most > 0 {
                        asks.push(sequence.ask(all, most, reach.least, in_place.then_some(copies)));
                    }
                }
            }
            if !asks.is_empty() {
                drafter.draft(&mut asks)?;
            }
            let copies: Vec<PageCopy> =
                asks.into_iter().filter_map(|ask| ask.place).flat_map(|place| place.copies).collect();
            // Those of answers that found no room among the guesses.
            self.copies.extend(copies);
            if in_place {
                // What the guesses took is free for the step that verifies them, and for others.
                for sequence in &mut self.running {
                    self.cache.shrink(&mut sequence.table, sequence.computed);
                }
            }
        }
        Ok(())
    }

    /// How far a drafter should guess for those that go on with one token. A model that is to guess in every step guesses
    /// as far as gives most tokens a second, and one token at least.
    fn reach(&self, drafter: &dyn Drafter) -> Reach {
        let Speculation { mode, depth: asked } = self.options.speculation;
        let depth = asked.unwrap_or(USUAL_DEPTH);
        let Some(class) = drafter.kind().class() else { return Reach { depth, least: 0.0, saved: 0.0 } };
        if mode != Mode::Auto && asked.is_some() {
            return Reach { depth, least: LEAST, saved: 0.0 };
        }
        let (mut count, mut chance, mut one) = (0, 0.0, Load::default());
        for sequence in self.running.iter().filter(|sequence| sequence.most_guesses() > 0) {
            count += 1;
            chance += Odds { own: &sequence.record, all: &self.guesses }.of_model(class);
            one = one.and(Load::of(sequence.computed, 1));
        }
        // Where it has never run, one guess tells how long it takes.
        let Some(each) = drafter.seconds(one) else { return Reach { depth: 1, least: 0.0, saved: f64::INFINITY } };
        let times = |n: usize| Load { tokens: one.tokens * n, attended: one.attended * n };
        let best = worth::best_reach(count, chance / f64::from(count.max(1) as u32), depth, each, |guesses| {
            self.predictor.small_step(times(guesses + 1))
        });
        if mode == Mode::Auto || best.depth > 0 { best } else { Reach { depth: 1, ..best } }
    }

    /// Chooses guesses for the answers that the step goes on with, the best first, of which at most `rows` find room.
    /// `prompts` says whether prompts will share the step, or wait for it.
    pub(super) fn choose_guesses(&mut self, rows: usize, prompts: bool) -> Vec<Candidate> {
        let room = rows.min(self.options.token_budget.saturating_sub(self.load.tokens));
        let (certain, mut candidates) = self.candidates();
        if self.options.speculation.mode == Mode::Auto {
            candidates.sort_by(|a, b| b.chance.total_cmp(&a.chance).then(a.depth.cmp(&b.depth)));
            candidates.truncate(room);
            let count = self.worth_verifying(certain, &candidates, prompts);
            candidates.truncate(count);
        } else {
            candidates.sort_by_key(|candidate| candidate.depth);
            candidates.truncate(room);
        }
        candidates
    }

    /// The step's load with these guesses.
    pub(super) fn with_guesses(&self, guesses: &[Candidate]) -> Load {
        guesses.iter().fold(self.load, |load, guess| load.and(self.load_of(guess)))
    }

    fn load_of(&self, guess: &Candidate) -> Load {
        Load::of(self.running[guess.index].tokens.len() + guess.depth, 1)
    }

    /// Lets those guesses join the step that still find room beside its prompts, and grants their pages.
    pub(super) fn add_guesses(&mut self, mut guesses: Vec<Candidate>, rows: usize, step: &mut Step) {
        guesses.truncate(rows.min(self.options.token_budget.saturating_sub(self.load.tokens)));
        for candidate in guesses {
            let sequence = &mut self.running[candidate.index];
            sequence.drafted = sequence.drafted.max(candidate.depth + 1);
        }
        for sequence in self.running.iter_mut().filter(|sequence| sequence.drafted > 0) {
            let end = sequence.computed + sequence.in_step;
            while sequence.drafted > 0
                && !self.cache.grow(&mut sequence.table, end + sequence.drafted, &mut step.copies)
            {
                sequence.drafted -= 1;
            }
            self.load = self.load.and(Load::of(end, sequence.drafted));
        }
    }

    /// How many tokens the step gives without guesses, and all guesses for those answers.
    fn candidates(&mut self) -> (usize, Vec<Candidate>) {
        let (mut certain, mut candidates) = (0, Vec::new());
        for (index, sequence) in self.running.iter_mut().enumerate() {
            sequence.drafted = 0;
            if sequence.in_step == 0 || !sequence.samples() {
                continue;
            }
            certain += 1;
            let mut chance = 1.0;
            for (depth, guess) in sequence.guesses.iter().enumerate() {
                chance *= Odds { own: &sequence.record, all: &self.guesses }.of(guess);
                candidates.push(Candidate { index, depth, chance });
            }
        }
        (certain, candidates)
    }

    /// How many of these guesses are worth their time.
    fn worth_verifying(&self, certain: usize, candidates: &[Candidate], prompts: bool) -> usize {
        let chances: Vec<f64> = candidates.iter().map(|candidate| candidate.chance).collect();
        if !prompts {
            let mut loads = vec![self.load];
            for candidate in candidates {
                let before = loads[loads.len() - 1];
                loads.push(before.and(self.load_of(candidate)));
            }
            return worth::best_count(certain, &chances, |count| self.predictor.small_step(loads[count]));
        }
        // In a step with prompts no token is free, since it reads the weights for many anyhow; and an answer that nothing is
        // guessed for shall not be much slower for it.
        let alone = self.predictor.small_step(self.load);
        worth::best_count(certain, &chances, |count| {
            let seconds = alone? + count as f64 * self.predictor.token_seconds();
            (seconds <= LONGEST * alone?).then_some(seconds)
        })
    }
}

/// Grants pages for the next token and what is behind it, so that as many guesses can be computed in place as it returns.
fn grant(sequence: &mut Sequence, cache: &mut Cache, most: usize, copies: &mut Vec<PageCopy>) -> usize {
    (1..=most).rev().find(|&guesses| cache.grow(&mut sequence.table, sequence.computed + guesses, copies)).unwrap_or(0)
}

/// Whether what a drafter will save for an answer is worth what it must compute first.
fn pays(sequence: &Sequence, drafter: &dyn Drafter, reach: &Reach) -> bool {
    let behind = drafter.behind(sequence.key(), sequence.tokens.len());
    if behind <= NEAR {
        return true;
    }
    let left = (sequence.limit - sequence.tokens.len()).min(HORIZON);
    let first = sequence.tokens.len() - behind;
    drafter.seconds(Load::of(first, behind)).is_none_or(|seconds| reach.saved * left as f64 > seconds)
}
