//! The tests that the options ask for: each depth and number of sequences with each prompt, answer and pair.

use std::fmt::Write;
use std::str::FromStr;

use crate::commands::failure::Usage;

/// A prompt and an answer in one test, written `512,128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    prompt: usize,
    answer: usize,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Pair, String> {
        let pair = text.split_once(',').and_then(|(prompt, answer)| {
            Some(Pair { prompt: prompt.trim().parse().ok()?, answer: answer.trim().parse().ok()? })
        });
        pair.filter(|pair| pair.prompt > 0 && pair.answer > 0)
            .ok_or_else(|| "expected two numbers of at least 1, as in 512,128".to_owned())
    }
}

/// What the options hold.
#[derive(Debug)]
pub struct Lists<'a> {
    /// `-p`
    pub prompts: &'a [usize],
    /// `-n`
    pub answers: &'a [usize],
    /// `-pg`
    pub pairs: &'a [Pair],
    /// `-d`
    pub depths: &'a [usize],
    /// `-s`
    pub sequences: &'a [usize],
}

/// One test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Tokens of each prompt.
    pub n_prompt: usize,
    /// Tokens to generate for each.
    pub n_gen: usize,
    /// Tokens of each that are in the cache before.
    pub n_depth: usize,
    /// How many of them run side by side.
    pub sequences: usize,
}

impl Case {
    /// Tokens of a sequence that the request names beyond its depth: a decode test begins with one.
    pub fn given(&self) -> usize {
        self.n_prompt.max(1)
    }

    /// Tokens of a sequence to ask for. A prompt ends with its first token, which the last row of the prompt gives; after
    /// a prompt that counts, that token is not yet one of the answer's steps.
    pub fn wanted(&self) -> usize {
        if self.n_prompt > 0 { self.n_gen + 1 } else { self.n_gen }
    }

    /// Tokens that count.
    pub fn tokens(&self) -> usize {
        self.sequences.saturating_mul(self.n_prompt.saturating_add(self.n_gen))
    }

    /// Positions that the cache must hold for all sequences, with a page of slack for each.
    pub fn positions(&self) -> usize {
        let own = self.n_depth.saturating_add(self.given()).saturating_add(self.wanted());
        self.sequences.saturating_mul(own.saturating_add(2 * PAGE))
    }

    /// The test's name, as llama-bench has it: `pp512`, `tg128 @ d512`, and behind them the sequences.
    pub fn name(&self) -> String {
        let mut name = match (self.n_prompt, self.n_gen) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, answer) => format!("tg{answer}"),
            (prompt, answer) => format!("pp{prompt}+tg{answer}"),
        };
        if self.n_depth > 0 {
            let _ = write!(name, " @ d{}", self.n_depth);
        }
        if self.sequences > 1 {
            let _ = write!(name, " × {}", self.sequences);
        }
        name
    }
}

/// More than the tokens of a page, for slack.
const PAGE: usize = 16;

/// All tests, in order.
///
/// # Errors
/// When numbers are too large to mean anything.
pub fn expand(lists: &Lists) -> Result<Vec<Case>, Usage> {
    const MOST: usize = 1 << 32;
    let numbers = [lists.prompts, lists.answers, lists.depths, lists.sequences].concat();
    if let Some(absurd) = numbers.iter().find(|&&number| number > MOST) {
        return Err(Usage(format!("{absurd} tokens or sequences were asked for; expected at most {MOST}")));
    }
    let mut cases = Vec::new();
    for &n_depth in lists.depths {
        for &sequences in lists.sequences {
            let case = |n_prompt, n_gen| Case { n_prompt, n_gen, n_depth, sequences };
            cases.extend(lists.prompts.iter().map(|&prompt| case(prompt, 0)));
            cases.extend(lists.answers.iter().map(|&answer| case(0, answer)));
            cases.extend(lists.pairs.iter().map(|pair| case(pair.prompt, pair.answer)));
        }
    }
    cases.retain(|case| case.n_prompt + case.n_gen > 0);
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(
        prompts: &[usize],
        answers: &[usize],
        pairs: &[Pair],
        depths: &[usize],
        sequences: &[usize],
    ) -> Vec<String> {
        let cases = expand(&Lists { prompts, answers, pairs, depths, sequences }).expect("the numbers are sensible");
        cases.iter().map(Case::name).collect()
    }

    #[test]
    fn every_depth_and_number_of_sequences_has_every_test() {
        let pair = "16,4".parse().expect("a pair");
        assert_eq!(names(&[512], &[128], &[], &[0], &[1]), ["pp512", "tg128"]);
        assert_eq!(names(&[0], &[64, 0], &[pair], &[0], &[1, 8]), ["tg64", "pp16+tg4", "tg64 × 8", "pp16+tg4 × 8"]);
        assert_eq!(names(&[8, 16], &[0], &[], &[0, 32], &[1]), ["pp8", "pp16", "pp8 @ d32", "pp16 @ d32"]);
        assert_eq!(names(&[0], &[0], &[], &[0], &[1]), [""; 0]);
    }

    #[test]
    fn a_test_counts_its_own_tokens_alone() {
        let case = Case { n_prompt: 16, n_gen: 4, n_depth: 32, sequences: 3 };
        assert_eq!((case.given(), case.wanted(), case.tokens()), (16, 5, 60));
        let decode = Case { n_prompt: 0, ..case };
        assert_eq!((decode.given(), decode.wanted(), decode.tokens()), (1, 4, 12));
        let prefill = Case { n_gen: 0, ..case };
        assert_eq!((prefill.given(), prefill.wanted(), prefill.tokens()), (16, 1, 48));
        assert!(case.positions() >= 3 * (32 + 16 + 5));
    }

    #[test]
    fn pairs_and_numbers_are_checked() {
        for wrong in ["", "512", "512,", ",1", "0,1", "1,0", "1,2,3", "a,b"] {
            assert!(wrong.parse::<Pair>().unwrap_err().contains("512,128"), "{wrong}");
        }
        let lists = Lists { prompts: &[usize::MAX], answers: &[], pairs: &[], depths: &[0], sequences: &[1] };
        assert!(expand(&lists).unwrap_err().to_string().contains("18446744073709551615"));
    }
}
