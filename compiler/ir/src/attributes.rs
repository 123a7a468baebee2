//! Attributes of ops: ordered names with plain values, printed as `{eps = 1e-5, heads = 9}`.

use std::fmt;

use crate::types::MAX_COUNT;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// An integer.
    Int(i64),
    /// A float; always prints with a point or an exponent, and parses back to the same bits.
    Float(f32),
    /// `true` or `false`.
    Bool(bool),
    /// A quoted string.
    Text(String),
    /// Floats in brackets.
    Floats(Vec<f32>),
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attribute::Int(value) => write!(f, "{value}"),
            // Debug gives the shortest digits that read back to the same f32.
            Attribute::Float(value) => write!(f, "{value:?}"),
            Attribute::Bool(value) => write!(f, "{value}"),
            Attribute::Text(value) => f.write_str(&crate::lex::quote(value)),
            Attribute::Floats(values) => write!(f, "{values:?}"),
        }
    }
}

impl From<usize> for Attribute {
    fn from(value: usize) -> Attribute {
        Attribute::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<f32> for Attribute {
    fn from(value: f32) -> Attribute {
        Attribute::Float(value)
    }
}

impl From<bool> for Attribute {
    fn from(value: bool) -> Attribute {
        Attribute::Bool(value)
    }
}

impl From<&str> for Attribute {
    fn from(value: &str) -> Attribute {
        Attribute::Text(value.to_string())
    }
}

impl From<&[f32]> for Attribute {
    fn from(values: &[f32]) -> Attribute {
        Attribute::Floats(values.to_vec())
    }
}

/// Why attributes do not make an op.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// One is not there.
    #[error("attribute '{name}' is missing; expected {expected}")]
    Missing {
        /// Its name.
        name: String,
        /// What its value would be.
        expected: &'static str,
    },
    /// One is not known.
    #[error("unknown attribute '{name}'; remove it")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// One has a value of another kind.
    #[error("attribute '{name}' expects {expected}, found {found}")]
    Malformed {
        /// Its name.
        name: String,
        /// What its value should be.
        expected: &'static str,
        /// Its value as printed.
        found: String,
    },
    /// One is given twice.
    #[error("attribute '{name}' is given twice; keep one")]
    Duplicate {
        /// Its name.
        name: String,
    },
}

/// Attributes in order. An op is read back by taking each attribute that it knows; what is left is unknown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes {
    entries: Vec<(String, Attribute)>,
}

impl Attributes {
    /// No attributes.
    pub fn new() -> Attributes {
        Attributes::default()
    }

    /// With one more at the end; the name is not among those that are there.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Attribute>) -> Attributes {
        self.entries.push((name.to_string(), value.into()));
        self
    }

    /// With one more at the end where there is a value.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl Into<Attribute>>) -> Attributes {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds one at the end.
    ///
    /// # Errors
    /// When the name is already there.
    pub fn add(&mut self, name: &str, value: Attribute) -> Result<(), AttributeError> {
        if self.has(name) {
            return Err(AttributeError::Duplicate { name: name.to_string() });
        }
        self.entries.push((name.to_string(), value));
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes a count: a size, a number of heads; at most [`MAX_COUNT`].
    pub fn count(&mut self, name: &str) -> Result<usize, AttributeError> {
        self.take(name, "a whole number from 0 to 2^30", |value| match value {
            Attribute::Int(value) => usize::try_from(*value).ok().filter(|&count| count <= MAX_COUNT),
            _ => None,
        })
    }

    /// Takes a count that may be left out.
    pub fn optional_count(&mut self, name: &str) -> Result<Option<usize>, AttributeError> {
        if self.has(name) { self.count(name).map(Some) } else { Ok(None) }
    }

    /// Takes a float that may be left out.
    pub fn optional_float(&mut self, name: &str) -> Result<Option<f32>, AttributeError> {
        if self.has(name) { self.float(name).map(Some) } else { Ok(None) }
    }

    /// Takes a list of floats.
    pub fn floats(&mut self, name: &str) -> Result<Vec<f32>, AttributeError> {
        self.take(name, "numbers in brackets", |value| match value {
            Attribute::Floats(values) => Some(values.clone()),
            _ => None,
        })
    }

    /// Whether one of this name is there.
    pub fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|(other, _)| other == name)
    }

    /// Takes one of a few names, each with what it stands for; `expected` lists them.
    pub fn choice<T: Copy>(
        &mut self,
        name: &str,
        expected: &'static str,
        choices: &[(&str, T)],
    ) -> Result<T, AttributeError> {
        self.take(name, expected, |value| match value {
            Attribute::Text(text) => choices.iter().find(|(choice, _)| choice == text).map(|&(_, value)| value),
            _ => None,
        })
    }

    /// Takes an integer.
    pub fn int(&mut self, name: &str) -> Result<i64, AttributeError> {
        self.take(name, "an integer", |value| match value {
            Attribute::Int(value) => Some(*value),
            _ => None,
        })
    }

    /// Takes a float; an integer also reads as one.
    pub fn float(&mut self, name: &str) -> Result<f32, AttributeError> {
        self.take(name, "a number", |value| match value {
            Attribute::Float(value) => Some(*value),
            Attribute::Int(value) => Some(*value as f32),
            _ => None,
        })
    }

    /// Takes a bool.
    pub fn bool(&mut self, name: &str) -> Result<bool, AttributeError> {
        self.take(name, "true or false", |value| match value {
            Attribute::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// Takes a string.
    pub fn text(&mut self, name: &str) -> Result<String, AttributeError> {
        self.take(name, "a quoted string", |value| match value {
            Attribute::Text(value) => Some(value.clone()),
            _ => None,
        })
    }

    /// Refuses what nobody took.
    ///
    /// # Errors
    /// Names the first attribute that is left.
    pub fn finish(&self) -> Result<(), AttributeError> {
        match self.entries.first() {
            Some((name, _)) => Err(AttributeError::Unknown { name: name.clone() }),
            None => Ok(()),
        }
    }

    fn take<T>(
        &mut self,
        name: &str,
        expected: &'static str,
        read: impl FnOnce(&Attribute) -> Option<T>,
    ) -> Result<T, AttributeError> {
        let Some(at) = self.entries.iter().position(|(other, _)| other == name) else {
            return Err(AttributeError::Missing { name: name.to_string(), expected });
        };
        let (name, value) = self.entries.remove(at);
        read(&value).ok_or_else(|| AttributeError::Malformed { name, expected, found: value.to_string() })
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<String> = self.entries.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        write!(f, "{{{}}}", entries.join(", "))
    }
}
