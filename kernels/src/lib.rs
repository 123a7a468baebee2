//! Kernel specs to machine code through LLVM, and the weight packers that go with them.
//!
//! A [`spec::KernelSpec`] says what a kernel computes; [`compile`] turns a list of specs into one position-independent
//! code object for a [`targets::Target`]; [`packing`] lays weights out the way the kernels read them.

mod llvm;
pub mod packing;
pub mod recipes;
pub mod spec;
pub mod targets;
mod templates;

use spec::KernelSpec;
use targets::Target;

/// The code of a list of kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Offset of each kernel in `code`, in the order of the specs: of its entry for a CPU, of its name for a GPU.
    pub entries: Vec<u64>,
    /// Position-independent code and constants without relocations for a CPU, the text of a PTX module for a GPU.
    pub code: Vec<u8>,
}

/// A textual level of generated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextLevel {
    /// LLVM IR as our builder wrote it, before LLVM's optimizer.
    Llvm,
    /// Assembly of the target: x86-64 assembly or PTX.
    Assembly,
}

/// Why kernels could not be generated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// No generator for this spec on this target.
    #[error("no kernel for {spec} on {target}: {reason}")]
    Unsupported {
        /// The printed spec.
        spec: String,
        /// The target.
        target: String,
        /// What is missing.
        reason: String,
    },
    /// LLVM refused our code, or its output cannot be used.
    #[error("internal error while generating {spec}: {message}; please report it")]
    Internal {
        /// The printed spec.
        spec: String,
        /// What happened.
        message: String,
    },
}

/// Code for all specs on a target.
///
/// # Errors
/// Names the specs that have no generator on the target.
pub fn compile(specs: &[KernelSpec], target: &'static Target) -> Result<Object, KernelError> {
    llvm::machine::object(specs, target)
}

/// The text of each spec's kernel at a level.
///
/// # Errors
/// As [`compile`].
pub fn text(specs: &[KernelSpec], target: &'static Target, level: TextLevel) -> Result<String, KernelError> {
    llvm::machine::text(specs, target, level)
}
