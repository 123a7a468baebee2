//! The tokenizer of a model directory: `tokenizer.json` decides how text becomes tokens, `tokenizer_config.json` and
//! `special_tokens_map.json` say which of them begin and end a text.
//!
//! What cuts and joins text is recognised by its structure (`cutting`) and otherwise refused with what was found; so is
//! whatever else would make other tokens (`vocabulary`). Truncation and padding are left alone: they concern batches of
//! that library, not the tokenizer. So are the other settings of `tokenizer_config.json`, which choose among that
//! library's classes.

mod cutting;
mod vocabulary;

use serde_json::{Map, Value};

use super::json::{malformed, unsupported};
use crate::error::ModelError;
use crate::template;
use crate::tokenizer::bpe::merges;
use crate::tokenizer::{Algorithm, SpacePrefix, Token, TokenKind, Tokenizer};
use cutting::Cutting;

type Object = Map<String, Value>;

/// What the files say of special tokens, in the order in which they are believed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings<'a> {
    /// `tokenizer_config.json`.
    pub config: Option<&'a Object>,
    /// `special_tokens_map.json`.
    pub map: Option<&'a Object>,
}

impl<'a> Settings<'a> {
    /// A setting of either file; `null` is as good as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        [self.config, self.map].into_iter().flatten().filter_map(|file| file.get(key)).find(|value| !value.is_null())
    }

    /// Whether a flag is set; an absent one says nothing.
    fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let wrong = |value: &Value| malformed(format!("'{key}'"), "true or false", &value.to_string());
        self.get(key).map(|value| value.as_bool().ok_or_else(|| wrong(value))).transpose()
    }

    /// The id of a special token, which the files name by its text.
    fn token(&self, key: &str, tokens: &[Token]) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        let id = text.and_then(|text| find(text, tokens));
        id.map(Some).ok_or_else(|| malformed(format!("'{key}'"), "the text of a token", &value.to_string()))
    }

    /// The chat template: a text, or of several named ones the one that the library takes, with and without tools.
    ///
    /// # Errors
    /// When there are several and none is the default.
    pub fn chat_template(&self) -> Result<Option<String>, ModelError> {
        let Some(value) = self.get("chat_template") else { return Ok(None) };
        let named = |name: &str| {
            let is_it = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some(name);
            value.as_array()?.iter().find(is_it)?.get("template")?.as_str()
        };
        let expected = "a text, or a list of named texts with one named 'default'";
        let default = value.as_str().or_else(|| named("default"));
        let default = default.ok_or_else(|| malformed("'chat_template'", expected, &value.to_string()))?;
        Ok(Some(template::with_tool_use(default, named("tool_use"))))
    }
}

/// Reads `tokenizer.json` for an embedding of `vocab` rows. Rows without a token are [`TokenKind::Unused`].
///
/// # Errors
/// When the file contradicts itself or the embedding, and when it cuts or joins text in a way that Lathe does not.
pub fn read(file: &Object, settings: Settings, vocab: usize) -> Result<Tokenizer, ModelError> {
    const PARTS: [&str; 9] = [
        "version",
        "truncation",
        "padding",
        "added_tokens",
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "model",
    ];
    only("tokenizer.json", file, &PARTS)?;
    if let Some(version) = file.get("version").filter(|&version| !version.is_null() && version != "1.0") {
        return Err(unsupported("version", "\"1.0\", the only one that is known", &version.to_string()));
    }
    let model = part(file, "model").as_object();
    let model = model.ok_or_else(|| malformed("'model'", "an object", &part(file, "model").to_string()))?;
    let cutting = cutting::read(file, part(model, "byte_fallback") == &Value::Bool(true))?;
    if settings.flag("add_prefix_space")?.is_some_and(|adds| adds && !cutting.has_space_prefix()) {
        return Err(unsupported("add_prefix_space", "false: 'pre_tokenizer' adds no space in front", "true"));
    }
    vocabulary::check_model(model, cutting)?;
    let added = added(part(file, "added_tokens"), settings)?;
    let entries = vocabulary::entries(model, &added, cutting, vocab)?;
    let merges = merges(&entries.texts, &vocabulary::merge_lines(model)?)?;
    let (tokens, matching) = (vocabulary::tokens(&entries, cutting)?, entries.matching);

    let [bos, eos] = ["bos_token", "eos_token"].map(|key| settings.token(key, &tokens));
    let (bos, eos) = (bos?, eos?);
    let [pad, unk] = ["pad_token", "unk_token"].map(|key| settings.token(key, &tokens));
    let (pad, unk) = (pad?, unk?);
    let post = part(file, "post_processor");
    let (add_bos, add_eos) = added_ends(post, &tokens, bos, eos)?;
    for (key, adds) in [("add_bos_token", add_bos), ("add_eos_token", add_eos)] {
        if settings.flag(key)?.is_some_and(|flag| flag != adds) {
            let expected = format!("{adds}, as 'post_processor' of tokenizer.json does it");
            return Err(malformed(format!("'{key}'"), expected, &(!adds).to_string()));
        }
    }
    let algorithm = match cutting {
        Cutting::Bytes { pre, nfc } => {
            let whole_pieces = part(model, "ignore_merges") == &Value::Bool(true);
            Algorithm::Bpe { pre, whole_pieces, nfc, merges }
        }
        Cutting::Characters { space_prefix, .. } => Algorithm::Characters { merges, space_prefix },
    };
    Ok(Tokenizer { algorithm, tokens, matching, bos, eos, eot: None, ends: Vec::new(), pad, unk, add_bos, add_eos })
}

impl Cutting {
    fn has_space_prefix(self) -> bool {
        matches!(self, Cutting::Characters { space_prefix, .. } if space_prefix != SpacePrefix::Never)
    }
}

fn part<'a>(file: &'a Object, key: &str) -> &'a Value {
    file.get(key).unwrap_or(&Value::Null)
}

/// The added tokens of `tokenizer.json`. What `tokenizer_config.json` says of the same ids is believed instead, and what
/// it has beyond is added, as the library does it.
fn added(own: &Value, settings: Settings) -> Result<Vec<Value>, ModelError> {
    const KEY: &str = "added_tokens_decoder";
    let mut added = own.as_array().cloned().unwrap_or_default();
    let Some(more) = settings.get(KEY) else { return Ok(added) };
    let wrong = |found: &str| malformed(format!("'{KEY}'"), "an object of added tokens by id", found);
    for (id, token) in more.as_object().ok_or_else(|| wrong(&more.to_string()))? {
        let mut token = token.clone();
        let number: u64 = id.parse().map_err(|_| wrong(id))?;
        token.as_object_mut().ok_or_else(|| wrong(id))?.insert("id".to_owned(), number.into());
        match added.iter_mut().find(|other| other["id"] == number) {
            Some(other) if other["content"] != token["content"] => {
                let expected = format!("{} as token {id}, as tokenizer.json has it", other["content"]);
                return Err(malformed(format!("'{KEY}'"), expected, &token["content"].to_string()));
            }
            Some(other) => *other = token,
            None => added.push(token),
        }
    }
    Ok(added)
}

/// Refuses keys that nothing here reads; those that are `null` ask for nothing.
fn only(what: &str, object: &Object, known: &[&str]) -> Result<(), ModelError> {
    let unknown = |(key, value): &(&String, &Value)| !known.contains(&key.as_str()) && !value.is_null();
    match object.iter().find(unknown) {
        None => Ok(()),
        Some((key, value)) => {
            Err(unsupported(what, format!("the keys {}", known.join(", ")), &format!("'{key}': {value}")))
        }
    }
}

fn find(text: &str, tokens: &[Token]) -> Option<u32> {
    let is_it = |token: &Token| token.kind != TokenKind::Normal && token.bytes == text.as_bytes();
    let plain = |token: &Token| token.bytes == text.as_bytes();
    tokens.iter().position(is_it).or_else(|| tokens.iter().position(plain)).map(|id| id as u32)
}

/// Whether texts get `bos` in front and `eos` at their end.
fn added_ends(post: &Value, tokens: &[Token], bos: Option<u32>, eos: Option<u32>) -> Result<(bool, bool), ModelError> {
    let wrong = || {
        let expected = "ByteLevel, or a template of the bos token, the text and the eos token";
        unsupported("post_processor", expected, &post.to_string())
    };
    let steps = match post["type"].as_str() {
        _ if post.is_null() => return Ok((false, false)),
        Some("Sequence") => post["processors"].as_array().map(Vec::as_slice).ok_or_else(wrong)?,
        _ => std::slice::from_ref(post),
    };
    let mut ends = (false, false);
    for step in steps {
        match step["type"].as_str() {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") if ends == (false, false) => {
                let pieces = step["single"].as_array().ok_or_else(wrong)?;
                let text = pieces.iter().position(|piece| piece["Sequence"]["id"] == "A").ok_or_else(wrong)?;
                let is = |piece: &Value, role: Option<u32>| {
                    let id = piece["SpecialToken"]["id"].as_str().and_then(|text| find(text, tokens));
                    id.is_some() && id == role
                };
                ends = match (&pieces[..text], &pieces[text + 1..]) {
                    ([], []) => (false, false),
                    ([first], []) if is(first, bos) => (true, false),
                    ([], [last]) if is(last, eos) => (false, true),
                    ([first], [last]) if is(first, bos) && is(last, eos) => (true, true),
                    _ => return Err(wrong()),
                };
            }
            _ => return Err(wrong()),
        }
    }
    Ok(ends)
}
