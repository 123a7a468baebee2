//! `lathe`: runs plans, measures them and shows what is in them.

mod commands;

use std::ffi::OsString;
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
    failure::report(Cli::parse_from(arguments(std::env::args_os())).command.run(start))
}

/// The command line, with `-pg` of `bench` as llama-bench writes it in the long form: short options here have one letter.
fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    if arguments.get(1).is_some_and(|command| command == "bench") {
        arguments.iter_mut().filter(|argument| *argument == "-pg").for_each(|argument| *argument = "--pg".into());
    }
    arguments
}
