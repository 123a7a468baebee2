//! What can be wrong with a plan: what was expected, what was found, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::codec::DecodeError;
use crate::violation::Violation;

/// Why a plan could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The machine failed.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{0}; expected a plan made by `lathe compile`")]
    NotAPlan(#[from] NotAPlan),
    /// The layout is another one.
    #[error(
        "the plan has format {found}, this lathe reads format {expected}; compile the model again with this version, or use the lathe that wrote it"
    )]
    Major {
        /// Read here.
        expected: u16,
        /// In the file.
        found: u16,
    },
    /// The kernels expect another runtime.
    #[error(
        "the plan is for runtime ABI {found}, this lathe has ABI {expected}; compile the model again with this version, or use the lathe that wrote it"
    )]
    Abi {
        /// Spoken here.
        expected: u32,
        /// In the file.
        found: u32,
    },
    /// The plan needs what this reader lacks.
    #[error("the plan needs the feature `{name}`, which this lathe does not know; use a newer lathe")]
    Feature {
        /// The feature.
        name: String,
    },
    /// Bytes are missing or too many.
    #[error(
        "the plan should be {expected} bytes long, but the file has {found}; it was cut off or added to: copy or compile it again"
    )]
    Length {
        /// By the header.
        expected: u64,
        /// In the file.
        found: u64,
    },
    /// The head was changed.
    #[error("the plan's header does not match its digest; the file is damaged: copy or compile it again")]
    Root,
    /// The head contradicts itself.
    #[error("the plan's section table is wrong: {0}; compile the model again")]
    Table(#[from] TableError),
    /// Something is between sections.
    #[error(
        "byte {offset} between sections should be zero, found {found:#04x}; the file is damaged: copy or compile it again"
    )]
    Padding {
        /// Where.
        offset: u64,
        /// The byte.
        found: u8,
    },
    /// A section was changed.
    #[error("the section {section} does not match its digest; the file is damaged: copy or compile it again")]
    Digest {
        /// Which.
        section: String,
    },
    /// Weights were changed.
    #[error("chunk {chunk} of the {section} does not match its digest; the file is damaged: copy or compile it again")]
    ChunkDigest {
        /// Which section.
        section: String,
        /// Which 4 MiB of it.
        chunk: usize,
    },
    /// A section's content cannot be read.
    #[error("the section {section} cannot be read: {source}; compile the model again")]
    Malformed {
        /// Which.
        section: String,
        /// Where and why.
        source: DecodeError,
    },
    /// Sections don't fit each other.
    #[error("the section {section} does not fit the plan: {why}; compile the model again")]
    Mismatch {
        /// Which.
        section: String,
        /// What was expected and found.
        why: String,
    },
    /// The plan lacks what was asked for.
    #[error("the plan has no {what}")]
    Missing {
        /// What was asked for.
        what: String,
    },
    /// A launch would touch memory that is not its own.
    #[error("the plan would misuse memory: {0}; this is a mistake of the compiler that wrote it: please report it")]
    Violation(#[from] Box<Violation>),
    /// The file did not stay what it was.
    #[error("{} changed while it was being loaded; load it again when nothing writes to it", path.display())]
    Changed {
        /// The plan.
        path: PathBuf,
    },
    /// Two sections with one name were given to the writer.
    #[error("the {section} was given twice")]
    Twice {
        /// Which.
        section: String,
    },
    /// The writer was given more or fewer bytes than were announced.
    #[error("the weight `{weight}` was announced with {expected} bytes, but {found} were written")]
    WeightBytes {
        /// Which.
        weight: String,
        /// Announced.
        expected: u64,
        /// Written.
        found: u64,
    },
}

/// What a file is when it is not a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAPlan {
    /// Nothing at all.
    #[error("the file is empty")]
    Empty,
    /// Its suffix is `.plan`, too.
    #[error("this is a TensorRT engine, which is also called .plan")]
    TensorRt,
    /// A checkpoint.
    #[error("this is a GGUF checkpoint, which has to be compiled first")]
    Gguf,
    /// A checkpoint.
    #[error("this is a safetensors checkpoint, whose directory has to be compiled first")]
    Safetensors,
    /// A model of another kind.
    #[error("this looks like an ONNX model")]
    Onnx,
    /// An archive, as a checkpoint of Python objects is.
    #[error("this is a zip archive (perhaps a PyTorch checkpoint)")]
    Zip,
    /// What git has in place of a large file.
    #[error("this is a git-LFS pointer, not the file that it stands for (`git lfs pull` fetches that)")]
    LfsPointer,
    /// An error page or a login form.
    #[error("this is an HTML page, perhaps one that was downloaded in place of the file")]
    Html,
    /// A plan whose line ends were changed.
    #[error("this was a plan before it was transferred as text")]
    TextMode,
    /// Something else.
    #[error("this is not a plan (it starts with the bytes {0:02x?})")]
    Other([u8; 8]),
}

impl NotAPlan {
    /// Names what starts with `start`.
    pub(crate) fn guess(start: &[u8]) -> NotAPlan {
        let text = start.trim_ascii_start().to_ascii_lowercase();
        let json_header = start.get(8) == Some(&b'{') && start[5..8] == [0, 0, 0];
        // Field 1, the IR version, then the producer's name, its version, the domain, or an import of operators.
        let onnx = matches!(start, [0x08, 1..=0x20, 0x12 | 0x1a | 0x22 | 0x3a | 0x42, ..]);
        match start {
            [] => NotAPlan::Empty,
            _ if start.starts_with(b"ftrt") => NotAPlan::TensorRt,
            _ if start.starts_with(b"GGUF") => NotAPlan::Gguf,
            _ if start.starts_with(b"PK\x03\x04") => NotAPlan::Zip,
            _ if start.starts_with(b"version https://git-lfs") => NotAPlan::LfsPointer,
            _ if start.get(..6).is_some_and(|start| &start[1..] == b"LATHE") => NotAPlan::TextMode,
            _ if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") => NotAPlan::Html,
            _ if json_header => NotAPlan::Safetensors,
            _ if onnx => NotAPlan::Onnx,
            _ => {
                let mut bytes = [0; 8];
                let known = start.len().min(8);
                bytes[..known].copy_from_slice(&start[..known]);
                NotAPlan::Other(bytes)
            }
        }
    }
}

/// How a section table contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It does not fit.
    #[error("header, table and strings take {head} bytes of a file of {length}")]
    Outside {
        /// Bytes of header, table and strings.
        head: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// It is not written in the one way that it may be.
    #[error("reserved bytes, flags or strings are not as they must be")]
    Spelling,
    /// Sections are not sorted, or one is there twice.
    #[error("the {section} is out of order or there twice")]
    Order {
        /// Which.
        section: String,
    },
    /// A section that this reader doesn't know and may not ignore.
    #[error("it has a required {section}, which this lathe does not know; use a newer lathe")]
    Unknown {
        /// Which.
        section: String,
    },
    /// The alignment is not one.
    #[error("the {section} has alignment {found}, expected a power of two of at least {least}")]
    Alignment {
        /// Which.
        section: String,
        /// The least.
        least: u32,
        /// In the table.
        found: u32,
    },
    /// A section overlaps another or leaves a hole.
    #[error("the {section} starts at byte {found}, expected {expected}")]
    Offset {
        /// Which.
        section: String,
        /// After the one before, aligned.
        expected: u64,
        /// In the table.
        found: u64,
    },
    /// A section reaches past the end.
    #[error("the {section} has {found} bytes, but at most {most} are left")]
    Length {
        /// Which.
        section: String,
        /// Left in the file.
        most: u64,
        /// In the table.
        found: u64,
    },
    /// Bytes follow the last section.
    #[error("the sections end at byte {expected}, the file at {found}")]
    End {
        /// End of the last section.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
}
