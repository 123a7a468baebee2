//! Where lanes of a warp meet. A collective instruction waits until the lanes that its mask names, or all of the warp,
//! are there; lanes that exited are not awaited. Lanes that give different masks meet in groups of their own.

use super::cta::Cta;
use super::op::{Inst, Meeting, Members};
use super::regs::uniform;
use super::warp::{State, Warp};
use crate::fault::{FaultKind, Wrong};

/// Lanes of a set that give the same mask as its first one, and that mask.
fn group(warp: &Warp, members: Members, set: u32) -> (u32, u32) {
    let reg = match members {
        Members::Mask(mask) => return (set, mask),
        Members::Reg(reg) => &warp.regs.r32[reg as usize],
    };
    // Mostly all lanes give the same.
    if let Some(mask) = uniform(reg) {
        return (set, mask);
    }
    let first = reg[(set.trailing_zeros() & 31) as usize];
    (Warp::lanes(set).filter(|&lane| reg[lane] == first).fold(0, |group, lane| group | 1 << lane), first)
}

fn divergent(lanes: u32, message: String) -> Wrong {
    Wrong { kind: FaultKind::Divergent, lanes, message }
}

impl Cta<'_> {
    /// Those lanes of a set at a collective instruction whose partners are in the set.
    pub(super) fn ready(warp: &Warp, meeting: Meeting, set: u32) -> Result<u32, Wrong> {
        match meeting {
            Meeting::Warp => Ok(if set == u32::MAX { set } else { 0 }),
            Meeting::Aligned => {
                let passing = warp.mask & !set;
                if passing != 0 {
                    let message = format!(
                        "a barrier that is `.aligned` is for all lanes of a warp, and the guard lets lanes {passing:#010x} \
                         pass; use `barrier` without `.aligned`, or a guard that is the same for the warp"
                    );
                    return Err(divergent(set, message));
                }
                Ok(if set == warp.live { set } else { 0 })
            }
            Meeting::Members(members) => {
                let (mut rest, mut ready) = (set, 0);
                while rest != 0 {
                    let (group, mask) = group(warp, members, rest);
                    if group & !mask != 0 {
                        let message = format!("lanes {:#010x} execute it with the mask {mask:#010x}", group & !mask);
                        return Err(divergent(group & !mask, message + ", which does not name them"));
                    }
                    ready |= if group & mask == mask & warp.live { group } else { 0 };
                    rest &= !group;
                }
                Ok(ready)
            }
        }
    }

    /// Executes a collective for each group of lanes with the same mask.
    pub(super) fn each_group(
        warp: &mut Warp,
        members: Members,
        set: u32,
        mut run: impl FnMut(&mut Warp, u32) -> Result<(), Wrong>,
    ) -> Result<(), Wrong> {
        let mut rest = set;
        while rest != 0 {
            let (group, _) = group(warp, members, rest);
            run(warp, group)?;
            rest &= !group;
        }
        Ok(())
    }

    /// Sets lanes aside until the others that the instruction needs are there.
    pub(super) fn park(warp: &mut Warp, meeting: Meeting, set: u32) -> Result<(), Wrong> {
        let pc = warp.pc;
        // Lanes whose guard is false pass.
        let passing = warp.mask & !set;
        warp.set_down();
        for lane in Warp::lanes(passing) {
            warp.pcs[lane] = pc + 1;
        }
        warp.parked |= set;
        Self::resume(warp, meeting, pc).map(drop)
    }

    /// Lets the lanes that are set aside at a position go on, as far as they are complete; whether any were.
    fn resume(warp: &mut Warp, meeting: Meeting, pc: u32) -> Result<bool, Wrong> {
        let ready = Self::ready(warp, meeting, warp.at(warp.parked & warp.live, pc))?;
        if ready != 0 {
            warp.parked &= !ready;
            warp.run_at(ready, pc);
        }
        Ok(ready != 0)
    }

    /// Finds lanes to run. False when all have exited or wait at barriers, which the warp's state then says.
    pub(super) fn pick(&mut self, warp: &mut Warp) -> Result<bool, Wrong> {
        if warp.live == 0 {
            warp.state = State::Done;
            return Ok(false);
        }
        let code = &self.grid.kernel.code;
        let mut pcs: Vec<u32> = Warp::lanes(warp.parked & warp.live).map(|lane| warp.pcs[lane]).collect();
        pcs.sort_unstable();
        pcs.dedup();
        // Some set may be complete now that others have exited.
        for &pc in &pcs {
            if let Some(meeting) = code[pc as usize].op.meeting()
                && Self::resume(warp, meeting, pc)?
            {
                return Ok(true);
            }
        }
        if warp.take_up() {
            return Ok(true);
        }
        if let Some(id) = self.barrier_of(warp) {
            warp.state = State::Barrier(id);
            return Ok(false);
        }
        Err(Self::parted(warp, code, &pcs))
    }

    /// The fault of lanes that all wait for others.
    fn parted(warp: &mut Warp, code: &[Inst], pcs: &[u32]) -> Wrong {
        let pc = pcs[0];
        warp.pc = pc;
        let all = warp.at(warp.parked & warp.live, pc);
        let (here, need) = match code[pc as usize].op.meeting() {
            Some(Meeting::Members(members)) => group(warp, members, all),
            Some(Meeting::Aligned) => (all, warp.live),
            _ => (all, u32::MAX),
        };
        let elsewhere = match pcs.get(1) {
            _ if here != all => format!("lanes {:#010x} reach it with other masks", all & !here),
            Some(&other) => format!("others wait at line {}", code[other as usize].line),
            None => "the others have exited".into(),
        };
        let message =
            format!("the instruction needs lanes {need:#010x} together, and {here:#010x} reach it; {elsewhere}");
        divergent(here, message)
    }
}
