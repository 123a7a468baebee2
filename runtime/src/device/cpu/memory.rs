//! Memory for the device: anonymous mappings that kernels write through raw pointers, and executable code.

#![expect(unsafe_code, reason = "mapping memory and code has no safe interface in std")]

use std::{io, ops::Range, ptr::NonNull};

use lathe_plan::program::CodeObject;

use crate::error::{Error, Result};

/// A CPU kernel. `C-unwind` is the C calling convention; generated code never unwinds, but the kernels of tests may.
pub type Kernel = unsafe extern "C-unwind" fn(buffers: *const *mut u8, params: *const i64, begin: i64, end: i64);

/// Size and alignment of a page.
pub const PAGE: usize = 4 << 10;
/// Size and alignment of a huge page.
pub const HUGE: usize = 2 << 20;

/// Zeroed memory that is shared through raw pointers, unmapped on drop. Starts on a page, on a huge one if that large.
#[derive(Debug)]
pub struct Region {
    mapping: NonNull<u8>,
    mapped: usize,
    skip: usize,
    bytes: usize,
}

// SAFETY: a region only owns addresses; whoever uses them through raw pointers answers for races.
unsafe impl Send for Region {}
// SAFETY: as above; no method reads or writes the memory through `&self`.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `bytes` zeroed bytes in pages of 4 KiB, which come into being when first touched: for memory of which a run
    /// may touch little, like a cache. It begins at a multiple of [`HUGE`] if it is that large.
    pub fn new(what: &'static str, bytes: usize) -> Result<Region> {
        Region::map(what, bytes)
    }

    /// As [`Region::new`], and in no larger pages even where the system would choose them: for comparing.
    pub fn small(what: &'static str, bytes: usize) -> Result<Region> {
        let region = Region::map(what, bytes)?;
        // SAFETY: the range is our mapping. It is advice, so failure changes nothing.
        unsafe { libc::madvise(region.start().cast(), bytes, libc::MADV_NOHUGEPAGE) };
        Ok(region)
    }

    /// As [`Region::new`], in pages of 2 MiB where the system has them: for memory that every step walks through.
    pub fn huge(what: &'static str, bytes: usize) -> Result<Region> {
        let region = Region::map(what, bytes)?;
        region.prefer_huge(0..bytes);
        Ok(region)
    }

    /// Asks for pages of 2 MiB, where the system has them, in a part of the region.
    pub fn prefer_huge(&self, part: Range<usize>) {
        let begin = part.start.next_multiple_of(PAGE);
        let end = part.end.min(self.bytes);
        if begin < end && self.bytes >= HUGE {
            let start = self.start().wrapping_add(begin);
            // SAFETY: the range lies inside our mapping. It is advice, so failure changes nothing.
            unsafe { libc::madvise(start.cast(), end - begin, libc::MADV_HUGEPAGE) };
        }
    }

    fn map(what: &'static str, bytes: usize) -> Result<Region> {
        let failed = |source| Error::Map { what, bytes, source };
        let slack = if bytes >= HUGE { HUGE } else { 1 };
        let mapped = bytes.checked_add(slack).ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let mapping = match NonNull::new(base.cast::<u8>()) {
            Some(mapping) if base != libc::MAP_FAILED => mapping,
            _ => return Err(failed(io::Error::last_os_error())),
        };
        let skip = if slack == HUGE { mapping.as_ptr().align_offset(HUGE) } else { 0 };
        Ok(Region { mapping, mapped, skip, bytes })
    }

    /// The first byte.
    pub fn start(&self) -> *mut u8 {
        self.mapping.as_ptr().wrapping_add(self.skip)
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: this exact range came from mmap and belongs to `self`; nothing points into it after the device is gone.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

/// The kernels of a program, in its order.
#[derive(Debug)]
pub struct Kernels {
    entries: Vec<Kernel>,
    /// Holds the code that the entries point into.
    _code: Option<Region>,
}

impl Kernels {
    /// Maps a code object: written while it is not executable, executable when it is not writable.
    pub fn map(object: &CodeObject, count: usize) -> Result<Kernels> {
        if object.entries.len() != count {
            let found = object.entries.len();
            return Err(Error::Program(format!("its code for `{}` has {found} of {count} kernels", object.target)));
        }
        if let Some(entry) = object.entries.iter().find(|&&entry| entry >= object.code.len() as u64) {
            return Err(Error::Program(format!(
                "a kernel starts at {entry}, outside its code for `{}`",
                object.target
            )));
        }
        let bytes = object.code.len();
        let region = Region::new("code", bytes)?;
        // SAFETY: the region is new, at least as long as the code, and not yet shared.
        unsafe { std::ptr::copy_nonoverlapping(object.code.as_ptr(), region.start(), bytes) };
        // SAFETY: the whole mapping is ours.
        let result =
            unsafe { libc::mprotect(region.mapping.as_ptr().cast(), region.mapped, libc::PROT_READ | libc::PROT_EXEC) };
        if result != 0 {
            return Err(Error::Map { what: "executable code", bytes, source: io::Error::last_os_error() });
        }
        let kernel = |&entry: &u64| {
            let address = region.start().wrapping_add(entry as usize).cast_const();
            // SAFETY: the entry lies in executable code that the compiler generated with this signature; the plan's
            // digests vouch that it is unchanged.
            unsafe { std::mem::transmute::<*const u8, Kernel>(address) }
        };
        Ok(Kernels { entries: object.entries.iter().map(kernel).collect(), _code: Some(region) })
    }

    /// Kernels that are part of this executable.
    #[cfg(test)]
    pub fn of_functions(entries: &[Kernel]) -> Kernels {
        Kernels { entries: entries.to_vec(), _code: None }
    }

    /// A kernel.
    pub fn get(&self, index: usize) -> Kernel {
        self.entries[index]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}
