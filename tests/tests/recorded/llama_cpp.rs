//! The recorded checkpoints as GGUF files, computed by llama.cpp: whether our writer of such files knows their conventions
//! is judged by the program that set them.

use std::process::Command;

use lathe_tests::compare::relative_error;
use lathe_tests::{Scratch, python, root};

use super::as_gguf::{self, Projections};
use super::case::Case;

/// Bound on the relative error of logarithms of probabilities. llama.cpp takes exponentials and gelu from tables in half
/// precision.
const BOUND: f64 = 1e-3;

/// Positions for which llama.cpp computes the recorded model: it reads no window from Phi 3's files, and its least context
/// of 256 positions lies beyond those of the short list of frequencies.
fn known_rows(case: &Case, told: usize) -> usize {
    if case.name == "phi3-short" {
        return 0;
    }
    let window = case.config()["sliding_window"].as_u64().map(|window| window as usize);
    window.filter(|_| case.config()["model_type"] == "phi3").map_or(told, |window| told.min(window))
}

#[test]
fn llama_cpp_computes_the_recorded_logits_from_the_files() {
    let scratch = Scratch::new();
    let mut asked = Vec::new();
    // Nothing was recorded of the cases that the format changes.
    for case in as_gguf::cases().into_iter().filter(|case| !case.logits.is_empty()) {
        let file = as_gguf::file(&case, Projections::Apart);
        let told = known_rows(&case, file.rows);
        let rows: Vec<i32> = case.rows().into_iter().filter(|&row| (row as usize) < told).collect();
        if rows.is_empty() {
            continue;
        }
        std::fs::write(scratch.file(&format!("{}.gguf", case.name)), file.bytes).expect("the file is written");
        let vocabulary = case.logits.len() / case.rows().len();
        let question = serde_json::json!({ "tokens": case.tokens(), "rows": rows, "vocabulary": vocabulary });
        std::fs::write(scratch.file(&format!("{}.json", case.name)), question.to_string()).expect("it is written");
        asked.push((case, rows.len(), vocabulary));
    }
    let mut llama = Command::new(python());
    llama.arg(root().join("tests/reference/llama_cpp.py")).arg(scratch.file(""));
    let output = llama.output().expect("Python starts");
    assert!(output.status.success(), "llama.cpp failed: {}", String::from_utf8_lossy(&output.stderr));

    let mut faults = Vec::new();
    for (case, rows, vocabulary) in asked {
        let bytes = std::fs::read(scratch.file(&format!("{}.f32", case.name))).expect("an answer for each file");
        let found: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let expected: Vec<f32> = case.logits[..rows * vocabulary].chunks(vocabulary).flat_map(log_softmax).collect();
        let error = relative_error(&found, &expected);
        println!("{}: {rows} rows, {error:.1e}", case.name);
        if error.is_nan() || error > BOUND {
            faults.push(format!("{}: relative error {error:.1e}", case.name));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Logarithms of the probabilities that logits stand for.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    logits.iter().map(|&logit| (f64::from(logit) - sum.ln()) as f32).collect()
}
