//! The shared memory of a CTA with its checks. A barrier of all warps ends a phase: what lies in an earlier phase is ordered
//! before everything now. Within a phase each warp has a vector clock that other barriers join; an access races when the
//! last conflicting one by another thread is not before it. Strong accesses, which are atomics, volatile and relaxed ones,
//! race with weak ones alone.

use super::clocks::Clocks;
use super::regs::LANES;
use super::warp::Warp;
use crate::fault::{FaultKind, Wrong};

/// Who accesses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
}

/// Stands for a lane where several read the same bytes.
const SEVERAL: u8 = u8::MAX;

/// What is known of one word.
#[derive(Clone, Copy, Default)]
struct Shadow {
    /// When and by whom it was written last, and read last since.
    write_at: Time,
    read_at: Time,
    write_by: Who,
    read_by: Who,
    /// Bytes ever written, and bytes that an asynchronous copy still writes.
    written: u8,
    pending: u8,
    /// Bytes of the last write and of the last reading.
    bytes: u8,
    read_bytes: u8,
    /// Warps that read in the phase of the last reading since the last write.
    readers: u32,
}

/// A phase of the CTA, and in it the clock of a warp.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Time {
    phase: u32,
    clock: u32,
}

/// A warp and a lane.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Who {
    warp: u8,
    lane: u8,
}

/// The last reading of a word by one warp.
#[derive(Clone, Copy, Default)]
struct Reading {
    at: Time,
    lane: u8,
    bytes: u8,
}

/// The last strong access to a word of one kind.
#[derive(Clone, Copy, Default)]
struct Touch {
    at: Time,
    by: Who,
    bytes: u8,
}

/// The last strong write of a word, and the last strong reading.
#[derive(Clone, Copy, Default)]
struct Strong {
    write: Touch,
    read: Touch,
}

/// What an access is to the shadow: when, by whom, and since when the lanes of its warp are not ordered.
#[derive(Clone, Copy)]
struct Now {
    time: Time,
    synced: u32,
    me: Who,
}

impl Touch {
    /// Notes an access to some bytes.
    fn note(&mut self, now: Now, mask: u8) {
        let Now { time, synced, me } = now;
        let same = self.at.phase == time.phase && self.by.warp == me.warp && self.at.clock >= synced;
        // Bytes that several lanes touch conflict with any of them.
        let several = same && self.by != me && self.bytes & mask != 0;
        self.bytes = match (several, same && self.by == me) {
            (true, _) => self.bytes & mask,
            (_, true) => self.bytes | mask,
            _ => mask,
        };
        self.at = time;
        self.by = Who { warp: me.warp, lane: if several { SEVERAL } else { me.lane } };
    }
}

/// Shared memory.
pub(crate) struct Shared {
    words: Vec<u32>,
    bytes: u64,
    shadow: Vec<Shadow>,
    /// Readings by word and warp, where the shadow's one is not enough: with barriers of some warps, or parts of words.
    readings: Vec<Reading>,
    /// Strong accesses by word, from the first one on.
    strong: Vec<Strong>,
    warps: usize,
    phase: u32,
    pub(super) clocks: Clocks,
    has_partial: bool,
    checks: bool,
}

impl Shared {
    /// Memory for a CTA; `has_partial` says that the kernel orders some of its warps only, by barriers or releases.
    pub(crate) fn new(bytes: u64, warps: usize, has_partial: bool, checks: bool) -> Shared {
        let count = bytes.div_ceil(4) as usize;
        let mut shared = Shared {
            words: vec![0; count],
            bytes,
            shadow: vec![Shadow::default(); if checks { count } else { 0 }],
            readings: vec![],
            strong: vec![],
            warps,
            phase: 1,
            clocks: Clocks::new(warps),
            has_partial,
            checks,
        };
        if has_partial {
            shared.keep_readings();
        }
        shared
    }

    fn keep_readings(&mut self) {
        self.readings = vec![Reading::default(); self.shadow.len() * self.warps];
    }

    /// Orders what the warps of a mask did before what they do next; `all` where no other warp is left.
    pub(crate) fn join(&mut self, warps: u32, all: bool) {
        // Clocks are compared within a phase only.
        if all {
            self.phase += 1;
        } else {
            self.clocks.join(warps);
        }
    }

    fn now(&self, by: Thread) -> Now {
        let time = Time { phase: self.phase, clock: self.clocks.own(by.warp) };
        Now { time, synced: self.clocks.synced(by.warp), me: who(by) }
    }

    /// Whether a strong access to a word is of this phase.
    fn has_strong(&self, index: usize) -> bool {
        let strong = self.strong.get(index);
        strong.is_some_and(|strong| strong.write.at.phase == self.phase || strong.read.at.phase == self.phase)
    }

    /// Finds the first word of an aligned range.
    #[inline]
    fn check(&self, address: u64, bytes: u32, lane: usize) -> Result<usize, Wrong> {
        if address.saturating_add(u64::from(bytes)) > self.bytes {
            return Err(self.outside(address, bytes, lane));
        }
        Ok((address / 4) as usize)
    }

    #[cold]
    fn outside(&self, address: u64, bytes: u32, lane: usize) -> Wrong {
        let message = format!("{bytes} bytes at {address:#x} of {} bytes of shared memory", self.bytes);
        Wrong::new(FaultKind::OutOfBounds, lane, message)
    }

    /// Up to four bytes at an aligned address.
    pub(crate) fn load(&mut self, address: u64, bytes: u32, by: Thread, weak: bool) -> Result<u32, Wrong> {
        let index = self.check(address, bytes, by.lane)?;
        if self.checks {
            self.note_read(index, byte_mask(address, bytes), address, by, weak)?;
        }
        let word = self.words[index] >> (8 * (address & 3));
        Ok(if bytes < 4 { word & ((1 << (8 * bytes)) - 1) } else { word })
    }

    /// Whole words from the aligned addresses of the lanes of a mask: `out[word][lane]`.
    pub(crate) fn load_words(
        &mut self,
        addresses: &[u64; LANES],
        out: &mut [[u32; LANES]],
        warp: usize,
        weak: bool,
        mask: u32,
    ) -> Result<(), Wrong> {
        let bytes = 4 * out.len() as u32;
        let (mut now, simple) = (self.now(Thread { warp, lane: 0 }), weak && self.readings.is_empty());
        // Weak accesses add no strong ones.
        let none_strong = self.strong.is_empty();
        for lane in Warp::lanes(mask) {
            let (address, by) = (addresses[lane], Thread { warp, lane });
            now.me = who(by);
            let index = self.check(address, bytes, lane)?;
            for (offset, out) in out.iter_mut().enumerate() {
                let at = index + offset;
                if self.checks
                    && !(simple
                        && (none_strong || !self.has_strong(at))
                        && Self::reads_freely(&mut self.shadow[at], now))
                {
                    self.note_read(at, 15, address + 4 * offset as u64, by, weak)?;
                }
                out[lane] = self.words[at];
            }
        }
        Ok(())
    }

    /// Whole words to the aligned addresses of the lanes of a mask; how many of them that changed.
    pub(crate) fn store_words(
        &mut self,
        addresses: &[u64; LANES],
        values: &[[u32; LANES]],
        warp: usize,
        weak: bool,
        mask: u32,
    ) -> Result<u64, Wrong> {
        let (bytes, mut changed) = (4 * values.len() as u32, 0);
        let (mut now, simple) = (self.now(Thread { warp, lane: 0 }), weak && self.readings.is_empty());
        // Weak accesses add no strong ones.
        let none_strong = self.strong.is_empty();
        for lane in Warp::lanes(mask) {
            let (address, by) = (addresses[lane], Thread { warp, lane });
            now.me = who(by);
            let index = self.check(address, bytes, lane)?;
            for (offset, values) in values.iter().enumerate() {
                let at = index + offset;
                let changes = self.words[at] != values[lane];
                if self.checks
                    && !(simple
                        && (none_strong || !self.has_strong(at))
                        && Self::writes_freely(&mut self.shadow[at], now))
                {
                    self.note_store(at, 15, address + 4 * offset as u64, by, weak, changes)?;
                }
                changed += u64::from(changes);
                self.words[at] = values[lane];
            }
        }
        Ok(changed)
    }

    /// Writes up to four bytes at an aligned address; whether that changed them.
    pub(crate) fn store(
        &mut self,
        address: u64,
        bytes: u32,
        value: u32,
        by: Thread,
        weak: bool,
    ) -> Result<bool, Wrong> {
        let index = self.check(address, bytes, by.lane)?;
        let shift = 8 * (address & 3) as u32;
        let bits = if bytes < 4 { ((1u32 << (8 * bytes)) - 1) << shift } else { u32::MAX };
        let old = self.words[index];
        let new = old & !bits | value << shift & bits;
        if self.checks {
            self.note_store(index, byte_mask(address, bytes), address, by, weak, new != old)?;
        }
        self.words[index] = new;
        Ok(new != old)
    }

    /// Notes a weak reading of a whole word, where nothing but the word's shadow is needed to know that it is right.
    #[inline]
    fn reads_freely(shadow: &mut Shadow, Now { time: now, synced, me }: Now) -> bool {
        let settled = shadow.write_at.phase != now.phase || shadow.write_by == me;
        let before = shadow.read_at.phase == now.phase && shadow.readers != 0;
        let parts = before && shadow.read_bytes != 15;
        if !settled || parts || shadow.written != 15 || shadow.pending != 0 {
            return false;
        }
        let others = before && shadow.read_at.clock >= synced && shadow.read_by.warp == me.warp && shadow.read_by != me;
        shadow.read_by = Who { warp: me.warp, lane: if others { SEVERAL } else { me.lane } };
        (shadow.read_at, shadow.read_bytes) = (now, 15);
        shadow.readers = if before { shadow.readers } else { 0 } | 1 << me.warp;
        true
    }

    /// The same for a weak write.
    #[inline]
    fn writes_freely(shadow: &mut Shadow, Now { time: now, synced, me }: Now) -> bool {
        let settled = shadow.write_at.phase != now.phase || shadow.write_by == me;
        let unread = shadow.read_at.phase != now.phase
            || shadow.readers == 0
            || shadow.readers == 1 << me.warp && (shadow.read_by == me || shadow.read_at.clock < synced);
        if !settled || !unread || shadow.pending != 0 {
            return false;
        }
        (shadow.write_at, shadow.write_by, shadow.bytes) = (now, me, 15);
        (shadow.written, shadow.readers) = (15, 0);
        true
    }

    fn note_read(&mut self, index: usize, mask: u8, address: u64, by: Thread, weak: bool) -> Result<(), Wrong> {
        let shadow = self.shadow[index];
        if shadow.pending & mask != 0 {
            return Err(pending(address, by.lane));
        }
        if shadow.written & mask != mask {
            let message = format!("shared memory at {address:#x} was never written");
            return Err(Wrong::new(FaultKind::Uninitialized, by.lane, message));
        }
        if shadow.write_at.phase == self.phase {
            self.check_write(index, mask, address, by, "reads")?;
        }
        let now = self.now(by);
        if !weak {
            self.strong(index).read.note(now, mask);
            return Ok(());
        }
        if self.has_strong(index) {
            let Strong { write, .. } = self.strong[index];
            self.check_touch(write, mask, address, by, ["reads", "writes"])?;
        }
        let Now { time: now, synced, me } = now;
        let before = shadow.read_at.phase == now.phase && shadow.readers != 0;
        let same = before && shadow.read_by.warp == me.warp && shadow.read_at.clock >= synced;
        // Bytes that several lanes read race with a write by any of them.
        let shared = same && shadow.read_by != me && shadow.read_bytes & mask != 0;
        let target = &mut self.shadow[index];
        target.read_by = Who { warp: me.warp, lane: if shared { SEVERAL } else { me.lane } };
        target.read_bytes = match (shared, same && shadow.read_by == me) {
            (true, _) => mask & shadow.read_bytes,
            (_, true) => mask | shadow.read_bytes,
            _ => mask,
        };
        target.read_at = now;
        target.readers = if before { shadow.readers } else { 0 } | 1 << by.warp;
        let reading = Reading { at: now, lane: target.read_by.lane, bytes: target.read_bytes };
        if mask != 15 && self.readings.is_empty() {
            self.keep_readings();
        }
        if let Some(kept) = self.readings.get_mut(index * self.warps + by.warp) {
            *kept = reading;
        }
        Ok(())
    }

    /// Notes a write. Several threads may write the same value, as they do where each of them has a copy.
    fn note_store(
        &mut self,
        index: usize,
        mask: u8,
        address: u64,
        by: Thread,
        weak: bool,
        changes: bool,
    ) -> Result<(), Wrong> {
        let Now { time: now, .. } = self.now(by);
        let shadow = &mut self.shadow[index];
        if shadow.pending & mask != 0 {
            return Err(pending(address, by.lane));
        }
        if weak {
            if !changes && shadow.written & mask == mask && shadow.write_at.phase == now.phase {
                (shadow.write_at, shadow.write_by) = (now, who(by));
            }
            self.note_write(index, mask, address, by)?;
        } else {
            self.check_weak(index, mask, address, by)?;
            let now = self.now(by);
            self.strong(index).write.note(now, mask);
        }
        self.shadow[index].written |= mask;
        Ok(())
    }

    /// What is noted of the strong accesses to a word.
    fn strong(&mut self, index: usize) -> &mut Strong {
        if self.strong.is_empty() {
            self.strong = vec![Strong::default(); self.shadow.len()];
        }
        &mut self.strong[index]
    }

    /// Checks a write against the weak accesses before it.
    fn check_weak(&self, index: usize, mask: u8, address: u64, by: Thread) -> Result<(), Wrong> {
        let found = &self.shadow[index];
        if found.write_at.phase == self.phase {
            self.check_write(index, mask, address, by, "writes")?;
        }
        if found.read_at.phase == self.phase && found.readers != 0 {
            self.check_readings(index, mask, address, by)?;
        }
        Ok(())
    }

    /// Checks a weak access against a strong one of this phase.
    fn check_touch(&self, touch: Touch, mask: u8, address: u64, by: Thread, does: [&str; 2]) -> Result<(), Wrong> {
        if touch.at.phase != self.phase || touch.bytes & mask == 0 || !self.races(touch.at, touch.by, by) {
            return Ok(());
        }
        let lane = if touch.by.lane == SEVERAL { String::new() } else { format!(" lane {}", touch.by.lane) };
        let message = format!(
            "{} shared memory at {address:#x}, which warp {}{lane} {} by an atomic or volatile access, with no barrier \
             between",
            does[0], touch.by.warp, does[1]
        );
        Err(Wrong::new(FaultKind::SharedRace, by.lane, message))
    }

    /// Whether nothing orders an access of this phase before what a thread does now.
    fn races(&self, at: Time, who: Who, by: Thread) -> bool {
        let warp = usize::from(who.warp);
        if warp == by.warp {
            usize::from(who.lane) != by.lane && at.clock >= self.clocks.synced(warp)
        } else {
            !self.clocks.knows(by.warp, warp, at.clock)
        }
    }

    fn note_write(&mut self, index: usize, mask: u8, address: u64, by: Thread) -> Result<(), Wrong> {
        let Now { time: now, me, .. } = self.now(by);
        let found = self.shadow[index];
        self.check_weak(index, mask, address, by)?;
        if self.has_strong(index) {
            let Strong { write, read } = self.strong[index];
            self.check_touch(write, mask, address, by, ["writes", "writes"])?;
            self.check_touch(read, mask, address, by, ["writes", "reads"])?;
        }
        let shadow = &mut self.shadow[index];
        let same = found.write_at == now && found.write_by == me;
        shadow.bytes = mask | if same { found.bytes } else { 0 };
        (shadow.write_at, shadow.write_by, shadow.readers) = (now, me, 0);
        Ok(())
    }

    fn check_readings(&self, index: usize, mask: u8, address: u64, by: Thread) -> Result<(), Wrong> {
        let shadow = &self.shadow[index];
        let mut readers = shadow.readers;
        while readers != 0 {
            let warp = readers.trailing_zeros() as usize;
            readers &= readers - 1;
            let last = Reading { at: shadow.read_at, lane: shadow.read_by.lane, bytes: shadow.read_bytes };
            let kept = self.readings.get(index * self.warps + warp).filter(|reading| reading.at.phase == self.phase);
            let reading = match kept {
                Some(reading) => *reading,
                None if warp == usize::from(shadow.read_by.warp) => last,
                // It read the whole word, and only barriers of all warps order it against others.
                None => {
                    let clock = if warp == by.warp { 0 } else { u32::MAX };
                    Reading { bytes: 15, lane: SEVERAL, at: Time { phase: self.phase, clock } }
                }
            };
            let reader = Who { warp: warp as u8, lane: reading.lane };
            let races = warp != by.warp && !self.has_partial || self.races(reading.at, reader, by);
            if races && reading.bytes & mask != 0 {
                let lane = if reading.lane == SEVERAL { String::new() } else { format!(" lane {}", reading.lane) };
                let message = format!(
                    "writes shared memory at {address:#x}, which warp {warp}{lane} reads, with no barrier between"
                );
                return Err(Wrong::new(FaultKind::SharedRace, by.lane, message));
            }
        }
        Ok(())
    }

    /// Checks against the last write, which is of this phase.
    fn check_write(&self, index: usize, mask: u8, address: u64, by: Thread, does: &str) -> Result<(), Wrong> {
        let shadow = &self.shadow[index];
        if shadow.bytes & mask == 0 || !self.races(shadow.write_at, shadow.write_by, by) {
            return Ok(());
        }
        let message = format!(
            "{does} shared memory at {address:#x}, which warp {} lane {} wrote, with no barrier between",
            shadow.write_by.warp, shadow.write_by.lane
        );
        Err(Wrong::new(FaultKind::SharedRace, by.lane, message))
    }

    /// Marks bytes as the target of an asynchronous copy.
    pub(crate) fn begin_copy(&mut self, address: u64, bytes: u32, by: Thread) -> Result<(), Wrong> {
        let first = self.check(address, bytes, by.lane)?;
        if !self.checks {
            return Ok(());
        }
        for offset in 0..bytes as usize / 4 {
            let (index, at) = (first + offset, address + 4 * offset as u64);
            if self.shadow[index].pending != 0 {
                return Err(pending(at, by.lane));
            }
            self.note_write(index, 15, at, by)?;
            self.shadow[index].pending = 15;
        }
        Ok(())
    }

    /// Writes what an asynchronous copy brought, as of now.
    pub(crate) fn end_copy(&mut self, address: u64, words: &[u32], by: Thread) -> Result<(), Wrong> {
        let first = self.check(address, 4 * words.len() as u32, by.lane)?;
        for (offset, &word) in words.iter().enumerate() {
            if self.checks {
                self.shadow[first + offset].pending = 0;
                self.note_store(first + offset, 15, address + 4 * offset as u64, by, true, true)?;
            }
            self.words[first + offset] = word;
        }
        Ok(())
    }
}

fn who(by: Thread) -> Who {
    Who { warp: by.warp as u8, lane: by.lane as u8 }
}

fn byte_mask(address: u64, bytes: u32) -> u8 {
    if bytes >= 4 { 15 } else { ((1u8 << bytes) - 1) << (address & 3) }
}

fn pending(address: u64, lane: usize) -> Wrong {
    let message =
        format!("shared memory at {address:#x} is the target of an asynchronous copy that was not waited for");
    Wrong::new(FaultKind::AsyncCopy, lane, message)
}
