//! Guesses from the answer's own past: where its last tokens came before, what followed then may follow now.
//!
//! Of all earlier places that end like the history does, the one with the longest common suffix is continued, the latest
//! of equals. Places are found by their last two tokens, in chains from the latest to the first, as compressors of the LZ77
//! kind do. The index of an answer grows with it, token by token.

use std::collections::HashMap;

use super::{Ask, Drafter, Guess, Key, Kind};
use crate::error::Result;

/// Tokens by which places are found: the shortest suffix that counts.
const LEAST: usize = 2;
/// Longer suffixes than this are not told apart.
const LONGEST: usize = 16;
/// Places that are looked at, from the latest on.
const PLACES: usize = 64;

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
            if let Some((place, length)) = index.longest(ask.rule.tokens) {
                continue_from(place, length, ask);
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

    /// The place with the longest suffix in common with the whole history, and how long that is.
    fn longest(&self, tokens: &[u32]) -> Option<(usize, usize)> {
        let pair: &[u32; LEAST] = tokens.last_chunk()?;
        let mut place = *self.latest.get(pair)? as usize;
        let mut best: Option<(usize, usize)> = None;
        for _ in 0..PLACES {
            if place == 0 {
                break;
            }
            let ends = tokens[..place].iter().rev().zip(tokens.iter().rev());
            let length = ends.take(LONGEST).take_while(|(a, b)| a == b).count();
            if best.is_none_or(|(_, longest)| length > longest) {
                best = Some((place, length));
            }
            if length == LONGEST {
                break;
            }
            place = self.before[place] as usize;
        }
        best
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
        // A guess that is right makes the common suffix one longer.
        let suffix = (length + at).min(LONGEST);
        ask.guesses.push(Guess { token, class: suffix, chance: 1.0 - 1.0 / suffix as f32 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batcher::RequestId, sample::mix, speculate::tests::Nothing};

    fn drafted(ngram: &mut Ngram, tokens: &[u32], most: usize) -> Vec<Guess> {
        let mut guesses = Vec::new();
        let nothing = Nothing::default();
        ngram.draft(&mut [nothing.ask((RequestId(0), 0), tokens, most, &mut guesses)]).unwrap();
        guesses
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
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let nothing = Nothing::default();
        let mut asks = [
            nothing.ask(keys[0], &[1, 2, 3, 1, 2], 1, &mut first),
            nothing.ask(keys[1], &[1, 2, 4, 1, 2], 1, &mut second),
        ];
        ngram.draft(&mut asks).unwrap();
        assert_eq!([first[0].token, second[0].token], [3, 4]);
        for key in keys {
            ngram.forget(key);
        }
        assert!(ngram.0.is_empty());
    }
}
