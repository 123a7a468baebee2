//! A plan that is not exactly what was written is refused, without a panic, whoever recomputed the digests.

use lathe_plan::{Bucket, Plan, PlanError, PlanWriter, Program, codec};

use crate::sample::{self, bytes, entry, load, number, put, redigest, refusal, reroot, section};

#[test]
fn every_truncation_is_refused() {
    let bytes = bytes();
    for length in 0..bytes.len() {
        assert!(load(bytes[..length].to_vec()).is_err(), "{length} of {} bytes", bytes.len());
    }
    let cut = refusal(bytes[..bytes.len() - 1].to_vec());
    let (expected, found) = (bytes.len(), bytes.len() - 1);
    assert!(cut.starts_with(&format!("the plan should be {expected} bytes long, but the file has {found}")), "{cut}");
}

#[test]
fn every_flipped_bit_is_refused() {
    let bytes = bytes();
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(load(flipped).is_err(), "bit {} of byte {}", bit % 8, bit / 8);
    }
}

#[test]
fn every_extension_is_refused() {
    for extra in [1, 64, 4096] {
        let mut longer = bytes();
        longer.extend(vec![0; extra]);
        assert!(matches!(load(longer), Err(PlanError::Length { .. })));
    }
}

/// Edits the table with a right root digest and expects a sentence.
fn check_table(edit: impl FnOnce(&mut Vec<u8>), expected: &str) {
    let mut edited = bytes();
    edit(&mut edited);
    reroot(&mut edited);
    let sentence = refusal(edited);
    assert!(sentence.contains(expected), "expected: {expected}\n   found: {sentence}");
}

/// Adds to a number in the entry of a section.
fn add(kind: u16, at: usize, width: usize, delta: i64) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        let at = entry(bytes, kind).start + at;
        let value = number(bytes, at, width).wrapping_add_signed(delta);
        put(bytes, at, width, value);
    }
}

#[test]
fn sections_neither_overlap_nor_leave_holes() {
    let (code, weights) = (section(&bytes(), 6).start, section(&bytes(), 8).start);
    for delta in [-64, -1, 1, 64, i64::MAX, -(code as i64)] {
        let found = (code as u64).wrapping_add_signed(delta);
        let sentence = format!("the code `main` `x86-64-v4` `rows16` starts at byte {found}, expected {code}");
        check_table(add(6, 32, 8, delta), &sentence);
    }
    check_table(
        add(8, 32, 8, 4096),
        &format!("the weights `main` `rows16` starts at byte {}, expected {weights}", weights + 4096),
    );
    // A length that moves the next section's place, and one that doesn't but hides bytes that are not zero.
    check_table(add(6, 40, 8, 64), "starts at byte");
    check_table(add(6, 40, 8, -1), "should be zero, found");
    // The last section is the second report.
    let last = |delta: i64| {
        move |bytes: &mut Vec<u8>| {
            let at = entry(bytes, 10).end + 40;
            let length = number(bytes, at, 8).wrapping_add_signed(delta);
            put(bytes, at, 8, length);
        }
    };
    check_table(last(1), "the report `schedule` has 15 bytes, but at most 14 are left");
    check_table(last(-1), "the sections end at byte");
    check_table(add(8, 40, 8, 1), "the weights end at byte 812, their section at 813");
    check_table(add(6, 40, 8, i64::MAX), "but at most");
}

#[test]
fn alignments_are_powers_of_two() {
    check_table(add(6, 48, 4, -64), "has alignment 0, expected a power of two of at least 1");
    check_table(add(6, 48, 4, 1), "has alignment 65, expected a power of two");
    check_table(add(8, 48, 4, -2048), "has alignment 2048, expected a power of two of at least 4096");
}

#[test]
fn a_head_has_one_spelling() {
    let spelling = "reserved bytes, flags or strings are not as they must be";
    check_table(|bytes| bytes[40] = 1, spelling);
    check_table(add(6, 52, 4, 1), spelling);
    check_table(add(6, 2, 2, 2), spelling);
    check_table(add(6, 8, 4, 1), spelling);
    check_table(add(6, 8, 4, i64::from(u32::MAX) - 100), spelling);
    check_table(add(6, 12, 4, -1), spelling);
}

#[test]
fn sections_are_known_sorted_and_single() {
    check_table(add(8, 0, 2, 92), "it has a required unknown section 100 `main` `rows16`");
    check_table(add(6, 0, 2, -2), "the generation config `main` `x86-64-v4` `rows16` is out of order or there twice");
    let swap = |bytes: &mut Vec<u8>| {
        let (one, other) = (entry(bytes, 4).start, entry(bytes, 5).start);
        put(bytes, one, 2, 5);
        put(bytes, other, 2, 4);
    };
    check_table(swap, "the generation config is out of order or there twice");
    check_table(add(5, 0, 2, -1), "the generation config is out of order or there twice");
    check_table(add(1, 4, 4, 1), "expected rank 0, the only one that this lathe runs");
    check_table(|bytes| put(bytes, 24, 4, u64::from(u32::MAX)), "header, table and strings take 412316860");
}

#[test]
fn an_unknown_section_is_ignored_only_where_it_says_so() {
    let program = Program { weights: vec![], kernels: vec![], ..sample::program() };
    let buckets = program.buckets.iter().map(|bucket| Bucket { launches: vec![], ..bucket.clone() }).collect();
    let mut writer = PlanWriter::new();
    writer.program(&Program { buckets, ..program });
    writer.report("graph", "%0 = embed");
    let mut bytes = writer.to_bytes().unwrap();
    let report = entry(&bytes, 10).start;
    put(&mut bytes, report, 2, 100);
    reroot(&mut bytes);
    assert_eq!(Plan::from_bytes(bytes.clone()).unwrap().report("graph"), None);
    put(&mut bytes, report + 2, 2, 0);
    reroot(&mut bytes);
    let sentence = Plan::from_bytes(bytes).unwrap_err().to_string();
    assert!(sentence.contains("it has a required unknown section 100 `graph`"), "{sentence}");
}

#[test]
fn other_versions_and_features_are_named() {
    check_table(|bytes| put(bytes, 8, 2, 2), "the plan has format 2, this lathe reads format 1");
    check_table(|bytes| put(bytes, 12, 4, 77), "the plan is for runtime ABI 77, this lathe has ABI 3");
    let mut newer = bytes();
    put(&mut newer, 10, 2, 9);
    reroot(&mut newer);
    assert_eq!(load(newer).unwrap().minor(), 9);
    let mut writer = sample::writer(&sample::program());
    writer.require("time-travel");
    assert!(
        refusal(writer.to_bytes().unwrap()).contains("needs the feature `time-travel`, which this lathe does not know")
    );
}

/// Whoever recomputes digests can write any program; the reader must still never panic, and read only what the program's
/// one spelling is.
#[test]
fn every_flipped_bit_of_a_section_with_right_digests_is_harmless() {
    let bytes = bytes();
    for kind in [1, 2, 9, 6] {
        for bit in 8 * section(&bytes, kind).start..8 * section(&bytes, kind).end {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            redigest(&mut flipped, kind);
            if let Ok(plan) = load(flipped.clone())
                && kind == 1
            {
                let program: &Program = &plan.programs()[0];
                assert!(codec::encode(program) == flipped[section(&bytes, 1)]);
            }
        }
    }
}

/// A head can be changed and stay right (a report gets another name), so this asks only that nothing panics and that
/// sections stay inside the file.
#[test]
fn every_flipped_bit_of_the_head_with_a_right_root_is_harmless() {
    let bytes = bytes();
    let mut refused = 0;
    let head = 8 * section(&bytes, 1).start;
    for bit in 0..head {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        reroot(&mut flipped);
        match load(flipped) {
            Ok(plan) => assert!(plan.sections().iter().all(|section| section.offset + section.length <= plan.length())),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > head / 2, "{refused} of {head}");
}

#[test]
fn weights_match_the_chunk_digests_that_the_table_covers() {
    let mut bytes = bytes();
    let digests = section(&bytes, 7);
    bytes[digests.start] ^= 1;
    redigest(&mut bytes, 7);
    let sentence = refusal(bytes);
    assert!(sentence.contains("expected the chunk digests that its digest stands for"), "{sentence}");
}

#[test]
fn what_is_not_a_plan_is_named() {
    let safetensors = [&64_u64.to_le_bytes()[..], b"{\"__metadata__\":{}}"].concat();
    let cases: [(&[u8], &str); 11] = [
        (b"", "the file is empty"),
        (b"ftrt\x00\x00\x00\x00\x01", "this is a TensorRT engine, which is also called .plan"),
        (b"GGUF\x03\x00\x00\x00", "this is a GGUF checkpoint, which has to be compiled first"),
        (&safetensors, "this is a safetensors checkpoint"),
        (b"\x08\x08\x12\x07pytorch", "this looks like an ONNX model"),
        (b"PK\x03\x04\x14\x00", "this is a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a git-LFS pointer"),
        (b"\n <!DOCTYPE html><title>404", "this is an HTML page"),
        (b"<HTML>", "this is an HTML page"),
        (b"\xefLATHE\n\x01", "this was a plan before it was transferred as text"),
        (b"whatever", "this is not a plan (it starts with the bytes [77, 68, 61, 74, 65, 76, 65, 72])"),
    ];
    for (start, expected) in cases {
        let sentence = refusal(start.to_vec());
        assert!(sentence.starts_with(expected), "expected: {expected}\n   found: {sentence}");
    }
}
