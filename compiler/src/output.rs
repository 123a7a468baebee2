//! Where a plan may be written: over an older plan, never over the model or anything else that somebody may want to keep.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lathe_plan::format::MAGIC;

use crate::error::CompileError;

/// Looks at what lies where the plan shall be. An empty file is nothing yet, as `mktemp` makes it.
///
/// # Errors
/// When it is one of the models' own files, or no plan.
pub fn check<'a>(path: &Path, sources: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), CompileError> {
    let refuse = |found: &'static str| Err(CompileError::Output { path: path.to_owned(), found });
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    let place = (metadata.dev(), metadata.ino());
    let is_same = |source: &PathBuf| fs::metadata(source).is_ok_and(|source| (source.dev(), source.ino()) == place);
    if sources.into_iter().any(is_same) {
        return refuse("a file of the model that is compiled");
    }
    if metadata.is_dir() {
        return refuse("a directory");
    }
    let mut start = Vec::new();
    let is_read = metadata.is_file()
        && File::open(path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut start)).is_ok();
    if is_read && (start.is_empty() || start == MAGIC) { Ok(()) } else { refuse("something that is no plan") }
}
