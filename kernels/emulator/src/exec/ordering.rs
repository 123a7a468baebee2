//! What orders CTAs, and warps of one CTA, besides barriers: releases, acquires, and fences around relaxed accesses. Between
//! CTAs they count where their scope is that of the device; within one CTA any scope does.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::cta::Cta;
use super::memory::Place;
use super::op::{Order, Scope};
use crate::fault::{FaultKind, Wrong};
use crate::region::{Conflict, LAST_EPOCH, Region, Stamp, Touch};

impl Cta<'_> {
    /// Who accesses, for the shadow of global memory.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp { launch: self.grid.launch, cta: self.linear, epoch: self.epoch }
    }

    /// Checks an access of one lane to global memory against those of other CTAs.
    fn check_conflict(
        &self,
        region: &Region,
        address: u64,
        bytes: u32,
        touch: Touch,
        lane: usize,
    ) -> Result<(), Wrong> {
        let knows = |cta, epoch| self.known.get(&cta).is_some_and(|&known| known >= epoch);
        let Some(Conflict { cta, did }) = region.conflict(address, bytes, self.stamp(), touch, knows) else {
            return Ok(());
        };
        let does = if touch.writes { "writes" } else { "reads" };
        let how = if touch.strong { " by an atomic or volatile access" } else { "" };
        let message = format!(
            "{does} global memory at {address:#x}{how}, which CTA {cta} {did} in this launch, and nothing orders the two"
        );
        Err(Wrong::new(FaultKind::GlobalRace, lane, message))
    }

    fn check_written(region: &Region, address: u64, bytes: u32, lane: usize) -> Result<(), Wrong> {
        if region.is_written(address, bytes) {
            return Ok(());
        }
        let message = format!("global memory at {address:#x} was never written");
        Err(Wrong::new(FaultKind::Uninitialized, lane, message))
    }

    /// Checks and notes a reading of up to four bytes of global memory.
    pub(super) fn check_read(
        &self,
        region: &Region,
        address: u64,
        bytes: u32,
        strong: bool,
        lane: usize,
    ) -> Result<(), Wrong> {
        Self::check_written(region, address, bytes, lane)?;
        self.check_conflict(region, address, bytes, Touch { writes: false, strong }, lane)?;
        region.mark_read(address, bytes, self.stamp(), strong);
        Ok(())
    }

    /// Checks and notes a write of up to four bytes of global memory.
    pub(super) fn check_write(
        &self,
        region: &Region,
        address: u64,
        bytes: u32,
        strong: bool,
        lane: usize,
    ) -> Result<(), Wrong> {
        if !self.grid.checks {
            region.mark_written(address, bytes);
            return Ok(());
        }
        self.check_conflict(region, address, bytes, Touch { writes: true, strong }, lane)?;
        if strong {
            region.mark_strong_write(address, bytes, Stamp { epoch: self.handed, ..self.stamp() });
        } else {
            region.mark_weak_write(address, bytes, self.stamp());
        }
        Ok(())
    }

    /// The same for an atomic, which reads what was written.
    pub(super) fn check_update(
        &self,
        region: &Region,
        address: u64,
        bytes: u32,
        strong: bool,
        lane: usize,
    ) -> Result<(), Wrong> {
        if self.grid.checks {
            Self::check_written(region, address, bytes, lane)?;
        }
        self.check_write(region, address, bytes, strong, lane).map_err(|mut wrong| {
            if !strong {
                wrong.message += "; the scope `.cta` makes it an atomic within its CTA only";
            }
            wrong
        })
    }

    /// Before a strong write to global memory: one with release hands on what the CTA did and knows, one behind a fence
    /// what it did before that.
    pub(super) fn publish(&mut self, place: Place, order: Order) {
        let Place::Global(address) = place else { return };
        let done = if order.release { Some(self.epoch) } else { self.fenced };
        self.handed = self.epoch;
        let Some(done) = done.filter(|_| self.grid.checks && order.scope == Scope::Device) else { return };
        self.handed = done;
        let mut table = self.grid.releases.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = table.entry(address & !3).or_default();
        for (&cta, &epoch) in self.known.iter().chain([(&self.linear, &done)]) {
            let known = entry.entry(cta).or_default();
            *known = (*known).max(epoch);
        }
        drop(table);
        self.grid.has_releases.store(true, Ordering::Release);
        if order.release {
            self.epoch = (self.epoch + 1).min(LAST_EPOCH);
        }
    }

    /// After a strong write: the same for the warps of the CTA, in shared memory.
    pub(super) fn publish_shared(&mut self, warp: usize, place: Place, order: Order) {
        if let Place::Shared(address) = place
            && self.grid.checks
        {
            self.shared.clocks.publish(warp, address & !3, order.release);
        }
    }

    /// After a strong read: with acquire it takes over what was handed on there, otherwise the next fence does.
    pub(super) fn observe(&mut self, warp: usize, place: Place, order: Order) {
        let address = match place {
            Place::Global(address) => address & !3,
            Place::Shared(address) => return self.shared.clocks.observe(warp, address & !3, order.acquire),
            _ => return,
        };
        let has_releases = self.grid.checks && self.grid.has_releases.load(Ordering::Acquire);
        if !has_releases || order.scope != Scope::Device {
            return;
        }
        let table = self.grid.releases.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = table.get(&address) else { return };
        for (&cta, &epoch) in entry.iter().filter(|(cta, _)| **cta != self.linear) {
            let target = if order.acquire { &mut self.known } else { &mut self.seen };
            let known = target.entry(cta).or_default();
            *known = (*known).max(epoch);
        }
    }

    /// A fence: what follows it is of a new epoch, which relaxed writes behind it do not hand on.
    pub(super) fn fence(&mut self, warp: usize, scope: Scope) {
        if self.grid.checks {
            self.shared.clocks.fence(warp);
        }
        if scope == Scope::Cta {
            return;
        }
        for (cta, epoch) in self.seen.drain() {
            let known = self.known.entry(cta).or_default();
            *known = (*known).max(epoch);
        }
        self.fenced = Some(self.epoch);
        self.epoch = (self.epoch + 1).min(LAST_EPOCH);
    }
}
