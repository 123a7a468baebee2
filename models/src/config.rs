//! The knobs of the generic decoder, and the metadata that they are read from.
//!
//! [`Metadata`] remembers which keys were read. What nothing read is refused by name at the end, so that a knob that
//! Lathe does not understand (a rope scaling, a number of experts) can never be ignored in silence.

mod describe;
mod knobs;
mod rope;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use lathe_ir::types::DType;

use crate::error::ModelError;
use crate::gguf::Value;

pub use knobs::{Activation, Knobs, Layers, NormKind, Norms, QkNorm, Window};
pub use lathe_ir::ops::rotary::Scaling;
pub use rope::{Rope, RopeLayout};

/// Several times as many layers as the deepest model has; a graph of many more would take all memory.
const MOST_LAYERS: usize = 1024;

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
    /// Most positions of a sequence, at most `context`: a choice of the compiler, which decides between two lists of
    /// frequencies where a model has two. `None` for `context`.
    pub longest: Option<usize>,
    /// Added to the mean square, or to the variance, before its root.
    pub norm_eps: f32,
    /// Rotary position embedding, of the layers that have no other one by [`Knobs::local_rope`] or [`Knobs::unrotated`].
    pub rope: Rope,
    /// What families add to, or change in, a plain llama.
    pub knobs: Knobs,
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
        if self.layers > MOST_LAYERS {
            return wrong("block_count", format!("at most {MOST_LAYERS} layers"), self.layers.to_string());
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of the {} query heads", self.heads);
            return wrong("attention.head_count_kv", expected, self.kv_heads.to_string());
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("attention.key_length", "an even number".to_owned(), self.head_dim.to_string());
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            let key = match self.knobs.norm {
                NormKind::Rms => "attention.layer_norm_rms_epsilon",
                NormKind::Layer => "attention.layer_norm_epsilon",
            };
            return wrong(key, "a positive number".to_owned(), self.norm_eps.to_string());
        }
        for rope in std::iter::once(&self.rope).chain(&self.knobs.local_rope) {
            rope.check(&self.architecture, self.head_dim)?;
        }
        self.knobs.check(&self.architecture, self.layers)
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
        required(self.optional_texts(key)?, key, "an array of texts")
    }

    /// As [`Metadata::texts`], for a key that may be absent.
    pub fn optional_texts(&self, key: &str) -> Result<Option<&'a [String]>, ModelError> {
        self.map(key, "an array of texts", |value| match value {
            Value::Strings(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// An array of numbers of any kind, in single precision.
    pub fn numbers(&self, key: &str) -> Result<Vec<f32>, ModelError> {
        let expected = "an array of numbers";
        let number = |value: &Value| match value {
            Value::F32(number) => Some(*number),
            Value::Unsigned(number) => Some(*number as f32),
            Value::Signed(number) => Some(*number as f32),
            _ => None,
        };
        let read = |value: &Value| match value {
            Value::Arrays(items) => items.iter().map(number).collect(),
            value => value.floats().or_else(|| Some(value.integers()?.iter().map(|&number| number as f32).collect())),
        };
        required(self.map(key, expected, read)?, key, expected)
    }

    /// Whether any key begins like this.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.values.keys().any(|key| key.starts_with(prefix))
    }

    /// Refuses the value of a key that asks for what Lathe does not do.
    pub fn refuse<T>(&self, key: &str, expected: impl Into<String>) -> Result<T, ModelError> {
        Err(ModelError::Unsupported { key: key.to_owned(), expected: expected.into(), found: self.describe(key) })
    }

    /// Refuses the value of a key that contradicts others.
    pub fn contradicts<T>(&self, key: &str, expected: impl Into<String>) -> Result<T, ModelError> {
        Err(ModelError::Key { key: key.to_owned(), expected: expected.into(), found: self.describe(key) })
    }

    fn describe(&self, key: &str) -> String {
        self.get(key).map_or_else(|| "nothing".to_owned(), Value::describe)
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
