//! Qwen2.5-Coder 0.5B and 1.5B (`Q4_K_M`: several kinds of tensors, biases, an untied head of 152k tokens), judged by
//! NumPy, and the bytes that a token makes them read.

use std::path::Path;

use lathe_compiler::options::Options;
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_kernels::targets::Target;
use lathe_models::open;
use lathe_plan::Plan;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_runtime::tokenizer::{Control, Tokenizer};
use lathe_tests::answers::check_company;
use lathe_tests::compare::relative_error;
use lathe_tests::{CORPUS, Scratch, qwen2, qwen2_larger, reference};

/// Bound on the relative error of logits with f32 activations: the f16 cache rounds keys and values to 11 bits.
const F32_LOGIT_BOUND: f64 = 1e-3;
/// Bound on the relative difference of perplexity as compiled without flags.
const PERPLEXITY_BOUND: f64 = 0.02;

fn plan(model: &Path, activations: Activations) -> Plan {
    let scratch = Scratch::new();
    let path = scratch.file("qwen2.plan");
    let model = open(model).expect("the model opens");
    let mut options = Options::new(Target::parse("native").expect("this CPU has a target"));
    options.passes.activations = activations;
    options.threads = 2;
    compile(model, Goal::Plan(&path), &options).expect("the model compiles");
    // The plan keeps its file open, so the folder may go.
    Plan::open(&path).expect("the plan opens")
}

fn corpus(plan: &Plan, count: usize) -> Vec<u32> {
    let tokenizer = Tokenizer::new(plan.tokenizer().expect("a tokenizer").clone()).expect("the tables are sound");
    let mut tokens = tokenizer.encode(CORPUS, Control::AsText);
    assert!(tokens.len() >= count, "the corpus has {} tokens", tokens.len());
    tokens.truncate(count);
    tokens
}

/// Compares the logits of some tokens with f32 activations.
fn check_logits(model: &Path, count: usize) {
    let plan = plan(model, Activations::F32);
    let tokens = corpus(&plan, count);
    let expected = reference::logits(model, std::slice::from_ref(&tokens));
    let mut engine = Engine::load(&plan, &EngineOptions::default()).expect("the plan loads");
    let found = engine.logits(&tokens).expect("the step runs").concat();
    let error = relative_error(&found, &expected);
    println!("f32 activations: relative logit error {error:.2e}");
    assert!(error < F32_LOGIT_BOUND, "relative logit error {error:.2e}");
}

/// Compares perplexity over some chunks as compiled without flags; and bounds the bytes of weights that a token reads.
fn check_default(model: &Path, chunks: usize, most_bytes: u64) {
    let plan = plan(model, Activations::Int8);
    let manifest = plan.manifest().expect("a manifest");
    let read = manifest.weights_bytes_per_token;
    println!("{:.1} MB of weights read per token", read as f64 / 1e6);
    assert!(read <= most_bytes, "{read} bytes of weights are read per token, not at most {most_bytes}");
    // All tensors but the embedding table, of which one row is read.
    let embed = manifest.tensors.iter().find(|tensor| tensor.name == "embed").expect("an embedding table");
    let all: u64 = manifest.tensors.iter().map(|tensor| tensor.bytes).sum();
    assert_eq!(read, all - embed.bytes + embed.bytes / embed.shape[0]);

    let context = 512;
    let tokens = corpus(&plan, chunks * context);
    let expected = reference::perplexity(model, &tokens, context);
    let mut engine = Engine::load(&plan, &EngineOptions::default()).expect("the plan loads");
    let scores: Vec<f32> = tokens
        .chunks(context)
        .flat_map(|chunk| engine.score(chunk).expect("the chunk is scored").split_off(context / 2))
        .collect();
    let found = (-scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64).exp();
    println!("perplexity {found:.4}, reference {expected:.4}");
    assert!((found / expected - 1.0).abs() < PERPLEXITY_BOUND, "perplexity {found:.4}, reference {expected:.4}");
}

#[test]
#[ignore = "gets Qwen 2.5, 491 MB: part of `cargo xtask test --all`"]
fn logits_agree_with_numpy() {
    check_logits(&qwen2(), 256);
}

/// Answers of the default compile, alone and in company.
fn check_answers(model: &Path) {
    let plan = plan(model, Activations::Int8);
    let load = |options: &EngineOptions| Engine::load(&plan, options).expect("the plan loads");
    check_company(load, &corpus(&plan, 400));
}

#[test]
#[ignore = "gets Qwen 2.5, 491 MB: part of `cargo xtask test --all`"]
fn answers_depend_on_nothing_but_the_request() {
    check_answers(&qwen2());
}

#[test]
#[ignore = "gets Qwen 2.5 1.5B, 1.1 GB: part of `cargo xtask test --all`"]
fn answers_of_the_larger_depend_on_nothing_but_the_request() {
    check_answers(&qwen2_larger());
}

#[test]
#[ignore = "gets Qwen 2.5, 491 MB: part of `cargo xtask test --all`"]
fn the_default_compile_keeps_perplexity_and_reads_little() {
    check_default(&qwen2(), 4, 360_000_000);
}

#[test]
#[ignore = "gets Qwen 2.5 1.5B, 1.1 GB: part of `cargo xtask test --all`"]
fn larger_logits_agree_with_numpy() {
    check_logits(&qwen2_larger(), 128);
}

#[test]
#[ignore = "gets Qwen 2.5 1.5B, 1.1 GB: part of `cargo xtask test --all`"]
fn the_larger_default_compile_keeps_perplexity_and_reads_little() {
    check_default(&qwen2_larger(), 2, 985_000_000);
}
