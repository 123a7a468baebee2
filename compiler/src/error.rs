//! What can stop a compile: whose mistake it is, and the exit code that says so.

use std::path::PathBuf;

use lathe_kernels::KernelError;
use lathe_kernels::targets::TargetError;
use lathe_models::ModelError;
use lathe_plan::PlanError;
use lathe_plan::skip::SkipError;

use crate::draft::DraftError;
use crate::pass::PassError;
use crate::schedule::ScheduleError;

/// Why a model could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The model's mistake, or something in it that Lathe does not do.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's: a chat template that is no template.
    #[error(
        "the model's chat template cannot be read: expected Jinja, found {message}; mend it in the model, or take it out"
    )]
    Template {
        /// What its reader said.
        message: String,
    },
    /// The model's: values that the form of their weight cannot hold.
    #[error(
        "weight '{weight}' (from {}): its values do not fit {form}, in which some are not finite; choose a form of a larger \
         range for it, such as {wider}: --quantize {wider}, or {wider} for this matrix alone",
        tensors.join(", ")
    )]
    Overflow {
        /// The weight.
        weight: String,
        /// The tensors that it is made of.
        tensors: Vec<String>,
        /// The form.
        form: String,
        /// One that holds more.
        wider: &'static str,
    },
    /// The user's: a shape in place of a model.
    #[error(
        "'{name}' is a shape without weights: add --dry-run to see what a plan would need, or --weights random:SEED for one \
         to measure; to compile a model give its file or directory"
    )]
    Shape {
        /// Its name.
        name: String,
    },
    /// The user's: the plan would replace something else.
    #[error("-o {} is {found}; expected a new file or an older plan: choose another name", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The machine's: the model could not be read.
    #[error("could not read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The machine's: a text could not be written.
    #[error("could not write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The user's: a name that is no pass.
    #[error("there is no pass '{name}'; lathe-compile --list-passes lists them")]
    UnknownPass {
        /// The name.
        name: String,
    },
    /// The user's: a context of no positions.
    #[error("--max-context expects 1 to {most} positions (what the model was trained for), found {found}")]
    Context {
        /// The largest context of the model.
        most: usize,
        /// What was asked for.
        found: usize,
    },
    /// A pass could not go on.
    #[error("pass {pass}: {source}")]
    Pass {
        /// Its name.
        pass: &'static str,
        /// Why.
        source: PassError,
    },
    /// Lathe's: a graph that breaks an invariant.
    #[error("the graph is wrong after {after}: {message}; this is a mistake in Lathe, please report it")]
    Verify {
        /// The pass, or `the model's builder`.
        after: &'static str,
        /// The verifier's sentence.
        message: String,
    },
    /// The graph has no schedule.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The target is unknown, or this machine has none.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Kernels could not be generated.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A level of text that the target does not have.
    #[error("--emit {level} needs {expected}, but the target is {target}; choose it with --target")]
    Level {
        /// The level.
        level: &'static str,
        /// The kind of target that has it.
        expected: &'static str,
        /// The target.
        target: String,
    },
    /// The assembler of PTX failed.
    #[error(
        "{} could not assemble the kernels for {target}: {message}; expected NVIDIA's ptxas of CUDA 13.0 or later, or none: \
         set LATHE_PTXAS, or give --no-cubin", ptxas.display()
    )]
    Assemble {
        /// The assembler.
        ptxas: PathBuf,
        /// The target.
        target: &'static str,
        /// What it said.
        message: String,
    },
    /// The plan could not be written.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The user's: a model that cannot guess for the target.
    #[error("--draft: {0}")]
    Draft(#[from] DraftError),
    /// The user's: layers that the model cannot do without.
    #[error("--self-draft: {0}")]
    SelfDraft(#[from] SkipError),
    /// Lathe's: a thread that packed weights ended early.
    #[error("packing weight '{weight}' ended early; this is a mistake in Lathe, please report it")]
    Packing {
        /// The weight.
        weight: String,
    },
}

/// Exit codes of `lathe-compile`.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// The machine failed, or Lathe has a mistake.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// The model cannot be read or is damaged.
    pub const MODEL: u8 = 3;
    /// The target, or something that the model needs, is not supported.
    pub const UNSUPPORTED: u8 = 4;
}

impl CompileError {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            CompileError::UnknownPass { .. }
            | CompileError::Pass {
                source: PassError::NoSuchWeight { .. } | PassError::NoSuchLayer { .. } | PassError::SchemeTooWide { .. },
                ..
            }
            | CompileError::Context { .. }
            | CompileError::Shape { .. }
            | CompileError::Output { .. }
            | CompileError::Level { .. }
            | CompileError::Draft(_)
            | CompileError::SelfDraft(SkipError::None { .. } | SkipError::NoSuchLayer { .. } | SkipError::All { .. })
            | CompileError::Target(TargetError::Unknown { .. } | TargetError::Mixed { .. }) => exit::USAGE,
            CompileError::Model(error) if error.is_unsupported() => exit::UNSUPPORTED,
            CompileError::Model(_) | CompileError::Template { .. } | CompileError::Read { .. } => exit::MODEL,
            CompileError::Target(TargetError::Native { .. })
            | CompileError::Overflow { .. }
            | CompileError::SelfDraft(_)
            | CompileError::Schedule(_)
            | CompileError::Kernel(KernelError::Unsupported { .. }) => exit::UNSUPPORTED,
            CompileError::Pass { .. }
            | CompileError::Verify { .. }
            | CompileError::Kernel(KernelError::Internal { .. })
            | CompileError::Assemble { .. }
            | CompileError::Plan(_)
            | CompileError::Write { .. }
            | CompileError::Packing { .. } => exit::FAILURE,
        }
    }
}
