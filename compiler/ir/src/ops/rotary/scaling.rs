//! Rotary scalings: how a model trained on short texts turns its queries and keys on longer ones.
//!
//! A scaling gives the frequencies of each *length*, the number of tokens up to and with the one that turns. Those that
//! depend on the length (dynamic NTK, longrope) take the length of the token's own history, position + 1, so that a token
//! is turned the same way whatever else is in the step and however long the text later grows. Implementations that take
//! the length of the whole text so far turn the earlier tokens of a long prompt otherwise; up to `original` tokens there
//! is no difference.

use std::f64::consts::TAU;

use crate::attributes::{AttributeError, Attributes};

/// A rotary scaling. `original` is the number of tokens that the model was first trained with.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scaling {
    /// Frequencies as they are.
    #[default]
    None,
    /// Every frequency divided by `factor` (position interpolation: Chen et al., 2023).
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Beyond `original` tokens the base grows with the length L: `theta · (factor·L/original − factor + 1)^(D/(D−2))`
    /// (dynamic NTK-aware scaling).
    Dynamic {
        /// How fast the base grows.
        factor: f32,
        /// See the enum.
        original: usize,
    },
    /// Slow dimensions divided by `factor`, fast ones kept, a ramp between them (yarn: Peng et al., 2023).
    Yarn {
        /// The divisor.
        factor: f32,
        /// See the enum.
        original: usize,
        /// Turns over `original` tokens above which a dimension is fast.
        beta_fast: f32,
        /// Turns over `original` tokens below which a dimension is slow.
        beta_slow: f32,
        /// Factor of cosines and sines; see [`yarn_attention_factor`].
        attention_factor: f32,
    },
    /// Long waves divided by `factor`, short ones kept, a blend between them (Llama 3.1).
    Llama3 {
        /// The divisor.
        factor: f32,
        /// A wave longer than `original / low` is long.
        low: f32,
        /// A wave shorter than `original / high` is short.
        high: f32,
        /// See the enum.
        original: usize,
    },
    /// Each frequency divided by a factor of its own: `short` up to `original` tokens, `long` beyond (longrope: Ding et
    /// al., 2024). With two equal lists it holds any fixed factors.
    LongRope {
        /// See the enum.
        original: usize,
        /// Factor of cosines and sines; see [`longrope_attention_factor`].
        attention_factor: f32,
        /// Divisors of short texts.
        short: Vec<f32>, // [dim/2]
        /// Divisors of long texts.
        long: Vec<f32>, // [dim/2]
    },
}

/// The attention factor of yarn where a model states none: `0.1 · ln(factor) + 1`, 1 for factors up to 1.
pub fn yarn_attention_factor(factor: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { (0.1 * f64::from(factor).ln() + 1.0) as f32 }
}

/// The attention factor of longrope where a model states none: `sqrt(1 + ln(factor) / ln(original))` with
/// `factor = context / original`, 1 for factors up to 1.
pub fn longrope_attention_factor(context: usize, original: usize) -> f32 {
    let factor = context as f64 / original as f64;
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() as f32 }
}

impl Scaling {
    /// The spelling in the text IR.
    pub fn name(&self) -> &'static str {
        match self {
            Scaling::None => "none",
            Scaling::Linear { .. } => "linear",
            Scaling::Dynamic { .. } => "dynamic",
            Scaling::Yarn { .. } => "yarn",
            Scaling::Llama3 { .. } => "llama3",
            Scaling::LongRope { .. } => "longrope",
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f32 {
        match self {
            Scaling::Yarn { attention_factor, .. } | Scaling::LongRope { attention_factor, .. } => *attention_factor,
            Scaling::None | Scaling::Linear { .. } | Scaling::Dynamic { .. } | Scaling::Llama3 { .. } => 1.0,
        }
    }

    /// The number of tokens up to which frequencies are those of `original`, where they depend on the length.
    pub fn original(&self) -> Option<usize> {
        match self {
            Scaling::Dynamic { original, .. } | Scaling::LongRope { original, .. } => Some(*original),
            _ => None,
        }
    }

    /// The angles per position of the `dim / 2` pairs at a length, in f64.
    pub fn frequencies(&self, dim: usize, theta: f32, length: usize) -> Vec<f64> {
        let theta = f64::from(theta);
        let plain = |i: usize| theta.powf(-2.0 * i as f64 / dim as f64);
        let plain = (0..dim / 2).map(plain);
        match self {
            Scaling::None => plain.collect(),
            Scaling::Linear { factor } => plain.map(|frequency| frequency / f64::from(*factor)).collect(),
            Scaling::Dynamic { .. } => {
                let growth = self.growth(length);
                plain.enumerate().map(|(i, frequency)| frequency * growth.powf(growth_exponent(dim, i))).collect()
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
                // The dimension that makes so many turns over the original length.
                let dimension =
                    |turns: f32| dim as f64 * (*original as f64 / (f64::from(turns) * TAU)).ln() / (2.0 * theta.ln());
                let low = dimension(*beta_fast).floor().max(0.0);
                let high = dimension(*beta_slow).ceil().min(dim as f64 - 1.0);
                let width = if high > low { high - low } else { 0.001 };
                let slow = |i: usize| ((i as f64 - low) / width).clamp(0.0, 1.0);
                plain.enumerate().map(|(i, f)| f / f64::from(*factor) * slow(i) + f * (1.0 - slow(i))).collect()
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let (factor, low, high) = (f64::from(*factor), f64::from(*low), f64::from(*high));
                let scale = |frequency: f64| {
                    let turns = *original as f64 * frequency / TAU;
                    let short = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - short) * frequency / factor + short * frequency
                };
                plain.map(scale).collect()
            }
            Scaling::LongRope { original, short, long, .. } => {
                let factors = if length > *original { long } else { short };
                plain.zip(factors).map(|(frequency, &factor)| frequency / f64::from(factor)).collect()
            }
        }
    }

    /// What dynamic NTK raises to [`growth_exponent`]: `factor · L / original − factor + 1`, 1 up to `original` tokens and
    /// for the other scalings.
    pub fn growth(&self, length: usize) -> f64 {
        match self {
            Scaling::Dynamic { factor, original } if length > *original => {
                f64::from(*factor) * length as f64 / *original as f64 - f64::from(*factor) + 1.0
            }
            _ => 1.0,
        }
    }

    /// What is wrong with the numbers for `dim` rotating elements, if anything.
    pub(super) fn fault(&self, dim: usize) -> Option<String> {
        let positive = |pairs: &[(&str, f32)]| {
            let bad = pairs.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0));
            bad.map(|(name, value)| format!("attribute '{name}' expects a positive finite number, found {value:?}"))
        };
        let some = |original: usize| {
            (original == 0).then(|| "attribute 'original' expects a positive number, found 0".to_owned())
        };
        match self {
            Scaling::None => None,
            Scaling::Linear { factor } => positive(&[("factor", *factor)]),
            Scaling::Dynamic { factor, original } => {
                let narrow = (dim < 4).then(|| format!("attribute 'dim' expects at least 4, found {dim}"));
                let small = (*factor < 1.0).then(|| format!("attribute 'factor' expects 1 or more, found {factor:?}"));
                positive(&[("factor", *factor)]).or(small).or(narrow).or_else(|| some(*original))
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor } => {
                let numbers = [("factor", *factor), ("beta_fast", *beta_fast), ("beta_slow", *beta_slow)];
                positive(&numbers).or(positive(&[("attention_factor", *attention_factor)])).or_else(|| some(*original))
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let order =
                    (low >= high).then(|| format!("attribute 'high' expects more than {low:?}, found {high:?}"));
                positive(&[("factor", *factor), ("low", *low), ("high", *high)]).or(order).or_else(|| some(*original))
            }
            Scaling::LongRope { original, attention_factor, short, long } => {
                let half = dim / 2;
                let count = |name: &str, list: &[f32]| {
                    let wrong = list.len() != half || list.iter().any(|factor| !(factor.is_finite() && *factor > 0.0));
                    let found = list.len();
                    wrong.then(|| format!("attribute '{name}' expects {half} positive numbers, found {found} numbers"))
                };
                let counts = count("short", short).or_else(|| count("long", long));
                counts.or(positive(&[("attention_factor", *attention_factor)])).or_else(|| some(*original))
            }
        }
    }

    /// As attributes of the text IR; none without scaling.
    pub fn to_attributes(&self) -> Attributes {
        self.attributes(Attributes::new())
    }

    pub(super) fn attributes(&self, attributes: Attributes) -> Attributes {
        if *self == Scaling::None {
            return attributes;
        }
        let named = attributes.with("scaling", self.name());
        match self {
            Scaling::None => named,
            Scaling::Linear { factor } => named.with("factor", *factor),
            Scaling::Dynamic { factor, original } => named.with("factor", *factor).with("original", *original),
            Scaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor } => named
                .with("factor", *factor)
                .with("original", *original)
                .with("beta_fast", *beta_fast)
                .with("beta_slow", *beta_slow)
                .with("attention_factor", *attention_factor),
            Scaling::Llama3 { factor, low, high, original } => {
                named.with("factor", *factor).with("low", *low).with("high", *high).with("original", *original)
            }
            Scaling::LongRope { original, attention_factor, short, long } => named
                .with("original", *original)
                .with("attention_factor", *attention_factor)
                .with("short", &short[..])
                .with("long", &long[..]),
        }
    }

    pub(super) fn from_attributes(attributes: &mut Attributes) -> Result<Scaling, AttributeError> {
        if !attributes.has("scaling") {
            return Ok(Scaling::None);
        }
        let expected = "\"linear\", \"dynamic\", \"yarn\", \"llama3\" or \"longrope\"";
        let kinds = ["linear", "dynamic", "yarn", "llama3", "longrope"];
        Ok(match attributes.choice("scaling", expected, &kinds.map(|kind| (kind, kind)))? {
            "linear" => Scaling::Linear { factor: attributes.float("factor")? },
            "dynamic" => {
                Scaling::Dynamic { factor: attributes.float("factor")?, original: attributes.count("original")? }
            }
            "yarn" => Scaling::Yarn {
                factor: attributes.float("factor")?,
                original: attributes.count("original")?,
                beta_fast: attributes.float("beta_fast")?,
                beta_slow: attributes.float("beta_slow")?,
                attention_factor: attributes.float("attention_factor")?,
            },
            "llama3" => Scaling::Llama3 {
                factor: attributes.float("factor")?,
                low: attributes.float("low")?,
                high: attributes.float("high")?,
                original: attributes.count("original")?,
            },
            _ => Scaling::LongRope {
                original: attributes.count("original")?,
                attention_factor: attributes.float("attention_factor")?,
                short: attributes.floats("short")?,
                long: attributes.floats("long")?,
            },
        })
    }
}

/// The power of [`Scaling::growth`] that multiplies the frequency of pair `i`: `−2i / (dim − 2)`.
pub fn growth_exponent(dim: usize, i: usize) -> f64 {
    -2.0 * i as f64 / (dim as f64 - 2.0)
}
