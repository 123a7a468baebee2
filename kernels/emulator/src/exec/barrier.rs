//! The sixteen barriers of a CTA. Lanes arrive; a barrier opens when so many have arrived as it awaits. Lanes that exited
//! count as arrived as soon as any other of their warp is.

use super::cta::{Cta, Next};
use super::op::{Bar, BarKind, Reg};
use super::regs::{LANES, uniform};
use super::warp::{State, Warp};
use crate::fault::{FaultKind, Wrong};

/// Lanes that wait at a barrier, and what they are to get of its vote.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    warp: usize,
    lanes: u32,
    kind: BarKind,
    d: Reg,
}

/// A barrier.
#[derive(Clone, Debug, Default)]
pub(super) struct Barrier {
    /// Lanes that arrived, by warp, and the warps that have any.
    arrived: [u32; 32],
    warps: u32,
    /// The threads that it awaits; all of the CTA where none of those that arrived gave a number.
    count: Option<u32>,
    /// Whether some arrived without waiting.
    is_announced: bool,
    /// Votes of a reducing barrier.
    yes: u32,
    votes: u32,
    waiters: Vec<Waiter>,
}

/// Lanes of a warp that arrive together.
struct Arrival {
    id: u32,
    count: Option<u32>,
    lanes: u32,
    yes: u32,
}

impl Cta<'_> {
    /// A barrier instruction.
    pub(super) fn barrier(&mut self, warp: &mut Warp, bar: &Bar, mask: u32) -> Result<Next, Wrong> {
        let yes = match bar.kind {
            BarKind::Sync | BarKind::Arrive => 0,
            _ => warp.regs.p[bar.source as usize] ^ if bar.negated { u32::MAX } else { 0 },
        };
        let arrival = |warp: &Warp, rest: u32| {
            let (ids, counts) = (&warp.regs.r32[bar.id as usize], bar.count.map(|reg| &warp.regs.r32[reg as usize]));
            let of = |lane: usize| (ids[lane], counts.map(|counts| counts[lane]));
            let (id, count) = of(rest.trailing_zeros() as usize);
            let is_uniform = uniform(ids).is_some() && counts.is_none_or(|counts| uniform(counts).is_some());
            let same = |set: u32, lane: usize| set | u32::from(of(lane) == (id, count)) << lane;
            let lanes = if is_uniform { rest } else { Warp::lanes(rest).fold(0, same) };
            Arrival { id, count, lanes, yes: (yes & lanes).count_ones() }
        };
        let first = arrival(warp, mask);
        if bar.is_aligned && first.lanes != mask {
            let message =
                "a barrier that is `.aligned` has one number and count for a warp, and lanes give different ones";
            return Err(Wrong { kind: FaultKind::BarrierCount, lanes: mask, message: message.into() });
        }
        if bar.kind != BarKind::Arrive && first.lanes == warp.live {
            warp.state = State::Barrier(first.id);
            self.arrive(warp, bar, &first)?;
            // The warp goes on behind the barrier once that is complete.
            warp.pc += 1;
            return Ok(Next::Leave);
        }
        let mut rest = mask;
        while rest != 0 {
            let arrival = arrival(warp, rest);
            if bar.kind != BarKind::Arrive {
                warp.held |= arrival.lanes;
            }
            self.arrive(warp, bar, &arrival)?;
            rest &= !arrival.lanes;
        }
        if bar.kind == BarKind::Arrive {
            return Ok(Next::Advance);
        }
        warp.pc += 1;
        warp.set_down();
        Ok(Next::Stay)
    }

    fn arrive(&mut self, warp: &mut Warp, bar: &Bar, arrival: &Arrival) -> Result<(), Wrong> {
        let &Arrival { id, count, lanes, yes } = arrival;
        let wrong = |message: String| Wrong { kind: FaultKind::BarrierCount, lanes, message };
        if id > 15 {
            return Err(wrong(format!("barrier {id}; a CTA has barriers 0 to 15")));
        }
        if let Some(count) = count
            && (count == 0 || !count.is_multiple_of(32))
        {
            return Err(wrong(format!("barrier {id} for {count} threads, which is no multiple of 32 above zero")));
        }
        let all = (self.warps.len() * LANES) as u32;
        let barrier = &mut self.barriers[id as usize];
        if barrier.warps == 0 {
            barrier.count = count;
        } else if barrier.count.unwrap_or(all) != count.unwrap_or(all) {
            let name = |count: Option<u32>| count.map_or("all".to_owned(), |count| count.to_string());
            let message = format!("barrier {id} for {} threads, and others await {}", name(count), name(barrier.count));
            return Err(wrong(message));
        }
        // All of the CTA are those that have not exited.
        barrier.count = barrier.count.and(count);
        if barrier.arrived[warp.index] & lanes != 0 {
            return Err(wrong(format!("the warp arrives at barrier {id} again before it is complete")));
        }
        barrier.arrived[warp.index] |= lanes;
        barrier.warps |= 1 << warp.index;
        barrier.yes += yes;
        barrier.votes += lanes.count_ones();
        if bar.kind == BarKind::Arrive {
            barrier.is_announced = true;
        } else {
            barrier.waiters.push(Waiter { warp: warp.index, lanes, kind: bar.kind, d: bar.d });
        }
        if let Some(count) = self.barriers[id as usize].count
            && self.arrived(id, Some(warp)) > count
        {
            let threads = self.arrived(id, Some(warp));
            return Err(wrong(format!("{threads} threads arrive at barrier {id}, which awaits {count}")));
        }
        if self.is_complete(id, Some(warp)) {
            self.open(id, Some(warp));
        }
        Ok(())
    }

    /// Lanes of a warp that did not exit; `hand` is the warp that runs.
    fn live(&self, warp: usize, hand: Option<&Warp>) -> u32 {
        self.warps[warp].as_deref().or(hand).map_or(0, |warp| warp.live)
    }

    /// Threads that arrived at a barrier, those counted that exited.
    fn arrived(&self, id: u32, hand: Option<&Warp>) -> u32 {
        let barrier = &self.barriers[id as usize];
        let warps = (0..self.warps.len()).filter(|&w| barrier.warps >> w & 1 != 0);
        warps.map(|w| (barrier.arrived[w] | !self.live(w, hand)).count_ones()).sum()
    }

    /// Threads that arrived at a barrier, and how many it awaits, for people.
    pub(super) fn awaits(&self, id: u32) -> (u32, String) {
        let count = self.barriers[id as usize].count;
        (self.arrived(id, None), count.map_or("all".to_owned(), |count| count.to_string()))
    }

    /// A barrier at which lanes of a warp wait.
    pub(super) fn barrier_of(&self, warp: &Warp) -> Option<u32> {
        let waits = |barrier: &Barrier| barrier.waiters.iter().any(|waiter| waiter.warp == warp.index);
        self.barriers.iter().position(waits).map(|id| id as u32)
    }

    /// Whether every thread that has not exited arrived at a barrier.
    fn has_all(&self, barrier: &Barrier, hand: Option<&Warp>) -> bool {
        let has = |w: usize| barrier.arrived[w] | !self.live(w, hand) == u32::MAX;
        self.alive & !barrier.warps == 0 && (0..self.warps.len()).all(has)
    }

    fn is_complete(&self, id: u32, hand: Option<&Warp>) -> bool {
        let barrier = &self.barriers[id as usize];
        match barrier.count {
            _ if barrier.warps == 0 => false,
            Some(count) => self.arrived(id, hand) == count,
            None => self.has_all(barrier, hand),
        }
    }

    fn open(&mut self, id: u32, mut hand: Option<&mut Warp>) {
        let barrier = &self.barriers[id as usize];
        // One that only announces itself goes on meanwhile.
        let all = !barrier.is_announced && self.has_all(barrier, hand.as_deref());
        self.shared.join(barrier.warps, all);
        self.writes += 1;
        let barrier = &mut self.barriers[id as usize];
        let (yes, votes) = (barrier.yes, barrier.votes);
        for Waiter { warp: w, lanes, kind, d } in barrier.waiters.drain(..) {
            if let Some(warp) = self.warps[w].as_deref_mut().or(hand.as_deref_mut()) {
                let value = match kind {
                    BarKind::Sync | BarKind::Arrive => None,
                    BarKind::Popc => Some(yes),
                    BarKind::And => Some(u32::from(yes == votes)),
                    BarKind::Or => Some(u32::from(yes > 0)),
                };
                if let Some(value) = value {
                    Self::put(warp, d, &[u64::from(value); LANES], lanes);
                }
                warp.held &= !lanes;
                warp.state = State::Ready;
            }
        }
        (barrier.arrived, barrier.warps, barrier.count) = ([0; 32], 0, None);
        (barrier.is_announced, barrier.yes, barrier.votes) = (false, 0, 0);
    }

    /// Opens the barriers that are complete because lanes have exited since this was asked last.
    pub(super) fn release_barriers(&mut self) -> bool {
        let mut any = false;
        if !std::mem::take(&mut self.has_exits) {
            return any;
        }
        for id in 0..16 {
            if self.is_complete(id, None) {
                self.open(id, None);
                any = true;
            }
        }
        any
    }
}
