//! Device memory: allocations that several host threads may use at once, with a shadow that knows for each word which
//! bytes were ever written, and which CTA of which launch wrote them last. Addresses are never used twice, so that a
//! pointer to freed memory stays wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

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
    #[error("{requested} bytes were requested, which take three times as many of the host, and it has no room")]
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

/// One allocation.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    words: Box<[AtomicU32]>,
    /// Per word: written bytes (bits 0 to 3), bytes of the last weak writer (4 to 7), its epoch (8 to 27), its CTA plus
    /// one (28 to 51), its launch (52 to 63).
    shadow: Box<[AtomicU64]>,
    /// The generation of launches whose stamps the shadow may hold; none while no launch was.
    generation: AtomicU32,
}

/// Launches after which a shadow forgets who wrote: half as many as its 12 bits tell apart, so that one that still runs
/// meets no other of its number.
const GENERATION: u32 = 1 << 11;

/// The last weak writer of a word in this launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub(crate) cta: u32,
    pub(crate) epoch: u32,
}

/// Who accesses: for the shadow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) launch: u32,
    pub(crate) cta: u32,
    pub(crate) epoch: u32,
}

impl Stamp {
    /// Epoch, CTA and launch where the shadow has them.
    fn bits(self) -> u64 {
        u64::from(self.cta + 1) << 28 | u64::from(self.launch & 0xfff) << 52 | u64::from(self.epoch) << 8
    }

    /// Whether a shadow names no other CTA of the launch.
    fn is_alone(self, shadow: u64) -> bool {
        let (cta, launch) = ((shadow >> 28) as u32 & 0xff_ffff, (shadow >> 52) as u32);
        cta == 0 || cta == self.cta + 1 || launch != self.launch & 0xfff
    }
}

impl Region {
    /// Nothing where the host has no room.
    fn new(base: u64, bytes: u64) -> Option<Region> {
        let count = usize::try_from(bytes.div_ceil(4)).ok()?;
        let (mut words, mut shadow) = (Vec::new(), Vec::new());
        words.try_reserve_exact(count).ok()?;
        shadow.try_reserve_exact(count).ok()?;
        words.resize_with(count, AtomicU32::default);
        shadow.resize_with(count, AtomicU64::default);
        let generation = AtomicU32::new(u32::MAX);
        Some(Region { base, bytes, words: words.into(), shadow: shadow.into(), generation })
    }

    /// Forgets who wrote in launches whose numbers may come again.
    fn begin(&self, launch: u32) {
        let now = launch / GENERATION;
        let before = self.generation.swap(now, Relaxed);
        if before == now || before == u32::MAX {
            return;
        }
        for shadow in self.shadow.iter().filter(|shadow| shadow.load(Relaxed) > 15) {
            shadow.fetch_and(15, Relaxed);
        }
    }

    /// Whether `bytes` bytes at an address lie within.
    pub(crate) fn holds(&self, address: u64, bytes: u64) -> bool {
        let offset = address.wrapping_sub(self.base);
        offset < self.bytes && bytes <= self.bytes - offset
    }

    /// 1, 2 or 4 bytes at an aligned address within.
    pub(crate) fn load(&self, address: u64, bytes: u32) -> u32 {
        let offset = address - self.base;
        let word = self.words[(offset / 4) as usize].load(Relaxed);
        match bytes {
            1 => word >> (8 * (offset & 3)) & 0xff,
            2 => word >> (8 * (offset & 3)) & 0xffff,
            _ => word,
        }
    }

    /// Writes 1, 2 or 4 bytes at an aligned address within; whether that changed them.
    pub(crate) fn store(&self, address: u64, bytes: u32, value: u32) -> bool {
        let offset = address - self.base;
        let word = &self.words[(offset / 4) as usize];
        if bytes >= 4 {
            let changed = word.load(Relaxed) != value;
            word.store(value, Relaxed);
            return changed;
        }
        let shift = 8 * (offset & 3) as u32;
        let mask = ((1u32 << (8 * bytes)) - 1) << shift;
        self.update(address & !3, |old| old & !mask | value << shift & mask).1
    }

    /// Replaces the word at an aligned address atomically; the old value, and whether it changed.
    pub(crate) fn update(&self, address: u64, f: impl Fn(u32) -> u32) -> (u32, bool) {
        let word = &self.words[((address - self.base) / 4) as usize];
        let mut old = word.load(Relaxed);
        loop {
            let new = f(old);
            match word.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => return (old, old != new),
                Err(found) => old = found,
            }
        }
    }

    /// Index of the word at an address within.
    pub(crate) fn word(&self, address: u64) -> usize {
        ((address - self.base) / 4) as usize
    }

    pub(crate) fn load_word(&self, index: usize) -> u32 {
        self.words[index].load(Relaxed)
    }

    /// Whether a word was written whole, and by nobody whom a weak read of the stamp's CTA could race with.
    pub(crate) fn reads_freely(&self, index: usize, me: Stamp) -> bool {
        let found = self.shadow[index].load(Relaxed);
        found & 15 == 15 && me.is_alone(found)
    }

    /// Whether no other CTA wrote a word weakly in the stamp's launch.
    pub(crate) fn writes_freely(&self, index: usize, me: Stamp) -> bool {
        me.is_alone(self.shadow[index].load(Relaxed))
    }

    /// Writes a whole word weakly and notes who did; whether that changed it.
    pub(crate) fn store_word(&self, index: usize, value: u32, by: Stamp) -> bool {
        let word = &self.words[index];
        let changed = word.load(Relaxed) != value;
        word.store(value, Relaxed);
        let (shadow, new) = (&self.shadow[index], by.bits() | 0xff);
        if shadow.load(Relaxed) != new {
            shadow.store(new, Relaxed);
        }
        changed
    }

    fn shadow_at(&self, address: u64, bytes: u32) -> (&AtomicU64, u64) {
        let offset = address - self.base;
        let mask = if bytes >= 4 { 15 } else { ((1 << bytes) - 1) << (offset & 3) };
        (&self.shadow[(offset / 4) as usize], mask)
    }

    /// Whether all of up to four bytes were written.
    pub(crate) fn is_written(&self, address: u64, bytes: u32) -> bool {
        let (shadow, mask) = self.shadow_at(address, bytes);
        shadow.load(Relaxed) & mask == mask
    }

    /// The last weak writer of any of up to four bytes, if another CTA of the same launch.
    pub(crate) fn other_writer(&self, address: u64, bytes: u32, me: Stamp) -> Option<Writer> {
        let (shadow, mask) = self.shadow_at(address, bytes);
        let found = shadow.load(Relaxed);
        let cta = (found >> 28) as u32 & 0xff_ffff;
        let other = cta != 0 && cta != me.cta + 1 && found >> 52 == u64::from(me.launch & 0xfff);
        (other && found >> 4 & mask != 0).then(|| Writer { cta: cta - 1, epoch: (found >> 8) as u32 & 0xf_ffff })
    }

    /// Notes a write: weak with the writer's stamp, strong or of the host without.
    pub(crate) fn mark(&self, address: u64, bytes: u32, by: Option<Stamp>) {
        let (shadow, mask) = self.shadow_at(address, bytes);
        let old = shadow.load(Relaxed);
        let mut new = old & 15 | mask;
        if let Some(by) = by {
            let own = by.bits();
            let same = old & !0xff == own;
            new |= own | (mask | if same { old >> 4 & 15 } else { 0 }) << 4;
        }
        if new != old {
            // Another thread may mark other bytes of the word at the same time.
            let mut found = old;
            while let Err(now) = shadow.compare_exchange_weak(found, new | found & 15, Relaxed, Relaxed) {
                found = now;
            }
        }
    }
}

/// The memory of a device.
#[derive(Debug)]
pub struct Memory {
    regions: RwLock<BTreeMap<u64, Arc<Region>>>,
    /// Next free address, and bytes in use.
    state: Mutex<(u64, u64)>,
    limit: u64,
    launches: AtomicU32,
}

impl Memory {
    /// An empty memory of `limit` bytes.
    pub fn new(limit: u64) -> Memory {
        Self::numbered(limit, 0)
    }

    /// The same for one of several devices, whose addresses differ.
    pub(crate) fn numbered(limit: u64, number: u32) -> Memory {
        let base = GLOBAL_BASE + (u64::from(number) << 44);
        Memory { regions: RwLock::default(), state: Mutex::new((base, 0)), limit, launches: AtomicU32::new(1) }
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
        Ok(())
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
            region.mark(at, bytes as u32, None);
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
                target.mark(at, 1, None);
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
