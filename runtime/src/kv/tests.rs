//! A seeded simulation of the cache against a plain model of who holds what.

use super::*;
use crate::sample::mix;

fn groups() -> Vec<GroupLimits> {
    vec![
        GroupLimits { page_tokens: 4, pages: 40, window: None },
        GroupLimits { page_tokens: 16, pages: 12, window: None },
    ]
}

#[track_caller]
fn sound(cache: &Cache, live: &[BlockTable]) {
    sound_of(cache, &live.iter().collect::<Vec<_>>());
}

#[track_caller]
fn sound_of(cache: &Cache, live: &[&BlockTable]) {
    cache.check_integrity(live).unwrap();
}

#[test]
fn growing_takes_just_the_pages_that_are_needed() {
    let mut cache = Cache::new(&groups());
    let (mut table, mut copies) = (cache.table(), Vec::new());
    assert_eq!(cache.capacity(), Some(160));
    for (tokens, pages) in [(1, [1, 1]), (4, [1, 1]), (5, [2, 1]), (17, [5, 2])] {
        assert!(cache.grow(&mut table, tokens, &mut copies));
        assert_eq!(table.groups().map(<[u32]>::len).collect::<Vec<_>>(), pages);
    }
    assert!(copies.is_empty());
    sound(&cache, &[table]);
}

#[test]
fn growing_without_enough_pages_changes_nothing() {
    let mut cache = Cache::new(&groups());
    let (mut table, mut copies) = (cache.table(), Vec::new());
    assert!(cache.grow(&mut table, 100, &mut copies));
    let free = cache.free_pages();
    assert!(!cache.grow(&mut table, 161, &mut copies));
    assert_eq!((cache.free_pages(), table.tokens()), (free, 100));
    assert!(cache.grow(&mut table, 160, &mut copies));
    let one = cache.table();
    assert!(!cache.has_room_for(&[(&one, 1)]));
    cache.release(&mut table);
    assert_eq!(cache.free_pages(), cache.pages());
}

#[test]
fn what_a_table_shrinks_by_goes_back_and_the_rest_stays() {
    let groups = [groups()[0], GroupLimits { page_tokens: 4, pages: 12, window: Some(6) }];
    let mut cache = Cache::new(&groups);
    let (mut table, mut copies) = (cache.table(), Vec::new());
    assert!(cache.grow(&mut table, 30, &mut copies));
    cache.slide(&mut table, 20);
    let (free, held) = (cache.free_pages(), table.groups[0].pages.clone());
    cache.shrink(&mut table, 40);
    assert_eq!((cache.free_pages(), table.tokens()), (free, 30));
    cache.shrink(&mut table, 21);
    sound_of(&cache, &[&table]);
    // Of 8 pages in each group those for 21 tokens stay.
    assert_eq!((cache.free_pages(), table.tokens()), (free + 4, 21));
    assert!(cache.grow(&mut table, 30, &mut copies));
    assert_eq!((cache.free_pages(), &table.groups[0].pages, copies.len()), (free, &held, 0));
    sound(&cache, &[table]);
}

#[test]
fn a_fork_copies_its_last_page_when_it_writes_there() {
    let mut cache = Cache::new(&groups()[..1]);
    let (mut parent, mut copies) = (cache.table(), Vec::new());
    cache.grow(&mut parent, 6, &mut copies);
    let mut child = cache.fork(&parent, parent.tokens()).unwrap();
    let shared = parent.groups[0].pages[1];
    assert!(cache.grow(&mut child, 7, &mut copies));
    assert_eq!(copies, [PageCopy { group: 0, from: shared, to: child.groups[0].pages[1] }]);
    assert_ne!(shared, child.groups[0].pages[1]);
    assert_eq!(parent.groups[0].pages[0], child.groups[0].pages[0]);
    // The parent holds its page alone now, so it writes in place.
    copies.clear();
    assert!(cache.grow(&mut parent, 8, &mut copies));
    assert!(copies.is_empty());
    sound(&cache, &[parent, child]);
}

#[test]
fn a_fork_at_a_page_boundary_copies_nothing() {
    let mut cache = Cache::new(&groups()[..1]);
    let (mut parent, mut copies) = (cache.table(), Vec::new());
    cache.grow(&mut parent, 8, &mut copies);
    let mut child = cache.fork(&parent, parent.tokens()).unwrap();
    assert!(cache.grow(&mut child, 9, &mut copies));
    assert!(copies.is_empty());
    sound(&cache, &[parent, child]);
}

#[test]
fn integrity_notices_a_leak_and_a_table_held_twice() {
    let mut cache = Cache::new(&groups());
    let (mut table, mut copies) = (cache.table(), Vec::new());
    cache.grow(&mut table, 20, &mut copies);
    assert!(cache.check_integrity(&[]).is_err());
    assert!(cache.check_integrity(&[&table, &table]).is_err());
    assert!(cache.check_integrity(&[&table]).is_ok());
}

/// Random growth, forks and releases. A model writes a number into each position, through the block tables and copies, and
/// every sequence must read back just what it wrote.
#[test]
fn random_use_keeps_every_sequence_its_own_tokens() {
    for seed in 0..20 {
        let mut state = seed;
        let mut random = move |below: usize| {
            state += 1;
            (mix(mix(seed) ^ state) % below as u64) as usize
        };
        let limits = groups();
        let mut cache = Cache::new(&limits);
        let mut memory: Vec<Vec<u64>> =
            limits.iter().map(|group| vec![0; (group.pages * group.page_tokens) as usize]).collect();
        let mut live: Vec<BlockTable> = Vec::new();
        let mut written: Vec<Vec<u64>> = Vec::new();
        let (mut forks, mut refusals, mut copied) = (0, 0, 0);
        for step in 0..2000u64 {
            match random(10) {
                0 => {
                    live.push(cache.table());
                    written.push(Vec::new());
                }
                1 if !live.is_empty() => {
                    let index = random(live.len());
                    let tokens = live[index].tokens();
                    let fork = cache.fork(&live[index], tokens).unwrap();
                    live.push(fork);
                    written.push(written[index].clone());
                    forks += 1;
                }
                2 if !live.is_empty() => {
                    let index = random(live.len());
                    cache.release(&mut live.swap_remove(index));
                    written.swap_remove(index);
                }
                _ if !live.is_empty() => {
                    let index = random(live.len());
                    let tokens = live[index].tokens() + 1 + random(12);
                    let mut copies = Vec::new();
                    if cache.grow(&mut live[index], tokens, &mut copies) {
                        copied += copies.len();
                        for copy in &copies {
                            let size = limits[copy.group as usize].page_tokens as usize;
                            let from = copy.from as usize * size;
                            memory[copy.group as usize].copy_within(from..from + size, copy.to as usize * size);
                        }
                        for position in written[index].len()..tokens {
                            let value = mix(step << 20 | position as u64);
                            written[index].push(value);
                            for (group, memory) in memory.iter_mut().enumerate() {
                                memory[slot(&live[index], &limits, group, position)] = value;
                            }
                        }
                    } else {
                        refusals += 1;
                    }
                }
                _ => {}
            }
            sound(&cache, &live);
            for (table, written) in live.iter().zip(&written) {
                for (group, memory) in memory.iter().enumerate() {
                    for (position, value) in written.iter().enumerate() {
                        assert_eq!(memory[slot(table, &limits, group, position)], *value, "seed {seed}, step {step}");
                    }
                }
            }
        }
        assert!(forks > 0 && refusals > 0 && copied > 0, "seed {seed} exercised too little");
        for table in &mut live {
            cache.release(table);
        }
        assert_eq!(cache.free_pages(), cache.pages());
    }
}

fn slot(table: &BlockTable, limits: &[GroupLimits], group: usize, position: usize) -> usize {
    let size = limits[group].page_tokens as usize;
    table.groups[group].pages[position / size] as usize * size + position % size
}

/// Remembers the pages of `tokens` in a fresh table and gives them back.
fn fill(cache: &mut Cache, root: Root, tokens: &[u32]) {
    let (mut table, mut chain) = (cache.table(), Chain::default());
    assert!(cache.grow(&mut table, tokens.len(), &mut Vec::new()));
    cache.extend(&mut chain, root, tokens);
    cache.remember(&mut table, &chain, tokens.len());
    cache.slide(&mut table, tokens.len());
    cache.release(&mut table);
}

/// How many tokens of a sequence are found.
fn hit(cache: &Cache, root: Root, tokens: &[u32]) -> usize {
    let mut chain = Chain::default();
    cache.extend(&mut chain, root, tokens);
    cache.look_up(&chain, tokens.len() - 1).0
}

fn numbers(from: u32, count: u32) -> Vec<u32> {
    (from..from + count).collect()
}

#[test]
fn a_hit_ends_before_the_last_token_and_at_a_page_of_every_group() {
    let mut cache = Cache::new(&groups());
    fill(&mut cache, Root::default(), &numbers(0, 40));
    for (length, found) in [(16, 0), (17, 16), (32, 16), (33, 32), (40, 32)] {
        assert_eq!(hit(&cache, Root::default(), &numbers(0, length)), found, "{length} tokens");
    }
    let mut other = numbers(0, 40);
    other[20] = 99;
    assert_eq!(hit(&cache, Root::default(), &other), 16);
    assert_eq!(hit(&cache, Root { owner: 1, name: [1; 32] }, &numbers(0, 40)), 0, "another owner's pages");
    assert_eq!(cache.free_pages(), cache.pages(), "what only remembers can be taken");
}

#[test]
fn adopted_pages_are_held_and_the_least_recent_are_forgotten_first() {
    let mut cache = Cache::new(&[GroupLimits { page_tokens: 4, pages: 6, window: None }]);
    fill(&mut cache, Root::default(), &numbers(0, 8));
    fill(&mut cache, Root::default(), &numbers(100, 8));
    let (mut chain, mut table) = (Chain::default(), cache.table());
    cache.extend(&mut chain, Root::default(), &numbers(0, 9));
    let (tokens, pages) = cache.look_up(&chain, 8);
    cache.adopt(&mut table, tokens, pages);
    assert_eq!((tokens, cache.free_pages()), (8, 4));
    assert!(cache.check_integrity(&[]).is_err());
    sound_of(&cache, &[&table]);
    // Three new pages: two were free, and the third costs the end of the second text.
    let mut new = cache.table();
    assert!(cache.grow(&mut new, 12, &mut Vec::new()));
    assert_eq!(hit(&cache, Root::default(), &numbers(100, 9)), 4);
    assert_eq!(hit(&cache, Root::default(), &numbers(0, 9)), 8);
}

#[test]
fn an_owner_keeps_no_more_than_its_quota() {
    let options = CacheOptions { quota_percent: 50, ..CacheOptions::default() };
    let mut cache = Cache::with_options(&[GroupLimits { page_tokens: 4, pages: 8, window: None }], options);
    let other = Root { owner: 1, name: [1; 32] };
    fill(&mut cache, other, &numbers(0, 8));
    for from in [0, 100, 200] {
        fill(&mut cache, Root::default(), &numbers(from, 12));
    }
    assert_eq!(cache.idle_pages(), 2 + 4);
    assert_eq!(hit(&cache, other, &numbers(0, 9)), 8, "the flood of one owner cost another its pages");
}

#[test]
fn a_window_gives_pages_back_and_needs_only_those_within_for_a_hit() {
    let limits = [
        GroupLimits { page_tokens: 4, pages: 16, window: None },
        GroupLimits { page_tokens: 4, pages: 5, window: Some(8) },
    ];
    let options = CacheOptions { chunk: 4, ..CacheOptions::default() };
    let mut cache = Cache::with_options(&limits, options);
    assert_eq!(cache.capacity(), Some(64), "the window's group limits nothing");
    let (mut table, mut chain, text) = (cache.table(), Chain::default(), numbers(0, 40));
    for computed in (4..=40).step_by(4) {
        assert!(cache.grow(&mut table, computed, &mut Vec::new()), "at {computed}");
        cache.extend(&mut chain, Root::default(), &text[..computed]);
        cache.remember(&mut table, &chain, computed);
        cache.slide(&mut table, computed);
        sound_of(&cache, &[&table]);
        assert!(table.groups[1].pages.len() - table.groups[1].released <= 4);
    }
    cache.release(&mut table);
    // The five pages of the window's group remember positions 20 to 39, and a hit needs eight positions before its end.
    assert_eq!(hit(&cache, Root::default(), &numbers(0, 44)), 40);
    assert_eq!(hit(&cache, Root::default(), &numbers(0, 29)), 28);
    assert_eq!(hit(&cache, Root::default(), &numbers(0, 25)), 0);
}

#[test]
fn colliding_names_never_give_wrong_pages() {
    let options = CacheOptions { name_bits: 0, ..CacheOptions::default() };
    let mut cache = Cache::with_options(&[GroupLimits { page_tokens: 4, pages: 8, window: None }], options);
    fill(&mut cache, Root::default(), &numbers(0, 4));
    assert_eq!(hit(&cache, Root::default(), &numbers(50, 9)), 0);
    assert_eq!(hit(&cache, Root::default(), &numbers(0, 9)), 4, "the second page collides with the first");
}
