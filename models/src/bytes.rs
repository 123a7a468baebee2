//! The bytes of a checkpoint's file: read piece by piece, so that what was read is not kept.
//!
//! A mapped file would count to a process's memory page after page, and one that is cut short while it is read would
//! end the process by a signal. Here it ends the compile with an error.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::ModelError;
use crate::mapping;

/// Bytes in memory or in a file.
pub enum Bytes {
    /// All of them.
    Memory(Vec<u8>),
    /// A file and its path, for errors.
    File(File, PathBuf),
}

impl Bytes {
    /// Opens a file and has its beginning parsed from a mapping that lives no longer than that. What `parse` makes of it
    /// comes with the bytes; its errors name the file.
    ///
    /// # Errors
    /// When the file cannot be read, and those of `parse`.
    pub fn open<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, ModelError>) -> Result<(T, Bytes), ModelError> {
        let parsed = parse(&mapping::map(path)?).map_err(|error| error.in_file(path))?;
        let file = File::open(path).map_err(|error| ModelError::Io { action: "open", path: path.to_owned(), error })?;
        Ok((parsed, Bytes::File(file, path.to_owned())))
    }

    /// The path of a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Bytes::Memory(_) => None,
            Bytes::File(_, path) => Some(path),
        }
    }

    /// Some of the bytes.
    ///
    /// # Errors
    /// When the file has become shorter, or cannot be read.
    pub fn read(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>, ModelError> {
        match self {
            Bytes::Memory(bytes) => {
                let truncated = || ModelError::Truncated {
                    what: "a tensor".to_owned(),
                    needed: range.len() as u64,
                    remaining: bytes.len().saturating_sub(range.start) as u64,
                };
                bytes.get(range.clone()).map(Cow::Borrowed).ok_or_else(truncated)
            }
            Bytes::File(file, path) => {
                let mut bytes = vec![0; range.len()];
                match file.read_exact_at(&mut bytes, range.start as u64) {
                    Ok(()) => Ok(Cow::Owned(bytes)),
                    Err(error) => Err(ModelError::Io { action: "read", path: path.clone(), error }),
                }
            }
        }
    }
}
