//! `lathe eval`: perplexity, as llama.cpp defines it, and [`questions`].
//!
//! For perplexity the whole text is tokenized and cut into chunks of `--context` tokens; an incomplete last chunk is dropped. Each chunk
//! is scored on its own, with its first token replaced by BOS where the tokenizer adds one, and only the tokens of its
//! second half count, so that each of them has at least half a context before it.

mod questions;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use lathe_runtime::tokenizer::Control;
use serde::Serialize;

use super::failure::Usage;
use super::model::{MachineArgs, Model};

const EXAMPLES: &str = "\
Examples:
  lathe eval smol.plan --text wiki.test.raw --context 512
  lathe eval smol.plan --text wiki.test.raw --json | jq .perplexity
  lathe eval smol.plan --questions quiz.jsonl         lines such as {\"context\": \"2 + 2 =\", \"choices\": [\" 4\", \" 5\"], \"answer\": 0}
                                                      or {\"context\": \"1, 2,\", \"answer\": \" 3\", \"stop\": [\",\"], \"max_tokens\": 8}";

/// What to score.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The plan
    plan: PathBuf,
    /// The text, in UTF-8
    #[arg(long, value_name = "FILE", required_unless_present = "questions")]
    text: Option<PathBuf>,
    /// Questions with choices or answers, one JSON object a line, instead of a text
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    questions: Option<PathBuf>,
    /// Tokens per chunk
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..))]
    context: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    perplexity: f64,
    /// Standard error of the perplexity.
    perplexity_error: f64,
    /// Mean negative log-likelihood of a token.
    nll: f64,
    context: usize,
    chunks: usize,
    tokens: usize,
    scored_tokens: usize,
    seconds: f64,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match (&args.questions, &args.text) {
        (Some(path), _) => answer(args, path),
        (None, Some(path)) => perplexity(args, path),
        (None, None) => Err(Usage("expected --text or --questions".to_owned()).into()),
    }
}

/// Puts questions to the model.
fn answer(args: &Args, path: &Path) -> anyhow::Result<()> {
    let mut model = Model::open(&args.plan, &args.machine)?;
    let report = questions::ask(&mut model, path)?;
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&report)?)?);
    }
    let shown = |share: Option<f64>| share.map_or_else(|| "not known".to_owned(), |share| format!("{share:.4}"));
    let (plain, normalized) = (shown(report.accuracy), shown(report.accuracy_normalized));
    writeln!(out, "accuracy {plain}, by likelihood per character {normalized}")?;
    eprintln!("{} questions", report.questions.len());
    Ok(())
}

/// Scores a text.
fn perplexity(args: &Args, path: &Path) -> anyhow::Result<()> {
    let context = args.context as usize;
    let text =
        fs::read_to_string(path).map_err(|error| anyhow!("cannot read {} as UTF-8 text: {error}", path.display()))?;
    let mut model = Model::open(&args.plan, &args.machine)?;
    let longest = model.engine.limits().max_context as usize;
    if context > longest {
        return Err(Usage(format!("--context {context} is more than the plan's {longest} positions")).into());
    }
    let tokens = model.tokenizer.encode_document(&text, Control::AsText);
    let chunks = tokens.len() / context;
    if chunks == 0 {
        let found = tokens.len();
        return Err(
            Usage(format!("the text has {found} tokens, fewer than one chunk of {context}; lower --context")).into()
        );
    }
    let start = Instant::now();
    let bar = progress_bar(chunks as u64);
    let mut nlls: Vec<f64> = Vec::with_capacity(tokens.len() / 2);
    for chunk in tokens.chunks_exact(context) {
        let logprobs = model.engine.score(&with_bos(chunk, model.tokenizer.leading_bos()))?;
        nlls.extend(logprobs[scored_from(context)..].iter().map(|logprob| -f64::from(*logprob)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (nll, error) = mean_and_error(&nlls);
    let report = Report {
        perplexity: nll.exp(),
        perplexity_error: error * nll.exp(),
        nll,
        context,
        chunks,
        tokens: tokens.len(),
        scored_tokens: nlls.len(),
        seconds: start.elapsed().as_secs_f64(),
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        writeln!(out, "perplexity {:.4} ± {:.4}", report.perplexity, report.perplexity_error)?;
        eprintln!("{} tokens scored in {chunks} chunks of {context}, {:.1} s", report.scored_tokens, report.seconds);
    }
    Ok(())
}

/// The index of the first log-probability that counts, where number `i` is that of token `i + 1`: the first token of the
/// second half is only context for the next one.
fn scored_from(context: usize) -> usize {
    context / 2
}

/// A chunk as the model sees it.
fn with_bos(chunk: &[u32], bos: Option<u32>) -> Vec<u32> {
    let mut tokens = chunk.to_vec();
    if let (Some(first), Some(bos)) = (tokens.first_mut(), bos) {
        *first = bos;
    }
    tokens
}

/// The mean and its standard error.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0) / count).sqrt())
}

/// A bar on stderr, which shows nothing unless that is a terminal.
fn progress_bar(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} chunks, {eta} left");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_half_counts_but_for_its_first_token() {
        // Chunk of 8: log-probabilities of tokens 1 to 7, of which llama.cpp counts those of 5, 6 and 7.
        let tokens_scored: Vec<usize> = (1..8).skip(scored_from(8)).collect();
        assert_eq!(tokens_scored, [5, 6, 7]);
        let odd: Vec<usize> = (1..9).skip(scored_from(9)).collect();
        assert_eq!(odd, [5, 6, 7, 8]);
    }

    #[test]
    fn bos_replaces_the_first_token_where_there_is_one() {
        assert_eq!(with_bos(&[5, 6, 7], Some(1)), [1, 6, 7]);
        assert_eq!(with_bos(&[5, 6, 7], None), [5, 6, 7]);
    }

    #[test]
    fn the_error_is_that_of_the_mean() {
        // Values 1, 2, 3, 4: variance 5/3, divided by 4.
        let (mean, error) = mean_and_error(&[1.0, 2.0, 3.0, 4.0]);
        assert!((mean - 2.5).abs() < 1e-12 && (error - (5.0_f64 / 12.0).sqrt()).abs() < 1e-12, "{mean} {error}");
    }
}
