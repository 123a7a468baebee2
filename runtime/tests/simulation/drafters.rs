//! Drafters of the simulation: they guess right mostly, and err on purpose.

use std::collections::HashMap;

use lathe_plan::program::StepSize;
use lathe_runtime::batcher::{Load, Request};
use lathe_runtime::device::{GroupLimits, Limits, null::NullDevice};
use lathe_runtime::kv::CacheOptions;
use lathe_runtime::speculate::{Ask, Drafter, Guess, Key, Kind, draft::DraftModel, own::OwnModel, tree::Branch};

use super::{Answer, CONTEXT, Random, Rules, VOCABULARY, WEIGHTS};

/// A drafter that knows what the device will say, and errs now and then.
#[derive(Debug)]
pub struct Seer {
    pub window: Option<u32>,
    pub random: Random,
    pub is_alone: bool,             // so that it is asked about every answer
    pub known: HashMap<Key, usize>, // tokens that each answer had when it was asked about last
}

impl Drafter for Seer {
    fn kind(&self) -> Kind {
        Kind::Ngram
    }

    fn draft(&mut self, asks: &mut [Ask<'_>]) -> lathe_runtime::Result<()> {
        for ask in asks {
            let before = self.known.insert(ask.key, ask.rule.tokens.len()).unwrap_or(0);
            assert!(before <= ask.rule.tokens.len(), "the answer has shrunk");
            let rules = Rules { window: self.window, ..Rules::default() };
            let mut future = Answer::new(&Request::default(), ask.key.1, &rules);
            ask.rule.tokens.iter().for_each(|&token| future.push(token));
            for _ in 0..self.random.below(ask.most + 1) {
                let errs = self.random.below(5) == 0;
                let token = if errs { self.random.below(VOCABULARY as usize) as u32 } else { future.next() };
                if ask.width > 1 && self.random.below(3) == 0 {
                    let beside = future.next();
                    let left = ask.most - ask.guesses.len();
                    ask.branches.extend(way_on(&future, ask.guesses.len(), left, beside, &mut self.random));
                }
                future.push(token);
                ask.guesses.push(Guess { token, class: 0, chance: 0.5 });
            }
        }
        Ok(())
    }

    fn forget(&mut self, key: Key) {
        let is_known = self.known.remove(&key).is_some();
        assert!(is_known || !self.is_alone, "it was never asked about, or has ended twice");
    }
}

/// Another way on behind a history and some guesses, from this token on; mostly right.
fn way_on(history: &Answer, from: usize, left: usize, first: u32, random: &mut Random) -> Option<Branch> {
    let mut future = Answer { request: Request::default(), history: history.history.clone(), ..*history };
    let mut guesses = Vec::new();
    for at in 0..random.below(left + 1) {
        let errs = random.below(8) == 0;
        let token = if errs {
            random.below(VOCABULARY as usize) as u32
        } else if at == 0 {
            first
        } else {
            future.next()
        };
        future.push(token);
        guesses.push(Guess { token, class: 1 + at, chance: 0.5 });
    }
    (!guesses.is_empty()).then_some(Branch { from, guesses })
}

/// A model with the target's own weights, in a cache of its own or in the target's, so that each of its guesses is right
/// unless a cache has mixed something up. Some are spoiled afterwards, to be rejected.
#[derive(Debug)]
pub struct Apprentice<M> {
    model: M,
    window: Option<u32>,
    random: Random,
}

impl Apprentice<OwnModel> {
    pub fn beside(device: &NullDevice, window: Option<u32>, random: &mut Random) -> Apprentice<OwnModel> {
        let model = OwnModel::new(Box::new(device.beside()));
        Apprentice { model, window, random: Random(random.next()) }
    }
}

impl Apprentice<DraftModel> {
    pub fn new(window: Option<u32>, random: &mut Random) -> Apprentice<DraftModel> {
        let page_tokens = random.pick(&[4, 8]);
        let mut groups = vec![GroupLimits { page_tokens, pages: random.pick(&[3, 6, 20, 80]), window: None }];
        if window.is_some() {
            groups.push(GroupLimits { page_tokens, pages: random.pick(&[6, 20]), window });
        }
        let limits = Limits {
            max: StepSize { tokens: random.pick(&[3, 24]), sequences: random.pick(&[2, 5]), rows: 4 },
            vocabulary: VOCABULARY,
            max_context: random.pick(&[CONTEXT, CONTEXT - 20, 2 * CONTEXT]),
            groups,
        };
        let cache = CacheOptions { remember: random.below(4) > 0, ..CacheOptions::default() };
        let model = DraftModel::new(Box::new(NullDevice::new(limits, WEIGHTS)), VOCABULARY, &cache);
        Apprentice { model, window, random: Random(random.next()) }
    }
}

impl<M: Drafter> Drafter for Apprentice<M> {
    fn kind(&self) -> Kind {
        self.model.kind()
    }

    fn draft(&mut self, asks: &mut [Ask<'_>]) -> lathe_runtime::Result<()> {
        self.model.draft(asks)?;
        for ask in asks {
            assert!(ask.guesses.len() <= ask.most);
            let rules = Rules { window: self.window, ..Rules::default() };
            let mut future = Answer::new(ask.rule.request, ask.key.1, &rules);
            ask.rule.tokens[future.history.len()..].iter().for_each(|&token| future.push(token));
            assert!(ask.width > 1 || ask.branches.is_empty());
            for (from, guess) in ask.guesses.iter_mut().enumerate() {
                assert_eq!(guess.token, future.next(), "the draft model has lost its place");
                if self.random.below(6) == 0 {
                    if ask.width > 1 && self.random.below(2) == 0 {
                        let way = way_on(&future, from, ask.most - from, guess.token, &mut self.random);
                        ask.branches.extend(way);
                    }
                    future.push(guess.token);
                    guess.token = self.random.below(VOCABULARY as usize) as u32;
                } else {
                    future.push(guess.token);
                }
            }
        }
        Ok(())
    }

    fn forget(&mut self, key: Key) {
        self.model.forget(key);
    }

    /// What its steps really take would make runs differ.
    fn seconds(&self, load: Load) -> Option<f64> {
        Some(0.003 + 0.000_1 * load.tokens as f64)
    }

    fn behind(&self, key: Key, tokens: usize) -> usize {
        self.model.behind(key, tokens)
    }
}
