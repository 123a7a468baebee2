//! Gemma 3 270M (`Q4_K_M`: normed heads, norms around each half of a layer, windows, a vocabulary of 262k tokens), judged
//! by NumPy.

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
use lathe_tests::{CORPUS, Scratch, gemma3, reference};

/// Bound on the relative error of logits with f32 activations: the f16 cache rounds keys and values to 11 bits.
const F32_LOGIT_BOUND: f64 = 1e-3;
/// Bound on the relative difference of perplexity as compiled without flags.
const PERPLEXITY_BOUND: f64 = 0.02;

fn plan(activations: Activations) -> Plan {
    let scratch = Scratch::new();
    let path = scratch.file("gemma3.plan");
    let model = open(&gemma3()).expect("the model opens");
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

#[test]
fn logits_agree_with_numpy() {
    let plan = plan(Activations::F32);
    let tokens = corpus(&plan, 96);
    let expected = reference::logits(&gemma3(), std::slice::from_ref(&tokens));
    let mut engine = Engine::load(&plan, &EngineOptions::default()).expect("the plan loads");
    let found = engine.logits(&tokens).expect("the step runs").concat();
    let error = relative_error(&found, &expected);
    println!("f32 activations: relative logit error {error:.2e}");
    assert!(error < F32_LOGIT_BOUND, "relative logit error {error:.2e}");
}

#[test]
fn answers_depend_on_nothing_but_the_request() {
    let plan = plan(Activations::Int8);
    let load = |options: &EngineOptions| Engine::load(&plan, options).expect("the plan loads");
    check_company(load, &corpus(&plan, 400));
}

#[test]
fn perplexity_agrees_with_numpy() {
    let plan = plan(Activations::Int8);
    // Beyond the window of 512 tokens.
    let context = 768;
    let mut tokens = corpus(&plan, context);
    // The model's texts start with a token of their own, which the reference also puts in front.
    tokens[0] = plan.tokenizer().and_then(|tables| tables.bos).expect("a first token");
    let expected = reference::perplexity(&gemma3(), &tokens, context);
    let mut engine = Engine::load(&plan, &EngineOptions::default()).expect("the plan loads");
    let scores: Vec<f32> = tokens
        .chunks(context)
        .flat_map(|chunk| engine.score(chunk).expect("the chunk is scored").split_off(context / 2))
        .collect();
    let found = (-scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64).exp();
    println!("perplexity {found:.4}, reference {expected:.4}");
    assert!((found / expected - 1.0).abs() < PERPLEXITY_BOUND, "perplexity {found:.4}, reference {expected:.4}");
}
