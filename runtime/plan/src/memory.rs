//! Large memory for weights: anonymous in huge pages, or a file's. The only unsafe code of this crate.

#![expect(unsafe_code, reason = "mapping memory and seeing it as a slice has no safe interface in std")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// What `madvise` can turn into one page.
const HUGE: usize = 2 << 20;

/// A mapping, unmapped on drop. `start..start + len` lies inside it and is readable for as long as it lives.
#[derive(Debug)]
struct Mapping {
    base: *mut libc::c_void,
    mapped: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, and memory may be used and unmapped from any thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this exact range came from mmap, and no slice outlives `self`. Failure would leave it mapped: harmless.
        unsafe { libc::munmap(self.base, self.mapped) };
    }
}

/// Zeroed memory that is being filled.
#[derive(Debug)]
pub(crate) struct Filling(Mapping);

/// Memory that nothing writes to any more.
#[derive(Debug)]
pub(crate) struct Region(Mapping);

impl Filling {
    /// `len` zeroed bytes that start on a page, a huge one where they fill one.
    pub fn new(len: usize) -> io::Result<Filling> {
        // The kernel promises only small pages' alignment, so map enough to find a huge page's inside.
        let slack = if len >= HUGE { HUGE } else { 1 };
        let mapped = len.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory in use.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        let mut mapping = Mapping::of(base, mapped, len)?;
        if slack == HUGE {
            let skip = mapping.start.align_offset(HUGE);
            // SAFETY: `skip` is less than HUGE, and HUGE bytes more than `len` are mapped.
            mapping.start = unsafe { mapping.start.add(skip) };
            // SAFETY: the range is inside the mapping. It is advice: where the kernel has no huge pages, nothing changes.
            unsafe { libc::madvise(mapping.start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        Ok(Filling(mapping))
    }

    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes from `start` are mapped readable and writable, initialized to zero by the kernel, and
        // borrowed from `self`, which owns them alone.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.len) }
    }

    /// Ends the filling: from here on a write to it, by whatever code, is a fault.
    pub fn freeze(self) -> io::Result<Region> {
        // SAFETY: the whole mapping is ours, and `self` is consumed, so no mutable slice of it is left.
        match unsafe { libc::mprotect(self.0.base, self.0.mapped, libc::PROT_READ) } {
            0 => Ok(Region(self.0)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Region {
    /// Maps `len` bytes of a file from `offset`, a multiple of the page size, for reading. `len` may not be zero.
    pub fn of_file(file: &File, offset: u64, len: usize) -> io::Result<Region> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use; the descriptor is open.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), offset)
        };
        Mapping::of(base, len, len).map(Region)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` are mapped readable until `self` is dropped. Nobody in this process writes to
        // them. A mapped file that another process truncates faults, and one that it rewrites may show new bytes: the
        // documented price of `LoadMode::Map`.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }
}

impl Mapping {
    fn of(base: *mut libc::c_void, mapped: usize, len: usize) -> io::Result<Mapping> {
        match NonNull::new(base.cast::<u8>()) {
            Some(start) if base != libc::MAP_FAILED => Ok(Mapping { base, mapped, start, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
