//! Asynchronous copies from global to shared memory, and `ldmatrix`.

use super::cta::Cta;
use super::memory::{Place, misaligned, place, shift};
use super::op::Access;
use super::regs::LANES;
use super::shared::Thread;
use super::warp::{Copy, Warp};
use crate::fault::{FaultKind, Wrong};
use crate::ptx::tree::Space;

impl Cta<'_> {
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
            let source = place(Space::Generic, sources[lane]);
            for address in [targets[lane], sources[lane]] {
                if !address.is_multiple_of(u64::from(bytes)) {
                    return Err(misaligned(address, bytes, lane));
                }
            }
            let Place::Shared(target) = place(to.space, targets[lane]) else {
                return Err(Wrong::new(FaultKind::OutOfBounds, lane, "the target is not shared memory"));
            };
            let by = Thread { warp: warp.index, lane };
            let mut words = [0u32; 4];
            let whole = used as usize / 4;
            for (offset, word) in words.iter_mut().enumerate().take(whole) {
                *word = self.read(warp, shift(source, 4 * offset as u64), 4, false, lane)?;
            }
            for at in 4 * whole as u32..used {
                let byte = self.read(warp, shift(source, u64::from(at)), 1, false, lane)?;
                words[whole] |= byte << (8 * (at % 4));
            }
            self.shared.begin_copy(target, bytes, by)?;
            let group = warp.committed[lane];
            warp.copies.push_back(Copy { lane: lane as u8, group, address: target, words, count: (bytes / 4) as u8 });
        }
        self.counters.shared_written += u64::from(bytes) * u64::from(mask.count_ones());
        Ok(())
    }

    /// Closes the group of each lane.
    pub(crate) fn commit(warp: &mut Warp, mask: u32) {
        for lane in Warp::lanes(mask) {
            warp.committed[lane] += 1;
        }
    }

    /// Completes all but the last groups of each lane.
    pub(crate) fn wait(&mut self, warp: &mut Warp, left: u32, mask: u32) -> Result<(), Wrong> {
        let mut copies = std::mem::take(&mut warp.copies);
        let is_due = |copy: &Copy| {
            let lane = usize::from(copy.lane);
            mask >> lane & 1 != 0 && copy.group + u64::from(left) < warp.committed[lane]
        };
        let mut end = |copy: &Copy| -> Result<(), Wrong> {
            let by = Thread { warp: warp.index, lane: usize::from(copy.lane) };
            self.writes += 1;
            self.shared.end_copy(copy.address, &copy.words[..usize::from(copy.count)], by)
        };
        // Lanes mostly wait together, so that what is due lies in front.
        while let Some(copy) = copies.pop_front_if(|copy| is_due(copy)) {
            end(&copy)?;
        }
        if copies.iter().any(is_due) {
            let (due, rest): (Vec<Copy>, Vec<Copy>) = copies.into_iter().partition(is_due);
            due.iter().try_for_each(end)?;
            copies = rest.into();
        }
        warp.copies = copies;
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
        let mut places = [0; LANES];
        for lane in Warp::lanes(active) {
            if !addresses[lane].is_multiple_of(16) {
                return Err(misaligned(addresses[lane], 16, lane));
            }
            let Place::Shared(address) = place(access.space, addresses[lane]) else {
                return Err(Wrong::new(FaultKind::OutOfBounds, lane, "the rows of a matrix are not in shared memory"));
            };
            places[lane] = address;
        }
        // `words[w][8m + r]`: word `w` of row `r` of matrix `m`.
        let mut words = [[0u32; LANES]; 4];
        self.shared.load_words(&places, &mut words, warp.index, true, active)?;
        for (matrix, &reg) in access.regs.iter().enumerate() {
            let element =
                |row: usize, column: usize| words[column / 2][8 * matrix + row] >> (16 * (column % 2)) & 0xffff;
            let values: [u64; LANES] = std::array::from_fn(|lane| {
                let (group, pair) = (lane / 4, 2 * (lane % 4));
                let bits = if transposed {
                    element(pair, group) | element(pair + 1, group) << 16
                } else {
                    words[lane % 4][8 * matrix + group]
                };
                u64::from(bits)
            });
            Self::put(warp, reg, &values, u32::MAX);
        }
        Ok(())
    }
}
