//! One answer in progress.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Counters,
    branch::{Fork, Way},
    policy::Rank,
    request::{Event, FinishReason, Request, RequestId},
    rule::Rule,
};
use crate::{
    device::{PageCopy, Pick, Row, RowOutput, Step, StepToken},
    kv::{BlockTable, Chain},
    speculate::{
        Ask, Guess, Key, Kind, Place,
        tree::Branch,
        worth::{Odds, Record},
    },
};

/// An answer in progress.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: RequestId,
    pub choice: u32,
    pub rank: Rank,
    pub request: Arc<Request>,
    pub arrival: Duration,
    pub tokens: Vec<u32>, // the prompt and what was generated
    pub limit: usize,     // tokens that it may have in the end
    pub computed: usize,  // tokens whose keys and values are in the cache
    pub table: BlockTable,
    pub chain: Chain,
    pub in_step: usize,                // tokens in the step under way, besides guesses
    pub guesses: Vec<Guess>,           // what a drafter thinks it goes on with
    pub branches: Vec<Branch>,         // and what it may go on with instead
    pub drafted: usize,                // how many guesses are in the step under way, branches apart
    pub forks: Vec<Fork>,              // the branches in the step under way
    pub record: Record,                // how many guesses were right
    pub is_drafted: bool,              // whether a drafter ever heard of it
    pub row: Option<usize>,            // the first of the rows of that step that sample its next tokens
    pub ahead: Option<usize>,          // its row in the step behind that one, which is under way as well
    pub prompt_row: Option<usize>,     // the first of the rows that judge its prompt
    pub judged: usize,                 // tokens of the prompt whose likelihood was reported
    pub generated: BTreeMap<u32, u32>, // how often each token was generated, where penalties ask for it
    pub started: bool,
    pub follows: bool, // whether it waits for the first answer to compute the prompt
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Active,
    Preempted,
    Ended,
}

impl Sequence {
    /// The tokens that are not in the cache yet.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Its name.
    pub fn key(&self) -> Key {
        (self.id, self.choice)
    }

    /// Whether the step under way samples its next token.
    pub fn samples(&self) -> bool {
        self.in_step == self.pending() && self.tokens.len() < self.limit
    }

    /// How many guesses are of use behind its next token.
    pub fn most_guesses(&self) -> usize {
        if self.pending() == 1 { (self.limit - self.tokens.len()).saturating_sub(1) } else { 0 }
    }

    /// Whether its likelihood is wanted for tokens of the prompt that were not judged yet.
    pub fn judges(&self) -> bool {
        self.request.prompt_logprobs.is_some() && self.choice == self.request.choice
    }

    /// The rows that its next `tokens` tokens take.
    pub fn rows(&self, tokens: usize) -> usize {
        let end = self.computed + tokens;
        self.judged_in(tokens) + usize::from(end == self.tokens.len() && end < self.limit)
    }

    /// How many tokens of the prompt the next `tokens` tokens say the likelihood of.
    fn judged_in(&self, tokens: usize) -> usize {
        if !self.judges() {
            return 0;
        }
        let last = self.request.tokens.len() - 1; // the successor of the prompt's last token is not in the prompt
        let begin = self.computed.max(self.judged);
        (self.computed + tokens).min(last).saturating_sub(begin)
    }

    /// Adds its next tokens and its guesses to a step, with the rows that they take.
    pub fn join(&mut self, step: &mut Step) {
        let end = self.computed + self.in_step;
        let first = step.tokens.len();
        let guesses = &self.guesses[..self.drafted];
        let tokens = self.tokens[self.computed..end].iter().copied().chain(guesses.iter().map(|guess| guess.token));
        step.push_sequence(tokens.map(StepToken::Known), self.computed as u32, self.table.groups());
        let judged = self.judged_in(self.in_step);
        if judged > 0 {
            self.prompt_row = Some(step.rows.len());
            let begin = self.computed.max(self.judged);
            for at in begin..begin + judged {
                step.rows.push(Row {
                    token: (first + at - self.computed) as u32,
                    pick: Pick::Given(self.tokens[at + 1]),
                    top: self.request.prompt_logprobs.unwrap_or(0),
                    ..Row::default()
                });
            }
        }
        if self.samples() {
            self.row = Some(step.rows.len());
            let rule = self.rule();
            for right in 0..=self.drafted {
                step.rows.push(rule.row((first + self.in_step + right) as u32 - 1, &self.guesses[..right]));
            }
            self.join_forks(step);
        }
    }

    /// Whether all that is to come of the step under way is one more token.
    pub fn only_samples(&self) -> bool {
        self.state == State::Active
            && self.in_step > 0
            && self.in_step == self.pending()
            && self.row.is_some()
            && self.prompt_row.is_none()
            && self.drafted == 0
            && self.forks.is_empty()
    }

    /// Whether it goes on behind the token that the step under way samples, unless that one ends it.
    pub fn goes_on(&self) -> bool {
        self.tokens.len() + 1 < self.limit
    }

    /// The row behind that token, as a token of a step; `None` where nobody can tell yet.
    pub fn row_ahead(&self, token: u32) -> Option<Row> {
        self.rule().row_behind_next(token)
    }

    /// How its next tokens are chosen.
    pub fn rule(&self) -> Rule<'_> {
        Rule { request: &self.request, choice: self.choice, tokens: &self.tokens, generated: &self.generated }
    }

    /// What a drafter is asked about it: as far as it should guess, and in how many ways; with the copies to make before it
    /// uses the answer's pages, where it does.
    pub fn ask<'a>(
        &'a mut self,
        all: &'a Record,
        most: usize,
        least: f64,
        width: usize,
        copies: Option<Vec<PageCopy>>,
    ) -> Ask<'a> {
        let key = self.key();
        let Sequence { request, choice, tokens, generated, record, guesses, branches, is_drafted, table, .. } = self;
        *is_drafted = true;
        guesses.clear();
        branches.clear();
        let rule = Rule { request, choice: *choice, tokens, generated };
        let place = copies.map(|copies| Place { table, copies });
        Ask { key, rule, odds: Odds { own: record, all }, most, least, place, width, guesses, branches }
    }

    /// Whether the logits of one of its rows, those behind guesses apart, were not finite.
    pub fn is_broken(&self, rows: &[RowOutput]) -> bool {
        let judged = self.prompt_row.map_or(0..0, |row| row..row + self.judged_in(self.in_step));
        judged.chain(self.row).any(|row| rows.get(row).is_some_and(|row| row.is_broken))
    }

    /// Reports what the step said of its prompt.
    pub fn report_prompt(&mut self, rows: &[RowOutput], events: &mut Vec<Event>) {
        let Some(row) = self.prompt_row.take() else { return };
        let judged = self.judged_in(self.in_step);
        let begin = self.computed.max(self.judged);
        let entries = rows.get(row..row + judged).unwrap_or_default();
        let entries = entries.iter().map(|row| (row.logprob, row.top.clone())).collect();
        events.push(Event::Prompt { request: self.id, first: begin + 1, entries });
        self.judged = begin + judged;
    }

    /// Takes the tokens that its rows got, from the row `first` on, as far as the guesses before them were right, and counts
    /// how far that was. What was computed of right guesses stays.
    pub fn record(
        &mut self,
        rows: &[RowOutput],
        first: usize,
        all: &mut Record,
        counters: &mut Counters,
        events: &mut Vec<Event>,
    ) {
        let first_event = events.len();
        let (mut accepted, mut branched, mut way) = (0, 0, Way::Trunk);
        while let Some(row) = rows.get(self.row_of(way, first, accepted)) {
            if row.is_broken {
                self.end(FinishReason::NotFinite, events);
                break;
            }
            let mut own = std::mem::take(&mut self.record);
            let next = self.follow(way, accepted, row.token, |class, is_right| {
                own.learn(class, is_right);
                all.learn(class, is_right);
            });
            self.record = own;
            accepted += usize::from(next.is_some());
            branched += usize::from(next.is_some_and(|way| way != Way::Trunk));
            self.push(row, events);
            let Some(next) = next.filter(|_| self.state != State::Ended) else { break };
            way = next;
            self.computed += 1;
        }
        if let Way::Fork(fork) = way {
            std::mem::swap(&mut self.table, &mut self.forks[fork].table);
        }
        let drafted = self.drafted + self.forks.iter().map(|fork| fork.drafted).sum::<usize>();
        if drafted > 0 {
            counters.speculation.count(drafted, accepted, branched);
            // All guesses of a draft are one drafter's.
            let kind = self.guesses.first().map_or(Kind::Ngram, |guess| Kind::of_class(guess.class));
            let [all, right] = &mut counters.by_drafter[kind as usize];
            *all += drafted as u64;
            *right += accepted as u64;
            let (request, choice) = self.key();
            events.insert(first_event, Event::Verified { request, choice, drafted, accepted, branched });
        }
        self.drafted = 0;
        self.guesses.clear();
        self.branches.clear();
    }

    /// Takes one token.
    fn push(&mut self, row: &RowOutput, events: &mut Vec<Event>) {
        let (request, choice, token) = (self.id, self.choice, row.token);
        if self.request.stop.contains(&token) {
            return self.end(FinishReason::Stop(token), events);
        }
        self.tokens.push(token);
        let penalties = &self.request.penalties;
        if penalties.counts() {
            *self.generated.entry(token).or_insert(0) += 1;
        }
        events.push(Event::Token { request, choice, token, logprob: row.logprob, top: row.top.clone() });
        if self.tokens.len() >= self.limit {
            self.end(FinishReason::Length, events);
        }
    }

    /// Ends it. Its pages are the batcher's to take back.
    pub fn end(&mut self, reason: FinishReason, events: &mut Vec<Event>) {
        events.push(Event::Finished { request: self.id, choice: self.choice, reason });
        self.state = State::Ended;
    }
}
