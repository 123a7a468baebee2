//! A seeded simulation of the cache against a plain model of who holds what.

use super::*;
use crate::sample::mix;

fn groups() -> Vec<GroupLimits> {
    vec![GroupLimits { page_tokens: 4, pages: 40 }, GroupLimits { page_tokens: 16, pages: 12 }]
}

#[track_caller]
fn sound(cache: &Cache, live: &[BlockTable]) {
    cache.check_integrity(&live.iter().collect::<Vec<_>>()).unwrap();
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
    assert!(!cache.has_room(1));
    cache.release(&mut table);
    assert_eq!(cache.free_pages(), cache.pages());
}

#[test]
fn a_fork_copies_its_last_page_when_it_writes_there() {
    let mut cache = Cache::new(&groups()[..1]);
    let (mut parent, mut copies) = (cache.table(), Vec::new());
    cache.grow(&mut parent, 6, &mut copies);
    let mut child = cache.fork(&parent);
    let shared = parent.groups[0][1];
    assert!(cache.grow(&mut child, 7, &mut copies));
    assert_eq!(copies, [PageCopy { group: 0, from: shared, to: child.groups[0][1] }]);
    assert_ne!(shared, child.groups[0][1]);
    assert_eq!(parent.groups[0][0], child.groups[0][0]);
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
    let mut child = cache.fork(&parent);
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
                    let fork = cache.fork(&live[index]);
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
    table.groups[group][position / size] as usize * size + position % size
}
