//! Agreement with the reference in NumPy.

use lathe_compiler::pass::Activations;
use lathe_runtime::batcher::{Event, Request};
use lathe_runtime::chat::{ChatTemplate, Message, Role};
use lathe_runtime::engine::EngineOptions;
use lathe_tests::compare::{argmax, mean_divergence, relative_error, top_1_agreement};
use lathe_tests::{reference, smollm2};

use super::{corpus, engine, plan, tokenizer};

/// Bound on the relative error of logits with f32 activations: the f16 cache rounds keys and values to 11 bits.
const F32_LOGIT_BOUND: f64 = 1e-3;
/// Bound on the mean divergence with int8 activations, in nats.
const INT8_DIVERGENCE_BOUND: f64 = 0.005;
/// Bound on the relative difference of perplexity with int8 activations.
const INT8_PERPLEXITY_BOUND: f64 = 0.01;
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
    let mut engine = engine(Activations::Int8, &EngineOptions::default());
    let scores: Vec<f32> = tokens
        .chunks(context)
        .flat_map(|chunk| engine.score(chunk).expect("the chunk is scored").split_off(context / 2))
        .collect();
    let mean = scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64;
    let found = (-mean).exp();
    println!("perplexity {found:.4}, reference {expected:.4}");
    assert!((found / expected - 1.0).abs() < INT8_PERPLEXITY_BOUND, "perplexity {found:.4}, reference {expected:.4}");
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
