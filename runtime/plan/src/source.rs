//! Where a plan's bytes come from: one open file, or memory.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::PlanError;

/// The bytes of a plan.
#[derive(Debug)]
pub(crate) enum Source {
    File { file: File, path: PathBuf, stamp: Stamp },
    Bytes(Vec<u8>),
}

/// What changes when somebody writes to a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp { length: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl Source {
    pub fn open(path: &Path) -> Result<Source, PlanError> {
        let failed = |source| PlanError::Io { action: "open", path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("expected a plan, found something that is not a regular file")));
        }
        Ok(Source::File { file, path: path.to_owned(), stamp: Stamp::of(&metadata) })
    }

    pub fn len(&self) -> u64 {
        match self {
            Source::File { stamp, .. } => stamp.length,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `out` with the bytes from `offset`.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), PlanError> {
        let result = match self {
            Source::File { file, .. } => file.read_exact_at(out, offset),
            Source::Bytes(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.checked_add(out.len());
                match end.and_then(|end| bytes.get(start..end)) {
                    Some(bytes) => {
                        out.copy_from_slice(bytes);
                        Ok(())
                    }
                    None => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        };
        result.map_err(|source| self.error("read", source))
    }

    /// `length` bytes from `offset`. The caller knows that they are there.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, PlanError> {
        let mut bytes = vec![0; length];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Fails when the file is no longer what it was when it was opened.
    pub fn check_unchanged(&self) -> Result<(), PlanError> {
        let Source::File { file, path, stamp } = self else { return Ok(()) };
        let now = file.metadata().map_err(|source| self.error("look at", source))?;
        if Stamp::of(&now) == *stamp { Ok(()) } else { Err(PlanError::Changed { path: path.clone() }) }
    }

    /// An error of the system about this source.
    pub fn error(&self, action: &'static str, source: io::Error) -> PlanError {
        let path = match self {
            Source::File { path, .. } => path.clone(),
            Source::Bytes(_) => PathBuf::from("the plan in memory"),
        };
        PlanError::Io { action, path, source }
    }
}
