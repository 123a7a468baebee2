//! The tokenizer of a model directory: `tokenizer.json` decides how text becomes tokens, `tokenizer_config.json` and
//! `special_tokens_map.json` say which of them begin and end a text.
//!
//! What cuts and joins text is recognised by its structure and otherwise refused with what was found. Truncation and
//! padding are left alone: they concern batches of that library, not the tokenizer. So are the other settings of
//! `tokenizer_config.json`, which choose among that library's classes.

use serde_json::{Map, Value, json};

use super::json::malformed;
use crate::error::ModelError;
use crate::tokenizer::bpe::{byte_characters, bytes_by_character, merges};
use crate::tokenizer::{Algorithm, PreTokenizer, Token, TokenKind, Tokenizer};

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

    /// The chat template: a text, or the one named `default` of several.
    ///
    /// # Errors
    /// When there are several and none is the default.
    pub fn chat_template(&self) -> Result<Option<&'a str>, ModelError> {
        let Some(value) = self.get("chat_template") else { return Ok(None) };
        let is_default = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
        let default = || value.as_array()?.iter().find(is_default)?.get("template")?.as_str();
        let expected = "a text, or a list of named texts with one named 'default'";
        value
            .as_str()
            .or_else(default)
            .map(Some)
            .ok_or_else(|| malformed("'chat_template'", expected, &value.to_string()))
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
    let normalizer = part(file, "normalizer");
    if *normalizer != Value::Null && *normalizer != json!({ "type": "Sequence", "normalizers": [] }) {
        return Err(malformed("'normalizer'", "null: others are not supported yet", &normalizer.to_string()));
    }
    let decoder = part(file, "decoder");
    if *decoder != Value::Null && decoder["type"] != "ByteLevel" {
        return Err(malformed("'decoder'", "of type ByteLevel", &decoder.to_string()));
    }
    let pre = pre_tokenizer(part(file, "pre_tokenizer"))?;
    if settings.flag("add_prefix_space")? == Some(true) {
        return Err(malformed("'add_prefix_space'", "false: byte-level BPE has no space prefix", "true"));
    }

    let model = part(file, "model").as_object();
    let model = model.ok_or_else(|| malformed("'model'", "an object", &part(file, "model").to_string()))?;
    check_model(model)?;
    let (texts, kinds) = texts(model, part(file, "added_tokens"), vocab)?;
    let merges = merges(&texts, &merge_lines(model)?)?;
    let tokens = tokens(&texts, &kinds)?;

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
    let algorithm = Algorithm::Bpe { pre, merges };
    Ok(Tokenizer { algorithm, tokens, bos, eos, eot: None, ends: Vec::new(), pad, unk, add_bos, add_eos })
}

fn part<'a>(file: &'a Object, key: &str) -> &'a Value {
    file.get(key).unwrap_or(&Value::Null)
}

/// Refuses keys that nothing here reads; those that are `null` ask for nothing.
fn only(what: &str, object: &Object, known: &[&str]) -> Result<(), ModelError> {
    let unknown = |(key, value): &(&String, &Value)| !known.contains(&key.as_str()) && !value.is_null();
    match object.iter().find(unknown) {
        None => Ok(()),
        Some((key, value)) => {
            Err(malformed(what, format!("the keys {}", known.join(", ")), &format!("'{key}': {value}")))
        }
    }
}

fn find(text: &str, tokens: &[Token]) -> Option<u32> {
    let is_it = |token: &Token| token.kind != TokenKind::Normal && token.bytes == text.as_bytes();
    let plain = |token: &Token| token.bytes == text.as_bytes();
    tokens.iter().position(is_it).or_else(|| tokens.iter().position(plain)).map(|id| id as u32)
}

/// The pre-tokenizer of this structure. `trim_offsets` concerns positions in the text alone.
fn pre_tokenizer(value: &Value) -> Result<PreTokenizer, ModelError> {
    let known = [(
        PreTokenizer::SmolLm,
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        ] }),
    )];
    let found = plain_steps(value);
    let pre = known.iter().find(|(_, structure)| *structure == found).map(|(pre, _)| *pre);
    pre.ok_or_else(|| {
        let list: Vec<String> = known.iter().map(|(pre, structure)| format!("{structure} ({})", pre.name())).collect();
        malformed("'pre_tokenizer'", format!("one of {}", list.join(", ")), &value.to_string())
    })
}

/// The same pre-tokenizer with defaults written out and without what does not matter.
fn plain_steps(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(steps) = value.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        *steps = steps.iter().map(plain_steps).collect();
    }
    if let Some(step) = value.as_object_mut().filter(|step| step.get("type").is_some_and(|kind| kind == "ByteLevel")) {
        step.remove("trim_offsets");
        step.entry("use_regex").or_insert(Value::Bool(true));
    }
    value
}

/// Refuses what would merge in another way than byte-level BPE.
fn check_model(model: &Object) -> Result<(), ModelError> {
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
    only("'model'", model, &KNOWN)?;
    let check = |key: &str, expected: &str, good: &dyn Fn(&Value) -> bool| match part(model, key) {
        value if value.is_null() || good(value) => Ok(()),
        value => Err(malformed(format!("'{key}' of 'model'"), expected, &value.to_string())),
    };
    check("type", "\"BPE\", the only kind that is supported so far", &|value| value == "BPE")?;
    check("dropout", "null: dropout is for training", &|value| value.as_f64() == Some(0.0))?;
    for key in ["byte_fallback", "ignore_merges"] {
        check(key, "false: true is not supported yet", &|value| value == false)?;
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        check(key, "null: byte-level BPE marks no words", &|value| value == "")?;
    }
    // With a token for every byte, none is ever unknown.
    let spells_all = || {
        byte_characters()
            .iter()
            .all(|character| model.get("vocab").and_then(|vocab| vocab.get(character.to_string())).is_some())
    };
    check("unk_token", "null, or a token for every byte beside it", &|_| spells_all())
}

/// The text and kind of each token by id.
fn texts(model: &Object, added: &Value, vocab: usize) -> Result<(Vec<String>, Vec<TokenKind>), ModelError> {
    let Some(entries) = model.get("vocab").and_then(Value::as_object) else {
        return Err(malformed("'vocab' of 'model'", "an object of ids by token", &part(model, "vocab").to_string()));
    };
    let mut slots: Vec<Option<(String, TokenKind)>> = vec![None; vocab];
    let mut put = |text: &str, id: Option<u64>, kind: TokenKind| {
        let shown = text.escape_debug();
        let Some(slot) = id.and_then(|id| slots.get_mut(usize::try_from(id).ok()?)) else {
            let expected = format!("ids below the {vocab} rows of the embedding");
            let found = id.map_or("none".to_owned(), |id| id.to_string());
            return Err(ModelError::Tokenizer { expected, found: format!("{found} for '{shown}'") });
        };
        match slot {
            Some((other, _)) if other.as_str() != text || kind == TokenKind::Normal => {
                let found = format!("'{}' and '{shown}'", other.escape_debug());
                Err(ModelError::Tokenizer { expected: "each id once".to_owned(), found })
            }
            _ => {
                *slot = Some((text.to_owned(), kind));
                Ok(())
            }
        }
    };
    for (text, id) in entries {
        put(text, id.as_u64(), TokenKind::Normal)?;
    }
    for token in added.as_array().into_iter().flatten() {
        let text = token["content"].as_str().filter(|text| !text.is_empty());
        let text = text.ok_or_else(|| malformed("'added_tokens'", "a text as 'content'", &token.to_string()))?;
        if let Some(flag) = ["single_word", "lstrip", "rstrip"].into_iter().find(|&flag| token[flag] == true) {
            let what = format!("'{flag}' of added token '{}'", text.escape_debug());
            return Err(malformed(what, "false: true is not supported yet", "true"));
        }
        let kind = if token["special"] == true { TokenKind::Control } else { TokenKind::UserDefined };
        put(text, token["id"].as_u64(), kind)?;
    }
    let unused = |id: usize| (format!("[PAD{id}]"), TokenKind::Unused);
    Ok(slots.into_iter().enumerate().map(|(id, slot)| slot.unwrap_or_else(|| unused(id))).unzip())
}

fn tokens(texts: &[String], kinds: &[TokenKind]) -> Result<Vec<Token>, ModelError> {
    let bytes_of = bytes_by_character();
    let token = |(text, &kind): (&String, &TokenKind)| {
        if kind != TokenKind::Normal {
            return Ok(Token { bytes: text.as_bytes().to_vec(), kind });
        }
        let bytes = text.chars().map(|character| bytes_of.get(&character).copied()).collect::<Option<_>>();
        let wrong =
            || malformed(format!("token '{}'", text.escape_debug()), "characters of the byte-to-unicode map", text);
        Ok(Token { bytes: bytes.ok_or_else(wrong)?, kind })
    };
    texts.iter().zip(kinds).map(token).collect()
}

/// Merges are texts with a space between the two, or pairs of texts in newer files.
fn merge_lines(model: &Object) -> Result<Vec<String>, ModelError> {
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

/// Whether texts get `bos` in front and `eos` at their end.
fn added_ends(post: &Value, tokens: &[Token], bos: Option<u32>, eos: Option<u32>) -> Result<(bool, bool), ModelError> {
    let wrong = || {
        let expected = "ByteLevel, or a template of the bos token, the text and the eos token";
        malformed("'post_processor'", expected, &post.to_string())
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
