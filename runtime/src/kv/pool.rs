//! One cache group's pages: which are free, which are held, and which only remember.
//!
//! A page is in one of three states. *Held*: at least one block table has it. *Idle*: none has it, but it still holds
//! tokens that a later request may ask for. *Free*: neither. When no page is free, the owner with the most idle pages loses
//! the one that was idle longest, so that a flood of one costs no other anything.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::prefix::Link;
use crate::device::GroupLimits;

/// The pages of a cache group.
#[derive(Debug)]
pub(super) struct Pool {
    pub page_tokens: usize,
    /// How many of a sequence's last positions are read; `None` for all.
    pub window: Option<usize>,
    pages: Vec<Page>,
    free: Vec<u32>, // the last is taken first
    index: HashMap<[u8; 32], u32>,
    idle: BTreeMap<u64, u32>,                   // by stamp: oldest first
    idle_of: BTreeMap<u64, BTreeMap<u64, u32>>, // likewise, by owner
    clock: u64,
}

#[derive(Debug, Default)]
struct Page {
    holders: u32,
    link: Option<Arc<Link>>,
    stamp: u64, // when it became idle
}

impl Pool {
    pub fn new(limits: &GroupLimits) -> Pool {
        Pool {
            page_tokens: limits.page_tokens.max(1) as usize,
            window: limits.window.map(|window| window as usize),
            pages: (0..limits.pages).map(|_| Page::default()).collect(),
            free: (0..limits.pages).rev().collect(),
            index: HashMap::new(),
            idle: BTreeMap::new(),
            idle_of: BTreeMap::new(),
            clock: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Pages that can be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Pages that nobody holds and that remember tokens.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Takes a page to write into; the caller has checked that one is available.
    pub fn take(&mut self) -> u32 {
        if self.free.is_empty()
            && let Some(own) = self.idle_of.values().max_by_key(|own| own.len())
            && let Some((_, &page)) = own.first_key_value()
        {
            self.forget(page);
        }
        let page = self.free.pop().expect("the caller has counted the available pages");
        self.pages[page as usize].holders = 1;
        page
    }

    /// Adds a holder to a page that is held or idle.
    pub fn hold(&mut self, page: u32) {
        if self.pages[page as usize].holders == 0 {
            self.wake(page);
        }
        self.pages[page as usize].holders += 1;
    }

    /// Removes a holder. Of an owner's idle pages at most `quota` stay.
    pub fn drop_holder(&mut self, page: u32, quota: usize) {
        let entry = &mut self.pages[page as usize];
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        let Some(link) = &entry.link else { return self.free.push(page) };
        let owner = link.owner();
        self.clock += 1;
        entry.stamp = self.clock;
        self.idle.insert(self.clock, page);
        let own = self.idle_of.entry(owner).or_default();
        own.insert(self.clock, page);
        if own.len() > quota
            && let Some((_, &oldest)) = own.first_key_value()
        {
            self.forget(oldest);
        }
    }

    /// Whether others hold a page or it remembers, so that it must not be written.
    pub fn is_shared(&self, page: u32) -> bool {
        let page = &self.pages[page as usize];
        page.holders > 1 || page.link.is_some()
    }

    /// The page of this name and what it holds.
    pub fn find(&self, name: &[u8; 32]) -> Option<(u32, &Arc<Link>)> {
        let page = *self.index.get(name)?;
        Some((page, self.pages[page as usize].link.as_ref()?))
    }

    /// Remembers what a held page contains, unless another page is known by that name.
    pub fn remember(&mut self, page: u32, link: &Arc<Link>) {
        if self.pages[page as usize].link.is_none() && !self.index.contains_key(&link.name()) {
            self.index.insert(link.name(), page);
            self.pages[page as usize].link = Some(Arc::clone(link));
        }
    }

    /// Forgets what a held page contains.
    pub fn disown(&mut self, page: u32) {
        if let Some(link) = self.pages[page as usize].link.take() {
            self.index.remove(&link.name());
        }
    }

    /// Forgets every idle page.
    pub fn forget_all(&mut self) {
        while let Some((_, &page)) = self.idle.first_key_value() {
            self.forget(page);
        }
    }

    /// Frees an idle page.
    fn forget(&mut self, page: u32) {
        self.wake(page);
        if let Some(link) = self.pages[page as usize].link.take() {
            self.index.remove(&link.name());
        }
        self.free.push(page);
    }

    /// Takes a page out of the idle ones.
    fn wake(&mut self, page: u32) {
        let entry = &self.pages[page as usize];
        self.idle.remove(&entry.stamp);
        if let Some(link) = &entry.link
            && let Some(own) = self.idle_of.get_mut(&link.owner())
        {
            own.remove(&entry.stamp);
            if own.is_empty() {
                self.idle_of.remove(&link.owner());
            }
        }
    }

    /// Checks the pool against how many tables hold each page.
    pub fn check(&self, holders: &[u32]) -> Result<(), String> {
        let mut free = vec![false; self.pages.len()];
        for &page in &self.free {
            if std::mem::replace(&mut free[page as usize], true) {
                return Err(format!("page {page} is free twice"));
            }
        }
        let (mut idle, mut remembered) = (0, 0);
        for (number, (page, &held)) in self.pages.iter().zip(holders).enumerate() {
            if page.holders != held {
                return Err(format!("page {number} counts {} holders, {held} tables hold it", page.holders));
            }
            let is_idle = held == 0 && page.link.is_some();
            if is_idle {
                idle += 1;
                if self.idle.get(&page.stamp) != Some(&(number as u32)) {
                    return Err(format!("page {number} is idle, and not in the list of those"));
                }
            }
            if free[number] != (held == 0 && !is_idle) {
                return Err(format!("page {number} has {held} holders, free: {}", free[number]));
            }
            if let Some(link) = &page.link {
                remembered += 1;
                if self.index.get(&link.name()) != Some(&(number as u32)) || link.tokens().len() != self.page_tokens {
                    return Err(format!("page {number} is not what the index says"));
                }
            }
        }
        let by_owner: usize = self.idle_of.values().map(BTreeMap::len).sum();
        if (idle, idle, remembered) != (self.idle.len(), by_owner, self.index.len()) {
            return Err(format!("{idle} pages are idle and {remembered} remember, the lists say otherwise"));
        }
        Ok(())
    }

    /// The tokens that each page remembers, for tests against what a device holds.
    pub fn remembered(&self) -> impl Iterator<Item = (u32, &[u32])> {
        (0..).zip(&self.pages).filter_map(|(number, page)| Some((number, page.link.as_ref()?.tokens())))
    }
}
