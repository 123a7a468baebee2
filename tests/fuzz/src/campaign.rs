//! The loop: take a seed, change it, run it; an outcome that is new makes the input a seed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::random::Random;
use crate::{Outcome, Target, mutate};

/// Inputs are no longer than this.
const LONGEST: usize = 1 << 21;
/// Most inputs that are kept as seeds.
const MOST_SEEDS: usize = 4000;

/// What a campaign did.
#[derive(Debug, Default)]
pub struct Report {
    /// Inputs tried.
    pub inputs: u64,
    /// How often each outcome came.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// The input at which the target panicked.
    pub finding: Option<Vec<u8>>,
}

impl Report {
    /// How many inputs were read.
    pub fn accepted(&self) -> u64 {
        self.outcomes.iter().filter(|(outcome, _)| outcome.is_accepted()).map(|(_, count)| count).sum()
    }
}

/// Runs a target until `go_on` says no, which is told the number of inputs so far and the next one. The seeds come first,
/// as they are; a seed that is refused is a panic, since it would search at the surface.
///
/// # Panics
/// When a seed is refused.
pub fn run(target: &Target, seed: u64, mut go_on: impl FnMut(u64, &[u8]) -> bool) -> Report {
    let mut random = Random::new(seed);
    let mut report = Report::default();
    // What was read, and what was refused in a new way.
    let (mut sound, mut refused) = ((target.seeds)(), Vec::new());
    for (index, input) in sound.iter().enumerate() {
        let outcome = (target.run)(input);
        assert!(outcome.is_accepted(), "seed {index} of `{}`: {outcome}", target.name);
        *report.outcomes.entry(outcome).or_default() += 1;
    }
    loop {
        let seeds = if refused.is_empty() || random.once_in(2) { &sound } else { &refused };
        let mut input = random.of(seeds).clone();
        let other = random.of(&sound);
        input = mutate::change(target.shape, &mut random, &input, other);
        while random.once_in(3) {
            input = mutate::change(target.shape, &mut random, &input, other);
        }
        input.truncate(LONGEST);
        if !go_on(report.inputs, &input) {
            return report;
        }
        report.inputs += 1;
        let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) else {
            report.finding = Some(input);
            return report;
        };
        let seeds = if outcome.is_accepted() { &mut sound } else { &mut refused };
        let count = report.outcomes.entry(outcome).or_default();
        *count += 1;
        if *count == 1 && seeds.len() < MOST_SEEDS {
            seeds.push(input);
        }
    }
}
