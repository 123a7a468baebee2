//! One allocation of device memory, and its shadow: for each word, which bytes were ever written, which CTA of which launch
//! wrote them last, and once kernels do such a thing, which CTA read it last, and which was the last to write it by an
//! atomic or another strong access. An access of one CTA conflicts with those of others that are kept there, unless
//! something orders the two.
//!
//! ```text
//! bits   0..3      4..7           8..26   27    28..51      52..63
//! writes written   bytes          epoch   more  CTA plus 1  launch     weak ones; `more`: other bytes by others
//! reads  bytes     4: strong      epoch         CTA plus 1  launch
//! strong bytes     observers      epoch         CTA plus 1  launch     observers: CTAs modulo 4
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The last epoch of a CTA; all that comes later is of it too.
pub(crate) const LAST_EPOCH: u32 = 0x7_ffff;

/// Launches after which a shadow forgets who was there: half as many as its 12 bits tell apart, so that one that still runs
/// meets no other of its number.
const GENERATION: u32 = 1 << 11;

/// Whether other bytes of the word were written by others.
const MORE: u64 = 1 << 27;
/// Whether a reading was strong.
const STRONG: u64 = 1 << 4;

/// Who accesses: for the shadow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) launch: u32,
    pub(crate) cta: u32,
    pub(crate) epoch: u32,
}

impl Stamp {
    /// Epoch, CTA and launch where the shadow has them.
    pub(crate) fn bits(self) -> u64 {
        u64::from(self.cta + 1) << 28 | u64::from(self.launch & 0xfff) << 52 | u64::from(self.epoch) << 8
    }

    /// Whether a shadow is of the same launch.
    fn is_now(self, shadow: u64) -> bool {
        shadow >> 52 == u64::from(self.launch & 0xfff)
    }

    /// The other CTA of the launch that a shadow names, and its epoch.
    fn other(self, shadow: u64) -> Option<(u32, u32)> {
        let cta = (shadow >> 28) as u32 & 0xff_ffff;
        let is_other = cta != 0 && cta != self.cta + 1 && self.is_now(shadow);
        is_other.then(|| (cta - 1, (shadow >> 8) as u32 & LAST_EPOCH))
    }
}

/// Whether a shadow names no other CTA of the launch of a stamp's bits.
#[inline]
fn is_alone(own: u64, shadow: u64) -> bool {
    let differs = own ^ shadow;
    differs >> 52 != 0 || differs >> 27 == 0 || shadow >> 28 == 0
}

/// Whether two shadows name the same CTA, epoch and launch.
fn same(shadow: u64, other: u64) -> bool {
    (shadow ^ other) & !0xff & !MORE == 0
}

/// What an access does. A weak one is ordered by nothing; a strong one is atomic towards other strong ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) writes: bool,
    pub(crate) strong: bool,
}

/// An access of another CTA that nothing orders with this one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conflict {
    pub(crate) cta: u32,
    /// What it did, for people.
    pub(crate) did: &'static str,
}

/// One allocation.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    words: Box<[AtomicU32]>,
    /// The last weak write of each word.
    writes: Box<[AtomicU64]>,
    /// The last reading of each word, and the last strong write.
    reads: Pieces,
    strong: Pieces,
    has_strong: AtomicBool,
    /// Weak writes of other bytes of words whose shadow says that there are more.
    more: Mutex<HashMap<usize, Vec<u64>>>,
    /// The generation of launches whose stamps the shadow may hold; none while no launch was.
    generation: AtomicU32,
}

/// A shadow that is made piece by piece where it is used, and not where the host has no room.
#[derive(Debug)]
struct Pieces(Box<[OnceLock<Box<[AtomicU64]>>]>);

impl Pieces {
    /// Words of a piece, as a power of two.
    const SHIFT: usize = 12;

    fn new(count: usize) -> Option<Pieces> {
        zeros(count.div_ceil(1 << Self::SHIFT)).map(Pieces)
    }

    /// The shadow of a word; zero where nothing was noted.
    #[inline]
    fn at(&self, index: usize) -> u64 {
        let piece = self.0[index >> Self::SHIFT].get();
        let shadow = piece.and_then(|piece| piece.get(index & ((1 << Self::SHIFT) - 1)));
        shadow.map_or(0, |shadow| shadow.load(Relaxed))
    }

    /// Where the shadow of a word is kept.
    #[inline]
    fn slot(&self, index: usize) -> Option<&AtomicU64> {
        let piece = &self.0[index >> Self::SHIFT];
        let piece = match piece.get() {
            Some(piece) => piece,
            None => piece.get_or_init(|| zeros(1 << Self::SHIFT).unwrap_or_default()),
        };
        piece.get(index & ((1 << Self::SHIFT) - 1))
    }

    fn clear(&self) {
        for shadow in self.0.iter().filter_map(OnceLock::get).flatten() {
            if shadow.load(Relaxed) != 0 {
                shadow.store(0, Relaxed);
            }
        }
    }
}

/// So many zeros, if the host has room.
fn zeros<T: Default>(count: usize) -> Option<Box<[T]>> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).ok()?;
    list.resize_with(count, T::default);
    Some(list.into())
}

impl Region {
    /// Nothing where the host has no room.
    pub(crate) fn new(base: u64, bytes: u64) -> Option<Region> {
        let count = usize::try_from(bytes.div_ceil(4)).ok()?;
        Some(Region {
            base,
            bytes,
            words: zeros(count)?,
            writes: zeros(count)?,
            reads: Pieces::new(count)?,
            strong: Pieces::new(count)?,
            has_strong: AtomicBool::new(false),
            more: Mutex::default(),
            generation: AtomicU32::new(u32::MAX),
        })
    }

    /// Forgets who was there in launches whose numbers may come again.
    pub(crate) fn begin(&self, launch: u32) {
        let now = launch / GENERATION;
        let before = self.generation.swap(now, Relaxed);
        if before == now || before == u32::MAX {
            return;
        }
        for shadow in self.writes.iter().filter(|shadow| shadow.load(Relaxed) > 15) {
            shadow.fetch_and(15, Relaxed);
        }
        self.reads.clear();
        self.strong.clear();
        self.more().clear();
    }

    fn more(&self) -> MutexGuard<'_, HashMap<usize, Vec<u64>>> {
        self.more.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last strong write of a word.
    #[inline]
    fn strong_at(&self, index: usize) -> u64 {
        if self.has_strong.load(Relaxed) { self.strong.at(index) } else { 0 }
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

    /// Notes a weak reading of a whole word where that is surely sound: it was written whole, and no other CTA wrote it in
    /// this launch. Whether it is. `own` is the reader's stamp in bits.
    #[inline]
    pub(crate) fn reads_freely(&self, index: usize, own: u64) -> bool {
        let found = self.writes[index].load(Relaxed);
        if found & 15 != 15 || !is_alone(own, found) || !is_alone(own, self.strong_at(index)) {
            return false;
        }
        if let Some(read) = self.reads.slot(index)
            && read.load(Relaxed) != own | 15
        {
            read.store(own | 15, Relaxed);
        }
        true
    }

    /// Whether no other CTA touched a word in the launch of the stamp, as far as is known.
    #[inline]
    pub(crate) fn writes_freely(&self, index: usize, own: u64) -> bool {
        is_alone(own, self.writes[index].load(Relaxed))
            && is_alone(own, self.reads.at(index))
            && is_alone(own, self.strong_at(index))
    }

    /// Writes a whole word weakly and notes who did; whether that changed it.
    #[inline]
    pub(crate) fn store_word(&self, index: usize, value: u32, own: u64) -> bool {
        let word = &self.words[index];
        let changed = word.load(Relaxed) != value;
        word.store(value, Relaxed);
        let shadow = &self.writes[index];
        if shadow.load(Relaxed) != own | 0xff {
            shadow.store(own | 0xff, Relaxed);
        }
        changed
    }

    /// Place and mask of up to four bytes in the shadow.
    fn shadow_at(&self, address: u64, bytes: u32) -> (usize, u64) {
        let offset = address - self.base;
        let mask = if bytes >= 4 { 15 } else { ((1 << bytes) - 1) << (offset & 3) };
        ((offset / 4) as usize, mask)
    }

    /// Whether all of up to four bytes were written.
    pub(crate) fn is_written(&self, address: u64, bytes: u32) -> bool {
        let (index, mask) = self.shadow_at(address, bytes);
        self.writes[index].load(Relaxed) & mask == mask
    }

    /// An access by another CTA of the launch that conflicts with one to up to four bytes; `knows` tells whether what a CTA
    /// did up to an epoch is ordered before.
    pub(crate) fn conflict(
        &self,
        address: u64,
        bytes: u32,
        me: Stamp,
        touch: Touch,
        knows: impl Fn(u32, u32) -> bool,
    ) -> Option<Conflict> {
        let (index, mask) = self.shadow_at(address, bytes);
        if self.writes_freely(index, me.bits()) {
            return None;
        }
        let found = |shadow: u64, at: u64, did: &'static str| {
            let (cta, epoch) = me.other(shadow).filter(|_| at & mask != 0)?;
            (!knows(cta, epoch)).then_some(Conflict { cta, did })
        };
        let write = self.writes[index].load(Relaxed);
        let more = || {
            let has_more = write & MORE != 0 && me.is_now(write);
            let list = has_more.then(|| self.more().get(&index).cloned()).flatten();
            list.unwrap_or_default().into_iter().find_map(|write| found(write, write >> 4, "wrote"))
        };
        let strong = || {
            let shadow = self.strong_at(index);
            if touch.strong {
                return None;
            }
            let is_observed = shadow >> 4 >> (me.cta & 3) & 1 != 0;
            found(shadow, if is_observed { 0 } else { shadow }, "wrote by an atomic or volatile access")
        };
        let read = || {
            let shadow = self.reads.at(index);
            match shadow & STRONG != 0 {
                _ if !touch.writes => None,
                true if touch.strong => None,
                true => found(shadow, shadow, "read by an atomic or volatile access"),
                false => found(shadow, shadow, "read"),
            }
        };
        found(write, write >> 4, "wrote").or_else(more).or_else(strong).or_else(read)
    }

    /// Notes that up to four bytes were written, by whomsoever.
    pub(crate) fn mark_written(&self, address: u64, bytes: u32) {
        let (index, mask) = self.shadow_at(address, bytes);
        if self.writes[index].load(Relaxed) & mask != mask {
            self.writes[index].fetch_or(mask, Relaxed);
        }
    }

    /// Notes a weak write of up to four bytes.
    pub(crate) fn mark_weak_write(&self, address: u64, bytes: u32, by: Stamp) {
        let (index, mask) = self.shadow_at(address, bytes);
        let (shadow, own) = (&self.writes[index], by.bits());
        let mut old = shadow.load(Relaxed);
        loop {
            let is_own = same(old, own);
            // Bytes that others wrote in this launch, and this write leaves alone.
            let left = if by.is_now(old) && !is_own { old >> 4 & 15 & !mask } else { 0 };
            let more = if by.is_now(old) && old & MORE != 0 || left != 0 { MORE } else { 0 };
            let bytes = mask | if is_own { old >> 4 & 15 } else { 0 };
            let new = own | more | bytes << 4 | old & 15 | mask;
            if new == old && more == 0 {
                return;
            }
            // Another thread may mark other bytes of the word at the same time.
            match shadow.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) if more != 0 => return self.note_more(index, mask, old & !0xff | left << 4),
                Ok(_) => return,
                Err(found) => old = found,
            }
        }
    }

    /// Keeps a write whose stamp leaves the shadow, and drops the bytes of a mask from those that are kept.
    fn note_more(&self, index: usize, mask: u64, write: u64) {
        let mut more = self.more();
        let list = more.entry(index).or_default();
        for kept in list.iter_mut() {
            *kept &= !(mask << 4);
        }
        list.retain(|&kept| kept >> 52 == write >> 52 && kept & 0xf0 != 0);
        if write & 0xf0 != 0 {
            list.push(write);
        }
    }

    /// Notes a reading of up to four bytes.
    pub(crate) fn mark_read(&self, address: u64, bytes: u32, by: Stamp, strong: bool) {
        let (index, mask) = self.shadow_at(address, bytes);
        let Some(shadow) = self.reads.slot(index) else { return };
        let (old, own) = (shadow.load(Relaxed), by.bits() | if strong { STRONG } else { 0 });
        let joined = if (old ^ own) & !15 == 0 { old & 15 } else { 0 };
        shadow.store(own | mask | joined, Relaxed);
        if strong
            && self.strong_at(index) != 0
            && let Some(writes) = self.strong.slot(index)
        {
            // The writer's value was seen, so that what follows here comes after the write.
            writes.fetch_or(1 << 4 << (by.cta & 3), Relaxed);
        }
    }

    /// Notes a strong write of up to four bytes.
    pub(crate) fn mark_strong_write(&self, address: u64, bytes: u32, by: Stamp) {
        self.mark_written(address, bytes);
        let (index, mask) = self.shadow_at(address, bytes);
        self.has_strong.store(true, Relaxed);
        let Some(shadow) = self.strong.slot(index) else { return };
        let (old, own) = (shadow.load(Relaxed), by.bits());
        shadow.store(own | mask | if same(old, own) { old & 15 } else { 0 }, Relaxed);
    }
}
