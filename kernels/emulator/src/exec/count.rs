//! Counts of memory accesses: bytes, sectors, bank conflicts.

use super::cta::Cta;
use super::memory::{Place, place};
use super::regs::LANES;
use super::warp::Warp;
use crate::ptx::tree::Space;

impl Cta<'_> {
    /// Counts bytes, sectors and bank conflicts of an access.
    pub(crate) fn count_access(&mut self, space: Space, addresses: &[u64; LANES], bytes: u32, mask: u32, writes: bool) {
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
    let packed = |pair: &[u64]| pair[1].wrapping_sub(pair[0]) == u64::from(bytes);
    let alike = |pair: &[u64]| pair[1] == pair[0];
    if mask == u32::MAX && (addresses.windows(2).all(packed) || addresses.windows(2).all(alike)) {
        return 0;
    }
    let lanes_at_once = (128 / bytes.max(4)) as usize;
    let words_per_lane = u64::from(bytes.div_ceil(4));
    let mut extra = 0;
    for first in (0..LANES).step_by(lanes_at_once) {
        // Distinct words by bank, as chains.
        const NONE: u8 = u8::MAX;
        let (mut words, mut next, mut count) = ([0u64; LANES], [NONE; LANES], 0usize);
        let (mut heads, mut lengths) = ([NONE; 32], [0u64; 32]);
        for lane in (first..first + lanes_at_once).filter(|lane| mask >> lane & 1 != 0) {
            for offset in 0..words_per_lane {
                let word = addresses[lane] / 4 + offset;
                let bank = (word % 32) as usize;
                let mut at = heads[bank];
                while at != NONE && words[usize::from(at)] != word {
                    at = next[usize::from(at)];
                }
                if at == NONE {
                    (words[count], next[count]) = (word, heads[bank]);
                    heads[bank] = count as u8;
                    lengths[bank] += 1;
                    count += 1;
                }
            }
        }
        extra += lengths.iter().max().map_or(0, |&most| most.saturating_sub(1));
    }
    extra
}
