//! Agreement with the reference in NumPy.

use lathe_compiler::options::Options;
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_kernels::targets::Target;
use lathe_models::open;
use lathe_plan::Plan;
use lathe_runtime::batcher::{Event, Request};
use lathe_runtime::chat::{ChatTemplate, Message, Role};
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_tests::compare::{argmax, mean_divergence, relative_error, top_1_agreement};
use lathe_tests::{Scratch, reference, smollm2};

use super::{corpus, engine, plan, plan_of_codes, tokenizer};

/// Bound on the relative error of logits with f32 activations: the f16 cache rounds keys and values to 11 bits.
const F32_LOGIT_BOUND: f64 = 1e-3;
/// Bound on the mean divergence with int8 activations, in nats.
const INT8_DIVERGENCE_BOUND: f64 = 0.005;
/// Bound on the relative difference of perplexity with int8 activations.
const INT8_PERPLEXITY_BOUND: f64 = 0.01;
/// Bound on the relative loss of perplexity by codes that are searched for weights which lie on even steps already: that of
/// the whole corpus is 16 %.
const SEARCHED_PERPLEXITY_BOUND: f64 = 0.2;
/// Bound on the relative difference of perplexity with a cache of int8 codes to that with one of f16.
const CODES_PERPLEXITY_BOUND: f64 = 0.002;
/// Tokens that logits are compared on.
const TOKENS: usize = 512;

#[test]
fn logits_agree_with_numpy() {
    let tokens = corpus(TOKENS);
    let expected = reference::logits(&smollm2(), std::slice::from_ref(&tokens));
    let vocabulary = expected.len() / TOKENS;
    let logits = |activations| -> Vec<f32> {
        engine(activations, &EngineOptions::default()).logits(&tokens).expect("the step runs").concat()
    };

    let exact = logits(Activations::F32);
    let error = relative_error(&exact, &expected);
    println!("f32 activations: relative logit error {error:.2e}");
    assert!(error < F32_LOGIT_BOUND, "relative logit error {error:.2e}");

    let quantized = logits(Activations::Int8);
    let divergence = mean_divergence(&quantized, &expected, vocabulary);
    let agreement = top_1_agreement(&quantized, &expected, vocabulary);
    println!("int8 activations: mean divergence {divergence:.5}, top-1 agreement {:.1} %", 100.0 * agreement);
    assert!(divergence <= INT8_DIVERGENCE_BOUND, "mean divergence {divergence:.5}");
}

#[test]
fn perplexity_agrees_with_numpy() {
    let context = 512;
    let tokens = corpus(6 * context);
    let expected = reference::perplexity(&smollm2(), &tokens, context);
    let found = perplexity(&mut engine(Activations::Int8, &EngineOptions::default()), &tokens, context);
    println!("perplexity {found:.4}, reference {expected:.4}");
    assert!((found / expected - 1.0).abs() < INT8_PERPLEXITY_BOUND, "perplexity {found:.4}, reference {expected:.4}");
}

#[test]
fn a_cache_of_codes_keeps_perplexity_in_half_the_memory() {
    let context = 512;
    let tokens = corpus(4 * context);
    let floats = perplexity(&mut engine(Activations::Int8, &EngineOptions::default()), &tokens, context);
    let codes = plan_of_codes();
    let mut engine = Engine::load(&codes, &EngineOptions::default()).expect("the plan loads");
    let found = perplexity(&mut engine, &tokens, context);
    println!("perplexity {found:.4}, with an f16 cache {floats:.4}");
    assert!(found.to_bits() != floats.to_bits(), "the caches are alike");
    assert!(
        (found / floats - 1.0).abs() < CODES_PERPLEXITY_BOUND,
        "perplexity {found:.4}, with an f16 cache {floats:.4}"
    );
    let page_bytes = |plan: &Plan| -> u64 {
        let program = plan.program("main").expect("a program");
        program.cache_groups.iter().flat_map(|group| &group.tensors).map(|tensor| tensor.page_bytes).sum()
    };
    let (codes, floats) = (page_bytes(&codes), page_bytes(&plan(Activations::Int8)));
    assert!(100 * codes < 54 * floats, "{codes} bytes a page of all layers, of f16 {floats}");
}

/// Perplexity in chunks of `context` tokens, the second half of each scored.
fn perplexity(engine: &mut Engine, tokens: &[u32], context: usize) -> f64 {
    let scores: Vec<f32> = tokens
        .chunks(context)
        .flat_map(|chunk| engine.score(chunk).expect("the chunk is scored").split_off(context / 2))
        .collect();
    (-scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64).exp()
}

#[test]
fn searched_codes_of_four_and_a_half_bits_keep_perplexity() {
    let scratch = Scratch::new();
    let path = scratch.file("searched.plan");
    let model = open(&smollm2()).expect("the model opens");
    let mut options = Options::new(Target::parse("native").expect("this CPU has a target"));
    // The form of `int4` by the name of its scheme, which encodes what the file has in even steps anew.
    options.passes.formats = "iq4:g32,head=source".parse().expect("known forms");
    options.threads = 2;
    compile(model, Goal::Plan(&path), &options).expect("the model compiles");
    let searched = Plan::open(&path).expect("the plan opens");
    let manifest = searched.manifest().expect("a manifest");
    let encoded: Vec<_> = manifest.tensors.iter().filter(|tensor| tensor.scheme == "iq4:g32").collect();
    let bytes: u64 = encoded.iter().map(|tensor| tensor.bytes).sum();
    let elements: u64 = encoded.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
    assert!(elements > 100_000_000 && 8 * bytes <= elements * 9 / 2, "{bytes} bytes for {elements} weights");

    let context = 512;
    let tokens = corpus(2 * context);
    let source = perplexity(&mut engine(Activations::Int8, &EngineOptions::default()), &tokens, context);
    let mut engine = Engine::load(&searched, &EngineOptions::default()).expect("the plan loads");
    let found = perplexity(&mut engine, &tokens, context);
    println!("perplexity {found:.4} by searched codes, {source:.4} by the file's");
    assert!(found / source - 1.0 < SEARCHED_PERPLEXITY_BOUND, "perplexity {found:.4}, the file's {source:.4}");
}

#[test]
fn a_greedy_answer_is_the_reference_s_choice_token_by_token() {
    let tokenizer = tokenizer();
    let plan = plan(Activations::F32);
    let template = ChatTemplate::new(plan.chat_template().expect("a chat template"), &tokenizer).expect("it parses");
    let question = [Message::new(Role::User, "What is the capital of France?")];
    let prompt = template.encode(&tokenizer, &question, true).expect("it renders");
    let mut engine = engine(Activations::F32, &EngineOptions::default());
    let stop = tokenizer.tables().eos.clone();
    let request = Request { tokens: prompt.clone(), max_tokens: Some(40), stop, ..Request::default() };
    engine.submit(request).expect("the request fits");
    let mut answer = Vec::new();
    while !engine.is_idle() {
        for event in engine.step().expect("the step runs") {
            if let Event::Token { token, .. } = event {
                answer.push(*token);
            }
        }
    }
    let text = String::from_utf8_lossy(&tokenizer.decode(&answer)).into_owned();
    assert!(text.contains("Paris"), "{text}");

    let known = [prompt.clone(), answer.clone()].concat();
    let logits = reference::logits(&smollm2(), std::slice::from_ref(&known));
    let rows: Vec<&[f32]> = logits.chunks(logits.len() / known.len()).collect();
    for (index, &token) in answer.iter().enumerate() {
        assert_eq!(argmax(rows[prompt.len() + index - 1]), token as usize, "token {index} of: {text}");
    }
}
