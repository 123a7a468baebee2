//! Device memory: allocations that several host threads may use at once. Addresses are never used twice, so that a pointer
//! to freed memory stays wrong.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::region::Region;

/// Where global memory begins in the 64-bit address space: beyond what a process of the host may use, so that the two kinds
/// of addresses are told apart.
pub(crate) const GLOBAL_BASE: u64 = 0x8000_0000_0000;
/// Alignment of allocations; at least as many bytes lie between two of them.
const ALIGN: u64 = 512;

/// Why a request of the host on device memory failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The device has no room.
    #[error("{requested} bytes were requested and {free} are free")]
    Full {
        /// Requested bytes.
        requested: u64,
        /// Free bytes.
        free: u64,
    },
    /// The host has no room for what the emulator keeps of the allocation.
    #[error(
        "{requested} bytes were requested, which take three to seven times as many of the host, and it has no room"
    )]
    Host {
        /// Requested bytes.
        requested: u64,
    },
    /// The range is not within one allocation.
    #[error("{bytes} bytes at {address:#x} do not lie within one allocation of the device")]
    Unmapped {
        /// First byte.
        address: u64,
        /// Length of the range.
        bytes: u64,
    },
}

/// The memory of a device.
#[derive(Debug)]
pub struct Memory {
    regions: RwLock<BTreeMap<u64, Arc<Region>>>,
    /// Next free address, and bytes in use.
    state: Mutex<(u64, u64)>,
    /// Base and length of what was freed last.
    freed: Mutex<VecDeque<(u64, u64)>>,
    limit: u64,
    launches: AtomicU32,
}

/// How many freed allocations are remembered, for the report of an access to one.
const MOST_FREED: usize = 4096;

impl Memory {
    /// An empty memory of `limit` bytes.
    pub fn new(limit: u64) -> Memory {
        Self::numbered(limit, 0)
    }

    /// The same for one of several devices, whose addresses differ.
    pub(crate) fn numbered(limit: u64, number: u32) -> Memory {
        let base = GLOBAL_BASE + (u64::from(number) << 44);
        Memory {
            regions: RwLock::default(),
            state: Mutex::new((base, 0)),
            freed: Mutex::default(),
            limit,
            launches: AtomicU32::new(1),
        }
    }

    /// Bytes that are free, and bytes in all.
    pub fn info(&self) -> (u64, u64) {
        (self.limit - self.state.lock().unwrap_or_else(PoisonError::into_inner).1, self.limit)
    }

    /// Makes an allocation and gives its address, a multiple of 512. Its bytes count as never written.
    ///
    /// # Errors
    /// When the device, or the host, has no room for it.
    pub fn alloc(&self, bytes: u64) -> Result<u64, MemoryError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.limit - state.1;
        if bytes > free {
            return Err(MemoryError::Full { requested: bytes, free });
        }
        let base = state.0;
        let Some(region) = Region::new(base, bytes) else { return Err(MemoryError::Host { requested: bytes }) };
        *state = (base + bytes.next_multiple_of(ALIGN) + ALIGN, state.1 + bytes);
        drop(state);
        let region = Arc::new(region);
        self.regions.write().unwrap_or_else(PoisonError::into_inner).insert(base, region);
        Ok(base)
    }

    /// Frees the allocation that begins at an address.
    ///
    /// # Errors
    /// When none begins there.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        let region = regions.remove(&address).ok_or(MemoryError::Unmapped { address, bytes: 0 })?;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 -= region.bytes;
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        freed.truncate(MOST_FREED - 1);
        freed.push_front((address, region.bytes));
        Ok(())
    }

    /// Length of the allocation that held an address until it was freed.
    pub(crate) fn freed(&self, address: u64) -> Option<u64> {
        let freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        freed.iter().find(|(base, bytes)| address.wrapping_sub(*base) < *bytes).map(|&(_, bytes)| bytes)
    }

    /// Base and length of the allocation that holds an address.
    pub fn range(&self, address: u64) -> Option<(u64, u64)> {
        self.region(address, 1).ok().map(|region| (region.base, region.bytes))
    }

    /// The number of a new launch, and all allocations by address for it.
    pub(crate) fn begin(&self) -> (u32, Vec<Arc<Region>>) {
        let launch = self.launches.fetch_add(1, Relaxed);
        let regions: Vec<_> = self.regions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for region in &regions {
            region.begin(launch);
        }
        (launch, regions)
    }

    fn region(&self, address: u64, bytes: u64) -> Result<Arc<Region>, MemoryError> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions
            .range(..=address)
            .next_back()
            .map(|(_, region)| region)
            .filter(|region| region.holds(address, bytes))
            .cloned()
            .ok_or(MemoryError::Unmapped { address, bytes })
    }

    /// Writes bytes of the host.
    ///
    /// # Errors
    /// When the range is not within one allocation.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        if data.is_empty() {
            return Ok(());
        }
        let region = self.region(address, data.len() as u64)?;
        let (mut at, mut rest) = (address, data);
        while !rest.is_empty() {
            let bytes = if at.is_multiple_of(4) && rest.len() >= 4 { 4 } else { 1 };
            let mut word = [0; 4];
            word[..bytes].copy_from_slice(&rest[..bytes]);
            region.store(at, bytes as u32, u32::from_le_bytes(word));
            region.mark_written(at, bytes as u32);
            at += bytes as u64;
            rest = &rest[bytes..];
        }
        Ok(())
    }

    /// Reads bytes for the host. Bytes that were never written read as zero.
    ///
    /// # Errors
    /// When the range is not within one allocation.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        if data.is_empty() {
            return Ok(());
        }
        let region = self.region(address, data.len() as u64)?;
        let (mut at, mut rest) = (address, data);
        while !rest.is_empty() {
            let bytes = if at.is_multiple_of(4) && rest.len() >= 4 { 4 } else { 1 };
            let word = region.load(at, bytes as u32).to_le_bytes();
            rest[..bytes].copy_from_slice(&word[..bytes]);
            at += bytes as u64;
            rest = &mut rest[bytes..];
        }
        Ok(())
    }

    /// Copies within the device; what was never written stays so.
    ///
    /// # Errors
    /// When a range is not within one allocation.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        if bytes == 0 {
            return Ok(());
        }
        let (source, target) = (self.region(from, bytes)?, self.region(to, bytes)?);
        let values: Vec<(u32, bool)> =
            (from..from + bytes).map(|at| (source.load(at, 1), source.is_written(at, 1))).collect();
        for (at, (value, written)) in (to..to + bytes).zip(values) {
            target.store(at, 1, value);
            if written {
                target.mark_written(at, 1);
            }
        }
        Ok(())
    }

    /// Writes one element of 1, 2 or 4 bytes over and over.
    ///
    /// # Errors
    /// When the range is not within one allocation.
    pub fn fill(&self, address: u64, element: &[u8], count: u64) -> Result<(), MemoryError> {
        let bytes = count.saturating_mul(element.len() as u64);
        if bytes == 0 {
            return Ok(());
        }
        self.region(address, bytes)?;
        let chunk = element.repeat(count.min(4096) as usize);
        let mut at = address;
        while at < address + bytes {
            let length = (chunk.len() as u64).min(address + bytes - at) as usize;
            self.write(at, &chunk[..length])?;
            at += length as u64;
        }
        Ok(())
    }
}
