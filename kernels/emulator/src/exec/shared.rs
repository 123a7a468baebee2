//! The shared memory of a CTA with its checks. Each warp has a vector clock that barriers join; an access races when the
//! last conflicting one by another thread is not before it.

use crate::fault::{FaultKind, Wrong};

/// Who accesses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
}

#[derive(Clone, Copy, Default)]
struct Shadow {
    /// Bytes ever written, and bytes that an asynchronous copy still writes.
    written: u8,
    pending: u8,
    /// The last write: its bytes, lane, warp and clock.
    bytes: u8,
    lane: u8,
    warp: u16,
    clock: u32,
    /// Warps that read since.
    readers: u32,
}

#[derive(Clone, Copy, Default)]
struct Reading {
    clock: u32,
    lane: u8,
    bytes: u8,
}

/// Shared memory.
pub(crate) struct Shared {
    words: Vec<u32>,
    bytes: u64,
    shadow: Vec<Shadow>,
    readings: Vec<Reading>,
    warps: usize,
    /// `clocks[w][v]`: how far warp `w` knows what warp `v` did.
    clocks: Vec<Vec<u32>>,
    checks: bool,
}

impl Shared {
    pub(crate) fn new(bytes: u64, warps: usize, checks: bool) -> Shared {
        let count = bytes.div_ceil(4) as usize;
        let own = |w: usize| (0..warps).map(|v| u32::from(v == w)).collect();
        Shared {
            words: vec![0; count],
            bytes,
            shadow: vec![Shadow::default(); count],
            readings: vec![Reading::default(); if checks { count * warps } else { 0 }],
            warps,
            clocks: (0..warps).map(own).collect(),
            checks,
        }
    }

    /// Orders what the warps of a mask did before what they do next.
    pub(crate) fn join(&mut self, warps: u32) {
        let members: Vec<usize> = (0..self.warps).filter(|w| warps >> w & 1 != 0).collect();
        let joined: Vec<u32> =
            (0..self.warps).map(|v| members.iter().map(|&w| self.clocks[w][v]).max().unwrap_or(0)).collect();
        for &w in &members {
            self.clocks[w].clone_from(&joined);
            self.clocks[w][w] += 1;
        }
    }

    /// Orders the lanes of one warp.
    pub(crate) fn join_warp(&mut self, warp: usize) {
        self.clocks[warp][warp] += 1;
    }

    /// Finds the word of an aligned range.
    pub(crate) fn check(&self, address: u64, bytes: u32, lane: usize) -> Result<usize, Wrong> {
        if address.saturating_add(u64::from(bytes)) > self.bytes {
            let message = format!("{bytes} bytes at {address:#x} of {} bytes of shared memory", self.bytes);
            return Err(Wrong::new(FaultKind::OutOfBounds, lane, message));
        }
        Ok((address / 4) as usize)
    }

    /// Up to four bytes at an aligned address.
    pub(crate) fn load(&mut self, address: u64, bytes: u32, by: Thread, weak: bool) -> Result<u32, Wrong> {
        let index = self.check(address, bytes, by.lane)?;
        let mask = byte_mask(address, bytes);
        if self.checks {
            let shadow = self.shadow[index];
            if shadow.pending & mask != 0 {
                return Err(pending(address, by.lane));
            }
            if shadow.written & mask != mask {
                let message = format!("shared memory at {address:#x} was never written");
                return Err(Wrong::new(FaultKind::Uninitialized, by.lane, message));
            }
            if weak {
                self.check_write(index, mask, address, by, "reads")?;
                let clock = self.clocks[by.warp][by.warp];
                let reading = &mut self.readings[index * self.warps + by.warp];
                let same = reading.clock == clock && reading.lane == by.lane as u8;
                *reading = Reading { clock, lane: by.lane as u8, bytes: mask | if same { reading.bytes } else { 0 } };
                self.shadow[index].readers |= 1 << by.warp;
            }
        }
        let word = self.words[index] >> (8 * (address & 3));
        Ok(if bytes < 4 { word & ((1 << (8 * bytes)) - 1) } else { word })
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
        let mask = byte_mask(address, bytes);
        if self.checks {
            if self.shadow[index].pending & mask != 0 {
                return Err(pending(address, by.lane));
            }
            if weak {
                self.note_write(index, mask, address, by)?;
            }
            self.shadow[index].written |= mask;
        }
        let shift = 8 * (address & 3) as u32;
        let bits = if bytes < 4 { ((1u32 << (8 * bytes)) - 1) << shift } else { u32::MAX };
        let old = self.words[index];
        self.words[index] = old & !bits | value << shift & bits;
        Ok(self.words[index] != old)
    }

    fn note_write(&mut self, index: usize, mask: u8, address: u64, by: Thread) -> Result<(), Wrong> {
        self.check_write(index, mask, address, by, "writes")?;
        let clock = self.clocks[by.warp][by.warp];
        let mut readers = self.shadow[index].readers;
        while readers != 0 {
            let warp = readers.trailing_zeros() as usize;
            readers &= readers - 1;
            let reading = self.readings[index * self.warps + warp];
            let races = if warp == by.warp {
                reading.lane != by.lane as u8 && reading.clock == clock
            } else {
                self.clocks[by.warp][warp] < reading.clock
            };
            if races && reading.bytes & mask != 0 {
                let message = format!(
                    "writes shared memory at {address:#x}, which warp {warp} lane {} reads, with no barrier between",
                    reading.lane
                );
                return Err(Wrong::new(FaultKind::SharedRace, by.lane, message));
            }
        }
        let shadow = &mut self.shadow[index];
        let same = shadow.warp as usize == by.warp && shadow.lane as usize == by.lane && shadow.clock == clock;
        shadow.bytes = mask | if same { shadow.bytes } else { 0 };
        (shadow.lane, shadow.warp, shadow.clock, shadow.readers) = (by.lane as u8, by.warp as u16, clock, 0);
        Ok(())
    }

    fn check_write(&self, index: usize, mask: u8, address: u64, by: Thread, does: &str) -> Result<(), Wrong> {
        let shadow = &self.shadow[index];
        if shadow.bytes & mask == 0 {
            return Ok(());
        }
        let warp = shadow.warp as usize;
        let races = if warp == by.warp {
            shadow.lane as usize != by.lane && shadow.clock == self.clocks[warp][warp]
        } else {
            self.clocks[by.warp][warp] < shadow.clock
        };
        if !races {
            return Ok(());
        }
        let message = format!(
            "{does} shared memory at {address:#x}, which warp {warp} lane {} wrote, with no barrier between",
            shadow.lane
        );
        Err(Wrong::new(FaultKind::SharedRace, by.lane, message))
    }

    /// Marks bytes as the target of an asynchronous copy.
    pub(crate) fn begin_copy(&mut self, address: u64, bytes: u32, by: Thread) -> Result<(), Wrong> {
        for at in (address..address + u64::from(bytes)).step_by(4) {
            let index = self.check(at, 4, by.lane)?;
            if self.checks {
                if self.shadow[index].pending != 0 {
                    return Err(pending(at, by.lane));
                }
                self.note_write(index, 15, at, by)?;
                self.shadow[index].pending = 15;
            }
        }
        Ok(())
    }

    /// Writes what an asynchronous copy brought, as of now.
    pub(crate) fn end_copy(&mut self, address: u64, words: &[u32], by: Thread) -> Result<(), Wrong> {
        for (offset, &word) in words.iter().enumerate() {
            let at = address + 4 * offset as u64;
            let index = self.check(at, 4, by.lane)?;
            self.shadow[index].pending = 0;
            self.store(at, 4, word, by, true)?;
        }
        Ok(())
    }
}

fn byte_mask(address: u64, bytes: u32) -> u8 {
    if bytes >= 4 { 15 } else { ((1u8 << bytes) - 1) << (address & 3) }
}

fn pending(address: u64, lane: usize) -> Wrong {
    let message =
        format!("shared memory at {address:#x} is the target of an asynchronous copy that was not waited for");
    Wrong::new(FaultKind::AsyncCopy, lane, message)
}
