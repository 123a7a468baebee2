//! A warp: registers, and a position for each lane. Lanes at the same position run together; the lowest position runs
//! first, which is what brings lanes that parted together again.

use std::collections::VecDeque;

use super::op::{Kernel, Special};
use super::regs::{LANES, Regs};

/// What keeps a warp from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// Waits at a barrier of this number.
    Barrier(u32),
    Done,
}

/// One asynchronous copy that was issued: its target and what it brings.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) lane: u8,
    /// Groups that the lane had closed before.
    pub(crate) group: u64,
    pub(crate) address: u64,
    pub(crate) words: [u32; 4],
    pub(crate) count: u8,
}

/// A warp of a CTA.
pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) regs: Regs,
    pub(crate) pcs: [u32; LANES],
    /// Lanes that have not exited.
    pub(crate) live: u32,
    /// Lanes that wait for others of their warp at a collective instruction.
    pub(crate) parked: u32,
    /// Lanes that wait at a barrier while others of their warp do not.
    pub(crate) held: u32,
    /// The group that runs: its lanes and position.
    pub(crate) mask: u32,
    pub(crate) pc: u32,
    /// The lowest position of the lanes outside the group that are free to run.
    pub(crate) other: u32,
    /// Whether the group runs although another one is lower, so that no lane starves another.
    pub(crate) out_of_order: bool,
    pub(crate) state: State,
    /// Local memory by lane, and which bytes were written.
    pub(crate) local: Vec<u8>,
    pub(crate) local_written: Vec<bool>,
    /// Copies that were not waited for, and how many groups each lane has closed.
    pub(crate) copies: VecDeque<Copy>,
    pub(crate) committed: [u64; LANES],
    /// Instructions that the warp has run.
    pub(crate) instructions: u64,
}

/// Where a warp lies.
pub(crate) struct Place {
    pub(crate) index: usize,
    pub(crate) threads: u32,
    pub(crate) block: [u32; 3],
    pub(crate) grid: [u32; 3],
    pub(crate) cta: [u32; 3],
    pub(crate) sm: u32,
    pub(crate) sms: u32,
    pub(crate) launch: u32,
    pub(crate) dynamic_shared: u32,
    pub(crate) total_shared: u32,
}

impl Warp {
    pub(crate) fn new(kernel: &Kernel, place: &Place) -> Warp {
        let mut regs = Regs {
            r32: vec![[0; LANES]; kernel.regs32 as usize],
            r64: vec![[0; LANES]; kernel.regs64 as usize],
            p: vec![0; kernel.preds as usize],
        };
        for &(reg, value) in &kernel.literals32 {
            regs.r32[reg as usize] = [value; LANES];
        }
        for &(reg, value) in &kernel.literals64 {
            regs.r64[reg as usize] = [value; LANES];
        }
        for &(reg, special) in &kernel.specials {
            regs.r32[reg as usize] = std::array::from_fn(|lane| Self::special(special, lane as u32, place));
        }
        let first = place.index as u32 * 32;
        let count = place.threads.saturating_sub(first).min(32);
        let live = if count == 32 { u32::MAX } else { (1 << count) - 1 };
        Warp {
            index: place.index,
            regs,
            pcs: [0; LANES],
            live,
            parked: 0,
            held: 0,
            mask: live,
            pc: 0,
            other: u32::MAX,
            out_of_order: false,
            state: State::Ready,
            local: vec![0; kernel.local_bytes as usize * LANES],
            local_written: vec![false; kernel.local_bytes as usize * LANES],
            copies: VecDeque::new(),
            committed: [0; LANES],
            instructions: 0,
        }
    }

    fn special(special: Special, lane: u32, place: &Place) -> u32 {
        let thread = place.index as u32 * 32 + lane;
        let [x, y, _] = place.block;
        let tid = [thread % x, thread / x % y, thread / (x * y)];
        match special {
            Special::Tid(axis) => tid[axis as usize],
            Special::Ntid(axis) => place.block[axis as usize],
            Special::Ctaid(axis) => place.cta[axis as usize],
            Special::Nctaid(axis) => place.grid[axis as usize],
            Special::LaneId => lane,
            Special::WarpId => place.index as u32,
            Special::NWarpId => place.threads.div_ceil(32),
            Special::WarpSize => 32,
            Special::SmId => place.sm,
            Special::NSmId => place.sms,
            Special::GridId => place.launch,
            Special::MaskEq => 1 << lane,
            Special::MaskLe => u32::MAX >> (31 - lane),
            Special::MaskLt => (1 << lane) - 1,
            Special::MaskGe => u32::MAX << lane,
            Special::MaskGt => !(u32::MAX >> (31 - lane)),
            Special::DynamicShared => place.dynamic_shared,
            Special::TotalShared => place.total_shared,
            Special::Zero => 0,
        }
    }

    /// Lanes of a mask.
    pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
        let mut left = mask;
        std::iter::from_fn(move || {
            let lane = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            (lane < LANES).then_some(lane)
        })
    }

    /// Lanes that may run.
    fn free(&self) -> u32 {
        self.live & !self.parked & !self.held
    }

    /// Lanes that run, live, are set aside and wait at barriers.
    pub(crate) fn sets(&self) -> [u32; 4] {
        [self.mask, self.live, self.parked, self.held]
    }

    /// Puts the running group back to the others.
    pub(crate) fn set_down(&mut self) {
        for lane in Self::lanes(self.mask) {
            self.pcs[lane] = self.pc;
        }
        self.mask = 0;
    }

    /// Lanes of a set that are at a position.
    pub(crate) fn at(&self, set: u32, pc: u32) -> u32 {
        Self::lanes(set).filter(|&lane| self.pcs[lane] == pc).fold(0, |mask, lane| mask | 1 << lane)
    }

    /// Takes up the free lanes at the lowest position; whether there were any.
    pub(crate) fn take_up(&mut self) -> bool {
        let free = self.free();
        let Some(pc) = Self::lanes(free).map(|lane| self.pcs[lane]).min() else { return false };
        self.run_at(free, pc);
        self.out_of_order = false;
        true
    }

    /// Makes the lanes of a set at a position the running group.
    pub(crate) fn run_at(&mut self, set: u32, pc: u32) {
        self.mask = self.at(set, pc);
        self.pc = pc;
        let rest = self.free() & !self.mask;
        self.other = Self::lanes(rest).map(|lane| self.pcs[lane]).min().unwrap_or(u32::MAX);
    }

    /// Lets another group run for a while, so that lanes that wait for each other do not wait forever.
    pub(crate) fn rotate(&mut self) {
        if self.mask == 0 || self.free() & !self.mask == 0 {
            return;
        }
        let now = self.pc;
        self.set_down();
        let free = self.free();
        let next = Self::lanes(free).map(|lane| self.pcs[lane]).filter(|&pc| pc > now).min();
        match next {
            Some(pc) => {
                self.run_at(free, pc);
                self.out_of_order = true;
            }
            None => {
                self.take_up();
            }
        }
    }
}
