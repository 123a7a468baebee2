//! Instructions in which lanes of a warp see each other.

use super::atomic::combine;
use super::cta::Cta;
use super::op::{AtomOp, Reg, Shuffle, Vote};
use super::regs::LANES;
use super::warp::Warp;
use crate::fault::{FaultKind, Wrong};
use crate::ptx::tree::Ty;

/// The lane that a shuffle reads, if it lies within the bounds.
fn source(kind: Shuffle, lane: u32, b: u32, c: u32) -> Option<u32> {
    let (clamp, segment) = (c & 31, c >> 8 & 31);
    let highest = lane & segment | clamp & !segment;
    let lowest = lane & segment;
    let b = b & 31;
    let (from, valid) = match kind {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= highest as i32),
        Shuffle::Down => (lane + b, lane + b <= highest),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= highest),
        Shuffle::Index => {
            let from = lowest | b & !segment;
            (from, from <= highest)
        }
    };
    valid.then_some(from & 31)
}

impl Cta<'_> {
    /// Shuffles values between the lanes of a group.
    pub(crate) fn shuffle(
        warp: &mut Warp,
        kind: Shuffle,
        [d, a, b, c]: [u32; 4],
        p: Option<u32>,
        mask: u32,
    ) -> Result<(), Wrong> {
        let values = warp.regs.r32[a as usize];
        let (by, clamps) = (warp.regs.r32[b as usize], warp.regs.r32[c as usize]);
        let (mut out, mut valid) = (values, 0);
        for lane in Warp::lanes(mask) {
            if let Some(from) = source(kind, lane as u32, by[lane], clamps[lane]) {
                out[lane] = values[from as usize];
                valid |= 1 << lane;
            }
        }
        if mask != u32::MAX {
            let from = |lane: usize| source(kind, lane as u32, by[lane], clamps[lane]);
            let read = Warp::lanes(mask).filter_map(from).fold(0, |set, lane| set | 1u32 << lane);
            if read & !mask != 0 {
                let message = format!(
                    "lanes {:#010x} are read, whose values are undefined: only lanes {mask:#010x} execute it together",
                    read & !mask
                );
                return Err(Wrong { kind: FaultKind::Divergent, lanes: mask, message });
            }
        }
        warp.regs.put32(d, &out, mask);
        if let Some(p) = p {
            warp.regs.put_pred(p, valid, mask);
        }
        Ok(())
    }

    pub(crate) fn vote(warp: &mut Warp, kind: Vote, [d, d2]: [Reg; 2], source: u32, negated: bool, mask: u32) {
        if let Vote::MatchAny32 | Vote::MatchAny64 = kind {
            let value = |warp: &Warp, lane: usize| match kind {
                Vote::MatchAny32 => u64::from(warp.regs.r32[source as usize][lane]),
                _ => warp.regs.r64[source as usize][lane],
            };
            let mut out = [0; LANES];
            for lane in Warp::lanes(mask) {
                let own = value(warp, lane);
                out[lane] = Warp::lanes(mask).filter(|&l| value(warp, l) == own).fold(0u64, |bits, l| bits | 1 << l);
            }
            Self::put(warp, d, &out, mask);
            return;
        }
        if kind == Vote::Elect {
            let leader = u64::from(mask.trailing_zeros());
            Self::put(warp, d, &[leader; LANES], mask);
            Self::put(warp, d2, &std::array::from_fn(|lane| u64::from(lane as u64 == leader)), mask);
            return;
        }
        let bits = (warp.regs.p[source as usize] ^ if negated { u32::MAX } else { 0 }) & mask;
        let result = match kind {
            Vote::All => u64::from(bits == mask),
            Vote::Any => u64::from(bits != 0),
            Vote::Uniform => u64::from(bits == 0 || bits == mask),
            _ => u64::from(bits),
        };
        Self::put(warp, d, &[result; LANES], mask);
    }

    pub(crate) fn redux(warp: &mut Warp, op: AtomOp, signed: bool, d: u32, a: u32, mask: u32) {
        let ty = if signed { Ty::S32 } else { Ty::U32 };
        let values = warp.regs.r32[a as usize];
        let result = Warp::lanes(mask)
            .map(|lane| u64::from(values[lane]))
            .reduce(|sum, value| combine(op, ty, sum, value, 0, false))
            .unwrap_or(0);
        warp.regs.put32(d, &[result as u32; LANES], mask);
    }
}
