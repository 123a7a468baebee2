//! A GGUF file into a model: header, metadata, knobs, tensors, graph, and every weight of it.

use lathe_ir::graph::NodeKind;
use lathe_models::checkpoint::{Checkpoint, assemble};
use lathe_models::gguf::Gguf;

use crate::mutate::Shape;
use crate::{Outcome, Target, seeds};

/// The target's entry.
pub const TARGET: Target = Target {
    name: "gguf",
    summary: "a GGUF file into a model with all of its weights",
    shape: Shape::Gguf,
    seeds: seeds::gguf,
    run,
};

fn run(input: &[u8]) -> Outcome {
    let gguf = match Gguf::from_bytes(input.to_vec()) {
        Ok(gguf) => gguf,
        Err(error) => return Outcome::refused(&error),
    };
    for name in gguf.names() {
        let info = gguf.tensor(name).expect("a tensor that is named is there");
        let matrix = gguf.load(name).expect("a tensor whose place was checked can be loaded");
        assert_eq!((matrix.rows, matrix.cols), (info.rows, info.cols), "{name}");
    }
    let model = match lathe_models::from_gguf(gguf, "fuzzed.gguf") {
        Ok(model) => model,
        Err(error) => return Outcome::refused(&error),
    };
    for id in model.graph.order() {
        if let NodeKind::Weight(weight) = &model.graph.node(id).kind
            && let Err(error) = assemble(&*model.checkpoint, weight)
        {
            return Outcome::refused(&error);
        }
    }
    Outcome::accepted(&model.config.architecture)
}
