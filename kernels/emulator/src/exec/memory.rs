//! Loads, stores, atomics and copies of a warp, with their checks.

use super::cta::Cta;
use super::op::{Access, AtomOp, Base, Order, Reg};
use super::regs::LANES;
use super::shared::Thread;
use super::warp::{Copy, Warp};
use crate::decode::floating::add_bits;
use crate::decode::{LOCAL_BASE, PARAM_BASE, SHARED_BASE};
use crate::fault::{FaultKind, Wrong};
use crate::memory::{Region, Stamp};
use crate::ptx::tree::{Space, Ty};

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

fn misaligned(address: u64, bytes: u32, lane: usize) -> Wrong {
    let message = format!("an access of {bytes} bytes at {address:#x}, which is no multiple of {bytes}");
    Wrong::new(FaultKind::Misaligned, lane, message)
}

impl Cta<'_> {
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
    fn region(&mut self, address: u64, bytes: u32, lane: usize) -> Result<usize, Wrong> {
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
        let message =
            format!("{bytes} bytes at {address:#x} are in no allocation of global memory{}", near.unwrap_or_default());
        Err(Wrong::new(FaultKind::OutOfBounds, lane, message))
    }

    fn stamp(&self) -> Stamp {
        Stamp { launch: self.grid.launch, cta: self.linear, epoch: self.epoch }
    }

    fn check_race(&self, region: &Region, address: u64, bytes: u32, lane: usize, does: &str) -> Result<(), Wrong> {
        let Some(writer) = region.other_writer(address, bytes, self.stamp()) else { return Ok(()) };
        if self.known.get(&writer.cta).is_some_and(|&epoch| epoch >= writer.epoch) {
            return Ok(());
        }
        let message = format!(
            "{does} global memory at {address:#x}, which CTA {} wrote in this launch, and nothing orders the two",
            writer.cta
        );
        Err(Wrong::new(FaultKind::GlobalRace, lane, message))
    }

    /// Up to four bytes of one lane.
    fn read(&mut self, warp: &Warp, place: Place, bytes: u32, strong: bool, lane: usize) -> Result<u32, Wrong> {
        match place {
            Place::Global(address) => {
                let index = self.region(address, bytes, lane)?;
                let region = &self.grid.regions[index];
                if self.grid.checks {
                    if !region.is_written(address, bytes) {
                        let message = format!("global memory at {address:#x} was never written");
                        return Err(Wrong::new(FaultKind::Uninitialized, lane, message));
                    }
                    if !strong {
                        self.check_race(region, address, bytes, lane, "reads")?;
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

    fn write(
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
                if self.grid.checks && !strong {
                    self.check_race(region, address, bytes, lane, "writes")?;
                }
                let changed = region.store(address, bytes, value);
                region.mark(address, bytes, (!strong).then(|| self.stamp()));
                changed
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
        let mut out = [[0u64; LANES]; 8];
        for lane in Warp::lanes(mask) {
            let address = addresses[lane];
            if !address.is_multiple_of(u64::from(total)) {
                return Err(misaligned(address, total, lane));
            }
            if access.order.strong {
                self.watch(place(access.space, address), lane);
            }
            for (slot, out) in out.iter_mut().enumerate().take(access.regs.len()) {
                let at = address + u64::from(access.bytes) * slot as u64;
                let place = place(access.space, at);
                let low = self.read(warp, place, access.bytes.min(4), access.order.strong, lane)?;
                out[lane] = if access.bytes == 8 {
                    let high = self.read(warp, shift(place, 4), 4, access.order.strong, lane)?;
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
            }
            if access.order.strong {
                self.observe(place(access.space, address), access.order);
            }
        }
        for (reg, values) in access.regs.iter().zip(&out) {
            Self::put(warp, *reg, values, mask);
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

    fn get(warp: &Warp, reg: Reg, lane: usize) -> u64 {
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
                self.write(warp, place, access.bytes.min(4), value as u32, access.order.strong, lane)?;
                if access.bytes == 8 {
                    self.write(warp, shift(place, 4), 4, (value >> 32) as u32, access.order.strong, lane)?;
                }
            }
        }
        Ok(())
    }

    /// Read-modify-write of each lane in turn, atomic against other CTAs.
    pub(crate) fn atomic(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        op: AtomOp,
        ty: Ty,
        [d, b, c]: [Reg; 3],
        mask: u32,
    ) -> Result<(), Wrong> {
        let addresses = Self::addresses(warp, access);
        self.count_access(access.space, &addresses, access.bytes, mask, true);
        let mut out = [0u64; LANES];
        for lane in Warp::lanes(mask) {
            let address = addresses[lane];
            if !address.is_multiple_of(u64::from(access.bytes)) {
                return Err(misaligned(address, access.bytes, lane));
            }
            let place = place(access.space, address);
            let (b, c) = (Self::get(warp, b, lane), Self::get(warp, c, lane));
            let flushes = matches!(place, Place::Global(_));
            let f = |old: u64| combine(op, ty, old, b, c, flushes);
            self.publish(place, access.order);
            self.watch(place, lane);
            let word_place = match place {
                Place::Global(at) => Place::Global(at & !3),
                Place::Shared(at) => Place::Shared(at & !3),
                other => other,
            };
            out[lane] = match (place, access.bytes) {
                (Place::Global(at), 1..=4) => {
                    self.read(warp, place, access.bytes, true, lane)?;
                    let index = self.region(at, access.bytes, lane)?;
                    let region = &self.grid.regions[index];
                    let (shift, width) = (8 * (at & 3) as u32, 8 * access.bytes);
                    let field = if width == 32 { u32::MAX } else { ((1 << width) - 1) << shift };
                    let (old, changed) = region.update(at & !3, |old| {
                        let new = (f(u64::from((old & field) >> shift)) as u32) << shift;
                        old & !field | new & field
                    });
                    region.mark(at, access.bytes, None);
                    self.writes += u64::from(changed);
                    u64::from((old & field) >> shift)
                }
                (_, 8) => {
                    let guard = self.grid.wide_atomics.lock();
                    let low = self.read(warp, place, 4, true, lane)?;
                    let high = self.read(warp, shift(place, 4), 4, true, lane)?;
                    let old = u64::from(low) | u64::from(high) << 32;
                    let new = f(old);
                    self.write(warp, place, 4, new as u32, true, lane)?;
                    self.write(warp, shift(place, 4), 4, (new >> 32) as u32, true, lane)?;
                    drop(guard);
                    old
                }
                _ => {
                    let old = u64::from(self.read(warp, place, access.bytes, true, lane)?);
                    self.write(warp, place, access.bytes, f(old) as u32, true, lane)?;
                    old
                }
            };
            self.observe(word_place, access.order);
        }
        Self::put(warp, d, &out, mask);
        Ok(())
    }

    /// Issues copies of 4, 8 or 16 bytes from global to shared memory.
    pub(crate) fn copy(
        &mut self,
        warp: &mut Warp,
        to: &Access,
        from: &Access,
        bytes: u32,
        source_bytes: Option<u32>,
        mask: u32,
    ) -> Result<(), Wrong> {
        let (targets, sources) = (Self::addresses(warp, to), Self::addresses(warp, from));
        self.count_access(Space::Global, &sources, bytes, mask, false);
        for lane in Warp::lanes(mask) {
            let used = source_bytes.map_or(bytes, |reg| warp.regs.r32[reg as usize][lane].min(bytes));
            let place = place(Space::Generic, sources[lane]);
            for address in [targets[lane], sources[lane]] {
                if !address.is_multiple_of(u64::from(bytes)) {
                    return Err(misaligned(address, bytes, lane));
                }
            }
            let mut words = [0u32; 4];
            for at in 0..used {
                let byte = self.read(warp, shift(place, u64::from(at)), 1, false, lane)?;
                words[(at / 4) as usize] |= byte << (8 * (at % 4));
            }
            let Place::Shared(target) = super::memory::place(to.space, targets[lane]) else {
                return Err(Wrong::new(FaultKind::OutOfBounds, lane, "the target is not shared memory"));
            };
            self.shared.begin_copy(target, bytes, Thread { warp: warp.index, lane })?;
            warp.copies.push(Copy { lane: lane as u8, address: target, words, count: (bytes / 4) as u8 });
        }
        self.counters.shared_written += u64::from(bytes) * u64::from(mask.count_ones());
        Ok(())
    }

    /// Closes the group of each lane.
    pub(crate) fn commit(warp: &mut Warp, mask: u32) {
        for lane in Warp::lanes(mask) {
            let own = warp.copies.extract_if(.., |copy| usize::from(copy.lane) == lane).collect();
            warp.groups[lane].push_back(own);
        }
    }

    /// Completes all but the last groups of each lane.
    pub(crate) fn wait(&mut self, warp: &mut Warp, left: u32, mask: u32) -> Result<(), Wrong> {
        for lane in Warp::lanes(mask) {
            while warp.groups[lane].len() > left as usize {
                for copy in warp.groups[lane].pop_front().into_iter().flatten() {
                    let by = Thread { warp: warp.index, lane };
                    self.shared.end_copy(copy.address, &copy.words[..usize::from(copy.count)], by)?;
                    self.writes += 1;
                }
            }
        }
        Ok(())
    }

    /// `ldmatrix`: rows of 16 bytes from the addresses of lanes 0 to 7, 8 to 15, …; one register per matrix.
    pub(crate) fn ldmatrix(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        count: u32,
        transposed: bool,
    ) -> Result<(), Wrong> {
        let addresses = Self::addresses(warp, access);
        let active = if count == 4 { u32::MAX } else { (1 << (8 * count)) - 1 };
        self.count_access(Space::Shared, &addresses, 16, active, false);
        for matrix in 0..count as usize {
            let mut rows = [[0u32; 4]; 8];
            for (row, words) in rows.iter_mut().enumerate() {
                let lane = 8 * matrix + row;
                if !addresses[lane].is_multiple_of(16) {
                    return Err(misaligned(addresses[lane], 16, lane));
                }
                let place = place(access.space, addresses[lane]);
                for (word, out) in words.iter_mut().enumerate() {
                    *out = self.read(warp, shift(place, 4 * word as u64), 4, false, lane)?;
                }
            }
            let element = |row: usize, column: usize| rows[row][column / 2] >> (16 * (column % 2)) & 0xffff;
            let values: [u64; LANES] = std::array::from_fn(|lane| {
                let (group, pair) = (lane / 4, 2 * (lane % 4));
                let [low, high] =
                    [pair, pair + 1].map(|at| if transposed { element(at, group) } else { element(group, at) });
                u64::from(low | high << 16)
            });
            Self::put(warp, access.regs[matrix], &values, u32::MAX);
        }
        Ok(())
    }

    /// Counts bytes, sectors and bank conflicts of an access.
    fn count_access(&mut self, space: Space, addresses: &[u64; LANES], bytes: u32, mask: u32, writes: bool) {
        let Some(first) = Warp::lanes(mask).next() else { return };
        let total = u64::from(bytes) * u64::from(mask.count_ones());
        match place(space, addresses[first]) {
            Place::Global(_) => {
                let counter = if writes { &mut self.counters.global_written } else { &mut self.counters.global_read };
                *counter += total;
                let (mut sectors, mut count) = ([0u64; LANES], 0);
                for lane in Warp::lanes(mask) {
                    sectors[count] = addresses[lane] / 32;
                    count += 1;
                }
                let sectors = &mut sectors[..count];
                if !sectors.is_sorted() {
                    sectors.sort_unstable();
                }
                let distinct = 1 + sectors.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64;
                self.counters.sectors += distinct;
                self.counters.ideal_sectors += total.div_ceil(32).min(distinct);
            }
            Place::Shared(_) => {
                let counter = if writes { &mut self.counters.shared_written } else { &mut self.counters.shared_read };
                *counter += total;
                self.counters.bank_conflicts += bank_conflicts(addresses, bytes, mask);
            }
            Place::Local(_) => self.counters.local += total,
            Place::Param(_) => {}
        }
    }
}

/// Passes beyond the first: lanes are served 128 bytes' worth at a time, and each bank gives one word a pass.
fn bank_conflicts(addresses: &[u64; LANES], bytes: u32, mask: u32) -> u64 {
    let lanes_at_once = (128 / bytes.max(4)) as usize;
    let words_per_lane = u64::from(bytes.div_ceil(4));
    let mut extra = 0;
    for first in (0..LANES).step_by(lanes_at_once) {
        let (mut words, mut count) = ([0u64; LANES], 0);
        for lane in (first..first + lanes_at_once).filter(|lane| mask >> lane & 1 != 0) {
            for word in 0..words_per_lane {
                words[count] = addresses[lane] / 4 + word;
                count += 1;
            }
        }
        let words = &mut words[..count];
        if words.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1) {
            continue;
        }
        words.sort_unstable();
        let mut banks = [0u64; 32];
        let mut last = None;
        for &word in words.iter() {
            if last != Some(word) {
                banks[(word % 32) as usize] += 1;
            }
            last = Some(word);
        }
        extra += banks.iter().max().map_or(0, |&most| most.saturating_sub(1));
    }
    extra
}

fn shift(place: Place, by: u64) -> Place {
    match place {
        Place::Global(at) => Place::Global(at.wrapping_add(by)),
        Place::Shared(at) => Place::Shared(at.wrapping_add(by)),
        Place::Local(at) => Place::Local(at.wrapping_add(by)),
        Place::Param(at) => Place::Param(at.wrapping_add(by)),
    }
}

/// What an atomic leaves in memory.
pub(crate) fn combine(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64, flushes: bool) -> u64 {
    let signed = |value: u64| if ty.bytes() == 8 { value as i64 } else { i64::from(value as i32) };
    match op {
        AtomOp::Add if ty.is_float() => add_bits(ty, old, b, flushes),
        AtomOp::Add => old.wrapping_add(b),
        AtomOp::Min if ty.is_signed() => signed(old).min(signed(b)) as u64,
        AtomOp::Max if ty.is_signed() => signed(old).max(signed(b)) as u64,
        AtomOp::Min => old.min(b),
        AtomOp::Max => old.max(b),
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}

/// Orders of accesses that only atomics and fences use.
pub(crate) fn is_ordered(order: Order) -> bool {
    order.acquire || order.release
}
