//! Loads and stores of a warp, with their checks.

use std::sync::{MutexGuard, PoisonError};

use super::cta::Cta;
use super::op::{Access, Base, Reg};
use super::regs::LANES;
use super::shared::Thread;
use super::warp::Warp;
use crate::decode::{LOCAL_BASE, PARAM_BASE, SHARED_BASE};
use crate::fault::{FaultKind, Wrong};
use crate::ptx::tree::Space;

/// A place in one of the spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Global(u64),
    Shared(u64),
    Local(u64),
    Param(u64),
}

/// The space that an address lies in.
pub(crate) fn place(space: Space, address: u64) -> Place {
    match space {
        Space::Global | Space::Const => Place::Global(address),
        Space::Shared => Place::Shared(address),
        Space::Local => Place::Local(address),
        Space::Param if address < SHARED_BASE => Place::Param(address),
        Space::Param | Space::Generic => match address >> 40 {
            1 => Place::Shared(address - SHARED_BASE),
            2 => Place::Local(address - LOCAL_BASE),
            3 => Place::Param(address - PARAM_BASE),
            _ => Place::Global(address),
        },
    }
}

pub(crate) fn misaligned(address: u64, bytes: u32, lane: usize) -> Wrong {
    let message = format!("an access of {bytes} bytes at {address:#x}, which is no multiple of {bytes}");
    Wrong::new(FaultKind::Misaligned, lane, message)
}

/// The most words that a lane loads or stores at once.
const MOST_WORDS: usize = 8;

fn check_alignment(addresses: &[u64; LANES], bytes: u32, mask: u32) -> Result<(), Wrong> {
    // The bits below the size, of any lane that takes part.
    let mut low = 0;
    for (lane, address) in addresses.iter().enumerate() {
        low |= if mask >> lane & 1 != 0 { *address } else { 0 };
    }
    if low & u64::from(bytes - 1) == 0 {
        return Ok(());
    }
    let found = Warp::lanes(mask).find(|&lane| !addresses[lane].is_multiple_of(u64::from(bytes)));
    found.map_or(Ok(()), |lane| Err(misaligned(addresses[lane], bytes, lane)))
}

impl<'a> Cta<'a> {
    /// Addresses of all lanes.
    pub(crate) fn addresses(warp: &Warp, access: &Access) -> [u64; LANES] {
        let offset = access.offset as u64;
        match access.base {
            Base::Absolute => [offset; LANES],
            Base::R64(reg) => warp.regs.r64[reg as usize].map(|base| base.wrapping_add(offset)),
            // Addresses of 32 bits are those of shared memory, and wrap there.
            Base::R32(reg) => warp.regs.r32[reg as usize].map(|base| u64::from(base.wrapping_add(offset as u32))),
        }
    }

    /// The allocation that holds a range.
    pub(crate) fn region(&mut self, address: u64, bytes: u32, lane: usize) -> Result<usize, Wrong> {
        if self.grid.regions.get(self.last_region).is_some_and(|region| region.holds(address, u64::from(bytes))) {
            return Ok(self.last_region);
        }
        let after = self.grid.regions.partition_point(|region| region.base <= address);
        let found = after.checked_sub(1).filter(|&index| self.grid.regions[index].holds(address, u64::from(bytes)));
        if let Some(index) = found {
            self.last_region = index;
            return Ok(index);
        }
        let near = after.checked_sub(1).map(|index| {
            let region = &self.grid.regions[index];
            let past = address - region.base;
            format!("; the allocation before it begins {past} bytes earlier and is {} bytes long", region.bytes)
        });
        let freed = self.grid.memory.freed(address);
        let freed = freed.map(|bytes| format!("; the allocation of {bytes} bytes that was there has been freed"));
        let hint = freed.or(near).unwrap_or_default();
        let message = format!("{bytes} bytes at {address:#x} are in no allocation of global memory{hint}");
        Err(Wrong::new(FaultKind::OutOfBounds, lane, message))
    }

    /// Keeps others out while both halves of a strong access of 64 bits to global memory are made.
    fn whole(&self, access: &Access, place: Place) -> Option<MutexGuard<'a, ()>> {
        let is_wide = access.bytes == 8 && access.order.strong && matches!(place, Place::Global(_));
        is_wide.then(|| self.grid.wide_atomics.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The place of the upper half of a strong access of 64 bits, between whose halves nobody else may come.
    pub(crate) fn upper_half(&self, place: Place, strong: bool) -> Place {
        debug_assert!(
            !strong || !matches!(place, Place::Global(_)) || self.grid.wide_atomics.try_lock().is_err(),
            "the halves of a strong access are made under the lock"
        );
        shift(place, 4)
    }

    /// Up to four bytes of one lane.
    pub(crate) fn read(
        &mut self,
        warp: &Warp,
        place: Place,
        bytes: u32,
        strong: bool,
        lane: usize,
    ) -> Result<u32, Wrong> {
        match place {
            Place::Global(address) => {
                let index = self.region(address, bytes, lane)?;
                let region = &self.grid.regions[index];
                if self.grid.checks {
                    let free = bytes == 4 && !strong && region.reads_freely(region.word(address), self.stamp().bits());
                    if !free {
                        self.check_read(region, address, bytes, strong, lane)?;
                    }
                }
                Ok(region.load(address, bytes))
            }
            Place::Shared(address) => self.shared.load(address, bytes, Thread { warp: warp.index, lane }, !strong),
            Place::Local(address) => {
                let start = self.local_offset(address, bytes, lane)?;
                let range = start..start + bytes as usize;
                if self.grid.checks && !warp.local_written[range.clone()].iter().all(|&written| written) {
                    let message = format!("local memory at {address:#x} was never written");
                    return Err(Wrong::new(FaultKind::Uninitialized, lane, message));
                }
                let mut word = [0; 4];
                word[..bytes as usize].copy_from_slice(&warp.local[range]);
                Ok(u32::from_le_bytes(word))
            }
            Place::Param(address) => {
                let range = address as usize..(address as usize).saturating_add(bytes as usize);
                let Some(found) = self.grid.params.get(range) else {
                    let message = format!("{bytes} bytes at {address} of {} of parameters", self.grid.params.len());
                    return Err(Wrong::new(FaultKind::OutOfBounds, lane, message));
                };
                let mut word = [0; 4];
                word[..bytes as usize].copy_from_slice(found);
                Ok(u32::from_le_bytes(word))
            }
        }
    }

    fn local_offset(&self, address: u64, bytes: u32, lane: usize) -> Result<usize, Wrong> {
        let size = self.grid.kernel.local_bytes;
        if address.saturating_add(u64::from(bytes)) > size {
            let message = format!("{bytes} bytes at {address:#x} of {size} bytes of local memory");
            return Err(Wrong::new(FaultKind::OutOfBounds, lane, message));
        }
        Ok(lane * size as usize + address as usize)
    }

    pub(crate) fn write(
        &mut self,
        warp: &mut Warp,
        place: Place,
        bytes: u32,
        value: u32,
        strong: bool,
        lane: usize,
    ) -> Result<(), Wrong> {
        let changed = match place {
            Place::Global(address) => {
                let index = self.region(address, bytes, lane)?;
                let region = &self.grid.regions[index];
                self.check_write(region, address, bytes, strong, lane)?;
                region.store(address, bytes, value)
            }
            Place::Shared(address) => {
                let by = Thread { warp: warp.index, lane };
                self.shared.store(address, bytes, value, by, !strong)?
            }
            Place::Local(address) => {
                let start = self.local_offset(address, bytes, lane)?;
                let range = start..start + bytes as usize;
                let changed = warp.local[range.clone()] != value.to_le_bytes()[..bytes as usize];
                warp.local[range.clone()].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
                warp.local_written[range].fill(true);
                changed
            }
            Place::Param(_) => {
                return Err(Wrong::new(FaultKind::OutOfBounds, lane, "a kernel writes its parameters"));
            }
        };
        self.writes += u64::from(changed);
        Ok(())
    }

    pub(crate) fn load(&mut self, warp: &mut Warp, access: &Access, mask: u32) -> Result<(), Wrong> {
        let addresses = Self::addresses(warp, access);
        let total = access.bytes * access.regs.len() as u32;
        self.count_access(access.space, &addresses, total, mask, false);
        if access.is_whole() {
            return self.load_words(warp, access, &addresses, mask);
        }
        let mut out = [[0u64; LANES]; 8];
        for lane in Warp::lanes(mask) {
            let address = addresses[lane];
            if !address.is_multiple_of(u64::from(total)) {
                return Err(misaligned(address, total, lane));
            }
            let strong = access.order.is_strong_at(place(access.space, address));
            if access.order.strong {
                self.watch(place(access.space, address));
            }
            for (slot, out) in out.iter_mut().enumerate().take(access.regs.len()) {
                let at = address + u64::from(access.bytes) * slot as u64;
                let place = place(access.space, at);
                let guard = self.whole(access, place);
                let low = self.read(warp, place, access.bytes.min(4), strong, lane)?;
                out[lane] = if access.bytes == 8 {
                    let high = self.read(warp, self.upper_half(place, access.order.strong), 4, strong, lane)?;
                    u64::from(low) | u64::from(high) << 32
                } else if access.signed {
                    match access.bytes {
                        1 => i64::from(low as i8) as u64,
                        2 => i64::from(low as i16) as u64,
                        _ => i64::from(low as i32) as u64,
                    }
                } else {
                    u64::from(low)
                };
                drop(guard);
            }
            if access.order.strong {
                self.observe(warp.index, place(access.space, address), access.order);
            }
        }
        for (reg, values) in access.regs.iter().zip(&out) {
            Self::put(warp, *reg, values, mask);
        }
        Ok(())
    }

    /// Weak loads of whole words from global or shared memory.
    fn load_words(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Result<(), Wrong> {
        let count = (access.bytes / 4) as usize * access.regs.len();
        let mut out = [[0u32; LANES]; MOST_WORDS];
        let out = &mut out[..count];
        check_alignment(addresses, 4 * count as u32, mask)?;
        if access.space == Space::Shared {
            self.shared.load_words(addresses, out, warp.index, true, mask)?;
        } else {
            let own = self.stamp().bits();
            for lane in Warp::lanes(mask) {
                let index = self.region(addresses[lane], 4 * count as u32, lane)?;
                let region = &self.grid.regions[index];
                let first = region.word(addresses[lane]);
                for (offset, out) in out.iter_mut().enumerate() {
                    if self.grid.checks && !region.reads_freely(first + offset, own) {
                        self.check_read(region, addresses[lane] + 4 * offset as u64, 4, false, lane)?;
                    }
                    out[lane] = region.load_word(first + offset);
                }
            }
        }
        for (slot, &reg) in access.regs.iter().enumerate() {
            match (reg, access.bytes) {
                (Reg::R32(reg, _), 4) => warp.regs.put32(reg, &out[slot], mask),
                (Reg::R64(reg), 4) if access.signed => {
                    warp.regs.put64(reg, &out[slot].map(|word| i64::from(word as i32) as u64), mask);
                }
                (Reg::R64(reg), 4) => warp.regs.put64(reg, &out[slot].map(u64::from), mask),
                (reg, _) => {
                    let [low, high] = [&out[2 * slot], &out[2 * slot + 1]];
                    let values = std::array::from_fn(|lane| u64::from(low[lane]) | u64::from(high[lane]) << 32);
                    Self::put(warp, reg, &values, mask);
                }
            }
        }
        Ok(())
    }

    /// Weak stores of whole words to global or shared memory.
    fn store_words(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Result<(), Wrong> {
        let count = (access.bytes / 4) as usize * access.regs.len();
        let mut values = [[0u32; LANES]; MOST_WORDS];
        for (slot, &reg) in access.regs.iter().enumerate() {
            match reg {
                Reg::R32(reg, _) => values[slot] = warp.regs.r32[reg as usize],
                Reg::R64(reg) => {
                    let wide = &warp.regs.r64[reg as usize];
                    let at = slot * (access.bytes / 4) as usize;
                    values[at] = wide.map(|value| value as u32);
                    if access.bytes == 8 {
                        values[at + 1] = wide.map(|value| (value >> 32) as u32);
                    }
                }
                Reg::Pred(_) | Reg::None => {}
            }
        }
        let values = &values[..count];
        check_alignment(addresses, 4 * count as u32, mask)?;
        if access.space == Space::Shared {
            self.writes += self.shared.store_words(addresses, values, warp.index, true, mask)?;
            return Ok(());
        }
        let own = self.stamp().bits();
        for lane in Warp::lanes(mask) {
            let index = self.region(addresses[lane], 4 * count as u32, lane)?;
            let region = &self.grid.regions[index];
            let first = region.word(addresses[lane]);
            for (offset, values) in values.iter().enumerate() {
                if self.grid.checks && !region.writes_freely(first + offset, own) {
                    let at = addresses[lane] + 4 * offset as u64;
                    self.check_write(region, at, 4, false, lane)?;
                    self.writes += u64::from(region.store(at, 4, values[lane]));
                    continue;
                }
                self.writes += u64::from(region.store_word(first + offset, values[lane], own));
            }
        }
        Ok(())
    }

    /// Writes values to a register of any width.
    pub(crate) fn put(warp: &mut Warp, reg: Reg, values: &[u64; LANES], mask: u32) {
        match reg {
            Reg::R32(reg, bytes) => {
                let cut = if bytes >= 4 { u32::MAX } else { (1 << (8 * bytes)) - 1 };
                warp.regs.put32(reg, &values.map(|value| value as u32 & cut), mask);
            }
            Reg::R64(reg) => warp.regs.put64(reg, values, mask),
            Reg::Pred(reg) => {
                let bits = (0..LANES).fold(0, |bits, lane| bits | u32::from(values[lane] != 0) << lane);
                warp.regs.put_pred(reg, bits, mask);
            }
            Reg::None => {}
        }
    }

    pub(crate) fn get(warp: &Warp, reg: Reg, lane: usize) -> u64 {
        match reg {
            Reg::R32(reg, _) => u64::from(warp.regs.r32[reg as usize][lane]),
            Reg::R64(reg) => warp.regs.r64[reg as usize][lane],
            Reg::Pred(_) | Reg::None => 0,
        }
    }

    pub(crate) fn store(&mut self, warp: &mut Warp, access: &Access, mask: u32) -> Result<(), Wrong> {
        let addresses = Self::addresses(warp, access);
        let total = access.bytes * access.regs.len() as u32;
        self.count_access(access.space, &addresses, total, mask, true);
        if access.is_whole() {
            return self.store_words(warp, access, &addresses, mask);
        }
        for lane in Warp::lanes(mask) {
            let address = addresses[lane];
            if !address.is_multiple_of(u64::from(total)) {
                return Err(misaligned(address, total, lane));
            }
            if access.order.strong {
                self.publish(place(access.space, address), access.order);
            }
            for (slot, &reg) in access.regs.iter().enumerate() {
                let place = place(access.space, address + u64::from(access.bytes) * slot as u64);
                let value = Self::get(warp, reg, lane);
                let guard = self.whole(access, place);
                let strong = access.order.is_strong_at(place);
                self.write(warp, place, access.bytes.min(4), value as u32, strong, lane)?;
                if access.bytes == 8 {
                    let upper = self.upper_half(place, access.order.strong);
                    self.write(warp, upper, 4, (value >> 32) as u32, strong, lane)?;
                }
                drop(guard);
            }
            if access.order.strong {
                self.publish_shared(warp.index, place(access.space, address), access.order);
            }
        }
        Ok(())
    }
}

pub(crate) fn shift(place: Place, by: u64) -> Place {
    match place {
        Place::Global(at) => Place::Global(at.wrapping_add(by)),
        Place::Shared(at) => Place::Shared(at.wrapping_add(by)),
        Place::Local(at) => Place::Local(at.wrapping_add(by)),
        Place::Param(at) => Place::Param(at.wrapping_add(by)),
    }
}
