//! The same tokens and the same bits, whatever the prefill chunk, the threads and the company; and of the plan itself.

use std::process::Command;

use lathe_compiler::pass::Activations;
use lathe_runtime::batcher::{Event, Request};
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::engine::EngineOptions;
use lathe_runtime::sample::SampleParams;
use lathe_tests::{Scratch, lathe_compile, smollm2};

use super::{corpus, engine, plan_path};

/// A request's tokens with the bits of their logprobs.
type Answer = Vec<(u32, u32)>;

/// Runs requests together and gives each one's answer.
fn answers(options: &EngineOptions, requests: &[Request]) -> Vec<Answer> {
    let mut engine = engine(
        Activations::Int8,
        &EngineOptions { device: DeviceOptions { poison: true, ..options.device.clone() }, ..options.clone() },
    );
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).expect("it fits")).collect();
    let mut answers = vec![Answer::new(); requests.len()];
    while !engine.is_idle() {
        for event in engine.step().expect("the step runs") {
            if let Event::Token { request, token, logprob, .. } = event {
                let at = ids.iter().position(|id| id == request).expect("a request of ours");
                answers[at].push((*token, logprob.to_bits()));
            }
        }
    }
    answers
}

/// Prompts of ragged lengths, greedy and sampled.
fn requests() -> Vec<Request> {
    let text = corpus(1200);
    let sampled = SampleParams { temperature: 0.9, top_k: 50, top_p: 0.95, ..SampleParams::default() };
    [(0..530, SampleParams::default()), (530..537, sampled), (540..541, sampled), (600..1000, sampled)]
        .into_iter()
        .zip(1..)
        .map(|((range, sampling), seed)| Request {
            tokens: text[range].to_vec(),
            max_tokens: Some(12),
            sampling,
            seed,
            ..Request::default()
        })
        .collect()
}

#[test]
fn tokens_and_logprobs_depend_on_nothing_but_the_request() {
    let requests = requests();
    let alone: Vec<Answer> =
        requests.iter().flat_map(|request| answers(&EngineOptions::default(), std::slice::from_ref(request))).collect();
    assert!(alone.iter().all(|answer| answer.len() == 12), "every request ran to its end");
    for threads in [1, 2] {
        for chunk in [1, 7, 64, 512] {
            let device = DeviceOptions { threads: Some(threads), ..DeviceOptions::default() };
            let options = EngineOptions { device, prefill_chunk: Some(chunk), ..EngineOptions::default() };
            assert_eq!(answers(&options, &requests), alone, "{threads} threads, prefill in chunks of {chunk}");
        }
    }
}

#[test]
fn two_compiles_give_the_same_bytes() {
    let first = std::fs::read(plan_path(Activations::Int8)).expect("the plan is there");
    let scratch = Scratch::new();
    let path = scratch.file("elsewhere.plan");
    let status = Command::new("taskset")
        .args(["--cpu-list", "0"])
        .arg(lathe_compile())
        .arg(smollm2())
        .arg("-o")
        .arg(&path)
        .args(["--threads", "1", "--quiet"])
        .status()
        .expect("taskset starts");
    assert!(status.success(), "the pinned compile failed");
    assert!(std::fs::read(&path).expect("the plan is there") == first, "the plans differ");
}
