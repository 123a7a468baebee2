//! Speculation's part of a step: which answers a drafter is asked about, and which of its guesses join.
//!
//! Guesses come last. They take tokens, rows and pages that the step has left and displace nothing, so that neither
//! fairness nor progress depends on them.

use std::collections::BTreeMap;

use super::{Batcher, Load, Sequence, branch::Fork};
use crate::{
    device::{PageCopy, Step},
    error::Result,
    kv::Cache,
    speculate::{
        Drafter, Kind, Mode, Speculation, USUAL_DEPTH, tree,
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
    rank: usize,  // guesses of the same answer that go before it
    node: tree::Node,
}

/// What a step has left for guesses.
#[derive(Clone, Copy, Debug)]
struct Room {
    tokens: usize,
    rows: usize,
    sequences: usize, // for branches
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
        let width = self.options.speculation.ways();
        for sequence in &mut self.running {
            sequence.guesses.clear();
            sequence.branches.clear();
        }
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
                        asks.push(sequence.ask(all, most, reach.least, width, in_place.then_some(copies)));
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
        let Speculation { mode, depth: asked, .. } = self.options.speculation;
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
        let (certain, mut candidates) = self.candidates();
        let is_auto = self.options.speculation.mode == Mode::Auto;
        if is_auto {
            candidates.sort_by(|a, b| b.node.chance.total_cmp(&a.node.chance).then(a.node.place.cmp(&b.node.place)));
        } else {
            candidates.sort_by_key(|candidate| candidate.rank);
        }
        let mut candidates = fitting(candidates, self.room(rows));
        if is_auto {
            let count = self.worth_verifying(certain, &candidates, prompts);
            candidates.truncate(count);
        }
        candidates
    }

    /// What the step has left, besides so many rows.
    fn room(&self, rows: usize) -> Room {
        let tokens = self.options.token_budget.saturating_sub(self.load.tokens);
        let sequences = (self.limits.max.sequences as usize).saturating_sub(self.running.len());
        Room { tokens, rows, sequences }
    }

    /// The step's load with these guesses.
    pub(super) fn with_guesses(&self, guesses: &[Candidate]) -> Load {
        guesses.iter().fold(self.load, |load, guess| load.and(self.load_of(guess)))
    }

    fn load_of(&self, guess: &Candidate) -> Load {
        let end = self.running[guess.index].tokens.len() + guess.node.place + 1;
        Load::of(end - guess.node.tokens, guess.node.tokens)
    }

    /// Lets those guesses join the step that still find room beside its prompts, and grants their pages.
    pub(super) fn add_guesses(&mut self, guesses: Vec<Candidate>, rows: usize, step: &mut Step) {
        for Candidate { index, node, .. } in fitting(guesses, self.room(rows)) {
            let sequence = &mut self.running[index];
            let Some(branch) = node.branch else {
                sequence.drafted = node.depth + 1;
                continue;
            };
            match sequence.forks.iter_mut().find(|fork| fork.branch == branch) {
                Some(fork) => fork.drafted = node.depth + 1,
                None => sequence.forks.push(Fork { drafted: 1, ..Fork::new(branch, &self.cache) }),
            }
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
        // The pages that are left are for branches.
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.forks.is_empty()) {
            self.load = self.load.and(sequence.grant_forks(&mut self.cache, &mut step.copies));
        }
    }

    /// How many tokens the step gives without guesses, and the guesses for those answers.
    fn candidates(&mut self) -> (usize, Vec<Candidate>) {
        let most = self.options.speculation.depth.unwrap_or(USUAL_DEPTH);
        let (mut certain, mut candidates) = (0, Vec::new());
        for (index, sequence) in self.running.iter_mut().enumerate() {
            sequence.drafted = 0;
            if sequence.in_step == 0 || !sequence.samples() {
                continue;
            }
            certain += 1;
            let odds = Odds { own: &sequence.record, all: &self.guesses };
            let nodes = tree::likeliest(&sequence.guesses, &sequence.branches, odds, most);
            candidates.extend(nodes.into_iter().enumerate().map(|(rank, node)| Candidate { index, rank, node }));
        }
        (certain, candidates)
    }

    /// How many of these guesses are worth their time.
    fn worth_verifying(&self, certain: usize, candidates: &[Candidate], prompts: bool) -> usize {
        let chances: Vec<f64> = candidates.iter().map(|candidate| candidate.node.chance).collect();
        let mut loads = vec![self.load];
        for candidate in candidates {
            let before = loads[loads.len() - 1];
            loads.push(before.and(self.load_of(candidate)));
        }
        if !prompts {
            return worth::best_count(certain, &chances, |count| self.predictor.small_step(loads[count]));
        }
        // In a step with prompts no token is free, since it reads the weights for many anyhow; and an answer that nothing is
        // guessed for shall not be much slower for it.
        let alone = self.predictor.small_step(self.load);
        worth::best_count(certain, &chances, |count| {
            let added = (loads[count].tokens - self.load.tokens) as f64;
            let seconds = alone? + added * self.predictor.token_seconds();
            (seconds <= LONGEST * alone?).then_some(seconds)
        })
    }
}

/// Those of some guesses for which there is room. One that finds none leaves none for those behind it.
fn fitting(mut candidates: Vec<Candidate>, mut room: Room) -> Vec<Candidate> {
    // How many guesses of each trunk and branch are in.
    let mut taken: BTreeMap<(usize, Option<usize>), usize> = BTreeMap::new();
    candidates.retain(|Candidate { index, node, .. }| {
        let is_new = node.branch.is_some() && node.depth == 0;
        let before = taken.entry((*index, node.branch)).or_insert(0);
        let fits =
            *before == node.depth && node.tokens <= room.tokens && room.rows > 0 && (!is_new || room.sequences > 0);
        if fits {
            *before += 1;
            room.tokens -= node.tokens;
            room.rows -= 1;
            room.sequences -= usize::from(is_new);
        }
        fits
    });
    candidates
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
