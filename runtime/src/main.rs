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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The words of an example up to its description, and up to what the shell does with its input and output.
    fn words(example: &str) -> Vec<String> {
        let (mut words, mut quote, mut last) = (vec![String::new()], None, ' ');
        for c in example.chars() {
            match (c, quote) {
                (' ', None) if last == ' ' => break,
                (' ', None) => words.push(String::new()),
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(end)) if c == end => quote = None,
                ('<' | '|', None) => break,
                (c, _) => words.last_mut().expect("there is one").push(c),
            }
            last = c;
        }
        words.retain(|word| !word.is_empty());
        words
    }

    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let parts = text.lines().flat_map(|line| line.trim_start().split("| "));
        // Variables may stand in front of a command.
        let of = |part: &str| {
            part.find("lathe ")
                .filter(|&at| !part[..at].contains(' ') || part[..at].contains('='))
                .map(|at| part[at..].to_owned())
        };
        found.extend(parts.filter_map(of));
        command.get_subcommands().for_each(|command| examples(command, found));
    }

    #[test]
    fn the_examples_are_command_lines() {
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 20, "{found:?}");
        for example in found {
            let given = arguments(words(&example).into_iter().map(OsString::from));
            if let Err(error) = Cli::try_parse_from(given) {
                panic!("{example}: {error}");
            }
        }
    }
}
