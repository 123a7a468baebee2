//! How a `tokenizer.json` cuts text before merges apply and joins it again: its normalizer, pre-tokenizer and decoder,
//! which only make sense together.
//!
//! Two ways are known, with the variants that published models have. Byte-level files cut text by a regular expression
//! and spell every byte as a character. Files made of `SentencePiece` models spell spaces as `▁` and fall back to bytes.

use serde_json::{Value, json};

use super::super::json::unsupported;
use super::{Object, part};
use crate::error::ModelError;
use crate::tokenizer::{PreTokenizer, SpacePrefix};

/// What a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutting {
    /// Merges bytes within pieces.
    Bytes {
        /// What cuts the pieces.
        pre: PreTokenizer,
        /// Whether text is put into normalization form C first.
        nfc: bool,
    },
    /// Merges characters, with byte tokens for those that have none.
    Characters {
        /// Where a text gets a space in front.
        space_prefix: SpacePrefix,
        /// Whether that is done before tokens marked as `normalized` are looked for, which then have it too.
        prepends: bool,
    },
}

/// The regular expressions of published models, each with the rule that cuts as it does. All of them match any text
/// throughout, so that cutting at their matches and cutting out what is between them are the same.
const PATTERNS: &[(&str, PreTokenizer)] = &[
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        PreTokenizer::Dbrx,
    ),
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        PreTokenizer::Dbrx,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        PreTokenizer::Qwen2,
    ),
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", PreTokenizer::Gpt2),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        PreTokenizer::Gpt4o,
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        PreTokenizer::Tekken,
    ),
];

/// Reads the three parts.
///
/// # Errors
/// When one of them is unknown, or they do not fit each other.
pub fn read(file: &Object, byte_fallback: bool) -> Result<Cutting, ModelError> {
    if byte_fallback { characters(file) } else { bytes(file) }
}

/// The steps of a part: of a sequence its items, else the part itself; none for `null`.
fn steps<'a>(file: &'a Object, key: &str, list: &str) -> Vec<&'a Value> {
    let mut steps = Vec::new();
    flatten(part(file, key), list, &mut steps);
    steps
}

fn flatten<'a>(value: &'a Value, list: &str, out: &mut Vec<&'a Value>) {
    match value.get(list).and_then(Value::as_array) {
        Some(items) if value["type"] == "Sequence" => items.iter().for_each(|item| flatten(item, list, out)),
        _ if value.is_null() => {}
        _ => out.push(value),
    }
}

/// Refuses a part with what it is.
fn unknown(file: &Object, key: &str, expected: impl Into<String>) -> ModelError {
    unsupported(key, expected, &part(file, key).to_string())
}

fn bytes(file: &Object) -> Result<Cutting, ModelError> {
    let nfc = match steps(file, "normalizer", "normalizers").as_slice() {
        [] => false,
        [step] if step["type"] == "NFC" => true,
        _ => return Err(unknown(file, "normalizer", "null or NFC in a byte-level tokenizer")),
    };
    let decoders = steps(file, "decoder", "decoders");
    if !decoders.iter().all(|step| step["type"] == "ByteLevel") {
        return Err(unknown(file, "decoder", "of type ByteLevel in a byte-level tokenizer"));
    }
    let found: Vec<Value> = steps(file, "pre_tokenizer", "pretokenizers").into_iter().map(plain).collect();
    let byte_level =
        |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let pre = match found.as_slice() {
        [last] if *last == byte_level(true) => Some(PreTokenizer::Gpt2),
        [first, last] if *first == digits && *last == byte_level(true) => Some(PreTokenizer::SmolLm),
        [first, last] if first["type"] == "Split" && *last == byte_level(false) => {
            let pattern = first["pattern"]["Regex"].as_str();
            PATTERNS.iter().find(|(known, _)| Some(*known) == pattern).map(|(_, pre)| *pre)
        }
        _ => None,
    };
    let expected = || {
        let names: Vec<&str> = PATTERNS.iter().map(|(_, pre)| pre.name()).collect();
        let known = "ByteLevel (gpt-2), Digits and ByteLevel (smollm), or a Split by a known pattern and ByteLevel";
        unknown(file, "pre_tokenizer", format!("{known} ({})", names.join(", ")))
    };
    Ok(Cutting::Bytes { pre: pre.ok_or_else(expected)?, nfc })
}

/// The same step with defaults written out and without what does not matter: positions in the text, and which of two
/// equal ways of cutting is named.
fn plain(step: &Value) -> Value {
    let mut step = step.clone();
    let kind = step["type"].as_str().unwrap_or_default().to_owned();
    let Some(object) = step.as_object_mut() else { return step };
    match kind.as_str() {
        "ByteLevel" => {
            object.remove("trim_offsets");
            object.entry("use_regex").or_insert(Value::Bool(true));
        }
        "Split" => {
            let at_matches = [json!(["Isolated", false]), json!(["Removed", true])];
            if at_matches.contains(&json!([object.get("behavior"), object.get("invert")])) {
                return json!({ "type": "Split", "pattern": object.get("pattern") });
            }
            object.insert("type".to_owned(), "Split in another way".into());
        }
        _ => {}
    }
    step
}

fn characters(file: &Object) -> Result<Cutting, ModelError> {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Prepend", "prepend": "▁" });
    let normalizers = steps(file, "normalizer", "normalizers");
    let (replaces, prepends) = match normalizers.as_slice() {
        [] => (false, false),
        [step] if **step == replace => (true, false),
        [first, second] if **first == prepend && **second == replace => (true, true),
        _ => return Err(unknown(file, "normalizer", "null, or ▁ for each space and perhaps one in front")),
    };
    let split =
        json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false });
    let pre = steps(file, "pre_tokenizer", "pretokenizers");
    let space_prefix = match pre.as_slice() {
        [] if replaces => Some(if prepends { SpacePrefix::Always } else { SpacePrefix::Never }),
        // No space is left to split at.
        [step] if **step == split && replaces && !prepends => Some(SpacePrefix::Never),
        [step] if step["type"] == "Metaspace" && !replaces => metaspace(step),
        _ => None,
    };
    let expected =
        "null, a Split at spaces, or Metaspace with ▁ that does not split, in a tokenizer with byte_fallback";
    let space_prefix = space_prefix.ok_or_else(|| unknown(file, "pre_tokenizer", expected))?;

    let mut decoder = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if space_prefix != SpacePrefix::Never {
        decoder.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    if !steps(file, "decoder", "decoders").into_iter().eq(&decoder) {
        let words = "Replace of ▁ by a space, ByteFallback, Fuse, and Strip of one space where one is put in front";
        return Err(unknown(file, "decoder", words));
    }
    Ok(Cutting::Characters { space_prefix, prepends })
}

/// The prefix of a Metaspace step that leaves words together. Older files say whether there is one, newer ones where.
fn metaspace(step: &Value) -> Option<SpacePrefix> {
    let is_known = |key: &String| {
        ["type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"].contains(&key.as_str())
    };
    let only_known = step.as_object()?.keys().all(is_known);
    if !only_known || step["replacement"] != "▁" || step["split"] != false {
        return None;
    }
    match (step["prepend_scheme"].as_str(), step["add_prefix_space"].as_bool()) {
        (Some("first"), None | Some(true)) => Some(SpacePrefix::MissingAtStart),
        (Some("always"), None | Some(true)) | (None, Some(true)) => Some(SpacePrefix::Missing),
        (Some("never"), None | Some(false)) | (None, Some(false)) => Some(SpacePrefix::Never),
        _ => None,
    }
}
