//! The knobs of the generic decoder, and the metadata that they are read from.
//!
//! [`Metadata`] remembers which keys were read. What nothing read is refused by name at the end, so that a knob that
//! Lathe does not understand (a rope scaling, a number of experts) can never be ignored in silence.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use lathe_ir::types::DType;

use crate::error::ModelError;
use crate::gguf::Value;

/// Which elements of a head rotate together, in the rows of the checkpoint's query and key weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Elements `(2i, 2i+1)`.
    Pairs,
    /// Elements `(i, i + head_dim/2)`.
    Halves,
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the angles: `angle_i = position · theta^(−2i/head_dim)`.
    pub theta: f32,
    /// Layout of the checkpoint's rows. The graph itself always rotates halves.
    pub layout: RopeLayout,
}

/// A decoder, described by numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family (`llama`).
    pub architecture: String,
    /// The model's own name, for people.
    pub name: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Elements per head; even.
    pub head_dim: usize,
    /// Width of the feed-forward network.
    pub ffn: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Added to the mean square before its root.
    pub rms_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether queries, keys and values have biases.
    pub attention_bias: bool,
    /// Whether the output head is the embedding table.
    pub tied_head: bool,
    /// Element type of the key/value cache: a choice of the compiler, not a fact of the file.
    pub cache: DType,
}

impl ModelConfig {
    /// Checks what the numbers must have to do with one another.
    pub fn check(&self) -> Result<(), ModelError> {
        let wrong = |key: &str, expected: String, found: String| {
            Err(ModelError::Key { key: format!("{}.{key}", self.architecture), expected, found })
        };
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of the {} query heads", self.heads);
            return wrong("attention.head_count_kv", expected, self.kv_heads.to_string());
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("attention.key_length", "an even number".to_owned(), self.head_dim.to_string());
        }
        if !(self.rms_eps.is_finite() && self.rms_eps > 0.0) {
            let expected = "a positive number".to_owned();
            return wrong("attention.layer_norm_rms_epsilon", expected, self.rms_eps.to_string());
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return wrong("rope.freq_base", "a positive number".to_owned(), self.rope.theta.to_string());
        }
        Ok(())
    }
}

/// Metadata by key, with a record of what was read.
pub struct Metadata<'a> {
    values: &'a BTreeMap<String, Value>,
    read: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Metadata<'a> {
    /// Wraps a file's metadata; nothing is read yet.
    pub fn new(values: &'a BTreeMap<String, Value>) -> Metadata<'a> {
        Metadata { values, read: RefCell::default() }
    }

    /// The value of a key, now marked as read.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let (key, value) = self.values.get_key_value(key)?;
        self.read.borrow_mut().insert(key);
        Some(value)
    }

    /// Marks keys that only inform people, by prefix.
    pub fn skip(&self, prefixes: &[&str]) {
        let skipped = self.values.keys().filter(|key| prefixes.iter().any(|prefix| key.starts_with(prefix)));
        self.read.borrow_mut().extend(skipped.map(String::as_str));
    }

    /// Refuses keys that nothing has read.
    pub fn finish(self) -> Result<(), ModelError> {
        let read = self.read.into_inner();
        let keys: Vec<String> = self.values.keys().filter(|key| !read.contains(key.as_str())).cloned().collect();
        if keys.is_empty() { Ok(()) } else { Err(ModelError::UnknownKeys { keys }) }
    }

    /// A size: an integer from 1 to 2³¹ − 1, so that products of two sizes cannot overflow.
    pub fn size(&self, key: &str) -> Result<usize, ModelError> {
        required(self.optional_size(key)?, key, "a positive integer")
    }

    /// As [`Metadata::size`], for a key that may be absent.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.map(key, "an integer from 1 to 2147483647", |value| {
            let number = unsigned(value)?;
            (1..=i32::MAX as u64).contains(&number).then_some(number as usize)
        })
    }

    /// A 32-bit index that may be absent.
    pub fn optional_index(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.map(key, "an integer below 2³²", |value| u32::try_from(unsigned(value)?).ok())
    }

    /// A number in single precision, or a whole one.
    pub fn f32(&self, key: &str) -> Result<f32, ModelError> {
        required(self.optional_f32(key)?, key, "a number")
    }

    /// As [`Metadata::f32`], for a key that may be absent.
    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.map(key, "a single-precision number", |value| match value {
            Value::F32(number) => Some(*number),
            // JSON writes whole numbers without a point.
            Value::Unsigned(number) => Some(*number as f32),
            _ => None,
        })
    }

    /// A bool that may be absent.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.map(key, "true or false", |value| match value {
            Value::Bool(bool) => Some(*bool),
            _ => None,
        })
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<&'a str, ModelError> {
        required(self.optional_text(key)?, key, "a text")
    }

    /// As [`Metadata::text`], for a key that may be absent.
    pub fn optional_text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.map(key, "a text", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An array of texts.
    pub fn texts(&self, key: &str) -> Result<&'a [String], ModelError> {
        let texts = self.map(key, "an array of texts", |value| match value {
            Value::Strings(texts) => Some(texts.as_slice()),
            _ => None,
        });
        required(texts?, key, "an array of texts")
    }

    /// An array of integers.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>, ModelError> {
        required(self.map(key, "an array of integers", Value::integers)?, key, "an array of integers")
    }

    /// An array of single-precision numbers.
    pub fn floats(&self, key: &str) -> Result<Vec<f32>, ModelError> {
        let expected = "an array of single-precision numbers";
        required(self.map(key, expected, Value::floats)?, key, expected)
    }

    fn map<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(found) => Ok(Some(found)),
            None => {
                Err(ModelError::Key { key: key.to_owned(), expected: expected.to_owned(), found: value.describe() })
            }
        }
    }
}

fn required<T>(value: Option<T>, key: &str, expected: &'static str) -> Result<T, ModelError> {
    value.ok_or_else(|| ModelError::MissingKey { key: key.to_owned(), expected })
}

/// A non-negative integer of any width.
fn unsigned(value: &Value) -> Option<u64> {
    match value {
        Value::Unsigned(number) => Some(*number),
        Value::Signed(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}
