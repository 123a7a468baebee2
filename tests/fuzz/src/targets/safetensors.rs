//! An index and two safetensors files into the tensors that they hold.

use lathe_models::ModelError;
use lathe_models::checkpoint::Checkpoint;
use lathe_models::hf::safetensors::{Shard, Shards, index};

use crate::mutate::Shape;
use crate::{Outcome, Target, bundle, seeds};

/// The target's entry.
pub const TARGET: Target = Target {
    name: "safetensors",
    summary: "an index and the safetensors files that it names",
    shape: Shape::Bundle(&[Shape::Json, Shape::Safetensors, Shape::Safetensors]),
    seeds: seeds::safetensors,
    run,
};

fn run(input: &[u8]) -> Outcome {
    match read(&bundle::parts(input, 3)) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::refused(&error),
    }
}

fn read(files: &[&[u8]]) -> Result<Outcome, ModelError> {
    let index = if files[0].is_empty() { None } else { Some(index(files[0])?) };
    for file in index.iter().flat_map(|index| index.values()) {
        let is_plain = !file.contains(['/', '\\']) && file != ".." && !file.is_empty();
        assert!(is_plain, "an index leads to '{file}'");
    }
    let mut shards = Vec::new();
    for (number, file) in (1..).zip(&files[1..]).filter(|(_, file)| !file.is_empty()) {
        shards.push((format!("{number}.safetensors"), Shard::from_bytes(file.to_vec())?));
    }
    let shards = Shards::new(shards, index.as_ref())?;
    let names = shards.names();
    for name in &names {
        let info = shards.tensor(name).expect("a tensor that is named is there");
        let matrix = shards.load(name).expect("a tensor whose place was checked can be loaded");
        assert_eq!(matrix.to_f32().len(), info.rows * info.cols, "{name}");
        for other in &names {
            shards.are_equal(name, other)?;
        }
    }
    Ok(Outcome::accepted(if index.is_some() { "by an index" } else { "without an index" }))
}
