//! Guesses from the answer's own past: where its last tokens came before, what followed then may follow now.
//!
//! Of all earlier places that end like the history does, the one with the longest common suffix is continued, the latest
//! of equals. Where more ways on are wanted, further places follow in the same order, and what goes on in another way than
//! those before is a branch. Places are found by their last two tokens, in chains from the latest to the first, as compressors of the LZ77
//! kind do. The index of an answer grows with it, token by token.

use std::collections::HashMap;

use super::{Ask, Drafter, Guess, Key, Kind, tree::Branch, worth};
use crate::error::Result;

/// Tokens by which places are found: the shortest suffix that counts.
const LEAST: usize = 2;
/// Longer suffixes than this are not told apart.
const LONGEST: usize = 16;
/// Places that are looked at, from the latest on.
const PLACES: usize = 64;

/// How likely a guess beside others is taken to be right where they are wrong, before one was verified.
const BESIDE: f32 = 0.25;

/// The n-gram drafter.
#[derive(Debug, Default)]
pub struct Ngram(HashMap<Key, Index>);

impl Drafter for Ngram {
    fn kind(&self) -> Kind {
        Kind::Ngram
    }

    fn draft(&mut self, asks: &mut [Ask<'_>]) -> Result<()> {
        for ask in asks {
            let index = self.0.entry(ask.key).or_default();
            index.extend(ask.rule.tokens);
            if ask.width == 1 {
                if let Some((place, length)) = index.longest(ask.rule.tokens) {
                    continue_from(place, length, ask);
                }
                continue;
            }
            let mut places = index.places(ask.rule.tokens, usize::MAX);
            places.sort_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then(b.cmp(a)));
            for (place, length) in places {
                if ask.guesses.is_empty() {
                    continue_from(place, length, ask);
                } else {
                    branch_from(place, length, ask);
                }
            }
        }
        Ok(())
    }

    fn forget(&mut self, key: Key) {
        self.0.remove(&key);
    }
}

/// Where pairs of tokens stand in a history. A place is the index behind the pair.
#[derive(Debug, Default)]
struct Index {
    latest: HashMap<[u32; LEAST], u32>,
    before: Vec<u32>, // by place: the place before with the same pair, zero for none
}

impl Index {
    /// Takes in what is new of a history, except that its very end is no earlier place.
    fn extend(&mut self, tokens: &[u32]) {
        self.before.resize(self.before.len().max(LEAST), 0);
        for place in self.before.len()..tokens.len() {
            let before = self.latest.insert([tokens[place - 2], tokens[place - 1]], place as u32);
            self.before.push(before.unwrap_or(0));
        }
    }

    /// The place with the longest suffix in common with the whole history, and how long that is; the latest of equals.
    fn longest(&self, tokens: &[u32]) -> Option<(usize, usize)> {
        self.places(tokens, LONGEST).into_iter().rev().max_by_key(|(_, length)| *length)
    }

    /// Places that end like the whole history, the latest first, and how long their common suffixes are. None comes behind
    /// one whose suffix is as long as `enough`.
    fn places(&self, tokens: &[u32], enough: usize) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        let Some(pair) = tokens.last_chunk::<LEAST>() else { return places };
        let mut place = self.latest.get(pair).map_or(0, |&place| place as usize);
        while place > 0 && places.len() < PLACES {
            let ends = tokens[..place].iter().rev().zip(tokens.iter().rev());
            let length = ends.take(LONGEST).take_while(|(a, b)| a == b).count();
            places.push((place, length));
            if length >= enough {
                break;
            }
            place = self.before[place] as usize;
        }
        places
    }
}

/// Guesses what stands at a place, and behind the end of the history what was guessed already.
fn continue_from(place: usize, length: usize, ask: &mut Ask<'_>) {
    for at in 0..ask.most {
        let behind = place + at;
        let token = match ask.rule.tokens.get(behind) {
            Some(token) => *token,
            None => ask.guesses[behind - ask.rule.tokens.len()].token,
        };
        ask.guesses.push(guess(token, length + at));
    }
}

/// The guess behind a common suffix of this length. One that is right makes the suffix one longer.
fn guess(token: u32, length: usize) -> Guess {
    let suffix = length.min(LONGEST);
    Guess { token, class: suffix, chance: 1.0 - 1.0 / suffix as f32 }
}

/// Adds what stands at a place as another way on from where it differs from what is guessed already, unless it begins like
/// another branch from there, or there are as many as are wanted.
fn branch_from(place: usize, length: usize, ask: &mut Ask<'_>) {
    let tokens = ask.rule.tokens;
    let stands = tokens[place..].iter();
    let from = ask.guesses.iter().zip(stands).take_while(|(guess, token)| guess.token == **token).count();
    let Some(&first) = tokens.get(place + from).filter(|_| from < ask.guesses.len()) else { return };
    let beside = ask.branches.iter().filter(|branch| branch.from == from);
    if beside.clone().count() + 1 >= ask.width || beside.clone().any(|branch| branch.guesses[0].token == first) {
        return;
    }
    let suffix = (length + from).min(LONGEST);
    let class = worth::class_of_rival(Kind::Ngram, suffix as f32 / LONGEST as f32);
    let mut guesses = vec![Guess { token: first, class, chance: BESIDE }];
    let behind = tokens[place + from + 1..].iter().zip(from + 1..ask.most);
    guesses.extend(behind.map(|(&token, at)| guess(token, length + at)));
    ask.branches.push(Branch { from, guesses });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batcher::RequestId,
        sample::mix,
        speculate::tests::{Guessed, Nothing},
    };

    fn drafted(ngram: &mut Ngram, tokens: &[u32], most: usize) -> Vec<Guess> {
        let mut guessed = Guessed::default();
        let nothing = Nothing::default();
        ngram.draft(&mut [nothing.ask((RequestId(0), 0), tokens, most, &mut guessed)]).unwrap();
        guessed.guesses
    }

    fn check(tokens: &[u32], most: usize, expected: &[u32]) {
        let guesses = drafted(&mut Ngram::default(), tokens, most);
        assert_eq!(guesses.iter().map(|guess| guess.token).collect::<Vec<_>>(), expected, "{tokens:?}");
    }

    #[test]
    fn the_longest_suffix_goes_on_and_of_equals_the_latest() {
        check(&[1, 2, 3, 4, 1, 2], 2, &[3, 4]);
        check(&[1, 2, 3, 9, 1, 2, 4, 9, 1, 2], 1, &[4]);
        check(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 3, &[3, 8, 1]);
        check(&[1, 2, 3, 4], 4, &[]);
        check(&[1, 2, 1], 4, &[]);
        check(&[1], 4, &[]);
        check(&[1, 1], 4, &[]);
    }

    #[test]
    fn guesses_go_on_behind_the_end() {
        check(&[5, 1, 2, 1, 2], 5, &[1, 2, 1, 2, 1]);
        check(&[3, 3, 3], 4, &[3, 3, 3, 3]);
        check(&[3, 3, 3], 0, &[]);
    }

    #[test]
    fn longer_suffixes_are_another_class() {
        let guesses = drafted(&mut Ngram::default(), &[1, 2, 3, 4, 5, 6, 1, 2, 3], 3);
        assert_eq!(guesses.iter().map(|guess| guess.class).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(guesses.iter().is_sorted_by(|a, b| a.chance < b.chance));
    }

    #[test]
    fn other_ways_on_are_branches_from_where_they_differ() {
        // The pair 1 2 went on with 3 4 5, later with 3 6 7 and 3 4 8, and last with 9 1 2.
        let tokens = [1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 1, 2, 3, 4, 8, 1, 2, 9, 1, 2];
        let ways = |width| {
            let (mut guessed, nothing) = (Guessed::default(), Nothing::default());
            let ask = nothing.ask((RequestId(0), 0), &tokens, 3, &mut guessed);
            Ngram::default().draft(&mut [Ask { width, ..ask }]).unwrap();
            let tokens = |guesses: &[Guess]| guesses.iter().map(|guess| guess.token).collect::<Vec<_>>();
            let branches = guessed.branches.iter().map(|branch| (branch.from, tokens(&branch.guesses)));
            (tokens(&guessed.guesses), branches.collect::<Vec<_>>())
        };
        assert_eq!(ways(1), (vec![9, 1, 2], vec![]));
        // What begins like the branch is none of its own.
        assert_eq!(ways(2), (vec![9, 1, 2], vec![(0, vec![3, 4, 8])]));
        assert_eq!(ways(8), ways(2));
        let (mut guessed, nothing) = (Guessed::default(), Nothing::default());
        let ask = nothing.ask((RequestId(0), 0), &tokens[..12], 3, &mut guessed);
        Ngram::default().draft(&mut [Ask { width: 2, ..ask }]).unwrap();
        assert_eq!(guessed.branches.len(), 1);
        assert_eq!((guessed.guesses[1].token, guessed.branches[0].from), (6, 1), "behind 3");
        assert_eq!(guessed.branches[0].guesses.iter().map(|guess| guess.token).collect::<Vec<_>>(), [4, 5]);
    }

    /// An index that grew token by token tells what looking through everything tells.
    #[test]
    fn what_grows_finds_what_a_search_finds() {
        let history: Vec<u32> = (0..400).map(|n| (mix(n) % 5) as u32).collect();
        let mut ngram = Ngram::default();
        for end in 0..history.len() {
            let tokens = &history[..end];
            let found = drafted(&mut ngram, tokens, 1);
            let common = |place: usize| {
                let ends = tokens[..place].iter().rev().zip(tokens.iter().rev());
                ends.take(LONGEST).take_while(|(a, b)| a == b).count()
            };
            // The latest places alone are looked at, and with five tokens there are many of each pair.
            let mut places: Vec<usize> = (LEAST..end).rev().filter(|&place| common(place) >= LEAST).collect();
            places.truncate(PLACES);
            let best = places.into_iter().rev().max_by_key(|&place| common(place));
            assert_eq!(found.first().map(|guess| guess.token), best.map(|place| tokens[place]), "after {end}");
        }
    }

    #[test]
    fn answers_do_not_mix_and_are_forgotten() {
        let mut ngram = Ngram::default();
        let keys = [(RequestId(0), 0), (RequestId(0), 1)];
        let (mut first, mut second) = (Guessed::default(), Guessed::default());
        let nothing = Nothing::default();
        let mut asks = [
            nothing.ask(keys[0], &[1, 2, 3, 1, 2], 1, &mut first),
            nothing.ask(keys[1], &[1, 2, 4, 1, 2], 1, &mut second),
        ];
        ngram.draft(&mut asks).unwrap();
        assert_eq!([first.guesses[0].token, second.guesses[0].token], [3, 4]);
        for key in keys {
            ngram.forget(key);
        }
        assert!(ngram.0.is_empty());
    }
}
