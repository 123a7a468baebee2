//! What the warps of a CTA know of each other: a vector clock each. Barriers join them; a release in shared memory hands
//! one on, and an acquire there takes it over, as fences do around relaxed accesses.

use std::collections::HashMap;

/// The vector clocks of the warps of a CTA.
pub(super) struct Clocks {
    warps: usize,
    /// `rows[w · warps + v]`: how far warp `w` knows what warp `v` did.
    rows: Vec<u32>,
    /// The own clock of each warp when its lanes were last ordered among each other.
    synced: Vec<u32>,
    /// What releases handed on, by address.
    releases: HashMap<u64, Vec<u32>>,
    /// What each warp knew at its last fence, and what its strong reads saw since; like `rows`, empty before any fence
    /// or such read.
    fenced: Vec<u32>,
    seen: Vec<u32>,
}

fn raise(to: &mut [u32], from: &[u32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = (*to).max(from);
    }
}

impl Clocks {
    pub(super) fn new(warps: usize) -> Clocks {
        Clocks {
            warps,
            rows: (0..warps * warps).map(|at| u32::from(at / warps == at % warps)).collect(),
            synced: vec![1; warps],
            releases: HashMap::new(),
            fenced: vec![],
            seen: vec![],
        }
    }

    fn row(&self, warp: usize) -> std::ops::Range<usize> {
        warp * self.warps..(warp + 1) * self.warps
    }

    /// The clock of a warp's own accesses.
    pub(super) fn own(&self, warp: usize) -> u32 {
        self.rows[warp * self.warps + warp]
    }

    /// Accesses of the warp before this clock are ordered before all that its lanes do now.
    pub(super) fn synced(&self, warp: usize) -> u32 {
        self.synced[warp]
    }

    /// Whether a warp knows what another did up to a clock.
    pub(super) fn knows(&self, warp: usize, other: usize, clock: u32) -> bool {
        self.rows[warp * self.warps + other] >= clock
    }

    /// Orders what the warps of a mask did before what they do next.
    pub(super) fn join(&mut self, warps: u32) {
        let members = || (0..self.warps).filter(|w| warps >> w & 1 != 0);
        let joined: Vec<u32> =
            (0..self.warps).map(|v| members().map(|w| self.rows[w * self.warps + v]).max().unwrap_or(0)).collect();
        for w in (0..self.warps).filter(|w| warps >> w & 1 != 0) {
            let row = self.row(w);
            self.rows[row].copy_from_slice(&joined);
            self.join_warp(w);
        }
    }

    /// Orders the lanes of one warp.
    pub(super) fn join_warp(&mut self, warp: usize) {
        self.advance(warp);
        self.synced[warp] = self.own(warp);
    }

    fn advance(&mut self, warp: usize) {
        self.rows[warp * self.warps + warp] += 1;
    }

    /// After a strong write: one with release hands on what the warp knows, another what it knew at its last fence.
    pub(super) fn publish(&mut self, warp: usize, address: u64, release: bool) {
        let row = self.row(warp);
        let from = if release { &self.rows[row] } else { self.fenced.get(row).unwrap_or_default() };
        if from.iter().all(|&clock| clock == 0) {
            return;
        }
        raise(self.releases.entry(address).or_insert_with(|| vec![0; self.warps]), from);
        if release {
            self.advance(warp);
        }
    }

    /// A strong read: with acquire it takes over what was handed on there, otherwise the next fence does.
    pub(super) fn observe(&mut self, warp: usize, address: u64, acquire: bool) {
        if self.releases.is_empty() {
            return;
        }
        let Some(entry) = self.releases.get(&address) else { return };
        if acquire {
            let entry = entry.clone();
            self.take_over(warp, &entry);
        } else {
            self.seen.resize(self.rows.len(), 0);
            raise(&mut self.seen[warp * self.warps..], entry);
        }
    }

    pub(super) fn fence(&mut self, warp: usize) {
        let row = self.row(warp);
        if let Some(seen) = self.seen.get_mut(row.clone()) {
            let found = seen.to_vec();
            seen.fill(0);
            self.take_over(warp, &found);
        }
        self.fenced.resize(self.rows.len(), 0);
        self.fenced[row.clone()].copy_from_slice(&self.rows[row]);
        self.advance(warp);
    }

    fn take_over(&mut self, warp: usize, from: &[u32]) {
        // What was handed on by the own warp came from another of its lanes.
        self.synced[warp] = self.synced[warp].max(from[warp] + 1);
        let row = self.row(warp);
        raise(&mut self.rows[row], from);
    }
}
