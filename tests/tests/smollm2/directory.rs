//! The same weights as a Hugging Face directory, which `tests/reference/hf_directory.py` makes of the GGUF file.

use std::path::Path;
use std::process::Command;

use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, Options, compile, digest};
use lathe_compiler::quantize::Quantize;
use lathe_kernels::targets::Target;
use lathe_models::open;
use lathe_plan::Plan;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_tests::{Scratch, python, root, smollm2};

use super::corpus;

/// Tokens that logits are compared on: several pages of the cache.
const TOKENS: usize = 80;

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

#[test]
fn a_directory_of_the_same_weights_gives_the_same_logits() {
    let scratch = Scratch::new();
    let directory = scratch.file("SmolLM2-135M-Instruct");
    let script = root().join("tests/reference/hf_directory.py");
    let status = Command::new(python()).arg(script).arg(smollm2()).arg(&directory).args(["--shards", "2"]).status();
    assert!(status.expect("python starts").success(), "the directory could not be made");

    // Without flags the directory's matrices stay bf16; the GGUF file's own are rounded to it in the same way.
    let from_gguf = plan(&smollm2(), Quantize::Bf16, &scratch.file("gguf.plan"));
    let from_directory = plan(&directory, Quantize::Source, &scratch.file("hf.plan"));
    assert_eq!(from_directory.tokenizer().expect("a tokenizer"), from_gguf.tokenizer().expect("a tokenizer"));
    assert_eq!(from_directory.chat_template().expect("a template"), from_gguf.chat_template().expect("a template"));
    let tokens = corpus(TOKENS);
    assert!(logits(&from_directory, &tokens) == logits(&from_gguf, &tokens), "the logits differ");

    let found = &from_directory.manifest().expect("a manifest").source;
    assert_eq!(found.format, "hf");
    let moved = scratch.file("elsewhere");
    std::fs::rename(&directory, &moved).expect("the directory moves");
    let digest = || digest(&open(&moved).expect("the model opens")).expect("its files read").blake3;
    assert_eq!(digest(), found.blake3, "the digest is of what the files say, not of where they are");
    std::fs::write(moved.join("chat_template.jinja"), "{{ messages }}").expect("the template is written");
    assert_ne!(digest(), found.blake3, "every file counts");
}
