//! A CTA: its warps and shared memory, and what it knows of the writes of other CTAs.

use std::collections::HashMap;

use super::barrier::Barrier;
use super::launch::Grid;
use super::memory::Place;
use super::op::{Inst, Op};
use super::shared::Shared;
use super::warp::{State, Warp};
use crate::counters::Counters;
use crate::fault::{Fault, FaultKind, Wrong};

/// Instructions that a warp runs before another one may.
const SLICE: u64 = 4096;
/// Instructions within which a loop must return to its state to count as spinning.
const SPIN: u64 = 1 << 14;

/// Where a warp goes on after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// At the one behind it.
    Advance,
    /// Where the instruction left it.
    Stay,
    /// Its slice ends here.
    Leave,
}

/// What a round over the warps of a CTA led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Done,
    /// It may go on.
    Ready,
    /// Every warp waits, or repeats its state until memory changes.
    Quiet,
}

/// A CTA that runs.
pub(crate) struct Cta<'a> {
    pub(crate) grid: &'a Grid<'a>,
    pub(crate) index: [u32; 3],
    pub(crate) linear: u32,
    pub(crate) shared: Shared,
    pub(crate) warps: Vec<Option<Box<Warp>>>,
    pub(super) barriers: Vec<Barrier>,
    /// Warps that have lanes left.
    pub(super) alive: u32,
    /// Whether lanes have exited since barriers were looked at for that.
    pub(super) has_exits: bool,
    /// Its own releases, and the releases of other CTAs that it acquired.
    pub(crate) epoch: u32,
    pub(crate) known: HashMap<u32, u32>,
    /// What strong reads saw since the last fence, and the epoch that it ended.
    pub(super) seen: HashMap<u32, u32>,
    pub(super) fenced: Option<u32>,
    /// The epoch that a strong write counts as: what knows of that one knows of the write.
    pub(super) handed: u32,
    pub(crate) counters: Counters,
    pub(crate) last_region: usize,
    /// Writes that changed something, and barriers that opened.
    pub(crate) writes: u64,
    quiet_rounds: u32,
    /// The last strong read of each warp: its place.
    watched: Vec<Option<Place>>,
    watching: usize,
}

impl<'a> Cta<'a> {
    pub(crate) fn new(grid: &'a Grid<'a>, linear: u32) -> Cta<'a> {
        let [x, y, _] = grid.size;
        let index = [linear % x, linear / x % y, linear / (x * y)];
        let warps = grid.warps();
        Cta {
            grid,
            index,
            linear,
            shared: Shared::new(grid.shared_bytes, warps, grid.orders_some, grid.checks),
            warps: (0..warps).map(|w| Some(Box::new(Warp::new(grid.kernel, &grid.place(w, index, linear))))).collect(),
            barriers: vec![Barrier::default(); 16],
            alive: u32::MAX >> (32 - warps),
            has_exits: false,
            epoch: 1,
            known: HashMap::new(),
            seen: HashMap::new(),
            fenced: None,
            handed: 1,
            counters: Counters::default(),
            last_region: 0,
            writes: 0,
            quiet_rounds: 0,
            watched: vec![None; warps],
            watching: 0,
        }
    }

    /// Notes what a warp reads in a way that other CTAs may answer, for the report of a deadlock.
    pub(crate) fn watch(&mut self, place: Place) {
        self.watched[self.watching] = Some(place);
    }

    /// Gives each warp a slice.
    pub(crate) fn round(&mut self) -> Result<Round, Fault> {
        let (writes, mut ran, mut done, mut progress) = (self.writes, false, true, false);
        for w in 0..self.warps.len() {
            let mut warp = self.warps[w].take().expect("a warp is in its place between slices");
            self.watching = w;
            let before = warp.instructions;
            if warp.state == State::Ready {
                ran = true;
                let outcome = self.run(&mut warp, SLICE);
                if let Err(wrong) = outcome {
                    return Err(self.fault(&warp, wrong));
                }
                progress |= warp.state != State::Ready || warp.instructions - before < SLICE;
                warp.rotate();
            }
            done &= warp.state == State::Done;
            self.warps[w] = Some(warp);
        }
        let released = self.release_barriers();
        if done {
            return Ok(Round::Done);
        }
        if !ran && !released {
            return Err(self.stuck());
        }
        let quiet = self.writes == writes && !progress && !released;
        self.quiet_rounds = if quiet { self.quiet_rounds + 1 } else { 0 };
        if self.quiet_rounds >= 2 && self.all_spin()? {
            return Ok(Round::Quiet);
        }
        Ok(Round::Ready)
    }

    /// Whether every warp that can run returns to a state it was in, with nothing written meanwhile.
    fn all_spin(&mut self) -> Result<bool, Fault> {
        for w in 0..self.warps.len() {
            let mut warp = self.warps[w].take().expect("a warp is in its place between slices");
            self.watching = w;
            let spins =
                warp.state != State::Ready || self.spins(&mut warp).map_err(|wrong| self.fault(&warp, wrong))?;
            self.warps[w] = Some(warp);
            if !spins {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn spins(&mut self, warp: &mut Warp) -> Result<bool, Wrong> {
        let writes = self.writes;
        if warp.mask == 0 {
            self.run(warp, 1)?;
        }
        let (pc, sets) = (warp.pc, warp.sets());
        let (regs, pcs) = (warp.regs.clone(), warp.pcs);
        for _ in 0..SPIN {
            self.run(warp, 1)?;
            if warp.state != State::Ready || self.writes != writes {
                return Ok(false);
            }
            let same = warp.pc == pc && warp.sets() == sets;
            if same && warp.regs == regs && (0..32).all(|l| warp.mask >> l & 1 != 0 || warp.pcs[l] == pcs[l]) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What each warp waits for, for people.
    pub(crate) fn waits(&self) -> String {
        let mut out = Vec::new();
        for (w, warp) in self.warps.iter().enumerate() {
            let Some(warp) = warp else { continue };
            match warp.state {
                State::Barrier(id) => {
                    let (threads, due) = self.awaits(id);
                    out.push(format!("warp {w} waits at barrier {id} ({threads} of {due} threads arrived)"));
                }
                State::Ready => {
                    let line = self.grid.kernel.code.get(warp.pc as usize).map_or(0, |inst| inst.line);
                    let what = match self.watched[w] {
                        Some(Place::Global(address)) => {
                            let region = self.grid.regions.iter().find(|r| r.holds(address, 4));
                            let value = region.map_or(0, |region| region.load(address & !3, 4));
                            format!("reads global memory at {address:#x}, which holds {value}")
                        }
                        Some(Place::Shared(address)) => format!("reads shared memory at {address:#x}"),
                        _ => "repeats itself".into(),
                    };
                    out.push(format!("warp {w} {what} (line {line})"));
                }
                State::Done => {}
            }
        }
        out.truncate(8);
        out.join(", ")
    }

    fn stuck(&self) -> Fault {
        let line = self.warps.iter().flatten().find(|warp| warp.state != State::Done).map_or(0, |warp| {
            let pc = if warp.mask == 0 { warp.pcs[(warp.held.trailing_zeros() & 31) as usize] } else { warp.pc };
            self.grid.kernel.code.get((pc as usize).saturating_sub(1)).map_or(0, |inst| inst.line)
        });
        Fault {
            kind: FaultKind::Deadlock,
            kernel: self.grid.kernel.name.clone(),
            line,
            cta: self.index,
            warp: 0,
            lanes: u32::MAX,
            message: format!("no warp of the CTA can go on: {}", self.waits()),
        }
    }

    fn fault(&self, warp: &Warp, wrong: Wrong) -> Fault {
        Fault {
            kind: wrong.kind,
            kernel: self.grid.kernel.name.clone(),
            line: self.grid.kernel.code.get(warp.pc as usize).map_or(0, |inst| inst.line),
            cta: self.index,
            warp: warp.index as u32,
            lanes: wrong.lanes,
            message: wrong.message,
        }
    }

    /// Runs a warp for some instructions, or until it waits or ends.
    fn run(&mut self, warp: &mut Warp, budget: u64) -> Result<(), Wrong> {
        let code: &'a [Inst] = &self.grid.kernel.code;
        for _ in 0..budget {
            if warp.mask == 0 && !self.pick(warp)? {
                return Ok(());
            }
            let inst = &code[warp.pc as usize];
            let mask = match inst.guard {
                None => warp.mask,
                Some((p, negated)) => warp.mask & (warp.regs.p[p as usize] ^ if negated { u32::MAX } else { 0 }),
            };
            if let Some(meeting) = inst.op.meeting()
                && mask != 0
                && Self::ready(warp, meeting, mask)? != mask
            {
                Self::park(warp, meeting, mask)?;
                continue;
            }
            warp.instructions += 1;
            self.counters.instructions[inst.class as usize] += 1;
            self.counters.lane_instructions[inst.class as usize] += u64::from(mask.count_ones());
            match self.step(warp, inst, mask)? {
                Next::Advance => warp.pc += 1,
                Next::Stay => {}
                Next::Leave => return Ok(()),
            }
            if warp.pc >= warp.other && !warp.out_of_order && warp.mask != 0 {
                warp.set_down();
            }
        }
        Ok(())
    }

    /// Executes one instruction.
    fn step(&mut self, warp: &mut Warp, inst: &'a Inst, mask: u32) -> Result<Next, Wrong> {
        if mask == 0 {
            return Ok(Next::Advance);
        }
        match &inst.op {
            Op::Alu { run, args } => run(&mut warp.regs, args, mask),
            Op::Bra { target } => {
                if mask == warp.mask {
                    warp.pc = *target;
                } else {
                    self.counters.divergent_branches += 1;
                    let stay = warp.mask & !mask;
                    for lane in Warp::lanes(mask) {
                        warp.pcs[lane] = *target;
                    }
                    for lane in Warp::lanes(stay) {
                        warp.pcs[lane] = warp.pc + 1;
                    }
                    warp.mask = 0;
                }
                return Ok(Next::Stay);
            }
            Op::Brx { index, targets } => {
                let index = warp.regs.r32[*index as usize];
                warp.set_down();
                for (lane, &index) in index.iter().enumerate() {
                    if mask >> lane & 1 != 0 {
                        let target = targets.get(index as usize);
                        warp.pcs[lane] = *target.ok_or_else(|| {
                            let message = format!("the index {index} of a list of {} targets", targets.len());
                            Wrong::new(FaultKind::Trap, lane, message)
                        })?;
                    } else if warp.at(warp.live, warp.pc) >> lane & 1 != 0 {
                        warp.pcs[lane] = warp.pc + 1;
                    }
                }
                return Ok(Next::Stay);
            }
            Op::Exit => {
                warp.live &= !mask;
                self.has_exits = true;
                self.alive &= !(u32::from(warp.live == 0) << warp.index);
                let stay = warp.mask & !mask;
                for lane in Warp::lanes(stay) {
                    warp.pcs[lane] = warp.pc + 1;
                }
                warp.mask = 0;
                return Ok(Next::Stay);
            }
            Op::Trap(what) => return Err(Wrong { kind: FaultKind::Trap, lanes: mask, message: (*what).into() }),
            Op::Nop | Op::Sleep => {}
            Op::Clock { d } => Self::put(warp, *d, &[warp.instructions; 32], mask),
            Op::Load(access) => self.load(warp, access, mask)?,
            Op::Store(access) => self.store(warp, access, mask)?,
            Op::Atom { access, op, ty, d, b, c } => self.atomic(warp, access, *op, *ty, [*d, *b, *c], mask)?,
            Op::Shfl { kind, d, p, a, b, c, members } => {
                let regs = [*d, *a, *b, *c];
                Self::each_group(warp, *members, mask, |warp, group| Self::shuffle(warp, *kind, regs, *p, group))?;
            }
            Op::Vote { kind, d, d2, source, negated, members } => {
                Self::each_group(warp, *members, mask, |warp, group| {
                    Self::vote(warp, *kind, [*d, *d2], *source, *negated, group);
                    Ok(())
                })?;
            }
            Op::Redux { op, signed, d, a, members } => {
                Self::each_group(warp, *members, mask, |warp, group| {
                    Self::redux(warp, *op, *signed, *d, *a, group);
                    Ok(())
                })?;
            }
            Op::ActiveMask { d } => warp.regs.put32(*d, &[mask; 32], mask),
            Op::WarpBar { .. } => self.shared.clocks.join_warp(warp.index),
            Op::Fence(scope) => self.fence(warp.index, *scope),
            Op::Bar(bar) => return self.barrier(warp, bar, mask),
            Op::CpAsync { to, from, bytes, source_bytes } => {
                self.copy(warp, to, from, *bytes, *source_bytes, mask)?;
            }
            Op::CpCommit => Self::commit(warp, mask),
            Op::CpWait(left) => self.wait(warp, *left, mask)?,
            Op::Ldmatrix { access, count, transposed } => self.ldmatrix(warp, access, *count, *transposed)?,
            Op::Mma(mma) => {
                self.counters.tensor_operations += 2 * (mma.m * mma.n * mma.k) as u64;
                (mma.run)(&mut warp.regs, mma, self.grid.chip);
            }
        }
        Ok(Next::Advance)
    }

    /// Instructions that the CTA has run.
    pub(crate) fn instructions(&self) -> u64 {
        self.counters.instructions.iter().sum()
    }
}
