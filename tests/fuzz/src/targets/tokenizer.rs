//! `tokenizer.json` and the files beside it into the runtime's tokenizer, whose tokens are those of the library that the
//! file is made for.

use lathe_models::ModelError;
use lathe_models::hf::json;
use lathe_models::hf::tokenizer::{Settings, read};

use crate::exercise::{exercise, runtime};
use crate::mutate::Shape;
use crate::{Outcome, Target, bundle, seeds};

/// The target's entry.
pub const TARGET: Target = Target {
    name: "tokenizer",
    summary: "tokenizer.json, tokenizer_config.json and special_tokens_map.json, against the `tokenizers` library",
    shape: Shape::Bundle(&[Shape::Json, Shape::Json, Shape::Json]),
    seeds: seeds::tokenizer,
    run,
};

/// Rows of the embedding: more than the seeds have tokens.
const ROWS: usize = 400;

fn run(input: &[u8]) -> Outcome {
    let files = bundle::parts(input, 3);
    let tokenizer = match parse(&files) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return Outcome::refused(&error),
    };
    let tokenizer = match runtime(&tokenizer) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return Outcome::refused(&error),
    };
    let library = tokenizers::Tokenizer::from_bytes(files[0]);
    let what = exercise(&tokenizer, |text, tokens| {
        // Runs of ▁ are added tokens of some files, and in place of them Lathe merges them as the spaces that they mean.
        let Some(mut library) = library.as_ref().ok().cloned().filter(|_| !text.contains('▁')) else { return };
        library.set_encode_special_tokens(true);
        if let Ok(expected) = library.encode_fast(text, false) {
            assert_eq!(tokens, expected.get_ids(), "the tokens of {text:?}, and those of the library");
        }
    });
    match library {
        Ok(_) => Outcome::accepted(format_args!("{what}, as the library")),
        Err(error) => Outcome::accepted(format_args!(
            "{what}, alone: {}",
            error.to_string().split(" at line").next().unwrap_or_default()
        )),
    }
}

fn parse(files: &[&[u8]]) -> Result<lathe_models::tokenizer::Tokenizer, ModelError> {
    let object = |file: &[u8]| if file.is_empty() { Ok(None) } else { json::object(file, "a JSON file").map(Some) };
    let tokenizer = json::object(files[0], "a tokenizer.json")?;
    let (config, map) = (object(files[1])?, object(files[2])?);
    let settings = Settings { config: config.as_ref(), map: map.as_ref() };
    settings.chat_template()?;
    read(&tokenizer, settings, ROWS)
}
