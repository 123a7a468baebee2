//! A damaged plan never loads: seeded flips all over the file, and every section edge.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use lathe_compiler::pass::Activations;
use lathe_plan::{Plan, PlanError};
use lathe_tests::Scratch;

use super::plan_path;

/// Whether the whole plan is sound: its structure, and every byte of its weights.
fn check(path: &Path) -> Result<(), PlanError> {
    Plan::open(path)?.verify_weights(2)
}

#[test]
fn cut_and_extended_files_are_refused() {
    let scratch = Scratch::new();
    let path = scratch.file("damaged.plan");
    std::fs::copy(plan_path(Activations::Int8), &path).expect("room for a copy");
    let file = OpenOptions::new().write(true).open(&path).expect("the copy opens");
    let plan = Plan::open(&path).expect("the copy is sound");
    let length = plan.length();
    let mut edges: Vec<u64> = plan.sections().iter().flat_map(|s| [s.offset, s.offset + s.length]).collect();
    drop(plan);
    edges.extend([0, 1, length / 2]);
    edges.sort_unstable();
    edges.dedup();
    file.set_len(length + 1).expect("the copy grows");
    assert!(check(&path).is_err(), "one byte more was accepted");
    for &edge in edges.iter().rev() {
        for cut in [edge.saturating_sub(1), edge] {
            if cut < length {
                file.set_len(cut).expect("the copy shrinks");
                assert!(check(&path).is_err(), "a file cut at {cut} was accepted");
            }
        }
    }
}

#[test]
fn flips_at_section_edges_are_refused() {
    let scratch = Scratch::new();
    let path = scratch.file("damaged.plan");
    std::fs::copy(plan_path(Activations::Int8), &path).expect("room for a copy");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("the copy opens");
    let plan = Plan::open(&path).expect("the copy is sound");
    let length = plan.length();
    let around = |at: u64| [at.saturating_sub(1), at, at + 1];
    let places: Vec<u64> =
        plan.sections().iter().flat_map(|s| [s.offset, s.offset + s.length]).flat_map(around).collect();
    drop(plan);
    for at in places.into_iter().filter(|&at| at < length) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("the byte is there");
        file.write_all_at(&[byte[0] ^ 0x10], at).expect("the byte can be written");
        assert!(check(&path).is_err(), "a flip of byte {at} was accepted");
        file.write_all_at(&byte, at).expect("the byte can be written");
    }
    check(&path).expect("the restored copy is sound");
}

/// How many single-bit flips are tried, over all threads.
const FLIPS: u64 = 100_000;
/// Threads, each with a copy of the plan.
const THREADS: u64 = 2;

#[test]
fn seeded_single_bit_flips_are_refused() {
    let scratch = Scratch::new();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let path = scratch.file(&format!("flipped.{thread}.plan"));
            scope.spawn(move || flip(&path, thread + 1, FLIPS / THREADS));
        }
    });
}

/// Flips one bit at a time in a copy of the plan: in the weights, their chunk must be refused; elsewhere, the file.
fn flip(path: &Path, seed: u64, count: u64) {
    std::fs::copy(plan_path(Activations::Int8), path).expect("room for a copy");
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the copy opens");
    let plan = Plan::open(path).expect("the copy is sound");
    let bits = plan.length() * 8;
    let mut state = seed;
    for _ in 0..count {
        // Knuth's MMIX generator; its high bits are good.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bit = ((u128::from(state) * u128::from(bits)) >> 64) as u64;
        let at = bit / 8;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("the byte is there");
        file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], at).expect("the byte can be written");
        let outcome = plan.verify_weights_at(at).unwrap_or_else(|| Plan::open(path).map(drop));
        assert!(outcome.is_err(), "a flip of bit {} of byte {at} was accepted", bit % 8);
        file.write_all_at(&byte, at).expect("the byte can be written");
    }
    check(path).expect("the restored copy is sound");
}
