//! Speculation: several tokens of an answer in one step.
//!
//! A [`Drafter`] guesses how an answer goes on. The step that computes the answer's last token computes the guesses behind
//! it as well, each at its own position, and samples a token after every one of them with that position's own noise. A
//! guess that equals the token sampled before it is accepted: what was computed after it is what the next step would have
//! computed, bit for bit. The first guess that differs ends the draft, and its keys and values are overwritten later. So
//! guesses decide how many tokens a step gives, and never which.
//!
//! - [`ngram`]: what followed when the same tokens came before.
//! - [`draft`]: what a smaller model says, which samples with the same noise.
//! - [`own`]: what the model itself says without some of its layers.
//! - [`model`]: what the last two have in common.
//! - [`tree`]: several ways on from one place.
//! - [`worth`]: which guesses are worth their time, from how many were accepted and from how long steps take.

pub mod draft;
pub mod model;
pub mod ngram;
pub mod own;
pub mod tree;
pub mod worth;

use std::{fmt, str::FromStr};

use crate::{
    batcher::{Load, RequestId, Rule},
    device::PageCopy,
    error::{Error, Result},
    kv::BlockTable,
};

use self::{tree::Branch, worth::Odds};

/// The most guesses for one answer in a step.
pub const MOST_DEPTH: usize = 64;
/// The most ways on from one place.
pub const MOST_WIDTH: usize = 8;

/// Names an answer: a request and which of its choices.
pub type Key = (RequestId, u32);

/// Guesses what answers go on with.
pub trait Drafter: Send + fmt::Debug {
    /// How it guesses.
    fn kind(&self) -> Kind;

    /// Adds guesses to each ask, at most as many as it wants, the next token first.
    fn draft(&mut self, asks: &mut [Ask<'_>]) -> Result<()>;

    /// Forgets an answer that has ended, about which it may never have been asked.
    fn forget(&mut self, key: Key);

    /// The seconds of a step of its own; `None` where it does not know yet. Looking something up takes none.
    fn seconds(&self, _load: Load) -> Option<f64> {
        Some(0.0)
    }

    /// How many of an answer's `tokens` tokens it must compute before it can guess.
    fn behind(&self, _key: Key, _tokens: usize) -> usize {
        0
    }
}

/// How a drafter guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By what stands in the answer's own past.
    Ngram,
    /// By another model.
    Draft,
    /// By the model itself without some of its layers.
    Own,
}

impl Kind {
    /// All kinds, with the names of their modes.
    pub const ALL: [(&'static str, Kind); 3] = [("ngram", Kind::Ngram), ("draft", Kind::Draft), ("self", Kind::Own)];

    /// The kind of drafter that makes guesses of a class.
    pub fn of_class(class: usize) -> Kind {
        match class {
            worth::RIVAL.. => Kind::ALL[((class - worth::RIVAL) / worth::RIVALS).min(2)].1,
            worth::OWN.. => Kind::Own,
            worth::DRAFT.. => Kind::Draft,
            _ => Kind::Ngram,
        }
    }

    /// The class of guesses that a model of this kind makes; `None` of those that take no time.
    pub fn class(self) -> Option<usize> {
        match self {
            Kind::Ngram => None,
            Kind::Draft => Some(worth::DRAFT),
            Kind::Own => Some(worth::OWN),
        }
    }
}

/// An answer that goes on with one token in the next step, and may with more.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Whose tokens they are.
    pub key: Key,
    /// How its tokens are chosen: prompt and answer so far, which only grow from one ask to the next, and the request.
    pub rule: Rule<'a>,
    /// How often guesses of each class were right.
    pub odds: Odds<'a>,
    /// The most guesses that are of use.
    pub most: usize,
    /// A guess is worth its time while it is right, with all before it, with this chance.
    pub least: f64,
    /// Where its keys and values are and those of guesses may be, for a drafter that works in the target's own cache.
    pub place: Option<Place<'a>>,
    /// The most ways on from one place: with one, guesses are a chain.
    pub width: usize,
    /// The guesses, none yet.
    pub guesses: &'a mut Vec<Guess>,
    /// Other ways on than those guesses, none yet; of those from one place the likelier first.
    pub branches: &'a mut Vec<Branch>,
}

/// Where the target keeps an answer's keys and values.
#[derive(Debug)]
pub struct Place<'a> {
    /// Its pages, with room for guesses.
    pub table: &'a BlockTable,
    /// Copies to make before anything is put there.
    pub copies: Vec<PageCopy>,
}

impl Ask<'_> {
    /// Whether a further guess is likely enough to be right.
    pub fn wants_more(&self) -> bool {
        let so_far: f64 = self.guesses.iter().map(|guess| self.odds.of(guess)).product();
        let next = self.guesses.last().map_or(1.0, |guess| self.odds.of_model(guess.class));
        self.guesses.len() < self.most && so_far * next >= self.least
    }
}

/// A guessed token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    /// The token.
    pub token: u32,
    /// What kind of guess it is, below [`worth::CLASSES`]: how often those of a kind are right is counted together.
    pub class: usize,
    /// The drafter's own estimate of how likely it is right, where nothing was counted yet.
    pub chance: f32,
}

/// Whether guesses are made, and by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// One token per answer and step.
    #[default]
    Off,
    /// Guesses where they are likely to save time.
    Auto,
    /// As many guesses as n-grams give.
    Ngram,
    /// Guesses of the plan's draft model in every step.
    Draft,
    /// Guesses of the model without some of its layers in every step.
    Own,
}

/// How speculation is done. None of it changes a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Who guesses.
    pub mode: Mode,
    /// The most guesses for one answer in a step, at most [`MOST_DEPTH`]. Where it is given, a model that is asked in every
    /// step makes that many while they are likely to be right; else as many as measured times say are worth it.
    pub depth: Option<usize>,
    /// The most ways on from one place, at most [`MOST_WIDTH`]. The guesses of a tree are no more than those of a chain.
    pub width: Option<usize>,
}

/// The most guesses for one answer in a step, unless told otherwise.
pub const USUAL_DEPTH: usize = 12;

/// The most ways on from one place where guesses must pay, unless told otherwise.
pub const USUAL_WIDTH: usize = 3;

impl Speculation {
    /// The most ways on from one place.
    pub fn ways(&self) -> usize {
        self.width.unwrap_or(if self.mode == Mode::Auto { USUAL_WIDTH } else { 1 })
    }
}

impl Mode {
    /// All modes with their names.
    pub const ALL: [(&'static str, Mode); 5] =
        [("auto", Mode::Auto), ("off", Mode::Off), ("ngram", Mode::Ngram), ("draft", Mode::Draft), ("self", Mode::Own)];

    /// Whether a drafter of this kind is asked.
    pub fn takes(self, kind: Kind) -> bool {
        match self {
            Mode::Off => false,
            Mode::Auto => true,
            Mode::Ngram => kind == Kind::Ngram,
            Mode::Draft => kind == Kind::Draft,
            Mode::Own => kind == Kind::Own,
        }
    }

    /// Refuses a mode that none of these drafters serves.
    pub(crate) fn check(self, drafters: &[Box<dyn Drafter>]) -> Result<()> {
        let is_served = self == Mode::Off || drafters.iter().any(|drafter| self.takes(drafter.kind()));
        if is_served { Ok(()) } else { Err(Error::NoDrafter(self)) }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        let found = Mode::ALL.iter().find(|(name, _)| *name == text).map(|(_, mode)| *mode);
        found.ok_or_else(|| format!("expected {}", Mode::ALL.map(|(name, _)| name).join(", ")))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = Mode::ALL.iter().find(|(_, mode)| mode == self).unwrap_or(&("off", Mode::Off));
        f.write_str(name)
    }
}

/// A number of guesses that makes sense.
///
/// # Errors
/// When it is no number from 1 to [`MOST_DEPTH`].
pub fn parse_depth(text: &str) -> Result<usize, String> {
    parse(text, MOST_DEPTH)
}

/// A number of ways on from one place that makes sense.
///
/// # Errors
/// When it is no number from 1 to [`MOST_WIDTH`].
pub fn parse_width(text: &str) -> Result<usize, String> {
    parse(text, MOST_WIDTH)
}

fn parse(text: &str, most: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("expected a whole number from 1 to {most}"))
}

/// What came of the guesses since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Drafts: steps of an answer with guesses.
    pub drafts: u64,
    /// Guesses that were verified.
    pub drafted: u64,
    /// Guesses that were right, as all before them.
    pub accepted: u64,
    /// Of those, how many lay on a branch.
    pub branched: u64,
    /// Of those accepted, how many by their place in the draft.
    pub accepted_at: [u64; MOST_DEPTH],
    /// The most guesses of a draft.
    pub longest: usize,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { drafts: 0, drafted: 0, accepted: 0, branched: 0, accepted_at: [0; MOST_DEPTH], longest: 0 }
    }
}

impl Tally {
    /// Counts a draft, of whose accepted guesses so many lay on a branch.
    pub fn count(&mut self, drafted: usize, accepted: usize, branched: usize) {
        self.drafts += 1;
        self.drafted += drafted as u64;
        self.accepted += accepted as u64;
        self.branched += branched as u64;
        self.accepted_at.iter_mut().take(accepted).for_each(|count| *count += 1);
        self.longest = self.longest.max(drafted);
    }

    /// Drafts by how many of their guesses were right, from none on.
    pub fn histogram(&self) -> Vec<u64> {
        let at_least = |right: usize| match right {
            0 => self.drafts,
            right => self.accepted_at.get(right - 1).copied().unwrap_or(0),
        };
        (0..=self.longest).map(|right| at_least(right) - at_least(right + 1)).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::{worth::Record, *};
    use crate::batcher::Request;

    /// What asks borrow from an answer of a request that asks for nothing special.
    #[derive(Default)]
    pub struct Nothing {
        request: Request,
        generated: BTreeMap<u32, u32>,
        record: Record,
    }

    /// What is guessed for an answer.
    #[derive(Debug, Default)]
    pub struct Guessed {
        pub guesses: Vec<Guess>,
        pub branches: Vec<Branch>,
    }

    impl Nothing {
        pub fn ask<'a>(&'a self, key: Key, tokens: &'a [u32], most: usize, guessed: &'a mut Guessed) -> Ask<'a> {
            let Guessed { guesses, branches } = guessed;
            let rule = Rule { request: &self.request, choice: key.1, tokens, generated: &self.generated };
            let odds = Odds { own: &self.record, all: &self.record };
            Ask { key, rule, odds, most, least: 0.0, place: None, width: 1, guesses, branches }
        }
    }

    #[test]
    fn modes_and_depths_are_checked() {
        for (name, mode) in Mode::ALL {
            assert_eq!((name.parse(), mode.to_string().as_str()), (Ok(mode), name));
        }
        assert!("n-gram".parse::<Mode>().unwrap_err().contains("auto, off, ngram, draft, self"));
        assert_eq!((parse_depth("1"), parse_depth("64")), (Ok(1), Ok(64)));
        for wrong in ["0", "-1", "65", "99999999999999999999", "", "four"] {
            assert!(parse_depth(wrong).unwrap_err().contains("from 1 to 64"), "{wrong}");
            assert!(parse_width(wrong).unwrap_err().contains("from 1 to 8"), "{wrong}");
        }
    }

    #[test]
    fn accepted_guesses_are_counted_by_place() {
        let mut tally = Tally::default();
        tally.count(4, 2, 1);
        tally.count(3, 0, 0);
        tally.count(1, 1, 0);
        assert_eq!((tally.drafts, tally.drafted, tally.accepted, tally.branched), (3, 8, 3, 1));
        assert_eq!(tally.accepted_at[..3], [2, 1, 0]);
        assert_eq!(tally.histogram(), [1, 1, 1, 0, 0]);
        tally.count(MOST_DEPTH, MOST_DEPTH, 0);
        assert_eq!(tally.histogram().last(), Some(&1));
    }
}
