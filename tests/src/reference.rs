//! The independent reference in NumPy, `tests/reference/reference.py`, called as a program.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Scratch, python, root};

/// Logits `[T, V]` for all tokens of the sequences, one sequence after the other.
///
/// # Panics
/// When the reference cannot run.
pub fn logits(model: &Path, sequences: &[Vec<u32>]) -> Vec<f32> {
    let scratch = Scratch::new();
    let (tokens, out) = (scratch.file("tokens.json"), scratch.file("logits.f32"));
    write(&tokens, &format!("{sequences:?}"));
    run("logits", model, &tokens, &["--out".as_ref(), out.as_os_str()]);
    let bytes = fs::read(&out).unwrap_or_else(|error| panic!("reading {}: {error}", out.display()));
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// Perplexity of a text's tokens in chunks of `context`, the second half of each scored.
///
/// # Panics
/// When the reference cannot run, or the text is shorter than one chunk.
pub fn perplexity(model: &Path, tokens: &[u32], context: usize) -> f64 {
    let scratch = Scratch::new();
    let path = scratch.file("tokens.json");
    write(&path, &format!("{tokens:?}"));
    let printed = run("perplexity", model, &path, &["--context".as_ref(), context.to_string().as_ref()]);
    let value =
        printed.split_once("\"perplexity\": ").and_then(|(_, rest)| rest.split([',', '}']).next()?.parse().ok());
    value.unwrap_or_else(|| panic!("the reference printed no perplexity: {printed}"))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
}

fn run(command: &str, model: &Path, tokens: &Path, more: &[&std::ffi::OsStr]) -> String {
    let mut python = Command::new(python());
    python.arg(root().join("tests/reference/reference.py")).arg(command);
    python.arg("--model").arg(model).arg("--tokens").arg(tokens).args(more);
    let output = python.stderr(Stdio::inherit()).output().expect("python starts");
    assert!(output.status.success(), "the reference ended with {}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
