//! What drafters that run a program have in common: its steps, how long they take, and guesses from their rows.

use std::{fmt, time::Instant};

use super::{Ask, Guess, Kind, tree::Branch, worth};
use crate::{
    batcher::{Load, Predictor},
    device::{BlockTables, Device, Limits, Row, Step, StepOutput},
    error::Result,
};

/// Steps of so many tokens are predicted from those of the same size.
const SMALL: usize = 32;

/// A program that guesses, and its step under way.
pub struct Model {
    device: Box<dyn Device>,
    vocabulary: u32, // ids that it and its target know are below this
    first_class: usize,
    predictor: Predictor,
    /// The step, to be filled.
    pub step: Step,
    output: StepOutput,
}

/// What a row means for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A guess, behind which another one is of use.
    More,
    /// There are enough guesses, or none comes behind this one.
    End,
    /// The logits were not finite.
    Broken,
}

impl Model {
    /// A program on a device, for a target with such a vocabulary, whose guesses are of the classes from this one on.
    pub fn new(device: Box<dyn Device>, target_vocabulary: u32, first_class: usize) -> Model {
        Model {
            vocabulary: device.limits().vocabulary.min(target_vocabulary),
            device,
            first_class,
            predictor: Predictor::default(),
            step: Step::default(),
            output: StepOutput::default(),
        }
    }

    /// What its device takes.
    pub fn limits(&self) -> &Limits {
        self.device.limits()
    }

    /// Whether it knows all of these tokens.
    pub fn knows(&self, tokens: &[u32]) -> bool {
        tokens.iter().all(|&token| token < self.vocabulary)
    }

    /// Begins a step.
    pub fn begin(&mut self) {
        let groups = self.device.limits().groups.len();
        self.step.clear(groups);
    }

    /// Whether the step has room for another sequence and its row.
    pub fn has_room(&self) -> bool {
        let most = self.device.limits().max;
        self.step.block_tables.first().map_or(0, BlockTables::len) < most.sequences as usize
            && self.step.rows.len() < most.rows as usize
            && self.step.tokens.len() < most.tokens as usize
    }

    /// Adds the row that samples what comes behind an answer and its guesses, at the step's last token; its number.
    pub fn push_row(&mut self, ask: &Ask<'_>) -> usize {
        let rivals = ask.width as u32 - 1;
        let mut row = Row { top: 0, rivals, ..ask.rule.row(self.step.tokens.len() as u32 - 1, ask.guesses) };
        row.edits.retain(|edit| edit.token < self.vocabulary);
        self.step.rows.push(row);
        self.step.rows.len() - 1
    }

    /// Runs the step.
    pub fn run(&mut self, load: Load) -> Result<()> {
        let start = Instant::now();
        let ticket = self.device.submit(&self.step)?;
        self.device.collect(ticket, &mut self.output)?;
        self.predictor.learn(load, start.elapsed());
        Ok(())
    }

    /// Makes a guess of what a row of the step that ran says.
    pub fn take(&self, ask: &mut Ask<'_>, row: usize) -> Taken {
        let Some(row) = self.output.rows.get(row) else { return Taken::End };
        if row.is_broken {
            return Taken::Broken;
        }
        // Nothing comes behind a stop token.
        if row.token >= self.vocabulary || ask.rule.request.stop.contains(&row.token) {
            return Taken::End;
        }
        let probability = row.logprob.exp();
        let class = worth::class_of_model(self.first_class, probability);
        let from = ask.guesses.len();
        ask.guesses.push(Guess { token: row.token, class, chance: 0.3 + 0.65 * probability });
        // How likely each of the others is where those before it are wrong.
        let mut left = 1.0 - probability;
        for &(token, logprob) in &row.rivals {
            let likely = (logprob.exp() / left.max(1e-6)).min(1.0);
            left -= logprob.exp();
            if token < self.vocabulary && !ask.rule.request.stop.contains(&token) {
                let class = worth::class_of_rival(Kind::of_class(self.first_class), likely);
                let guess = Guess { token, class, chance: 0.1 + 0.6 * likely };
                ask.branches.push(Branch { from, guesses: vec![guess] });
            }
        }
        let length = ask.rule.tokens.len() + ask.guesses.len();
        if ask.wants_more() && length < self.limits().max_context as usize { Taken::More } else { Taken::End }
    }

    /// The seconds of a step; `None` where nothing like it ever ran.
    pub fn seconds(&self, load: Load) -> Option<f64> {
        let by_size = (load.tokens <= SMALL).then(|| self.predictor.small_step(load)).flatten();
        by_size.or_else(|| self.predictor.step(load).map(|time| time.as_secs_f64()))
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}
