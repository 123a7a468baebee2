//! A `config.json` into the graph of a model without weights.

use lathe_models::shapes;

use crate::mutate::Shape;
use crate::{Outcome, Target, seeds};

/// The target's entry.
pub const TARGET: Target = Target {
    name: "config",
    summary: "a config.json into the graph of its model",
    shape: Shape::Json,
    seeds: seeds::config,
    run,
};

fn run(input: &[u8]) -> Outcome {
    match shapes::from_config(input, "fuzzed") {
        Ok(model) => {
            assert!(model.graph.outputs.iter().any(|(name, _)| name == "logits"), "a graph without logits");
            Outcome::accepted(format_args!("{} {:?}", model.config.architecture, model.config.knobs))
        }
        Err(error) => Outcome::refused(&error),
    }
}
