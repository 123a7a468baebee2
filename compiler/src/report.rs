//! Texts about a compile: the report sections of a plan, and progress for people who wait.

use std::fmt::Write;

use indicatif::{ProgressBar, ProgressStyle};
use lathe_plan::{Manifest, Program};

use crate::pass::{PASSES, Record};

/// Each pass, whether it changed the graph, and the reasons that it gave. Times are left out: the same compile gives the
/// same text.
pub fn passes(records: &[Record]) -> String {
    let mut text = String::new();
    for record in records {
        let outcome = match record.changed {
            Some(true) => "changed the graph",
            Some(false) => "changed nothing",
            None => "was disabled",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {outcome}", record.name);
        for note in &record.notes {
            let _ = writeln!(text, "  @{}: {}", note.subject, note.reason);
        }
    }
    text
}

/// How long each pass took.
pub fn pass_times(records: &[Record]) -> String {
    let width = records.iter().map(|record| record.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for record in records.iter().filter(|record| record.changed.is_some()) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:width$} {:>9.3} ms", record.name, record.took.as_secs_f64() * 1e3);
    }
    text
}

/// The table of passes.
pub fn pass_list() -> String {
    let width = PASSES.iter().map(|pass| pass.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for pass in PASSES {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:width$}  {}", pass.name, pass.summary);
    }
    text
}

/// How far each stored tensor is from the checkpoint's, and in which schemes they are.
pub fn errors(manifest: &Manifest) -> String {
    let mut text = String::new();
    for tensor in &manifest.tensors {
        let error = match tensor.error {
            Some(0.0) => "exact".to_owned(),
            Some(error) => format!("{error:.3e}"),
            None => "not finite".to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "@{}: {} as {}, {error}", tensor.name, tensor.source, tensor.scheme);
    }
    text
}

/// Progress over the bytes of weights; hidden unless asked for, and where stderr is no terminal.
pub fn weights_bar(program: &Program, visible: bool) -> ProgressBar {
    if !visible {
        return ProgressBar::hidden();
    }
    let bytes = program.weights.iter().map(|span| span.bytes).sum();
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("weights {wide_bar} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar
}
