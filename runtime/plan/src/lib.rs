//! The plan: what the compiler writes and the runtime executes. Container, binary program, verifier; no compiler inside.
//!
//! In the order in which data meets the modules: [`program`], [`tokenizer`] and [`manifest`] are plain types, [`codec`]
//! turns them into bytes, [`mod@format`] says where bytes lie in the file, [`PlanWriter`] writes it, [`Plan`] opens and
//! checks it, [`verify`] checks every launch against the memory that it is given, and [`Weights`] hold verified weights.
//!
//! Opening a plan either proves that every byte is the one that was written, or says in a sentence what is wrong. That
//! is integrity, not authenticity: a plan holds machine code, so run only plans that you built or whose signature you
//! checked.

mod amend;
pub mod arena;
pub mod codec;
pub mod error;
pub mod format;
pub mod manifest;
mod memory;
pub mod program;
mod program_codec;
pub mod random;
pub mod reader;
pub mod skip;
mod source;
pub mod template;
pub mod tokenizer;
pub mod verify;
mod violation;
pub mod weights;
pub mod writer;

pub use codec::DecodeError;
pub use error::PlanError;
pub use format::{RUNTIME_ABI, Section, SectionKind};
pub use manifest::Manifest;
pub use program::*;
pub use random::RandomWeights;
pub use reader::{Code, Plan};
pub use tokenizer::{Matching, Merge, PackedTokenizer, SpacePrefix, TokenKind, TokenizerModel, TokenizerTables};
pub use violation::{Fault, Place, Violation};
pub use weights::{LoadMode, Weights};
pub use writer::PlanWriter;
