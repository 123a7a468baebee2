//! How a command fails: one sentence on stderr and an exit code that says whose mistake it was.

use std::io;
use std::process::ExitCode;

use lathe_plan::PlanError;
use lathe_runtime::Error;

/// The end of `lathe --help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    failure
  2    wrong usage
  3    the plan cannot be read, is damaged, or is not for this machine or version
  130  interrupted

Examples:
  lathe compile SmolLM2-135M-Instruct.Q4_1.gguf -o smol.plan
  lathe run smol.plan -p \"Why is the sky blue?\"
  lathe inspect smol.plan";

/// The command line asks for something that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The plan is not for this machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsuitable(pub String);

/// The user pressed Ctrl-C, and what there was until then has been printed.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Another process has failed with this code, and has said why.
#[derive(Debug, thiserror::Error)]
#[error("another process has ended with code {0}")]
pub struct Passed(pub u8);

/// Prints what went wrong and gives the process's exit code.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let code = exit_code(&error);
    // Nobody reads on: the pipe's other end has what it wanted. And who pressed Ctrl-C knows.
    if code == 0 || error.is::<Interrupted>() || error.is::<Passed>() {
        return ExitCode::from(code);
    }
    eprintln!("error: {error}");
    ExitCode::from(code)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() || matches!(error.downcast_ref(), Some(Error::Threads { .. })) {
        return 2;
    }
    if error.is::<Unsuitable>() {
        return 3;
    }
    if error.is::<Interrupted>() {
        return 130;
    }
    if let Some(Passed(code)) = error.downcast_ref() {
        return *code;
    }
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return 0;
    }
    let unsuitable = |error: &PlanError| match error {
        PlanError::Io { action, .. } => *action == "open",
        _ => true,
    };
    match (error.downcast_ref::<Error>(), error.downcast_ref::<PlanError>()) {
        (Some(Error::Plan(plan)), _) | (_, Some(plan)) if unsuitable(plan) => 3,
        (Some(error), _) if is_unsuitable(error) => 3,
        _ if error.is::<lathe_runtime::tokenizer::TokenizerError>() => 3,
        _ => 1,
    }
}

/// Whether a plan is none for this machine.
fn is_unsuitable(error: &Error) -> bool {
    let code = matches!(error, Error::MissingFeatures { .. } | Error::NoTarget { .. } | Error::NoCode | Error::NoPtx);
    code || matches!(
        error,
        Error::Program(_) | Error::Capability { .. } | Error::OldDriver { .. } | Error::SharedMemory { .. }
    )
}
