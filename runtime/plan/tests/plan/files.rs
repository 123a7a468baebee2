//! Plans as files: written whole or not at all, loaded in both ways, and nothing left behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lathe_plan::{LoadMode, Plan, PlanError, PlanWriter, Program, SectionKind, WeightSpan};

use crate::sample::{self, LAYOUT, weight_byte};

/// A new folder, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lathe-plan-{}-{test}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn plan(&self) -> PathBuf {
        self.0.join("model.plan")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program whose weights take several chunks and huge pages: 9 MiB and a bit.
fn large() -> Program {
    let mut program = sample::program();
    let bytes = (9 << 20) + 77;
    program.weights.push(WeightSpan { name: "large".to_owned(), offset: 832, bytes });
    program
}

#[test]
fn a_file_holds_the_same_bytes_as_memory() {
    let folder = Folder::new("same");
    let plan = sample::writer(&sample::program()).write(&folder.plan()).unwrap();
    assert_eq!(plan.programs(), [sample::program()]);
    assert!(fs::read(folder.plan()).unwrap() == sample::bytes());
    sample::writer(&sample::program()).write(&folder.plan()).unwrap();
    assert!(fs::read(folder.plan()).unwrap() == sample::bytes());
    assert_eq!(folder.names(), ["model.plan"]);
}

#[test]
fn large_weights_load_in_both_ways_with_any_number_of_threads() {
    let folder = Folder::new("large");
    let program = large();
    sample::writer(&program).write(&folder.plan()).unwrap();
    let in_memory = Plan::from_bytes(fs::read(folder.plan()).unwrap()).unwrap();
    let from_file = Plan::open(&folder.plan()).unwrap();
    from_file.verify_weights(2).unwrap();
    for plan in [in_memory, from_file] {
        for mode in [LoadMode::Read, LoadMode::Map] {
            for threads in [0, 1, 2, 7] {
                let weights = plan.load_weights("main", LAYOUT, mode, threads).unwrap();
                let bytes = weights.span(&program.weights[2]).unwrap();
                assert!((0_u64..).zip(bytes).all(|(i, &byte)| byte == weight_byte(2, i)));
                assert_eq!(bytes.as_ptr().align_offset(64), 0);
            }
        }
    }
}

#[test]
fn loaded_weights_stay_when_the_file_goes() {
    let folder = Folder::new("stay");
    let plan = sample::writer(&sample::program()).write(&folder.plan()).unwrap();
    fs::remove_file(folder.plan()).unwrap();
    // The plan holds its file open and never looks for it by name again.
    let weights = plan.load_weights("main", LAYOUT, LoadMode::Read, 1).unwrap();
    assert_eq!(weights.first(), Some(&weight_byte(0, 0)));
}

#[test]
fn a_damaged_chunk_is_found_in_both_ways() {
    let folder = Folder::new("chunk");
    sample::writer(&large()).write(&folder.plan()).unwrap();
    let mut bytes = fs::read(folder.plan()).unwrap();
    let start = sample::section(&bytes, 8).start;
    bytes[start + (8 << 20) + 5] ^= 0x40;
    fs::write(folder.plan(), &bytes).unwrap();
    let plan = Plan::open(&folder.plan()).unwrap();
    let results = [
        plan.load_weights("main", LAYOUT, LoadMode::Read, 2).map(drop),
        plan.load_weights("main", LAYOUT, LoadMode::Map, 2).map(drop),
        plan.verify_weights(2),
    ];
    for result in results {
        assert!(matches!(result, Err(PlanError::ChunkDigest { chunk: 2, .. })), "{result:?}");
    }
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_refused() {
    let folder = Folder::new("shrink");
    let plan = sample::writer(&sample::program()).write(&folder.plan()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(folder.plan()).unwrap();
    let weights = plan.sections().iter().find(|section| section.kind == SectionKind::Weights).unwrap();
    file.set_len(weights.offset + weights.length - 1).unwrap();
    let error = plan.load_weights("main", LAYOUT, LoadMode::Read, 1).unwrap_err();
    assert!(matches!(error, PlanError::Io { action: "read", .. }), "{error}");
}

/// Whatever fails, the plan that was there stays, alone.
fn check_failure(folder: &Folder, writer: PlanWriter, expected: &str) {
    let sentence = writer.write(&folder.plan()).unwrap_err().to_string();
    assert!(sentence.contains(expected), "expected: {expected}\n   found: {sentence}");
    assert!(fs::read(folder.plan()).unwrap() == sample::bytes());
    assert_eq!(folder.names(), ["model.plan"]);
}

#[test]
fn a_failure_leaves_the_old_plan_and_nothing_else() {
    let folder = Folder::new("failure");
    let program = sample::program();
    sample::writer(&program).write(&folder.plan()).unwrap();

    let mut breaks = PlanWriter::new();
    breaks.program(&program);
    breaks.weights(&program, LAYOUT, |index, out| match index {
        0 => out.write_all(&[3; 500]),
        _ => Err(io::Error::other("the tensor `head` is missing")),
    });
    check_failure(&folder, breaks, "the tensor `head` is missing");

    let mut short = PlanWriter::new();
    short.program(&program);
    short.weights(&program, LAYOUT, |_, out| out.write_all(&[3; 500]));
    check_failure(&folder, short, "the weight `head` was announced with 300 bytes, but 500 were written");

    // Found only by the reader, when the file is there already under its temporary name.
    let mut wrong = sample::program();
    wrong.buckets[0].arena_bytes = 0;
    check_failure(&folder, sample::writer(&wrong), "the plan would misuse memory");
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let folder = Folder::new("panic");
    let program = sample::program();
    let path = folder.plan();
    let result = std::panic::catch_unwind(|| {
        let mut writer = PlanWriter::new();
        writer.weights(&program, LAYOUT, |_, _| panic!("on purpose"));
        writer.write(&path).map(drop)
    });
    assert!(result.is_err());
    assert!(folder.names().is_empty());
}

#[test]
fn what_is_no_file_is_a_sentence() {
    let folder = Folder::new("none");
    let sentence = Plan::open(&folder.plan()).unwrap_err().to_string();
    assert!(sentence.starts_with("could not open ") && sentence.contains("model.plan: No such file"), "{sentence}");
    let sentence = Plan::open(&folder.0).unwrap_err().to_string();
    assert!(sentence.contains("found something that is not a regular file"), "{sentence}");
    let writer = sample::writer(&sample::program());
    let sentence = writer.write(Path::new("/no/such/folder/model.plan")).unwrap_err().to_string();
    assert!(sentence.starts_with("could not write beside /no/such/folder/model.plan"), "{sentence}");
}
