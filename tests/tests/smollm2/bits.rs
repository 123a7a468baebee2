//! The same tokens and the same bits, whatever the prefill chunk, the threads and the company; and of the plan itself.

use std::process::Command;

use lathe_compiler::pass::Activations;
use lathe_plan::Plan;
use lathe_runtime::batcher::{BatchOptions, Penalties, Request};
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_runtime::sample::SampleParams;
use lathe_runtime::speculate::{Mode, Speculation};
use lathe_runtime::tokenizer::Control;
use lathe_tests::answers::{Answer, Run};
use lathe_tests::{Scratch, lathe_compile, smollm2};

use super::{corpus, plan, plan_of_codes, plan_path, tokenizer};

/// Runs requests together on a machine whose memory is full of NaNs.
fn answers(options: &EngineOptions, requests: &[Request]) -> Run {
    answers_of(&plan(Activations::Int8), options, requests)
}

fn answers_of(plan: &Plan, options: &EngineOptions, requests: &[Request]) -> Run {
    let device = DeviceOptions { poison: true, ..options.device.clone() };
    let mut engine = Engine::load(plan, &EngineOptions { device, ..options.clone() }).expect("the plan loads");
    lathe_tests::answers::answers(&mut engine, requests)
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
    let alone: Vec<Answer> = requests
        .iter()
        .flat_map(|request| answers(&EngineOptions::default(), std::slice::from_ref(request)).answers)
        .collect();
    assert!(alone.iter().all(|answer| answer.len() == 12), "every request ran to its end");
    for threads in [1, 2] {
        for chunk in [1, 7, 64, 512] {
            let device = DeviceOptions { threads: Some(threads), ..DeviceOptions::default() };
            let options = EngineOptions { device, prefill_chunk: Some(chunk), ..EngineOptions::default() };
            assert_eq!(answers(&options, &requests).answers, alone, "{threads} threads, prefill in chunks of {chunk}");
        }
    }
}

#[test]
fn pages_of_codes_change_no_bit_either() {
    let plan = plan_of_codes();
    let requests = [requests(), repetitive()[..3].to_vec()].concat();
    let off = BatchOptions {
        speculation: Speculation { mode: Mode::Off, ..Speculation::default() },
        ..BatchOptions::default()
    };
    let quiet = EngineOptions { batching: off, ..EngineOptions::default() };
    let alone: Vec<Answer> =
        requests.iter().flat_map(|request| answers_of(&plan, &quiet, std::slice::from_ref(request)).answers).collect();
    // Together, in chunks that cut pages, with guesses, forks and prefixes that are shared, and so few pages that requests
    // displace each other.
    let batching = BatchOptions {
        speculation: Speculation { mode: Mode::Ngram, depth: Some(5), ..Speculation::default() },
        ..BatchOptions::default()
    };
    let device = DeviceOptions { cache_tokens: Some(768), ..DeviceOptions::default() };
    let options = EngineOptions { device, prefill_chunk: Some(24), batching, ..EngineOptions::default() };
    let run = answers_of(&plan, &options, &requests);
    assert_eq!(run.answers, alone);
    assert!(run.speculation.accepted > 0, "no guess was right");
}

/// Requests whose answers repeat what was there, so that guesses are right now and then: with penalties and without, of
/// several answers, with likelihoods, some beginning alike.
fn repetitive() -> Vec<Request> {
    let text = corpus(400);
    let at = |temperature| SampleParams { temperature, ..SampleParams::default() };
    let list = tokenizer().encode("a1 b1 c1 a1 b1 c1 a1 b1 c1 a1 b1 c1 a1", Control::AsText);
    let base = Request { max_tokens: Some(16), seed: 3, ..Request::default() };
    let penalties = Penalties { presence: 0.1, frequency: 0.2, repetition: 1.02 };
    let twice = [&text[..60], &text[..40]].concat();
    vec![
        Request { tokens: list.clone(), ..base.clone() },
        Request { tokens: list.clone(), sampling: at(0.3), ..base.clone() },
        Request { tokens: list.clone(), sampling: at(0.7), more: 2, top_logprobs: 2, ..base.clone() },
        Request { tokens: list, sampling: SampleParams { min_p: 0.02, ..at(1.0) }, penalties, ..base.clone() },
        Request { tokens: twice.clone(), bias: vec![(28, -3.0)], stop: vec![198], min_tokens: 9, ..base.clone() },
        Request { tokens: twice, sampling: at(1.0), prompt_logprobs: Some(0), ..base },
    ]
}

#[test]
fn guesses_change_no_bit() {
    let requests = repetitive();
    let speculation = |mode, depth| {
        let batching = BatchOptions {
            speculation: Speculation { mode, depth: Some(depth), ..Speculation::default() },
            ..BatchOptions::default()
        };
        EngineOptions { batching, ..EngineOptions::default() }
    };
    let off: Vec<Answer> = requests
        .iter()
        .flat_map(|request| answers(&speculation(Mode::Off, 1), std::slice::from_ref(request)).answers)
        .collect();
    let one_by_one = |options: &EngineOptions| -> Vec<Run> {
        requests.iter().map(|request| answers(options, std::slice::from_ref(request))).collect()
    };
    let alone = one_by_one(&speculation(Mode::Ngram, 5));
    for (run, expected) in alone.iter().zip(&off) {
        assert_eq!(run.answers[0], *expected);
    }
    let (drafted, accepted) =
        alone.iter().fold((0, 0), |(d, a), run| (d + run.speculation.drafted, a + run.speculation.accepted));
    assert!(accepted > 20 && accepted < drafted, "{accepted} of {drafted} guesses were right: too few of a kind");
    // Among others, in small chunks, with so few pages that they displace each other, where guesses must pay, and as trees.
    let mut branched = 0;
    for (mode, width) in [(Mode::Ngram, 1), (Mode::Ngram, 4), (Mode::Auto, 3)] {
        let device = DeviceOptions { cache_tokens: Some(256), ..DeviceOptions::default() };
        let mut options = EngineOptions { device, prefill_chunk: Some(24), ..speculation(mode, 9) };
        options.batching.speculation.width = Some(width);
        let run = answers(&options, &requests);
        assert_eq!(run.answers, off, "{mode} {width}");
        assert!(run.speculation.accepted > 0, "{mode} {width}");
        branched += run.speculation.branched;
    }
    assert!(branched > 0, "no answer went on along a branch");
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
