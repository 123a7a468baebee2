//! The model itself without some of its layers, which guesses what the whole one will say: which layers, its program, and
//! what the plan says of it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use lathe_models::Model;
use lathe_plan::manifest::{Drafter, Source};
use lathe_plan::program::Program;
use lathe_plan::skip::{self, SkipError};

use crate::emit;
use crate::schedule::{self, Schedule};

/// The layers that are left out, as a user names them: `3,5-9`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut(pub BTreeSet<u32>);

impl FromStr for LeftOut {
    type Err = String;

    fn from_str(text: &str) -> Result<LeftOut, String> {
        if text == "auto" {
            return Err(
                "layers are searched for by running the plan, which `lathe compile` does and `lathe-compile` does \
                        not; name them here, for example 5,9-11"
                    .to_owned(),
            );
        }
        let number = |text: &str| text.parse::<u16>().map(u32::from).ok();
        let mut layers = BTreeSet::new();
        for entry in text.split(',').map(str::trim) {
            let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => layers.extend(first..=last),
                _ => {
                    return Err(format!(
                        "'{entry}' is no layer; expected numbers and ranges, for example 5,9-11, of layers to leave out"
                    ));
                }
            }
        }
        Ok(LeftOut(layers))
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&skip::spell(&self.0))
    }
}

/// The program of a model without these layers, and what the plan says of it.
///
/// # Errors
/// When the model cannot do without them.
pub fn lower(
    model: &Model,
    schedule: &Schedule,
    source: &Source,
    LeftOut(layers): &LeftOut,
) -> Result<(Program, Drafter), SkipError> {
    let main = emit::program(schedule, model.config.vocab);
    let program = skip::without_layers(&main, skip::PROGRAM, layers)?;
    let drafter = Drafter {
        program: program.name.clone(),
        name: model.config.name.clone(),
        architecture: model.config.architecture.clone(),
        parameters: emit::parameters(schedule),
        max_context: schedule.max_context as u64,
        weights_bytes_per_token: schedule::cost::weight_bytes_per_token(schedule) - skip::saved_bytes(&main, &program),
        source: source.clone(),
        left_out: layers.iter().copied().collect(),
        ..Drafter::default()
    };
    Ok((program, drafter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_and_ranges() {
        let parse = |text: &str| text.parse::<LeftOut>().map(|layers| layers.to_string());
        assert_eq!(parse("5"), Ok("5".to_owned()));
        assert_eq!(parse("11,9-10, 5,3-3"), Ok("3,5,9-11".to_owned()));
        for wrong in ["", "x", "-1", "5-", "7-5", "1,,2", "70000"] {
            let error = parse(wrong).expect_err(wrong);
            assert!(error.contains("is no layer") && error.contains("5,9-11"), "{error}");
        }
        assert!(parse("auto").expect_err("it takes no search").contains("lathe compile"));
    }
}
