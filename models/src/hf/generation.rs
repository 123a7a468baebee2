//! `generation_config.json`: how a model's authors would have its tokens sampled. What it says of ends is the
//! tokenizer's; other keys speak of ways to search that Lathe does not have, and are left alone.

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::hf::json;

/// What is stated of sampling, and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Generation {
    /// Whether tokens are drawn at all.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// How many of the likeliest tokens stay; zero keeps all.
    pub top_k: Option<u32>,
    /// The probability that the kept tokens must reach together.
    pub top_p: Option<f64>,
    /// The least probability of a kept token relative to the likeliest.
    pub min_p: Option<f64>,
    /// Divides positive logits and multiplies negative ones of tokens that occurred already.
    pub repetition_penalty: Option<f64>,
}

impl Generation {
    /// Reads the file.
    ///
    /// # Errors
    /// When a value is of another kind, or out of the range in which it has a meaning.
    pub fn read(file: &Map<String, Value>) -> Result<Generation, ModelError> {
        let wrong = |key: &str, expected: &str, found: &Value| {
            json::malformed(format!("'{key}'"), expected, &found.to_string())
        };
        let stated = |key: &str| file.get(key).filter(|value| !value.is_null());
        let number = |key: &str, expected: &str, is_fine: fn(f64) -> bool| {
            let read =
                |value: &Value| value.as_f64().filter(|&n| is_fine(n)).ok_or_else(|| wrong(key, expected, value));
            stated(key).map(read).transpose()
        };
        let flag = |value: &Value| value.as_bool().ok_or_else(|| wrong("do_sample", "true or false", value));
        let count = |value: &Value| {
            let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
            count.ok_or_else(|| wrong("top_k", "a whole number of at least 0", value))
        };
        Ok(Generation {
            do_sample: stated("do_sample").map(flag).transpose()?,
            temperature: number("temperature", "a number of at least 0", |n| (0.0..=f64::from(f32::MAX)).contains(&n))?,
            top_k: stated("top_k").map(count).transpose()?,
            top_p: number("top_p", "a number above 0 and at most 1", |n| n > 0.0 && n <= 1.0)?,
            min_p: number("min_p", "a number from 0 to 1", |n| (0.0..=1.0).contains(&n))?,
            repetition_penalty: number("repetition_penalty", "a number from 0.01 to 10", |n| {
                (0.01..=10.0).contains(&n)
            })?,
        })
    }
}
