//! Fuzzing of all that reads files which others wrote: checkpoints, tokenizers, chat templates, plans and PTX.
//!
//! A [`Target`] is one function from bytes to an [`Outcome`]; whatever it must never do is a panic. Inputs are seeds that
//! our own writers make, changed by mutators that know the formats ([`mutate`]), so that a change does not end at a magic
//! number, a length or a digest. [`campaign`] is the loop: an outcome that was not seen before makes its input a seed,
//! for each refusal has a sentence of its own and tells how far an input came. The same functions run for a bounded
//! number of inputs as tests, and as long as one likes by `cargo xtask fuzz TARGET`.

pub mod bundle;
pub mod campaign;
mod exercise;
pub mod mutate;
pub mod random;
mod seeds;
pub mod targets;

/// What became of an input, without what differs from input to input: numbers, and what is between quotes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome(String);

impl Outcome {
    /// It was read; `what` tells readings apart.
    pub fn accepted(what: impl std::fmt::Display) -> Outcome {
        Outcome(format!("accepted: {}", kind(&what.to_string())))
    }

    /// It was refused with a sentence.
    pub fn refused(error: &dyn std::error::Error) -> Outcome {
        let text = error.to_string();
        // What was found is the input's own.
        let text = text.split_once(", found ").map_or(text.as_str(), |(before, _)| before);
        Outcome(format!("refused: {}", kind(text)))
    }

    /// Whether it was read.
    pub fn is_accepted(&self) -> bool {
        self.0.starts_with("accepted")
    }
}

/// A text with 0 for each number, and nothing between quotes.
fn kind(text: &str) -> String {
    let (mut kind, mut quoted, mut last) = (String::new(), None, ' ');
    for c in text.chars().take(400) {
        // An apostrophe within a word is no quote.
        let in_word = std::mem::replace(&mut last, c).is_alphanumeric();
        match (quoted, c) {
            (None, '\'') if in_word => {}
            (Some(quote), c) if c == quote => quoted = None,
            (Some(_), _) => continue,
            (None, '\'' | '`' | '"') => quoted = Some(c),
            (None, c) if c.is_ascii_digit() && kind.ends_with('0') => continue,
            _ => {}
        }
        kind.push(if c.is_ascii_digit() { '0' } else { c });
    }
    kind
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something that reads bytes which others wrote.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What reads what.
    pub summary: &'static str,
    /// How its inputs are built.
    pub shape: mutate::Shape,
    /// Sound inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads an input. A panic is a finding.
    pub run: fn(&[u8]) -> Outcome,
}

/// All targets. A new one is a file in `targets/` and a line here.
pub const TARGETS: &[Target] = &[
    targets::gguf::TARGET,
    targets::safetensors::TARGET,
    targets::config::TARGET,
    targets::vocabulary::TARGET,
    targets::tokenizer::TARGET,
    targets::template::TARGET,
    targets::plan::TARGET,
    targets::ptx::TARGET,
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
