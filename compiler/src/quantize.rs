//! What `--quantize` says: a form for all matrices, and others for some of them.
//!
//! `int4,head=int6,layers.0-1.down=int8` stores matrices in 4 bits, but the head in 6 and the down projections of the first
//! two layers in 8. A later entry wins over an earlier one.

use std::fmt;
use std::str::FromStr;

use lathe_ir::scheme::Scheme;

/// A form in which a matrix is stored. What scheme it becomes depends on the matrix' width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantize {
    /// As `source`, but on CPUs, with int8 activations, a head that is no embedding too keeps 6 of 8 bits.
    #[default]
    Auto,
    /// The smallest scheme that holds the file's own values.
    Source,
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision.
    F16,
    /// 8 bits, 8.5 with scales.
    Int8,
    /// 6 bits, 6.6 with scales.
    Int6,
    /// 5 bits, 5.5 with scales.
    Int5,
    /// 4 bits, 4.5 with scales.
    Int4,
    /// One scheme, by its name.
    Scheme(Scheme),
}

/// The forms by name.
const FORMS: [(&str, Quantize); 9] = [
    ("auto", Quantize::Auto),
    ("source", Quantize::Source),
    ("f32", Quantize::F32),
    ("bf16", Quantize::Bf16),
    ("f16", Quantize::F16),
    ("int8", Quantize::Int8),
    ("int6", Quantize::Int6),
    ("int5", Quantize::Int5),
    ("int4", Quantize::Int4),
];

/// The names of matrices that may stand before `=`, and what they are called in the graph.
const ROLES: [(&str, &str); 10] = [
    ("embed", "embed"),
    ("head", "head"),
    ("lm_head", "head"),
    ("q", "q"),
    ("k", "k"),
    ("v", "v"),
    ("o", "o"),
    ("gate", "gate"),
    ("up", "up"),
    ("down", "down"),
];

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, FORMS.iter().find(|form| form.1 == *self)) {
            (Quantize::Scheme(scheme), _) => write!(f, "{scheme}"),
            (_, form) => f.write_str(form.map_or("auto", |form| form.0)),
        }
    }
}

impl FromStr for Quantize {
    type Err = String;

    fn from_str(text: &str) -> Result<Quantize, String> {
        if let Some(form) = FORMS.iter().find(|form| form.0 == text) {
            return Ok(form.1);
        }
        text.parse().map(Quantize::Scheme).map_err(|_| {
            let schemes: Vec<String> = Scheme::ALL.iter().map(Scheme::to_string).collect();
            let forms: Vec<&str> = FORMS.iter().map(|form| form.0).collect();
            format!(
                "unknown form '{text}'; expected {}, or one of the schemes {}",
                forms.join(", "),
                schemes.join(", ")
            )
        })
    }
}

/// Another form for some matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// First and last layer; all, and what is in none, where it is absent.
    pub layers: Option<(usize, usize)>,
    /// The name in the graph (`down`, `head`); all of the layers where it is absent.
    pub role: Option<&'static str>,
    /// Their form.
    pub form: Quantize,
}

impl Override {
    /// Whether it is about a weight of the graph. A tied embedding is the head too.
    pub fn matches(&self, weight: &str, is_head: bool) -> bool {
        let parts: Vec<&str> = weight.split('.').collect();
        let (layer, role) = match parts[..] {
            ["layers", layer, role] => (layer.parse().ok(), role),
            _ => (None, weight),
        };
        let in_layers = self.layers.is_none_or(|(first, last)| layer.is_some_and(|at| (first..=last).contains(&at)));
        in_layers && self.role.is_none_or(|wanted| wanted == role || wanted == "head" && is_head)
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((first, last)) = self.layers {
            write!(f, "layers.{first}")?;
            if last != first {
                write!(f, "-{last}")?;
            }
            f.write_str(if self.role.is_some() { "." } else { "" })?;
        }
        write!(f, "{}={}", self.role.unwrap_or_default(), self.form)
    }
}

impl FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Override, String> {
        let wrong = || {
            let roles: Vec<&str> = ROLES.iter().map(|role| role.0).collect();
            format!(
                "'{text}' names no matrices; expected NAME=FORM, layers.A-B=FORM or layers.A-B.NAME=FORM, where NAME is {}",
                roles.join(", ")
            )
        };
        let (name, form) = text.split_once('=').ok_or_else(wrong)?;
        let (layers, role) = match name.strip_prefix("layers.") {
            None => (None, Some(name)),
            Some(rest) => {
                let (range, role) = rest.split_once('.').map_or((rest, None), |(range, role)| (range, Some(role)));
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let range = first.parse().ok().zip(last.parse().ok()).filter(|(first, last)| first <= last);
                (Some(range.ok_or_else(wrong)?), role)
            }
        };
        let known = |name: &str| ROLES.iter().find(|role| role.0 == name).map(|role| role.1);
        let role = role.map(|name| known(name).ok_or_else(wrong)).transpose()?;
        Ok(Override { layers, role, form: form.parse()? })
    }
}

/// All of `--quantize`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formats {
    /// The form of all matrices …
    pub base: Quantize,
    /// … but these, in the order in which they were given.
    pub overrides: Vec<Override>,
}

impl Formats {
    /// What a model that guesses is stored in unless the user says otherwise: 4 bits, its head too. What that costs in right
    /// guesses it more than saves in time, and no answer depends on it.
    pub fn of_drafts() -> Formats {
        let head = Override { layers: None, role: Some("head"), form: Quantize::Int4 };
        Formats { base: Quantize::Int4, overrides: vec![head] }
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.base)?;
        self.overrides.iter().try_for_each(|of| write!(f, ",{of}"))
    }
}

impl FromStr for Formats {
    type Err = String;

    fn from_str(text: &str) -> Result<Formats, String> {
        let mut formats = Formats::default();
        for (at, entry) in text.split(',').map(str::trim).enumerate() {
            if at == 0 && !entry.contains('=') {
                formats.base = entry.parse()?;
            } else {
                formats.overrides.push(entry.parse()?);
            }
        }
        Ok(formats)
    }
}

#[cfg(test)]
mod tests {
    use super::Formats;

    #[test]
    fn formats_print_as_they_are_written() {
        for text in ["auto", "source", "int4,head=int6", "source,layers.0-3.down=int8", "iq4:g32,q=f16,layers.2=bf16"] {
            assert_eq!(text.parse::<Formats>().map(|formats| formats.to_string()), Ok(text.to_owned()));
        }
        let spelled = "lm_head=int6, layers.1-1.up=int5".parse::<Formats>().map(|formats| formats.to_string());
        assert_eq!(spelled, Ok("auto,head=int6,layers.1.up=int5".to_owned()));
    }

    #[test]
    fn overrides_find_their_weights() {
        let check = |text: &str, weight: &str, is_head: bool, expected: bool| {
            let formats: Formats = text.parse().expect(text);
            assert_eq!(formats.overrides[0].matches(weight, is_head), expected, "{text} {weight}");
        };
        check("int4,down=int8", "layers.7.down", false, true);
        check("int4,down=int8", "layers.7.up", false, false);
        check("int4,layers.2-4.down=int8", "layers.4.down", false, true);
        check("int4,layers.2-4.down=int8", "layers.5.down", false, false);
        check("int4,layers.2=int8", "layers.2.q", false, true);
        check("int4,layers.2=int8", "embed", true, false);
        check("int4,head=int8", "embed", true, true);
        check("int4,head=int8", "embed", false, false);
        check("int4,embed=int8", "embed", false, true);
    }

    #[test]
    fn mistakes_are_named_with_what_is_known() {
        let check = |text: &str, parts: &[&str]| {
            let error = text.parse::<Formats>().expect_err(text);
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        check("int3", &["unknown form 'int3'", "auto, source, f32, bf16", "int4:g32+min"]);
        check("int4,wq=int8", &["'wq=int8'", "q, k, v, o, gate, up, down"]);
        check("int4,int8", &["'int8'", "NAME=FORM"]);
        check("int4,layers.3-1.q=int8", &["'layers.3-1.q=int8'"]);
        check("int4,head=tiny", &["unknown form 'tiny'"]);
    }
}
