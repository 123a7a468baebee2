//! The vocabulary in a GGUF file's metadata into the runtime's tokenizer.

use lathe_models::config::Metadata;
use lathe_models::gguf::Header;
use lathe_models::tokenizer::Tokenizer;

use crate::exercise::{exercise, runtime};
use crate::mutate::Shape;
use crate::{Outcome, Target, seeds};

/// The target's entry.
pub const TARGET: Target = Target {
    name: "vocabulary",
    summary: "the vocabulary of a GGUF file into a tokenizer, which encodes and decodes",
    shape: Shape::Gguf,
    seeds: seeds::vocabulary,
    run,
};

fn run(input: &[u8]) -> Outcome {
    let read = Header::metadata(input).and_then(|pairs| Tokenizer::read(&Metadata::new(&pairs)));
    match read {
        Err(error) => Outcome::refused(&error),
        Ok(tokenizer) => match runtime(&tokenizer) {
            Err(error) => Outcome::refused(&error),
            Ok(tokenizer) => Outcome::accepted(exercise(&tokenizer, |_, _| {})),
        },
    }
}
