//! Changes of a JSON value: another value in some place, a key or an item more or less.

use serde_json::{Map, Value, json};

use super::bytes;
use crate::random::Random;

/// The input with one place changed. What is no JSON is changed as bytes.
pub fn change(random: &mut Random, input: &[u8], other: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice(input) else { return bytes::change(random, input, other, &[]) };
    let donor = serde_json::from_slice(other).unwrap_or(Value::Null);
    change_value(random, &mut value, &donor);
    value.to_string().into_bytes()
}

/// Goes down from the top by random steps, so that the few places of a file's structure are met as often as the many of
/// its lists.
fn change_value(random: &mut Random, value: &mut Value, donor: &Value) {
    let is_inner = match value {
        Value::Object(object) => !object.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if is_inner && !random.once_in(5) {
        match value {
            Value::Object(object) => {
                let at = random.below(object.len());
                let Some((key, inner)) = object.iter_mut().nth(at) else { return };
                // The same place of the other value gives what fits there.
                change_value(random, inner, donor.get(key.as_str()).unwrap_or(donor));
            }
            Value::Array(items) => {
                let at = random.below(items.len());
                let donors = donor.as_array().filter(|items| !items.is_empty());
                let donor = donors.map_or(donor, |donors| &donors[at % donors.len()]);
                change_value(random, &mut items[at], donor);
            }
            _ => {}
        }
        return;
    }
    match (random.below(4), &mut *value) {
        (0, _) => *value = donor.clone(),
        (1, _) => *value = scalar(random),
        (_, Value::Object(object)) => change_object(random, object),
        (_, Value::Array(items)) => change_items(random, items),
        (_, Value::String(text)) => *text = change_text(random, text),
        (_, Value::Number(number)) => {
            let old = number.as_u64().unwrap_or(1);
            *value = match random.below(5) {
                0 => old.wrapping_add(1).into(),
                1 => old.wrapping_sub(1).into(),
                2 => old.wrapping_mul(2).into(),
                3 => (number.as_f64().unwrap_or(1.0) * *random.of(&[-1.0, 0.5, 1e30, 1e-30])).into(),
                _ => random.awkward().into(),
            };
        }
        (_, other) => *other = scalar(random),
    }
}

fn scalar(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => random.once_in(2).into(),
        2 => json!([]),
        3 => json!({}),
        4 => "".into(),
        5 => random.of(&["a", "▁", " ", "<s>", "\u{0}", "é", "default"]).to_string().into(),
        6 => (-(random.below(3) as i64)).into(),
        7 => (random.below(100) as f64 / 7.0).into(),
        8 => 1e300.into(),
        // Deep, and less so than a reader's limit.
        9 => (0..100).fold(Value::Null, |inner, _| json!([inner])),
        _ => random.awkward().into(),
    }
}

fn change_object(random: &mut Random, object: &mut Map<String, Value>) {
    let keys: Vec<String> = object.keys().cloned().collect();
    if keys.is_empty() {
        object.insert("a".to_owned(), scalar(random));
        return;
    }
    let key = random.of(&keys).clone();
    match random.below(4) {
        0 => drop(object.remove(&key)),
        1 => {
            let value = object.remove(&key).unwrap_or_default();
            object.insert(change_text(random, &key), value);
        }
        2 => {
            let value = object[&key].clone();
            object.insert(change_text(random, &key), value);
        }
        _ => {
            let value = object[random.of(&keys)].clone();
            object.insert(key, value);
        }
    }
}

fn change_items(random: &mut Random, items: &mut Vec<Value>) {
    if items.is_empty() {
        items.push(scalar(random));
        return;
    }
    let (at, to) = (random.below(items.len()), random.below(items.len()));
    match random.below(5) {
        0 => drop(items.remove(at)),
        1 => items.insert(to, items[at].clone()),
        2 => items.swap(at, to),
        3 => items.truncate(at),
        _ => items[at] = items[to].clone(),
    }
}

/// A text with a character more, less or other.
pub fn change_text(random: &mut Random, text: &str) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    let at = random.below(characters.len() + 1);
    let new = *random.of(&['a', 'z', ' ', '\u{2581}', 'Ġ', '\u{0}', 'é', '/', '.', '<', '{', '1', '\u{10ffff}']);
    match random.below(5) {
        0 if at < characters.len() => drop(characters.remove(at)),
        1 if at < characters.len() => characters[at] = new,
        2 => characters.truncate(at),
        3 => characters.extend(characters.clone()),
        _ => characters.insert(at, new),
    }
    characters.truncate(1 << 12);
    characters.into_iter().collect()
}
