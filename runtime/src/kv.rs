//! The pages of the cache and who holds them.
//!
//! Each cache group has its own pool of pages. A sequence holds, per group, a block table: the pages of its positions in
//! order. Pages are counted: a fork shares its parent's pages, and whichever of the two writes first to the shared last
//! page gets a copy of it. Nothing here touches memory; the copies are left for the next step to make.
//!
//! Page numbers follow from the order of calls alone, so that a simulation repeats exactly.

use crate::device::{GroupLimits, PageCopy};

/// The pools of all cache groups.
#[derive(Debug)]
pub struct Cache {
    groups: Vec<Pool>,
}

#[derive(Debug)]
struct Pool {
    page_tokens: usize,
    holders: Vec<u32>, // [pages] how many block tables hold each page
    free: Vec<u32>,    // pages without a holder; the last is taken first
}

/// What a sequence holds: a block table per cache group. It goes back to the cache through [`Cache::release`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    groups: Vec<Vec<u32>>,
    tokens: usize,
}

impl BlockTable {
    /// Positions that the sequence has been granted.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The tables, in the order of the cache groups.
    pub fn groups(&self) -> impl Iterator<Item = &[u32]> {
        self.groups.iter().map(Vec::as_slice)
    }
}

impl Cache {
    /// An empty cache.
    pub fn new(groups: &[GroupLimits]) -> Cache {
        let pool = |group: &GroupLimits| Pool {
            page_tokens: group.page_tokens.max(1) as usize,
            holders: vec![0; group.pages as usize],
            free: (0..group.pages).rev().collect(),
        };
        Cache { groups: groups.iter().map(pool).collect() }
    }

    /// The most tokens that one sequence can have in an empty cache; `None` when nothing limits it.
    pub fn capacity(&self) -> Option<usize> {
        self.groups.iter().map(|pool| pool.holders.len() * pool.page_tokens).min()
    }

    /// Pages without a holder, in all groups.
    pub fn free_pages(&self) -> usize {
        self.groups.iter().map(|pool| pool.free.len()).sum()
    }

    /// Pages in all groups.
    pub fn pages(&self) -> usize {
        self.groups.iter().map(|pool| pool.holders.len()).sum()
    }

    /// Whether a new sequence of so many tokens fits into the free pages.
    pub fn has_room(&self, tokens: usize) -> bool {
        self.groups.iter().all(|pool| tokens.div_ceil(pool.page_tokens) <= pool.free.len())
    }

    /// A table of a new sequence, without pages.
    pub fn table(&self) -> BlockTable {
        BlockTable { groups: vec![Vec::new(); self.groups.len()], tokens: 0 }
    }

    /// Makes positions up to `tokens` writable, and adds the page copies that this takes. Without enough free pages it
    /// changes nothing and returns false.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize, copies: &mut Vec<PageCopy>) -> bool {
        if tokens <= table.tokens {
            return true;
        }
        let written = table.tokens;
        let enough = self.groups.iter().zip(&table.groups).all(|(pool, pages)| {
            let missing = tokens.div_ceil(pool.page_tokens) - pages.len();
            missing + usize::from(pool.shared_tail(pages, written).is_some()) <= pool.free.len()
        });
        if !enough {
            return false;
        }
        for (index, (pool, pages)) in self.groups.iter_mut().zip(&mut table.groups).enumerate() {
            if let Some(tail) = pool.shared_tail(pages, written) {
                let from = pages[tail];
                let to = pool.take();
                pool.drop_holder(from);
                pages[tail] = to;
                copies.push(PageCopy { group: index as u32, from, to });
            }
            while pages.len() * pool.page_tokens < tokens {
                pages.push(pool.take());
            }
        }
        table.tokens = tokens;
        true
    }

    /// A second table with the same pages.
    pub fn fork(&mut self, table: &BlockTable) -> BlockTable {
        for (pool, pages) in self.groups.iter_mut().zip(&table.groups) {
            for &page in pages {
                pool.holders[page as usize] += 1;
            }
        }
        BlockTable { groups: table.groups.clone(), tokens: table.tokens }
    }

    /// Takes a table's pages back; it is empty afterwards.
    pub fn release(&mut self, table: &mut BlockTable) {
        for (pool, pages) in self.groups.iter_mut().zip(&mut table.groups) {
            // Backwards, so that the next sequence gets the same pages in the same order.
            for page in pages.drain(..).rev() {
                pool.drop_holder(page);
            }
        }
        table.tokens = 0;
    }

    /// Checks, given all live tables: every page is counted exactly as often as tables hold it, is free exactly when none
    /// does, and every table has just the pages that its tokens need.
    pub fn check_integrity(&self, live: &[&BlockTable]) -> Result<(), String> {
        for (index, pool) in self.groups.iter().enumerate() {
            let mut holders = vec![0; pool.holders.len()];
            for table in live {
                let pages = table.groups.get(index).ok_or("a table lacks a cache group")?;
                if pages.len() != table.tokens.div_ceil(pool.page_tokens) {
                    return Err(format!(
                        "a table of {} tokens holds {} pages in group {index}",
                        table.tokens,
                        pages.len()
                    ));
                }
                for &page in pages {
                    *holders
                        .get_mut(page as usize)
                        .ok_or_else(|| format!("page {page} of group {index} does not exist"))? += 1;
                }
            }
            if let Some(page) = (0..holders.len()).find(|&page| holders[page] != pool.holders[page]) {
                let (found, held) = (pool.holders[page], holders[page]);
                return Err(format!("page {page} of group {index} counts {found} holders, {held} tables hold it"));
            }
            let mut free = vec![false; holders.len()];
            for &page in &pool.free {
                if std::mem::replace(&mut free[page as usize], true) {
                    return Err(format!("page {page} of group {index} is free twice"));
                }
            }
            if let Some(page) = (0..holders.len()).find(|&page| free[page] != (holders[page] == 0)) {
                return Err(format!(
                    "page {page} of group {index} has {} holders, free: {}",
                    holders[page], free[page]
                ));
            }
        }
        Ok(())
    }
}

impl Pool {
    /// The index of a last page that is partly written and that others hold too.
    fn shared_tail(&self, pages: &[u32], written: usize) -> Option<usize> {
        let tail = written / self.page_tokens;
        let partly = !written.is_multiple_of(self.page_tokens);
        (partly && self.holders[pages[tail] as usize] > 1).then_some(tail)
    }

    /// Takes a free page; the caller has checked that there is one.
    fn take(&mut self) -> u32 {
        let page = self.free.pop().expect("grow has counted the free pages");
        self.holders[page as usize] = 1;
        page
    }

    fn drop_holder(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests;
