//! Models that were split into several GGUF files: any part opens them all, and what does not belong together is named.

use std::path::{Path, PathBuf};

use lathe_models::checkpoint::Checkpoint;
use lathe_models::gguf::write::{RawTensor, raw, to_bytes};
use lathe_models::gguf::{Gguf, Header, Value};
use lathe_models::seeded::small_model;
use lathe_models::{ModelError, open};

use lathe_ir::scheme::Scheme;

const PARTS: usize = 3;

/// Metadata and tensors of a part.
type Content = (Vec<(String, Value)>, Vec<RawTensor>);

/// The small model's file, whole.
fn whole() -> Vec<u8> {
    to_bytes(&small_model(3, Scheme::INT4).unwrap()).unwrap()
}

/// The contents of the parts, as `gguf-split` makes them: all metadata in the first one.
fn contents() -> Vec<Content> {
    let whole = whole();
    let Header { metadata, tensors } = Header::parse(&whole).unwrap();
    let total = tensors.len();
    let tensors: Vec<RawTensor> = tensors
        .into_iter()
        .map(|(name, entry)| RawTensor { name, dims: entry.dims, ty: entry.ty, bytes: whole[entry.bytes].to_vec() })
        .collect();
    let part = |part: usize| {
        let mut pairs = if part == 0 { metadata.clone().into_iter().collect() } else { Vec::new() };
        for (key, number) in [("split.no", part), ("split.count", PARTS), ("split.tensors.count", total)] {
            pairs.push((key.to_owned(), Value::Unsigned(number as u64)));
        }
        let of_part = tensors.iter().enumerate().filter(|(at, _)| at % PARTS == part);
        (pairs, of_part.map(|(_, tensor)| tensor.clone()).collect())
    };
    (0..PARTS).map(part).collect()
}

fn set(content: &mut Content, key: &str, number: u64) {
    content.0.retain(|(other, _)| other != key);
    content.0.push((key.to_owned(), Value::Unsigned(number)));
}

/// Writes the parts into an empty folder of this name and gives their paths.
fn write(name: &str, contents: &[Content]) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("split-{name}"));
    // A folder that an earlier run has left holds other files.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let path = |at: usize| folder.join(format!("small-{:05}-of-{PARTS:05}.gguf", at + 1));
    let part = |(at, (pairs, tensors)): (usize, &Content)| {
        std::fs::write(path(at), raw(pairs, tensors)).unwrap();
        path(at)
    };
    contents.iter().enumerate().map(part).collect()
}

#[track_caller]
fn refused(path: &Path, words: &[&str]) {
    let Err(error) = open(path) else { panic!("accepted; expected {words:?}") };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "expected '{word}' in: {message}");
    }
}

/// Refuses the model after a change to its parts, whichever is given.
#[track_caller]
fn changed(name: &str, change: impl FnOnce(&mut Vec<Content>), words: &[&str]) {
    let mut contents = contents();
    change(&mut contents);
    for path in write(name, &contents) {
        refused(&path, words);
    }
}

#[test]
fn any_part_opens_the_whole_model() {
    let expected = Gguf::from_bytes(whole()).unwrap();
    let paths = write("whole", &contents());
    for path in &paths {
        let model = open(path).unwrap();
        assert_eq!(model.origin.files, paths);
        assert_eq!(model.checkpoint.names(), expected.names());
        for name in expected.names() {
            assert_eq!(model.checkpoint.load(name).unwrap(), expected.load(name).unwrap(), "{name}");
        }
        let gguf = Gguf::open(path).unwrap();
        assert_eq!(gguf.metadata, expected.metadata, "nothing of splitting is left");
    }
}

#[test]
fn a_file_that_was_joined_again_is_whole() {
    let parts = contents();
    for count in [0, 1] {
        let mut pairs = parts[0].0.clone();
        let tensors: Vec<RawTensor> = parts.iter().flat_map(|part| part.1.clone()).collect();
        pairs.retain(|(key, _)| key != "split.count");
        pairs.push(("split.count".to_owned(), Value::Unsigned(count)));
        let gguf = Gguf::from_bytes(raw(&pairs, &tensors)).unwrap();
        assert_eq!(gguf.metadata, Gguf::from_bytes(whole()).unwrap().metadata);
    }
}

#[test]
fn missing_parts_are_named() {
    let paths = write("missing", &contents());
    std::fs::remove_file(&paths[0]).unwrap();
    refused(&paths[1], &["all 3 parts", "1 missing", "'small-00001-of-00003.gguf'", "into one folder"]);
    std::fs::remove_file(&paths[2]).unwrap();
    refused(&paths[1], &["2 missing", "'small-00001-of-00003.gguf', 'small-00003-of-00003.gguf'"]);
}

#[test]
fn surplus_parts_are_named() {
    let paths = write("surplus", &contents());
    std::fs::copy(&paths[1], paths[0].with_file_name("small-00004-of-00003.gguf")).unwrap();
    refused(&paths[0], &["3 parts", "more of them", "'small-00004-of-00003.gguf'"]);
}

#[test]
fn a_part_under_another_name_is_refused() {
    let paths = write("names", &contents());
    for name in ["small.gguf", "small-00001-of-00004.gguf", "small-1-of-3.gguf"] {
        let other = paths[0].with_file_name(name);
        std::fs::copy(&paths[0], &other).unwrap();
        refused(&other, &[name, "'-00001-of-00003.gguf'", "split.count is 3"]);
        std::fs::remove_file(other).unwrap();
    }
    // A part that is called by another one's number.
    std::fs::copy(&paths[0], &paths[2]).unwrap();
    refused(&paths[1], &["small-00003-of-00003.gguf", "2 as split.no", "found 0"]);
    let part = std::fs::read(&paths[1]).unwrap();
    let Err(error) = Gguf::from_bytes(part) else { panic!("a part alone is no model") };
    assert!(matches!(error, ModelError::Split { .. }), "{error}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    changed("count", |parts| set(&mut parts[2], "split.count", 3 << 20), &["split.count", "65535"]);
    changed("tensors", |parts| drop(parts[1].1.pop()), &["20 tensors, by split.tensors.count", "found 19"]);
    changed(
        "totals",
        |parts| set(&mut parts[1], "split.tensors.count", 7),
        &["20 as split.tensors.count", "7 in part 2"],
    );
    let twice = |parts: &mut Vec<Content>| {
        let tensor = parts[0].1[0].clone();
        parts[2].1.push(tensor);
    };
    changed("twice", twice, &["each tensor in one part", "in the parts 1 and 3"]);
    let other = |parts: &mut Vec<Content>| {
        parts[1].0.push(("general.name".to_owned(), Value::String("another".to_owned())));
    };
    changed("metadata", other, &["'general.name' as in the first part", "'another' in part 2"]);
    let text = |parts: &mut Vec<Content>| {
        parts[0].0.retain(|(key, _)| key != "split.tensors.count");
        parts[0].0.push(("split.tensors.count".to_owned(), Value::String("many".to_owned())));
    };
    changed("text", text, &["split.tensors.count", "an integer", "'many'"]);
}

#[test]
fn a_damaged_part_is_named() {
    let paths = write("damaged", &contents());
    let whole = std::fs::read(&paths[2]).unwrap();
    std::fs::write(&paths[2], &whole[..whole.len() / 2]).unwrap();
    refused(&paths[0], &["small-00003-of-00003.gguf", "cut short"]);
    std::fs::write(&paths[2], "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused(&paths[0], &["small-00003-of-00003.gguf", "git lfs pull"]);
}
