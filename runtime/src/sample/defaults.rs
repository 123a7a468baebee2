//! How a model's authors would have its tokens sampled, where nobody says otherwise: a plan's generation config.

use serde::Deserialize;

/// What the model says of how to sample. All of it is absent where it does not want tokens to be drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Defaults {
    do_sample: bool,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// How many of the likeliest tokens stay.
    pub top_k: Option<u32>,
    /// The probability that the kept tokens must reach together.
    pub top_p: Option<f32>,
    /// The least probability of a kept token relative to the likeliest.
    pub min_p: Option<f32>,
    /// Makes tokens that occurred already less likely.
    pub repetition_penalty: Option<f32>,
}

impl Defaults {
    /// Reads a plan's generation config; one that cannot be read only costs its defaults.
    pub fn read(config: Option<&str>) -> Defaults {
        let config: Defaults = config.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        if config.do_sample {
            Defaults { temperature: config.temperature.or(Some(1.0)), ..config }
        } else {
            Defaults::default()
        }
    }
}
