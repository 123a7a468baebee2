//! `lathe`: runs plans, measures them and shows what is in them.

mod commands;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use crate::commands::{Command, failure};

/// Runs language models from plans: compiled ahead of time, one file each.
#[derive(Debug, Parser)]
#[command(name = "lathe", version, propagate_version = true, after_help = failure::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let start = Instant::now();
    failure::report(Cli::parse().command.run(start))
}
