//! The real models as Hugging Face directories, which `tests/reference/hf_directory.py` makes of the GGUF files: they
//! compile to plans with the same logits, bit for bit, and the same tokens.

use std::path::{Path, PathBuf};
use std::process::Command;

use lathe_compiler::options::Options;
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile, digest};
use lathe_compiler::quantize::Quantize;
use lathe_kernels::targets::Target;
use lathe_models::open;
use lathe_plan::Plan;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_runtime::tokenizer::{Control, Tokenizer};
use lathe_tests::{CORPUS, Scratch, gemma3, python, qwen2, qwen2_larger, root, smollm2};

/// Compiles a model with the given weights and f32 activations.
fn plan(model: &Path, quantize: Quantize, path: &Path) -> Plan {
    let model = open(model).expect("the model opens");
    let mut options = Options::new(Target::parse("native").expect("this CPU has a target"));
    options.passes.formats.base = quantize;
    options.passes.activations = Activations::F32;
    options.threads = 2;
    compile(model, Goal::Plan(path), &options).expect("the model compiles");
    Plan::open(path).expect("the plan opens")
}

fn logits(plan: &Plan, tokens: &[u32]) -> Vec<u32> {
    let mut engine = Engine::load(plan, &EngineOptions::default()).expect("the plan loads");
    engine.logits(tokens).expect("the step runs").concat().into_iter().map(f32::to_bits).collect()
}

fn tokenizer(plan: &Plan) -> Tokenizer {
    Tokenizer::new(plan.tokenizer().expect("a tokenizer").clone()).expect("the tables are sound")
}

/// Makes a directory of a GGUF file, compiles both, and compares what they compute for so many tokens. Gives the
/// directory, and the plans of file and directory.
fn check(gguf: &Path, scratch: &Scratch, tokens: usize) -> (PathBuf, Plan, Plan) {
    let directory = scratch.file("directory");
    let script = root().join("tests/reference/hf_directory.py");
    let status = Command::new(python()).arg(script).arg(gguf).arg(&directory).args(["--shards", "2"]).status();
    assert!(status.expect("python starts").success(), "the directory could not be made");

    // Without flags the directory's matrices stay bf16; the GGUF file's own are rounded to it in the same way.
    let from_gguf = plan(gguf, Quantize::Bf16, &scratch.file("gguf.plan"));
    let from_directory = plan(&directory, Quantize::Source, &scratch.file("hf.plan"));
    let [file, other] = [&from_gguf, &from_directory].map(tokenizer);
    let text = file.encode(CORPUS, Control::AsText);
    let others = other.encode(CORPUS, Control::AsText);
    let same = text.iter().zip(&others).take_while(|(token, other)| token == other).count();
    let shown = |tokens: &[u32]| -> Vec<String> {
        let near = tokens.iter().skip(same.saturating_sub(3)).take(8);
        near.map(|token| String::from_utf8_lossy(file.bytes(*token)).into_owned()).collect()
    };
    assert!(
        text == others,
        "the corpus in tokens: {:?} in the file, {:?} in the directory",
        shown(&text),
        shown(&others)
    );
    assert!(text.len() > tokens, "the corpus has {} tokens", text.len());
    let ends =
        |tokenizer: &Tokenizer| (tokenizer.tables().bos, tokenizer.tables().eos.clone(), tokenizer.leading_bos());
    assert_eq!(ends(&other), ends(&file));
    assert_eq!(from_directory.chat_template(), from_gguf.chat_template());
    let tokens = &text[..tokens];
    assert!(logits(&from_directory, tokens) == logits(&from_gguf, tokens), "the logits differ");
    (directory, from_gguf, from_directory)
}

#[test]
fn smollm2_has_the_logits_of_its_file() {
    let scratch = Scratch::new();
    // Several pages of the cache.
    let (directory, from_gguf, from_directory) = check(&smollm2(), &scratch, 80);
    assert_eq!(from_directory.tokenizer().expect("a tokenizer"), from_gguf.tokenizer().expect("a tokenizer"));
    let found = &from_directory.manifest().expect("a manifest").source;
    assert_eq!(found.format, "hf");
    let moved = scratch.file("elsewhere");
    std::fs::rename(&directory, &moved).expect("the directory moves");
    let digest = || digest(&open(&moved).expect("the model opens")).expect("its files read").blake3;
    assert_eq!(digest(), found.blake3, "the digest is of what the files say, not of where they are");
    std::fs::write(moved.join("chat_template.jinja"), "{{ messages }}").expect("the template is written");
    assert_ne!(digest(), found.blake3, "every file counts");
}

/// Norms are stored as their distance from one there, and merges take the place of scores.
#[test]
#[ignore = "writes 2 GB: part of `cargo xtask test --all`"]
fn gemma3_has_the_logits_of_its_file() {
    check(&gemma3(), &Scratch::new(), 24);
}

#[test]
#[ignore = "gets Qwen 2.5, 491 MB: part of `cargo xtask test --all`"]
fn qwen2_has_the_logits_and_the_tables_of_its_file() {
    let (_, from_gguf, from_directory) = check(&qwen2(), &Scratch::new(), 24);
    assert_eq!(from_directory.tokenizer().expect("a tokenizer"), from_gguf.tokenizer().expect("a tokenizer"));
}

#[test]
#[ignore = "gets Qwen 2.5 1.5B and writes 10 GB: part of `cargo xtask test --all`"]
fn the_larger_qwen2_has_the_logits_of_its_file() {
    check(&qwen2_larger(), &Scratch::new(), 24);
}
