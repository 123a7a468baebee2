//! The commands of `lathe`, one module each, and what they share.
//!
//! Data goes to stdout, everything else to stderr. [`failure`] turns errors into sentences and exit codes.

pub mod answer;
pub mod bench;
pub mod compile;
pub mod doctor;
pub mod eval;
pub mod failure;
pub mod inspect;
pub mod interrupt;
pub mod model;
pub mod run;
pub mod serve;
pub mod table;

use std::io::{self, Write};
use std::time::Instant;

use clap::CommandFactory;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Compile a model into a plan (runs `lathe-compile`)
    Compile(compile::Args),
    /// Answer a prompt, or chat in the terminal
    Run(run::Args),
    /// Serve the plan over HTTP as OpenAI's interface
    Serve(Box<serve::Args>),
    /// Measure perplexity on a text
    Eval(eval::Args),
    /// Measure prefill and decode speed, or the machine's limits
    Bench(Box<bench::Args>),
    /// Say what this machine has, whether a plan runs on it, and what to change
    Doctor(doctor::Args),
    /// Show everything that a plan contains
    Inspect(inspect::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Runs the command of a process that began at `start`.
    pub fn run(self, start: Instant) -> anyhow::Result<()> {
        match self {
            Command::Compile(args) => compile::run(&args),
            Command::Run(args) => run::run(&args, start),
            Command::Serve(args) => serve::run(&args),
            Command::Eval(args) => eval::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            Command::Inspect(args) => inspect::run(&args),
            Command::Completions { shell } => {
                // Into memory first: the generator would panic when nobody reads on.
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut crate::Cli::command(), "lathe", &mut script);
                Ok(io::stdout().write_all(&script)?)
            }
        }
    }
}
