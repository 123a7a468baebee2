//! The model part of a `tokenizer.json` and the tokens added to it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::json::{malformed, unsupported};
use super::cutting::Cutting;
use super::{Object, only, part};
use crate::error::ModelError;
use crate::tokenizer::bpe::{byte_characters, bytes_by_character};
use crate::tokenizer::spm::{SPACE, byte};
use crate::tokenizer::{Matching, Token, TokenKind};

/// Refuses what would merge in another way than `cutting` says.
pub fn check_model(model: &Object, cutting: Cutting) -> Result<(), ModelError> {
    const KNOWN: [&str; 11] = [
        "type",
        "vocab",
        "merges",
        "dropout",
        "unk_token",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "cache_capacity",
    ];
    only("model", model, &KNOWN)?;
    let check = |key: &str, expected: &str, good: &dyn Fn(&Value) -> bool| match part(model, key) {
        value if value.is_null() || good(value) => Ok(()),
        value => Err(malformed(format!("'{key}' of 'model'"), expected, &value.to_string())),
    };
    let supports = |key: &str, expected: &str, good: &dyn Fn(&Value) -> bool| match part(model, key) {
        value if value.is_null() || good(value) => Ok(()),
        value => Err(unsupported(format!("model.{key}"), expected, &value.to_string())),
    };
    supports("type", "\"BPE\", the only kind that is supported so far", &|value| value == "BPE")?;
    supports("dropout", "null: dropout is for training", &|value| value.as_f64() == Some(0.0))?;
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        supports(key, "null: words are not marked by this kind of BPE", &|value| value == "")?;
    }
    let has = |text: String| model.get("vocab").and_then(|vocab| vocab.get(text)).is_some();
    match cutting {
        Cutting::Bytes { .. } => {
            check("byte_fallback", "true or false", &Value::is_boolean)?;
            check("ignore_merges", "true or false", &Value::is_boolean)?;
            // With a token for every byte, none is ever unknown.
            let spells_all = || byte_characters().iter().all(|character| has(character.to_string()));
            check("unk_token", "null, or a token for every byte beside it", &|_| spells_all())
        }
        Cutting::Characters { .. } => {
            check("ignore_merges", "false where byte_fallback is true", &|value| value == false)?;
            if !has(SPACE.to_string()) {
                return Err(malformed("'vocab' of 'model'", "a token for ▁ where byte_fallback is true", "none"));
            }
            match (0..=255u8).find(|byte| !has(format!("<0x{byte:02X}>"))) {
                None => Ok(()),
                Some(byte) => {
                    let expected = "a token for every byte where byte_fallback is true";
                    Err(malformed("'vocab' of 'model'", expected, &format!("none for <0x{byte:02X}>")))
                }
            }
        }
    }
}

/// The vocabulary by id, as the file spells it.
#[derive(Debug)]
pub struct Entries {
    /// The text of each token.
    pub texts: Vec<String>,
    /// What each is for.
    pub kinds: Vec<TokenKind>,
    /// Those that are matched in a way of their own.
    pub matching: BTreeMap<u32, Matching>,
}

/// Reads the vocabulary and the added tokens.
pub fn entries(model: &Object, added: &[Value], cutting: Cutting, vocab: usize) -> Result<Entries, ModelError> {
    let Some(entries) = model.get("vocab").and_then(Value::as_object) else {
        return Err(malformed("'vocab' of 'model'", "an object of ids by token", &part(model, "vocab").to_string()));
    };
    let mut slots: Vec<Option<(String, TokenKind)>> = vec![None; vocab];
    let slot_of = |text: &str, id: Option<u64>| {
        let index = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < vocab);
        index.ok_or_else(|| {
            let expected = format!("ids below the {vocab} rows of the embedding");
            let found = id.map_or("none".to_owned(), |id| id.to_string());
            ModelError::Tokenizer { expected, found: format!("{found} for '{}'", text.escape_debug()) }
        })
    };
    let twice = |other: &str, text: &str| {
        let found = format!("'{}' and '{}'", other.escape_debug(), text.escape_debug());
        ModelError::Tokenizer { expected: "each id once".to_owned(), found }
    };
    for (text, id) in entries {
        let slot = &mut slots[slot_of(text, id.as_u64())?];
        if let Some((other, _)) = slot {
            return Err(twice(other, text));
        }
        let is_byte = matches!(cutting, Cutting::Characters { .. }) && byte(text).is_some();
        *slot = Some((text.clone(), if is_byte { TokenKind::Byte } else { TokenKind::Normal }));
    }
    let mut matching = BTreeMap::new();
    for token in added {
        let text = token["content"].as_str().filter(|text| !text.is_empty());
        let text = text.ok_or_else(|| malformed("'added_tokens'", "a text as 'content'", &token.to_string()))?;
        let id = slot_of(text, token["id"].as_u64())?;
        let is_special = flag(token, "special")?;
        match &slots[id] {
            Some((other, _)) if other != text => return Err(twice(other, text)),
            // Runs of spaces come from spaces by merges; text that spells them otherwise means the same.
            Some(_) if !is_special && is_spaces(text, cutting) => continue,
            _ => {}
        }
        let kind = if is_special { TokenKind::Control } else { TokenKind::UserDefined };
        slots[id] = Some((text.to_owned(), kind));
        let how = how(token, text, cutting)?;
        if how != Matching::default() {
            matching.insert(id as u32, how);
        }
    }
    let unused = |id: usize| (format!("[PAD{id}]"), TokenKind::Unused);
    let slots = slots.into_iter().enumerate().map(|(id, slot)| slot.unwrap_or_else(|| unused(id)));
    let (texts, kinds) = slots.unzip();
    Ok(Entries { texts, kinds, matching })
}

fn is_spaces(text: &str, cutting: Cutting) -> bool {
    matches!(cutting, Cutting::Characters { .. }) && text.chars().all(|c| c == SPACE)
}

/// A flag of an added token; an absent one is not set.
fn flag(token: &Value, key: &str) -> Result<bool, ModelError> {
    match &token[key] {
        Value::Null => Ok(false),
        Value::Bool(set) => Ok(*set),
        other => {
            let what = format!("'{key}' of added token {}", token["content"]);
            Err(malformed(what, "true or false", &other.to_string()))
        }
    }
}

/// How an added token is matched.
fn how(token: &Value, text: &str, cutting: Cutting) -> Result<Matching, ModelError> {
    let second = flag(token, "normalized")?;
    // What is normalized is looked for in normalized text, where its own text may be another.
    let changes = match cutting {
        Cutting::Bytes { nfc, .. } => nfc && !text.is_ascii(),
        Cutting::Characters { prepends, .. } => prepends || text.contains([' ', SPACE]),
    };
    if second && changes {
        let what = format!("'normalized' of added token '{}'", text.escape_debug());
        return Err(malformed(what, "false: 'normalizer' changes its text", "true"));
    }
    Ok(Matching {
        lstrip: flag(token, "lstrip")?,
        rstrip: flag(token, "rstrip")?,
        single_word: flag(token, "single_word")?,
        second,
    })
}

/// The tokens' own texts.
pub fn tokens(entries: &Entries, cutting: Cutting) -> Result<Vec<Token>, ModelError> {
    let bytes_of = bytes_by_character();
    let token = |(text, &kind): (&String, &TokenKind)| {
        let bytes = match (kind, cutting) {
            (TokenKind::Byte, _) => byte(text).map(|byte| vec![byte]),
            (TokenKind::Normal, Cutting::Characters { .. }) => Some(text.replace(SPACE, " ").into_bytes()),
            (TokenKind::Normal, Cutting::Bytes { .. }) => {
                text.chars().map(|character| bytes_of.get(&character).copied()).collect()
            }
            _ => Some(text.as_bytes().to_vec()),
        };
        let wrong =
            || malformed(format!("token '{}'", text.escape_debug()), "characters of the byte-to-unicode map", text);
        Ok(Token { bytes: bytes.ok_or_else(wrong)?, kind })
    };
    entries.texts.iter().zip(&entries.kinds).map(token).collect()
}

/// Merges are texts with a space between the two, or pairs of texts in newer files.
pub fn merge_lines(model: &Object) -> Result<Vec<String>, ModelError> {
    let line = |merge: &Value| {
        let pair = || {
            let [left, right] = merge.as_array()?.as_slice() else { return None };
            Some(format!("{} {}", left.as_str()?, right.as_str()?))
        };
        let line = merge.as_str().map(str::to_owned).or_else(pair);
        line.ok_or_else(|| malformed("'merges' of 'model'", "\"a b\" or [\"a\", \"b\"]", &merge.to_string()))
    };
    match part(model, "merges") {
        Value::Array(merges) => merges.iter().map(line).collect(),
        other => Err(malformed("'merges' of 'model'", "a list of pairs", &other.to_string())),
    }
}
