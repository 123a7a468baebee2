//! Runs one test once.

use std::time::Instant;

use anyhow::ensure;
use lathe_runtime::{Engine, Event, Request};

use super::cases::Case;
use crate::commands::failure::Usage;

/// Prompts of which no two begin alike, so that none finds its beginning in the cache unless it was put there.
#[derive(Debug, Default)]
pub struct Tokens {
    given: usize,
}

impl Tokens {
    /// The next prompt. Any tokens do: what is computed does not depend on them. A step apart, so that no two rows of a step
    /// are alike.
    pub fn next(&mut self, length: usize, vocabulary: u32) -> Vec<u32> {
        let (first, vocabulary) = (self.given, vocabulary.max(1) as usize);
        self.given += 1;
        (first..first + length).map(|index| (index * 7919 % vocabulary) as u32).collect()
    }
}

/// Nanoseconds of a run.
pub fn measure(engine: &mut Engine, case: &Case, tokens: &mut Tokens) -> anyhow::Result<u64> {
    let prompts = prepare(engine, case, tokens)?;
    let hits = engine.counters().prefix_hits;
    let start = Instant::now();
    let generated = submit_and_run(engine, prompts, case.wanted())?;
    let nanoseconds = start.elapsed().as_nanos() as u64;
    let (found, deep) = (engine.counters().prefix_hits - hits, (case.sequences * case.n_depth) as u64);
    ensure!(
        found == deep,
        "a run found {found} tokens of its prompts in the cache instead of {deep}; raise --cache-tokens, or lower -d or -s"
    );
    let wanted = case.sequences * case.wanted();
    ensure!(generated == wanted, "a run gave {generated} tokens instead of {wanted}; this is a bug in Lathe");
    Ok(nanoseconds)
}

/// Makes the prompts of a test and computes what they hold before it begins.
pub fn prepare(engine: &mut Engine, case: &Case, tokens: &mut Tokens) -> anyhow::Result<Vec<Vec<u32>>> {
    let vocabulary = engine.limits().vocabulary;
    let page = engine.limits().groups.iter().map(|group| group.page_tokens as usize).max().unwrap_or(1);
    if !case.n_depth.is_multiple_of(page) {
        let message = format!("-d is {}, expected a multiple of {page}: whole pages of the cache", case.n_depth);
        return Err(Usage(message).into());
    }
    let prompts: Vec<Vec<u32>> =
        (0..case.sequences).map(|_| tokens.next(case.n_depth + case.given(), vocabulary)).collect();
    if case.n_depth > 0 {
        let beginnings = prompts.iter().map(|prompt| prompt[..case.n_depth].to_vec()).collect();
        submit_and_run(engine, beginnings, 1)?;
    }
    Ok(prompts)
}

/// Runs requests to their end and counts the tokens that came.
fn submit_and_run(engine: &mut Engine, prompts: Vec<Vec<u32>>, wanted: usize) -> anyhow::Result<usize> {
    for tokens in prompts {
        engine.submit(Request { tokens, max_tokens: Some(wanted), ..Request::default() })?;
    }
    let mut generated = 0;
    while !engine.is_idle() {
        generated += engine.step()?.iter().filter(|event| matches!(event, Event::Token { .. })).count();
    }
    Ok(generated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_begin_differently() {
        let mut tokens = Tokens::default();
        let prompts: Vec<Vec<u32>> = (0..200).map(|_| tokens.next(16, 258)).collect();
        for (index, prompt) in prompts.iter().enumerate() {
            assert!(!prompts[..index].contains(prompt) && prompt.iter().all(|&token| token < 258), "{index}");
        }
    }
}
