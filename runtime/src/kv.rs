//! The pages of the cache, who holds them, and what they remember.
//!
//! Each cache group has its own pool of pages. A sequence holds, per group, a block table: the pages of its positions in
//! order. Pages are counted: a fork shares its parent's pages, and whichever of the two writes first to the shared last
//! page gets a copy of it. In a group with a window, pages wholly before a sequence's window go back while it runs; their
//! entries in the table are never read.
//!
//! Full pages are remembered by their tokens ([`prefix`]), so that a sequence that begins like an earlier one takes its
//! pages instead of computing them. A hit needs all pages of a group that keeps everything, and in a group with a window
//! those that the window reaches.
//!
//! Nothing here touches memory; copies are left for the next step to make. Page numbers follow from the order of calls
//! alone, so that a simulation repeats exactly.

mod pool;
pub mod prefix;

use std::sync::Arc;

use self::{
    pool::Pool,
    prefix::{Link, Root},
};
use crate::device::{GroupLimits, PageCopy};

/// How a cache remembers. None of it changes a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Whether full pages are remembered.
    pub remember: bool,
    /// The key of the hashes that name pages; random in a process that serves.
    pub secret: [u8; 32],
    /// The most idle pages of one owner in a group, in percent of its pages.
    pub quota_percent: u32,
    /// Bits of a page's name: 256, and fewer only to see what collisions do.
    pub name_bits: u32,
    /// The most tokens of a sequence in a step.
    pub chunk: usize,
}

impl Default for CacheOptions {
    fn default() -> CacheOptions {
        CacheOptions { remember: true, secret: [0; 32], quota_percent: 100, name_bits: 256, chunk: 1 }
    }
}

/// The pools of all cache groups.
#[derive(Debug)]
pub struct Cache {
    groups: Vec<Pool>,
    options: CacheOptions,
    sizes: Vec<usize>, // the distinct page sizes
    unit: usize,       // a hit is a multiple of this: the least common multiple of the page sizes
}

/// What a sequence holds: a block table per cache group. It goes back to the cache through [`Cache::release`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    groups: Vec<Held>,
    tokens: usize,
}

/// The pages of a sequence in one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    pages: Vec<u32>,
    released: usize, // how many of the first entries hold nothing any more
    named: usize,    // how many of the first pages the pool was told to remember
}

/// The names of a sequence's full pages, one chain for each page size.
#[derive(Debug, Default)]
pub struct Chain(Vec<Vec<Arc<Link>>>);

impl BlockTable {
    /// Positions that the sequence has been granted.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The tables, in the order of the cache groups.
    pub fn groups(&self) -> impl Iterator<Item = &[u32]> {
        self.groups.iter().map(|held| held.pages.as_slice())
    }
}

impl Cache {
    /// An empty cache that remembers as [`CacheOptions::default`] says.
    pub fn new(groups: &[GroupLimits]) -> Cache {
        Cache::with_options(groups, CacheOptions::default())
    }

    /// An empty cache.
    pub fn with_options(groups: &[GroupLimits], options: CacheOptions) -> Cache {
        let groups: Vec<Pool> = groups.iter().map(Pool::new).collect();
        let mut sizes: Vec<usize> = groups.iter().map(|pool| pool.page_tokens).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let unit = sizes.iter().copied().fold(1, lcm);
        Cache { groups, options, sizes, unit }
    }

    /// The most tokens that one sequence can have in an empty cache; `None` when nothing limits it.
    pub fn capacity(&self) -> Option<usize> {
        let bounded = |pool: &&Pool| pool.most_pages(usize::MAX, self.options.chunk) > pool.len();
        self.groups.iter().filter(bounded).map(|pool| pool.len() * pool.page_tokens).min()
    }

    /// Pages that can be taken, in all groups: those without a holder.
    pub fn free_pages(&self) -> usize {
        self.groups.iter().map(Pool::available).sum()
    }

    /// Pages without a holder that remember tokens, in all groups.
    pub fn idle_pages(&self) -> usize {
        self.groups.iter().map(Pool::idle).sum()
    }

    /// Pages in all groups.
    pub fn pages(&self) -> usize {
        self.groups.iter().map(Pool::len).sum()
    }

    /// Whether there are pages for each of these tables to grow to so many tokens.
    pub fn has_room_for(&self, tables: &[(&BlockTable, usize)]) -> bool {
        self.groups.iter().enumerate().all(|(index, pool)| {
            let missing = |(table, tokens): &(&BlockTable, usize)| {
                let held = table.groups.get(index).map_or(0, |held| held.pages.len() - held.released);
                pool.most_pages(*tokens, self.options.chunk).saturating_sub(held)
            };
            tables.iter().map(missing).sum::<usize>() <= pool.available()
        })
    }

    /// A table of a new sequence, without pages.
    pub fn table(&self) -> BlockTable {
        BlockTable { groups: vec![Held::default(); self.groups.len()], tokens: 0 }
    }

    /// Makes positions up to `tokens` writable, and adds the page copies that this takes. Without enough pages it changes
    /// nothing and returns false.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize, copies: &mut Vec<PageCopy>) -> bool {
        if tokens <= table.tokens {
            return true;
        }
        let written = table.tokens;
        let enough = self.groups.iter().zip(&table.groups).all(|(pool, held)| {
            let missing = tokens.div_ceil(pool.page_tokens) - held.pages.len();
            missing + usize::from(pool.shared_tail(held, written).is_some()) <= pool.available()
        });
        if !enough {
            return false;
        }
        for (index, (pool, held)) in self.groups.iter_mut().zip(&mut table.groups).enumerate() {
            if let Some(tail) = pool.shared_tail(held, written) {
                let from = held.pages[tail];
                // Taken before the old page is let go, which must survive until the copy is made.
                let to = pool.take();
                pool.drop_holder(from, usize::MAX);
                held.pages[tail] = to;
                copies.push(PageCopy { group: index as u32, from, to });
            }
            while held.pages.len() * pool.page_tokens < tokens {
                held.pages.push(pool.take());
            }
        }
        table.tokens = tokens;
        true
    }

    /// Lets go of the positions from `tokens` on, which nothing remembers: what was written there is not wanted.
    pub fn shrink(&mut self, table: &mut BlockTable, tokens: usize) {
        if tokens >= table.tokens {
            return;
        }
        for (pool, held) in self.groups.iter_mut().zip(&mut table.groups) {
            let needed = tokens.div_ceil(pool.page_tokens).max(held.released);
            // Backwards, so that the next pages are the same in the same order.
            while held.pages.len() > needed
                && let Some(page) = held.pages.pop()
            {
                pool.drop_holder(page, usize::MAX);
            }
        }
        table.tokens = tokens;
    }

    /// A second table with the pages of the first `tokens` positions; `None` when some of what a window still reaches from
    /// there has gone back.
    pub fn fork(&mut self, table: &BlockTable, tokens: usize) -> Option<BlockTable> {
        let tokens = tokens.min(table.tokens);
        let reaches = |(pool, held): (&Pool, &Held)| held.released <= pool.first_kept(tokens);
        if !self.groups.iter().zip(&table.groups).all(reaches) {
            return None;
        }
        let mut fork = BlockTable { groups: Vec::new(), tokens };
        for (pool, held) in self.groups.iter_mut().zip(&table.groups) {
            let pages = held.pages[..tokens.div_ceil(pool.page_tokens)].to_vec();
            let released = held.released.min(pages.len());
            pages[released..].iter().for_each(|&page| pool.hold(page));
            fork.groups.push(Held { pages, released, named: held.named.min(tokens / pool.page_tokens) });
        }
        Some(fork)
    }

    /// Takes a table's pages back; it is empty afterwards.
    pub fn release(&mut self, table: &mut BlockTable) {
        for (pool, held) in self.groups.iter_mut().zip(&mut table.groups) {
            let quota = pool.quota(self.options.quota_percent);
            // Backwards, so that the next sequence gets the same pages in the same order, and so that of what is remembered
            // the end goes first: the beginning is what others share.
            for page in held.pages.drain(held.released..).rev() {
                pool.drop_holder(page, quota);
            }
            *held = Held::default();
        }
        table.tokens = 0;
    }

    /// Gives back the pages that no position from `computed` on can reach.
    pub fn slide(&mut self, table: &mut BlockTable, computed: usize) {
        for (pool, held) in self.groups.iter_mut().zip(&mut table.groups) {
            let quota = pool.quota(self.options.quota_percent);
            let kept = pool.first_kept(computed).min(held.pages.len());
            for page in &mut held.pages[held.released.min(kept)..kept] {
                pool.drop_holder(std::mem::take(page), quota);
            }
            held.released = held.released.max(kept);
        }
    }

    /// Adds the names of all full pages of `tokens` that the chain lacks.
    pub fn extend(&self, chain: &mut Chain, root: Root, tokens: &[u32]) {
        chain.0.resize_with(self.sizes.len(), Vec::new);
        for (&size, links) in self.sizes.iter().zip(&mut chain.0) {
            for page in tokens.chunks_exact(size).skip(links.len()) {
                let CacheOptions { secret, name_bits, .. } = &self.options;
                let mut link = Arc::new(Link::new(secret, *name_bits, root, links.last(), page));
                // Equal links become one, which keeps comparing them short.
                let pools = self.groups.iter().filter(|pool| pool.page_tokens == size);
                let mut known = pools.filter_map(|pool| pool.find(&link.name())).map(|(_, known)| known);
                if let Some(known) = known.rfind(|known| known.is_same(&link)).cloned() {
                    link = known;
                }
                links.push(link);
            }
        }
    }

    /// How many of a sequence's first tokens, at most `most`, are remembered, and in which pages per group. The pages
    /// before a group's window are zeros.
    pub fn look_up(&self, chain: &Chain, most: usize) -> (usize, Vec<Vec<u32>>) {
        let found: Vec<Vec<Option<u32>>> = self.groups.iter().map(|pool| self.matches(pool, chain, most)).collect();
        let mut tokens = most / self.unit * self.unit;
        for (pool, found) in self.groups.iter().zip(&found) {
            if pool.window.is_none() {
                let run = found.iter().take_while(|page| page.is_some()).count();
                tokens = tokens.min(run * pool.page_tokens) / self.unit * self.unit;
            }
        }
        let fits = |tokens: usize| {
            self.groups.iter().zip(&found).all(|(pool, found)| {
                let end = tokens / pool.page_tokens;
                found[pool.first_kept(tokens).min(end)..end].iter().all(Option::is_some)
            })
        };
        while tokens > 0 && !fits(tokens) {
            tokens -= self.unit;
        }
        let pages = self.groups.iter().zip(&found).map(|(pool, found)| {
            let kept = pool.first_kept(tokens);
            let page = |(index, page): (usize, &Option<u32>)| if index < kept { 0 } else { page.unwrap_or_default() };
            found[..tokens / pool.page_tokens].iter().enumerate().map(page).collect()
        });
        if self.groups.is_empty() { (0, Vec::new()) } else { (tokens, pages.collect()) }
    }

    /// Gives an empty table the pages that [`Cache::look_up`] found.
    pub fn adopt(&mut self, table: &mut BlockTable, tokens: usize, pages: Vec<Vec<u32>>) {
        for ((pool, held), pages) in self.groups.iter_mut().zip(&mut table.groups).zip(pages) {
            let released = pool.first_kept(tokens).min(pages.len());
            pages[released..].iter().for_each(|&page| pool.hold(page));
            *held = Held { named: pages.len(), pages, released };
        }
        table.tokens = tokens;
    }

    /// Remembers the full pages of a sequence whose first `computed` tokens are in the cache.
    pub fn remember(&mut self, table: &mut BlockTable, chain: &Chain, computed: usize) {
        if !self.options.remember {
            return;
        }
        for (pool, held) in self.groups.iter_mut().zip(&mut table.groups) {
            let Some(links) = self.sizes.iter().position(|&size| size == pool.page_tokens).map(|at| &chain.0[at])
            else {
                continue;
            };
            let full = (computed / pool.page_tokens).min(links.len()).min(held.pages.len());
            let new = held.named.max(held.released).min(full)..full;
            for (&page, link) in held.pages[new.clone()].iter().zip(&links[new]) {
                pool.remember(page, link);
            }
            held.named = held.named.max(full);
        }
    }

    /// Forgets what the pages of a table contain, so that no other sequence takes them.
    pub fn disown(&mut self, table: &BlockTable) {
        for (pool, held) in self.groups.iter_mut().zip(&table.groups) {
            held.pages[held.released..].iter().for_each(|&page| pool.disown(page));
        }
    }

    /// Forgets everything that nobody holds.
    pub fn forget(&mut self) {
        self.groups.iter_mut().for_each(Pool::forget_all);
    }

    /// Whether full pages are remembered.
    pub fn remembers(&self) -> bool {
        self.options.remember
    }

    /// Checks, given all live tables: every page is counted exactly as often as tables hold it, is free or idle exactly when
    /// none does, and every table has just the pages that its tokens need.
    pub fn check_integrity(&self, live: &[&BlockTable]) -> Result<(), String> {
        for (index, pool) in self.groups.iter().enumerate() {
            let mut holders = vec![0; pool.len()];
            for table in live {
                let held = table.groups.get(index).ok_or("a table lacks a cache group")?;
                if held.pages.len() != table.tokens.div_ceil(pool.page_tokens) || held.released > held.pages.len() {
                    let (tokens, pages) = (table.tokens, held.pages.len());
                    return Err(format!("a table of {tokens} tokens holds {pages} pages in group {index}"));
                }
                for &page in &held.pages[held.released..] {
                    let holders = holders.get_mut(page as usize);
                    *holders.ok_or_else(|| format!("page {page} of group {index} does not exist"))? += 1;
                }
            }
            pool.check(&holders).map_err(|error| format!("group {index}: {error}"))?;
        }
        Ok(())
    }

    /// The tokens that the pages of a group remember, by page, for tests against what a device holds.
    pub fn remembered(&self, group: usize) -> impl Iterator<Item = (u32, &[u32])> {
        self.groups[group].remembered()
    }

    /// The page of each full page of a chain in one pool, where it is remembered.
    fn matches(&self, pool: &Pool, chain: &Chain, most: usize) -> Vec<Option<u32>> {
        let links = self.sizes.iter().position(|&size| size == pool.page_tokens).and_then(|at| chain.0.get(at));
        let mut previous: Option<&Arc<Link>> = None;
        let mut found = Vec::new();
        for link in links.into_iter().flatten().take(most / pool.page_tokens) {
            let page = pool.find(&link.name()).filter(|(_, known)| {
                // Where the page before was compared already, this page's tokens are all that is left to compare.
                let follows = previous.is_some_and(|p| known.parent().is_some_and(|parent| Arc::ptr_eq(parent, p)));
                if follows { known.is_same_page(link) } else { known.is_same(link) }
            });
            previous = page.map(|(_, known)| known);
            found.push(page.map(|(page, _)| page));
        }
        found.resize(most / pool.page_tokens, None);
        found
    }
}

impl Pool {
    /// The index of a last page that is partly written and must not be written by its holder.
    fn shared_tail(&self, held: &Held, written: usize) -> Option<usize> {
        let tail = written / self.page_tokens;
        let partly = !written.is_multiple_of(self.page_tokens);
        (partly && self.is_shared(held.pages[tail])).then_some(tail)
    }

    /// The first page that a position from `computed` on can reach.
    fn first_kept(&self, computed: usize) -> usize {
        self.window.map_or(0, |window| computed.saturating_sub(window) / self.page_tokens)
    }

    /// The most pages that a sequence holds at once on its way to so many tokens.
    fn most_pages(&self, tokens: usize, chunk: usize) -> usize {
        let all = tokens.div_ceil(self.page_tokens);
        // The window and a step's chunk may begin and end anywhere within a page.
        self.window.map_or(all, |window| all.min(window.saturating_add(chunk).div_ceil(self.page_tokens) + 1))
    }

    fn quota(&self, percent: u32) -> usize {
        self.len() * percent as usize / 100
    }
}

/// The least common multiple.
fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

#[cfg(test)]
mod tests;
