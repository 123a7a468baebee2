//! Branches of guesses in a step: each is a sequence beside its answer's, for this step alone.

use super::{Load, Sequence};
use crate::{
    device::{PageCopy, Step, StepToken},
    kv::{BlockTable, Cache},
    speculate::{Guess, tree::Branch},
};

/// A branch in the step under way.
#[derive(Debug)]
pub(super) struct Fork {
    pub branch: usize,  // which of the answer's
    pub drafted: usize, // how many of its guesses are in the step
    pub table: BlockTable,
    pub row: usize, // the first of its rows, behind its first guess
}

/// Which guesses an answer goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Trunk,
    Fork(usize),
}

impl Fork {
    /// Of an answer's branch so far nothing.
    pub fn new(branch: usize, cache: &Cache) -> Fork {
        Fork { branch, drafted: 0, table: cache.table(), row: 0 }
    }
}

impl Sequence {
    /// Grants its forks pages as far as there are some; what they add to the step's load.
    pub fn grant_forks(&mut self, cache: &mut Cache, copies: &mut Vec<PageCopy>) -> Load {
        let (begin, mut load) = (self.computed + self.in_step, Load::default());
        for mut fork in std::mem::take(&mut self.forks) {
            let from = self.branches[fork.branch].from;
            // Without the trunk's row at its place nobody learns whether it is right.
            if from > self.drafted {
                continue;
            }
            let Some(table) = cache.fork(&self.table, self.computed) else { continue };
            fork.table = table;
            while fork.drafted > 0 && !cache.grow(&mut fork.table, begin + from + fork.drafted, copies) {
                fork.drafted -= 1;
            }
            if fork.drafted > 0 {
                load = load.and(Load::of(self.computed, self.in_step + from + fork.drafted));
                self.forks.push(fork);
            } else {
                cache.release(&mut fork.table);
            }
        }
        load
    }

    /// Adds its forks to a step, with a row behind each of their guesses.
    pub fn join_forks(&mut self, step: &mut Step) {
        let mut forks = std::mem::take(&mut self.forks);
        for fork in &mut forks {
            let Branch { from, guesses } = &self.branches[fork.branch];
            let way: Vec<Guess> = self.guesses[..*from].iter().chain(&guesses[..fork.drafted]).copied().collect();
            let first = step.tokens.len() + self.in_step;
            let own = self.tokens[self.computed..].iter().copied();
            let tokens = own.chain(way.iter().map(|guess| guess.token)).map(StepToken::Known);
            step.push_sequence(tokens, self.computed as u32, fork.table.groups());
            fork.row = step.rows.len();
            let rule = self.rule();
            step.rows.extend((from + 1..=way.len()).map(|right| rule.row((first + right) as u32 - 1, &way[..right])));
        }
        self.forks = forks;
    }

    /// Lets go of its forks' pages.
    pub fn end_forks(&mut self, cache: &mut Cache) {
        for mut fork in self.forks.drain(..) {
            cache.release(&mut fork.table);
        }
    }

    /// The row that samples the token behind `right` guesses on a way on: the trunk, whose rows begin at `first`, or a fork.
    pub fn row_of(&self, way: Way, first: usize, right: usize) -> usize {
        match way {
            Way::Trunk => first + right,
            Way::Fork(index) => {
                let fork = &self.forks[index];
                fork.row + right - self.branches[fork.branch].from - 1
            }
        }
    }

    /// Follows a way on behind `right` guesses, by the token that was sampled there: the way on which the token was
    /// guessed and verified, if there is one. Tells of each guess whose turn it was whether it is right.
    pub fn follow(&self, way: Way, right: usize, token: u32, mut learn: impl FnMut(usize, bool)) -> Option<Way> {
        let (guesses, begin, drafted) = match way {
            Way::Trunk => (&self.guesses, 0, self.drafted),
            Way::Fork(index) => {
                let fork = &self.forks[index];
                let Branch { from, guesses } = &self.branches[fork.branch];
                (guesses, *from, fork.drafted)
            }
        };
        let guess = guesses.get(right - begin)?;
        learn(guess.class, guess.token == token);
        if guess.token == token {
            return (right - begin < drafted).then_some(way);
        }
        if way != Way::Trunk {
            return None;
        }
        let beside = self.branches.iter().enumerate().filter(|(_, branch)| branch.from == right);
        for (index, branch) in beside {
            let first = branch.guesses.first()?;
            learn(first.class, first.token == token);
            if first.token == token {
                return self.forks.iter().position(|fork| fork.branch == index).map(Way::Fork);
            }
        }
        None
    }
}
