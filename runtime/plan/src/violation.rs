//! What the verifier finds: a place in a program, and what is wrong there.

use std::fmt;

use crate::program::{Access, Buffer, StepSize};

/// Where in a program something is wrong, and what.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("program `{program}`{place}: {fault}")]
pub struct Violation {
    /// The program.
    pub program: String,
    /// Where in it.
    pub place: Place,
    /// What is wrong.
    pub fault: Fault,
}

/// A place in a program, as far as it is narrowed down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The bucket's index and largest step.
    pub bucket: Option<(usize, StepSize)>,
    /// The launch's index and the name of its kernel.
    pub launch: Option<(usize, String)>,
    /// The operand's index.
    pub operand: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((index, StepSize { tokens, sequences, rows })) = self.bucket {
            write!(f, ", bucket {index} (up to {tokens} tokens, {sequences} sequences, {rows} rows)")?;
        }
        if let Some((index, kernel)) = &self.launch {
            write!(f, ", launch {index}, kernel `{kernel}`")?;
        }
        if let Some(index) = self.operand {
            write!(f, ", operand {index}")?;
        }
        Ok(())
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An index names nothing.
    #[error("{what} {index} does not exist, there are {count}")]
    Index {
        /// Of what.
        what: &'static str,
        /// The index.
        index: u64,
        /// How many there are.
        count: usize,
    },
    /// Two counts that must agree don't.
    #[error("expected {expected} {what}, found {found}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Something is zero that may not be, or too large.
    #[error("expected {what} from 1 to {most}, found {found}")]
    Range {
        /// What.
        what: &'static str,
        /// The largest value.
        most: u64,
        /// The value.
        found: u64,
    },
    /// A value does not fit its type.
    #[error("{what} overflows at the largest step")]
    Overflow {
        /// What.
        what: &'static str,
    },
    /// Buckets don't ascend.
    #[error("expected a larger step than that of the bucket before")]
    BucketOrder,
    /// Weights overlap or don't ascend.
    #[error("weight `{weight}` starts at byte {found}, expected a multiple of 64 from {least}")]
    WeightOffset {
        /// Which.
        weight: String,
        /// The end of the one before.
        least: u64,
        /// Its offset.
        found: u64,
    },
    /// The weights don't fill their section.
    #[error("the weights end at byte {expected}, their section at {found}")]
    WeightSection {
        /// The end of the last weight.
        expected: u64,
        /// Bytes of the section.
        found: u64,
    },
    /// An arena offset is not aligned.
    #[error("expected an arena offset that is a multiple of 64, found {found}")]
    Alignment {
        /// The offset.
        found: u64,
    },
    /// An arena buffer leaves the arena.
    #[error("the buffer ends at byte {found} of an arena of {expected}")]
    Arena {
        /// Bytes of the arena.
        expected: u64,
        /// End of the buffer.
        found: u64,
    },
    /// More scratch than the bucket declares.
    #[error("the buffer takes {found} bytes of a scratch of {expected}")]
    Scratch {
        /// Bytes of a worker's scratch.
        expected: u64,
        /// Bytes taken.
        found: u64,
    },
    /// The logits are elsewhere.
    #[error("expected the logits in the arena, found {found:?}")]
    LogitsPlace {
        /// The buffer.
        found: Buffer,
    },
    /// The logits' rows are short, or no whole numbers of f32.
    #[error("expected rows of logits of at least {expected} bytes, a multiple of 4, found {found}")]
    LogitsRow {
        /// Bytes of a row of the vocabulary.
        expected: u64,
        /// Bytes of a row.
        found: u64,
    },
    /// The logits' buffer is small.
    #[error("expected {expected} bytes for the logits, found {found}")]
    Logits {
        /// Bytes of `[R, vocabulary]` f32.
        expected: u64,
        /// Bytes of the buffer.
        found: u64,
    },
    /// The tokens that a step samples are no intermediate result.
    #[error("the tokens that a step samples are in {found:?}, expected the arena")]
    PicksPlace {
        /// The buffer.
        found: Buffer,
    },
    /// The buffer of those tokens is small.
    #[error("expected {expected} bytes for the tokens that a step samples, found {found}")]
    Picks {
        /// Bytes of the largest step's.
        expected: u64,
        /// Bytes of the buffer.
        found: u64,
    },
    /// A step that samples is not told how.
    #[error("steps sample tokens, but no step input says how; expected the input of picks")]
    PicksInput,
    /// The kernel reaches past the buffer.
    #[error("the kernel touches {found} bytes of a buffer of {expected}")]
    Extent {
        /// Bytes of the buffer.
        expected: u64,
        /// Bytes touched.
        found: u64,
    },
    /// A kernel writes to what is only read.
    #[error("expected read access to {buffer:?}, found {found:?}")]
    Access {
        /// The weight or input.
        buffer: Buffer,
        /// The operand's access.
        found: Access,
    },
    /// Two operands share bytes, one of them written.
    #[error("it shares written bytes with operand {other}, and they are not the same bytes, read in place")]
    Overlap {
        /// The other operand.
        other: usize,
    },
    /// Two launches that may run at the same time share bytes, one of them writing.
    #[error("it shares written bytes with operand {operand} of launch {launch}, and no barrier lies between")]
    Race {
        /// The earlier launch.
        launch: usize,
        /// Its operand.
        operand: usize,
    },
    /// A kernel's code starts outside the code.
    #[error("kernel `{kernel}` starts at byte {found} of {expected} bytes of code for `{target}`")]
    Entry {
        /// Which.
        kernel: String,
        /// The target.
        target: String,
        /// Bytes of code.
        expected: u64,
        /// Its entry.
        found: u64,
    },
}
