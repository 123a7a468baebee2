//! What orders CTAs, and warps of one CTA, besides barriers: releases, acquires, and fences around relaxed accesses. Between
//! CTAs they count where their scope is that of the device; within one CTA any scope does.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::cta::Cta;
use super::memory::Place;
use super::op::{Order, Scope};

/// The last epoch of a CTA; all that comes later is of it too.
const LAST_EPOCH: u32 = 0xf_ffff;

impl Cta<'_> {
    /// Before a strong write to global memory: one with release hands on what the CTA did and knows, one behind a fence
    /// what it did before that.
    pub(super) fn publish(&mut self, place: Place, order: Order) {
        let Place::Global(address) = place else { return };
        let done = if order.release { Some(self.epoch) } else { self.fenced };
        let Some(done) = done.filter(|_| self.grid.checks && order.scope == Scope::Device) else { return };
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
