//! Whether the runtime will be able to read a model's chat template: a broken one is found here, not by the plan's users.

use lathe_plan::template::without_generation_tags;
use minijinja::Environment;

use crate::error::CompileError;

/// Reads a template and forgets it.
///
/// # Errors
/// When it is no valid Jinja.
pub fn check(source: &str) -> Result<(), CompileError> {
    let mut environment = Environment::new();
    let read = environment.add_template_owned("chat", without_generation_tags(source));
    read.map_err(|error| CompileError::Template { message: error.to_string() })
}
