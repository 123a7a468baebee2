//! Files as bytes in memory, read by the system when they are touched.

#![expect(unsafe_code, reason = "maps files into memory")]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::ModelError;

/// Maps a file. It must not change while the result lives.
pub fn map(path: &Path) -> Result<Mmap, ModelError> {
    let io = |action| move |error| ModelError::Io { action, path: path.to_owned(), error };
    let file = File::open(path).map_err(io("open"))?;
    if !file.metadata().map_err(io("examine"))?.is_file() {
        return Err(io("open")(std::io::Error::other("expected a regular file, found something else")));
    }
    // SAFETY: the mapping is private and only read. Another process that shortens the file would end this one by a
    // signal, and one that rewrites it would give wrong weights: the same trust as any program has in the files that
    // it maps. No reference into the map assumes more than initialized bytes.
    unsafe { Mmap::map(&file) }.map_err(io("map"))
}
