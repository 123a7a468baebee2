//! Guesses of a draft model: a smaller model beside the target, on a device and with a cache of its own.
//!
//! It computes every token of an answer that it guesses for, and samples by the answer's own rule, with the noise that the
//! target will use at the same place: where their distributions are close, both sample the same token, at any
//! temperature. What it computed of guesses that turned out wrong is dropped when it is asked next. Prompts that begin
//! alike share its pages, as the target's do. When it has no pages left, answers that nobody asks about lose theirs, and
//! after that there are fewer guesses. It never fails for want of room.
//!
//! The guesses of all answers are computed side by side, one step for each place. An answer whose beginning it has not
//! seen is computed in chunks, small ones beside others, before there are guesses for it.

use std::{collections::HashMap, fmt};

use super::{
    Ask, Drafter, Key, Kind,
    model::{Model, Taken},
    worth,
};
use crate::{
    batcher::Load,
    device::{Device, StepToken},
    error::Result,
    kv::{BlockTable, Cache, CacheOptions, Chain},
};

/// Tokens of an unknown beginning that are computed at once beside other answers.
const CHUNK: usize = 64;

/// The drafter that runs a draft model.
pub struct DraftModel {
    model: Model,
    cache: Cache,
    answers: HashMap<Key, Answer>,
    turn: u64, // counts calls
}

/// What it knows of an answer.
#[derive(Debug, Default)]
struct Answer {
    tokens: Vec<u32>, // whose keys and values are in its cache
    confirmed: usize, // of them, as many were the answer's own when it was asked last
    table: BlockTable,
    chain: Chain,
    turn: u64, // when it was asked last
    is_broken: bool,
}

/// An answer's part of a step.
struct Part {
    ask: usize,
    end: usize, // tokens of the answer and its guesses that are computed afterwards
    row: Option<usize>,
}

impl DraftModel {
    /// A drafter for a target with such a vocabulary. The cache remembers as the target's does.
    pub fn new(device: Box<dyn Device>, target_vocabulary: u32, cache: &CacheOptions) -> DraftModel {
        let limits = device.limits();
        let options = CacheOptions { chunk: limits.max.tokens.max(1) as usize, ..cache.clone() };
        DraftModel {
            cache: Cache::with_options(&limits.groups, options),
            model: Model::new(device, target_vocabulary, worth::DRAFT),
            answers: HashMap::new(),
            turn: 0,
        }
    }

    /// Brings an answer up to date; false when nothing can be guessed for it.
    fn enter(&mut self, ask: &Ask<'_>) -> bool {
        let tokens = ask.rule.tokens;
        let table = || self.cache.table();
        let answer = self.answers.entry(ask.key).or_insert_with(|| Answer { table: table(), ..Answer::default() });
        answer.turn = self.turn;
        if answer.is_broken || ask.most == 0 || tokens.len() >= self.model.limits().max_context as usize {
            return false;
        }
        let known = answer.confirmed.min(tokens.len()).min(answer.tokens.len());
        if !self.model.knows(&tokens[known..]) {
            return false;
        }
        let right = answer.tokens[known..].iter().zip(&tokens[known..]).take_while(|(a, b)| a == b).count();
        // The last token is always computed, for the sake of its row.
        let kept = (known + right).min(tokens.len() - 1);
        answer.tokens.truncate(kept);
        answer.confirmed = kept;
        self.cache.shrink(&mut answer.table, kept);
        if kept == 0 && self.cache.remembers() {
            self.cache.extend(&mut answer.chain, ask.rule.request.root, tokens);
            let (found, pages) = self.cache.look_up(&answer.chain, tokens.len() - 1);
            self.cache.adopt(&mut answer.table, found, pages);
            answer.tokens.extend_from_slice(&tokens[..found]);
            answer.confirmed = found;
        }
        true
    }

    /// One step for these asks; those that go on.
    fn round(&mut self, asks: &mut [Ask<'_>], open: &[usize]) -> Result<Vec<usize>> {
        let (parts, load) = self.compose(asks, open);
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        self.model.run(load)?;
        let is_alone = asks.len() == 1;
        Ok(parts.iter().filter(|part| self.take(&mut asks[part.ask], part, is_alone)).map(|part| part.ask).collect())
    }

    /// Fills a step with the next tokens of these asks, as far as there is room.
    fn compose(&mut self, asks: &[Ask<'_>], open: &[usize]) -> (Vec<Part>, Load) {
        let most = self.model.limits().max;
        self.model.begin();
        let (mut parts, mut load) = (Vec::new(), Load::default());
        for &index in open {
            let ask = &asks[index];
            let computed = self.answers.get(&ask.key).map_or(0, |answer| answer.tokens.len());
            let pending = ask.rule.tokens.len() + ask.guesses.len() - computed;
            let room = most.tokens as usize - self.model.step.tokens.len();
            let count = pending.min(room).min(if asks.len() > 1 { CHUNK } else { room });
            if count == 0 || !self.model.has_room() || !self.grant(ask.key, computed + count) {
                continue;
            }
            let Some(answer) = self.answers.get(&ask.key) else { continue };
            let all = ask.rule.tokens.iter().copied().chain(ask.guesses.iter().map(|guess| guess.token));
            let tokens = all.skip(computed).take(count).map(StepToken::Known);
            self.model.step.push_sequence(tokens, computed as u32, answer.table.groups());
            let row = (count == pending).then(|| self.model.push_row(ask));
            load = load.and(Load::of(computed, count));
            parts.push(Part { ask: index, end: computed + count, row });
        }
        (parts, load)
    }

    /// Grants pages for so many tokens, if need be at the cost of answers that nobody asked about now.
    fn grant(&mut self, key: Key, tokens: usize) -> bool {
        loop {
            let Some(answer) = self.answers.get_mut(&key) else { return false };
            if self.cache.grow(&mut answer.table, tokens, &mut self.model.step.copies) {
                return true;
            }
            let idle = self.answers.iter_mut().filter(|(_, other)| other.turn < self.turn && other.table.tokens() > 0);
            let Some((_, idle)) = idle.min_by_key(|(key, other)| (other.turn, **key)) else { return false };
            self.cache.release(&mut idle.table);
            idle.tokens.clear();
            idle.confirmed = 0;
        }
    }

    /// Takes what a step gave for an ask; whether to go on with it.
    fn take(&mut self, ask: &mut Ask<'_>, part: &Part, is_alone: bool) -> bool {
        let Some(answer) = self.answers.get_mut(&ask.key) else { return false };
        let own = ask.rule.tokens;
        let all = own.iter().copied().chain(ask.guesses.iter().map(|guess| guess.token));
        answer.tokens.extend(all.take(part.end).skip(answer.tokens.len()));
        answer.confirmed = part.end.min(own.len());
        if self.cache.remembers() {
            self.cache.extend(&mut answer.chain, ask.rule.request.root, &own[..answer.confirmed]);
            self.cache.remember(&mut answer.table, &answer.chain, answer.confirmed);
        }
        self.cache.slide(&mut answer.table, part.end.min(own.len() - 1));
        let Some(row) = part.row else { return is_alone };
        let taken = self.model.take(ask, row);
        if taken == Taken::Broken {
            answer.is_broken = true;
            self.cache.disown(&answer.table);
        }
        taken == Taken::More
    }

    /// Checks that its pages are counted as its answers hold them.
    pub fn check_integrity(&self) -> Result<(), String> {
        let tables: Vec<&BlockTable> = self.answers.values().map(|answer| &answer.table).collect();
        self.cache.check_integrity(&tables)
    }
}

impl Drafter for DraftModel {
    fn kind(&self) -> Kind {
        Kind::Draft
    }

    fn draft(&mut self, asks: &mut [Ask<'_>]) -> Result<()> {
        self.turn += 1;
        let mut open: Vec<usize> = (0..asks.len()).filter(|&index| self.enter(&asks[index])).collect();
        while !open.is_empty() {
            open = self.round(asks, &open)?;
        }
        debug_assert_eq!(self.check_integrity(), Ok(()), "pages are counted as answers hold them");
        Ok(())
    }

    fn forget(&mut self, key: Key) {
        if let Some(mut answer) = self.answers.remove(&key) {
            self.cache.release(&mut answer.table);
        }
    }

    fn seconds(&self, load: Load) -> Option<f64> {
        self.model.seconds(load)
    }

    fn behind(&self, key: Key, tokens: usize) -> usize {
        self.answers.get(&key).map_or(tokens, |answer| tokens.saturating_sub(answer.tokens.len()))
    }
}

impl fmt::Debug for DraftModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DraftModel").field("answers", &self.answers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use lathe_plan::program::StepSize;

    use super::*;
    use crate::{
        batcher::RequestId,
        device::{GroupLimits, Limits, Step, StepOutput, Ticket, null::NullDevice},
        speculate::tests::{Guessed, Nothing},
    };

    /// The null device, and the sizes of its steps.
    struct Watched(NullDevice, Arc<Mutex<Vec<StepSize>>>);

    impl Device for Watched {
        fn limits(&self) -> &Limits {
            self.0.limits()
        }

        fn submit(&mut self, step: &Step) -> Result<Ticket> {
            self.1.lock().unwrap().push(step.size());
            self.0.submit(step)
        }

        fn collect(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<()> {
            self.0.collect(ticket, output)
        }
    }

    /// A draft model with so many pages of four tokens, and a list of its steps since the last look.
    fn model(pages: u32, vocabulary: u32) -> (DraftModel, impl FnMut() -> Vec<(u32, u32)>) {
        let limits = Limits {
            max: StepSize { tokens: 16, sequences: 3, rows: 3 },
            vocabulary,
            max_context: 40,
            groups: vec![GroupLimits { page_tokens: 4, pages, window: None }],
        };
        let steps = Arc::new(Mutex::new(Vec::new()));
        let device = Box::new(Watched(NullDevice::new(limits, 7), Arc::clone(&steps)));
        let seen = move || std::mem::take(&mut *steps.lock().unwrap()).iter().map(|s| (s.tokens, s.rows)).collect();
        (DraftModel::new(device, 50, &CacheOptions::default()), seen)
    }

    /// Asks about answers side by side; the guessed tokens of each.
    fn ask(model: &mut DraftModel, answers: &[(u64, &[u32])], most: usize) -> Vec<Vec<u32>> {
        let nothing = Nothing::default();
        let mut guesses: Vec<Guessed> = answers.iter().map(|_| Guessed::default()).collect();
        let asks = answers.iter().zip(&mut guesses);
        let mut asks: Vec<Ask> =
            asks.map(|((id, tokens), guesses)| nothing.ask((RequestId(*id), 0), tokens, most, guesses)).collect();
        model.draft(&mut asks).unwrap();
        model.check_integrity().unwrap();
        guesses.iter().map(|guessed| guessed.guesses.iter().map(|guess| guess.token).collect()).collect()
    }

    /// What the model says after some tokens.
    fn says(tokens: &[u32], count: usize) -> Vec<u32> {
        let mut all = tokens.to_vec();
        for _ in 0..count {
            all.push(NullDevice::next_token(7, all.iter().copied(), 50));
        }
        all.split_off(tokens.len())
    }

    #[test]
    fn answers_share_steps_and_only_what_is_new_is_computed() {
        let (mut model, mut steps) = model(100, 50);
        let (first, second) = ([1, 2, 3, 4, 5, 6], [9, 8, 7]);
        let guesses = ask(&mut model, &[(0, &first), (1, &second)], 3);
        assert_eq!(guesses, [says(&first, 3), says(&second, 3)]);
        assert_eq!(steps(), [(9, 2), (2, 2), (2, 2)]);
        // All guesses of the first were right, of the second the first alone: two tokens are new, and one.
        let first = [&first[..], &says(&first, 4)].concat();
        let second = [&second[..], &says(&second, 1), &[49]].concat();
        let guesses = ask(&mut model, &[(0, &first), (1, &second)], 1);
        assert_eq!(guesses, [says(&first, 1), says(&second, 1)]);
        assert_eq!(steps(), [(3, 2)]);
    }

    #[test]
    fn a_beginning_that_is_known_is_not_computed_again() {
        let (mut model, mut steps) = model(100, 50);
        let prompt: Vec<u32> = (1..=12).collect();
        ask(&mut model, &[(0, &prompt)], 1);
        model.forget((RequestId(0), 0));
        steps();
        let longer = [&prompt[..], &[30]].concat();
        assert_eq!(ask(&mut model, &[(1, &longer)], 1), [says(&longer, 1)]);
        assert_eq!(steps(), [(1, 1)], "three pages are remembered");
    }

    #[test]
    fn a_long_beginning_is_computed_in_pieces() {
        let (mut model, mut steps) = model(100, 50);
        let prompt: Vec<u32> = (0..35).collect();
        assert_eq!(ask(&mut model, &[(0, &prompt)], 1), [says(&prompt, 1)]);
        assert_eq!(steps(), [(16, 0), (16, 0), (3, 1)]);
    }

    #[test]
    fn without_pages_idle_answers_lose_theirs_and_then_guesses_end() {
        let (mut model, _) = model(3, 50);
        let (first, second) = ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]);
        assert_eq!(ask(&mut model, &[(0, &first)], 2), [says(&first, 2)]);
        assert_eq!(ask(&mut model, &[(1, &second)], 2), [says(&second, 2)], "the first one's pages");
        assert_eq!(ask(&mut model, &[(1, &second)], 20)[0].len(), 8, "twelve positions and the row of the last");
        let both = ask(&mut model, &[(0, &first), (1, &second)], 2);
        assert!(both.iter().any(Vec::is_empty) && both.iter().any(|guesses| guesses.len() == 2), "{both:?}");
    }

    #[test]
    fn guesses_end_where_context_and_common_vocabulary_do() {
        let (mut model, _) = model(100, 50);
        let prompt: Vec<u32> = (0..38).collect();
        assert_eq!(ask(&mut model, &[(0, &prompt)], 9)[0].len(), 2, "of forty positions");
        assert_eq!(ask(&mut model, &[(1, &[3; 40])], 9)[0].len(), 0);
        assert_eq!(ask(&mut model, &[(2, &[3, 50])], 9)[0].len(), 0, "the draft does not know the token");
        let (mut wider, _) = self::model(100, 5000);
        let found: Vec<Vec<u32>> = (0..40).flat_map(|n| ask(&mut wider, &[(n, &[n as u32])], 9)).collect();
        assert!(found.iter().flatten().all(|&token| token < 50), "the target does not know the token");
    }
}
