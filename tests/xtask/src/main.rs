//! The chores of this repository: set-up, models, demo, tests and the shipped binaries.
//!
//! It depends on the standard library alone, so that it builds before LLVM is there. What a command makes goes to
//! stdout, what it does meanwhile to stderr.

mod downloads;
mod emulate;
mod instructions;
mod process;
mod setup;
mod tasks;

use std::process::ExitCode;

use process::{Failure, Result};

const HELP: &str = "\
Chores of the Lathe repository.

Usage: cargo xtask <COMMAND>

Commands:
  setup           Get what building and testing need: LLVM 22, a Python environment, ptxas, valgrind, SmolLM2
  model [NAME]    Get one model into the cache and print its path; without NAME, list the models
  demo [PROMPT]   Compile SmolLM2 and stream its answer
  test [--all] [-- ARGS]
                  Set up, then run every test of the workspace; ARGS go to `cargo test`.
                  --all adds the slow tests, which are otherwise ignored
  fuzz TARGET [--seconds N] [--threads N] [--input FILE]
                  Feed a reader with changed files; `fuzz list` names the targets
  instructions    Count the instructions of a decode step and a prefill chunk of SmolLM2, with valgrind
  emulate -- CMD  Run a command with the emulated CUDA driver in the place of NVIDIA's; its device is an A100,
                  or what LATHE_EMULATE says: sm_80, sm_86, sm_89, sm_90, several with commas between, or none;
                  it has 2 GiB of memory, or what LATHE_EMULATE_MEMORY says
  simulate [SEEDS]
                  Run the simulation of the serving core over seeds 0..200, or one that failed, and print its speed
  dist            Build the binaries that are shipped (profile `dist`) and print their sizes
  deny            Check licences and bans of all dependencies, getting cargo-deny if it is missing
  help            Print this

Environment:
  LATHE_CACHE            where models and tools are kept (default ~/.cache/lathe)
  LLVM_SYS_221_PREFIX    where LLVM 22 is (default /usr/lib/llvm-22)

Exit codes:
  0  done
  1  a step or a test failed
  2  the command line was not understood
  3  something is missing that may not be installed from here; the message names the command that installs it

Examples:
  cargo xtask demo
  cargo xtask demo \"Write a haiku about compilers.\"
  cargo xtask test -- -p lathe-ir
  cargo xtask fuzz gguf --seconds 600 --threads 2
  cargo xtask emulate -- target/release/lathe run model.plan --device cuda:0 -p Hi
  lathe compile \"$(cargo xtask model smollm2)\" -o smollm2.plan
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["help" | "--help" | "-h"] | [_, "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        ["setup"] => setup::everything(),
        ["model"] => {
            for m in downloads::MODELS {
                println!("{:<20} {:>6} MB  {}", m.name, m.bytes / 1_000_000, m.file);
            }
            Ok(())
        }
        ["model", name] => {
            println!("{}", downloads::model(name)?.display());
            Ok(())
        }
        ["demo"] => tasks::demo("Explain in a few sentences why the sky is blue."),
        ["demo", prompt] => tasks::demo(prompt),
        ["test", rest @ ..] => {
            let (own, cargo) = match rest.iter().position(|&a| a == "--") {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, &[][..]),
            };
            match own {
                [] => tasks::test(false, cargo),
                ["--all"] => tasks::test(true, cargo),
                _ => Err(misunderstood(arguments)),
            }
        }
        ["fuzz", rest @ ..] if !rest.is_empty() => tasks::fuzz(rest),
        ["instructions"] => instructions::count(),
        ["emulate", "--", command @ ..] => emulate::emulate(command),
        ["emulate", ..] => emulate::emulate(&[]),
        ["simulate"] => tasks::simulate("0..200"),
        ["simulate", seeds] => tasks::simulate(seeds),
        ["dist"] => tasks::dist(),
        ["deny"] => tasks::deny(),
        _ => Err(misunderstood(arguments)),
    }
}

fn misunderstood(arguments: &[&str]) -> Failure {
    let found = arguments.join(" ");
    let problem =
        if arguments.is_empty() { "no command was given".into() } else { format!("`{found}` is not a command") };
    Failure::Usage(format!("{problem}; `cargo xtask help` lists them"))
}
