//! The ahead-of-time compiler: a model becomes a plan.
//!
//! In the order in which data meets the modules: [`options`] are what a user chose; [`pipeline`] is the whole compiler
//! as one function; [`pass`] is the table of [`passes`] that rewrite the graph; [`schedule`] turns it into launches
//! over an arena; [`weights`] brings the checkpoint's tensors into the form that kernels read, [`ahead`] with several
//! threads; [`emit`] is the one converter to the plan's types, [`report`] writes its texts, [`template`] reads chat
//! templates once, [`output`] looks at where the plan will be, and [`assemble`] makes cubins of PTX. [`draft`] brings a
//! second model along, which guesses for the first.
//!
//! Nothing here runs at serving time, and nothing of the runtime is known here beyond the plan's types.

pub mod ahead;
pub mod assemble;
pub mod draft;
pub mod dry_run;
pub mod emit;
pub mod error;
pub mod machines;
pub mod options;
pub mod output;
pub mod pass;
pub mod passes;
pub mod pipeline;
pub mod quantize;
pub mod report;
pub mod schedule;
pub mod self_draft;
pub mod template;
pub mod weights;

pub use error::CompileError;
