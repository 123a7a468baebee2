//! Steps ahead: where tokens reach the next step without the host, that step is composed while the one before it runs, so that
//! a device never waits for the host.
//!
//! Nobody knows the tokens yet, so answers go on as if none of them were the last. One that does end has a row in the step
//! behind, of which nothing is heard any more; what that row writes lies behind all that the answer's pages are known for,
//! and steps run in order, so the pages may be given to others at once.

use super::{Batcher, Load, Sequence};
use crate::{
    device::{PageCopy, Row, Step, StepToken, Ticket},
    speculate::Mode,
};

/// After so many steps ahead drafters are asked again, which have to know all tokens, where they may be of use.
const MOST_IN_A_ROW: usize = 8;

impl Batcher {
    /// Fills a step with one more token for each answer of the step under way, which `ticket` stands for, if that is all
    /// that can be done next: no other step may come between. Otherwise it returns false, and the step is of no use.
    /// `feeds_back` says of a row of the step under way whether its token needs no host.
    pub fn compose_ahead(&mut self, ticket: Ticket, feeds_back: impl Fn(usize) -> bool, step: &mut Step) -> bool {
        step.clear(self.limits.groups.len());
        if !self.may_run_ahead() {
            return false;
        }
        let going_on = || self.running.iter().filter(|sequence| sequence.goes_on());
        let Some(rows) = going_on().zip(0..).map(|(of, token)| of.row_ahead(token)).collect::<Option<Vec<Row>>>()
        else {
            return false;
        };
        let are_fed = going_on().all(|sequence| sequence.row.is_some_and(&feeds_back));
        if rows.is_empty() || !are_fed {
            return false;
        }
        let mut copies = Vec::new();
        let mut load = Load::default();
        for sequence in self.running.iter_mut().filter(|sequence| sequence.goes_on()) {
            let end = sequence.computed + sequence.in_step;
            if !self.cache.grow(&mut sequence.table, end + 1, &mut copies) {
                self.take_back(copies);
                return false;
            }
            load = load.and(Load::of(end, 1));
        }
        step.copies = copies;
        for (sequence, index) in self.running.iter_mut().filter(|sequence| sequence.goes_on()).zip(0..) {
            let end = sequence.computed + sequence.in_step;
            let sampled = sequence.row.map(|row| StepToken::SampledBy(ticket, row as u32));
            step.push_sequence(sampled, end as u32, sequence.table.groups());
            sequence.ahead = Some(index);
        }
        step.rows = rows;
        self.ahead = Some(load);
        self.steps_ahead += 1;
        self.counters.steps_ahead += 1;
        true
    }

    /// Whether a step of answers that have not ended is under way.
    pub fn is_under_way(&self) -> bool {
        self.running.iter().any(|sequence| sequence.in_step > 0)
    }

    /// Whether the next step can be nothing but one more token for each answer of this one.
    fn may_run_ahead(&self) -> bool {
        let in_time = match self.options.speculation.mode {
            Mode::Off => true,
            Mode::Auto => self.steps_ahead < MOST_IN_A_ROW,
            Mode::Ngram | Mode::Draft | Mode::Own => false,
        };
        let has_room = self.running.len() < self.options.max_running && !self.options.is_static;
        let others_begin = has_room && !self.waiting.is_empty();
        in_time
            && !others_begin
            && !self.starved
            && self.cancelled.is_empty()
            && self.running.iter().all(Sequence::only_samples)
    }

    /// Gives pages back that were granted for nothing; copies are made all the same, because tables have their new pages.
    fn take_back(&mut self, copies: Vec<PageCopy>) {
        for sequence in &mut self.running {
            self.cache.shrink(&mut sequence.table, sequence.computed + sequence.in_step);
        }
        self.copies.extend(copies);
    }
}
