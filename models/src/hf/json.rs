//! JSON of a model directory, read strictly: each key once, and what is no JSON is named.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::gguf::{self, ValueType};
use crate::sniff;

/// Reads an object; `expected` says what the file should be.
///
/// # Errors
/// When the bytes are no JSON object, or a key occurs twice in one.
pub fn object(bytes: &[u8], expected: &'static str) -> Result<Map<String, Value>, ModelError> {
    // Some editors begin a text with a byte order mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(sniff::unexpected(expected, bytes));
    }
    match serde_json::from_slice(bytes) {
        Ok(Unique(Value::Object(object))) => Ok(object),
        Ok(Unique(other)) => Err(malformed(expected, "a JSON object", &other.to_string())),
        Err(error) => Err(malformed(expected, "JSON with each key once", &error.to_string())),
    }
}

/// The error for a file, or a part of one, that says something else than it may.
pub fn malformed(what: impl Into<String>, expected: impl Into<String>, found: &str) -> ModelError {
    ModelError::Malformed { what: what.into(), expected: expected.into(), found: shown(found) }
}

/// An error about a sound file that asks for what Lathe does not have.
pub fn unsupported(key: impl Into<String>, expected: impl Into<String>, found: &str) -> ModelError {
    ModelError::Unsupported { key: key.into(), expected: expected.into(), found: shown(found) }
}

/// As much of a text as helps; a longer one hides what is wrong.
fn shown(found: &str) -> String {
    const SHOWN: usize = 300;
    let shown: String = found.chars().take(SHOWN).collect();
    if shown.len() < found.len() { shown + "…" } else { shown }
}

/// A JSON value in which no object has a key twice; `serde_json` by itself would keep the last.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Unique(value))) = entries.next_entry::<String, Unique>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key '{key}' twice")));
            }
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

/// The knobs of a `config.json` as metadata: objects inside become keys with dots, and `null` is as good as absent.
pub fn knobs(object: &Map<String, Value>) -> BTreeMap<String, gguf::Value> {
    fn add(knobs: &mut BTreeMap<String, gguf::Value>, prefix: &str, object: &Map<String, Value>) {
        for (key, value) in object {
            let key = format!("{prefix}{key}");
            match value {
                Value::Null => {}
                Value::Object(inner) => add(knobs, &format!("{key}."), inner),
                value => drop(knobs.insert(key, knob(value))),
            }
        }
    }
    let mut knobs = BTreeMap::new();
    add(&mut knobs, "", object);
    knobs
}

fn knob(value: &Value) -> gguf::Value {
    match value {
        Value::Bool(value) => gguf::Value::Bool(*value),
        Value::String(text) => gguf::Value::String(text.clone()),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => gguf::Value::Unsigned(value),
            (None, Some(value)) => gguf::Value::Signed(value),
            (None, None) => gguf::Value::F32(number.as_f64().unwrap_or(f64::NAN) as f32),
        },
        Value::Array(items) => array(items),
        Value::Null | Value::Object(_) => gguf::Value::String(value.to_string()),
    }
}

/// Texts and integers as arrays of their own kinds, anything else item by item.
fn array(items: &[Value]) -> gguf::Value {
    let texts = items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
    let integers = items.iter().map(|item| item.as_i64().map(i64::to_le_bytes)).collect::<Option<Vec<_>>>();
    match (texts, integers) {
        (Some(texts), _) => gguf::Value::Strings(texts),
        (None, Some(bytes)) => gguf::Value::Scalars { element: ValueType::I64, bytes: bytes.concat() },
        (None, None) => gguf::Value::Arrays(items.iter().map(knob).collect()),
    }
}
