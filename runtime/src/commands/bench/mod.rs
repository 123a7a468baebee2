//! `lathe bench`: how fast a plan is on this machine, measured and reported as llama-bench does; the limits of the
//! machine; and where the time of a step goes.
//!
//! [`cases`] are the tests that the options ask for, [`measure`] runs one, [`rows`] prints what came out. [`machine`]
//! prints the machine's limits, [`profile`] a table of kernels as shares of them, and [`trace`] writes a step for a viewer.
//! [`speculate`] compares answers with guesses and without. [`serve`] measures servers instead.

mod cases;
pub mod machine;
mod measure;
mod profile;
mod rows;
mod serve;
mod speculate;
mod trace;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use indicatif::{ProgressBar, ProgressStyle};

use self::cases::{Lists, Pair};
use super::model::{Loaded, MachineArgs, positive};

const EXAMPLES: &str = "\
A prefill test (-p) computes a prompt, a decode test (-n) generates tokens one step after the other, and a test of both
(-pg) does one after the other. Counted are batching, the model and greedy sampling. Not counted are loading, the first
run of each test, the computing of what a depth (-d) holds, tokenizing and detokenizing. Rates are sums over sequences.

Examples:
  lathe bench smol.plan -p 512 -n 128 -r 5
  lathe bench smol.plan -p 0 -n 64 -d 128 -s 1,8,32   decode, 1, 8 and 32 sequences after 128 tokens each
  lathe bench smol.plan -p 0 -n 0 -pg 512,128 -t 2    a prompt and its answer, two threads
  lathe bench smol.plan -o json | jq '.[].avg_ts'
  lathe bench --machine -t 2                          the machine's limits
  lathe bench smol.plan --speculate auto --prompts questions.txt -r 3
  lathe bench smol.plan --profile --trace step.json   where the time of a step goes
  lathe bench serve http://127.0.0.1:8000             a server under load";

/// Cache positions that there are at the least, as in other commands.
const CACHE_TOKENS: usize = 8192;

/// What to measure.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// The plan
    #[arg(required_unless_present = "machine")]
    plan: Option<PathBuf>,
    /// Tokens of the prompt to prefill; 0 leaves the row out
    #[arg(short = 'p', long, value_name = "N,…", default_value = "512", value_delimiter = ',')]
    n_prompt: Vec<usize>,
    /// Tokens to generate; 0 leaves the row out
    #[arg(short = 'n', long, value_name = "N,…", default_value = "128", value_delimiter = ',')]
    n_gen: Vec<usize>,
    /// A prompt and then tokens to generate (also written -pg); may be given several times
    #[arg(long, value_name = "P,N")]
    pg: Vec<Pair>,
    /// Tokens of each sequence that are in the cache before a test begins: whole pages of the cache
    #[arg(short = 'd', long, value_name = "N,…", default_value = "0", value_delimiter = ',')]
    n_depth: Vec<usize>,
    /// Sequences in a step
    #[arg(short = 's', long, value_name = "N,…", default_value = "1", value_delimiter = ',', value_parser = positive)]
    sequences: Vec<usize>,
    /// Repetitions that count, after one that does not
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive)]
    repetitions: usize,
    /// Count the first run of each test too
    #[arg(long)]
    no_warmup: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    output: Output,
    /// Measure the machine's limits instead
    #[arg(long, conflicts_with_all = ["profile", "trace"])]
    machine: bool,
    /// Show where the time of a decode step and of a prefill chunk goes instead
    #[arg(long)]
    profile: bool,
    /// Write a decode step and a prefill chunk, worker by worker, for a viewer of Chrome traces
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    speculate: speculate::SpeculateArgs,
    #[command(flatten)]
    on: MachineArgs,
    #[command(subcommand)]
    other: Option<Other>,
}

/// What is measured besides a plan.
#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Send one load to one server or several, and compare
    Serve(serve::Args),
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A Markdown table
    Md,
    /// Lines of comma-separated values, names first
    Csv,
    /// An array of objects with llama-bench's fields
    Json,
    /// The same objects, one a line
    Jsonl,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(Other::Serve(args)) = &args.other {
        return serve::run(args);
    }
    if args.machine {
        return machine::run(args);
    }
    if args.speculate.is_wanted() {
        return speculate::run(args, &args.on);
    }
    let lists = Lists {
        prompts: &args.n_prompt,
        answers: &args.n_gen,
        pairs: &args.pg,
        depths: &args.n_depth,
        sequences: &args.sequences,
    };
    let cases = cases::expand(&lists)?;
    let needed = cases.iter().map(cases::Case::positions).max().unwrap_or(0);
    let on = MachineArgs { cache_tokens: args.on.cache_tokens.or(Some(needed.max(CACHE_TOKENS))), ..args.on.clone() };
    let path = args.plan.clone().unwrap_or_default();
    let mut model = Loaded::open(&path, &on)?;
    if args.profile || args.trace.is_some() {
        return profile::run(args, &mut model);
    }
    let style = ProgressStyle::with_template("{bar:40} run {pos} of {len}");
    let warm_up = usize::from(!args.no_warmup);
    let bar = ProgressBar::new((cases.len() * (args.repetitions + warm_up)) as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut rows = Vec::new();
    let mut tokens = measure::Tokens::default();
    for case in cases {
        let test_time = rows::rfc3339(SystemTime::now());
        let mut samples_ns = Vec::with_capacity(args.repetitions);
        for run in 0..args.repetitions + warm_up {
            let nanoseconds = measure::measure(&mut model.engine, &case, &mut tokens)?;
            if run >= warm_up {
                samples_ns.push(nanoseconds);
            }
            bar.inc(1);
        }
        rows.push(rows::row(&model, args, &case, test_time, samples_ns));
    }
    bar.finish_and_clear();
    write!(io::stdout().lock(), "{}", rows::print(&rows, args.output)?)?;
    Ok(())
}
