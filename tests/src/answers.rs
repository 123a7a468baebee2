//! Requests answered by an engine, to the bit.

use lathe_runtime::batcher::{Event, Request};
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_runtime::sample::SampleParams;
use lathe_runtime::speculate::Tally;

/// A request's tokens with the bits of their logprobs.
pub type Answer = Vec<(u32, u32)>;

/// What came of requests that ran together.
pub struct Run {
    /// By request; that of several choices one after the other.
    pub answers: Vec<Answer>,
    /// What came of guesses.
    pub speculation: Tally,
    /// Answers that gave their pages back for others.
    pub preemptions: u64,
}

/// Runs requests together on an engine that has run nothing yet.
///
/// # Panics
/// When a request does not fit, or a step fails.
pub fn answers(engine: &mut Engine, requests: &[Request]) -> Run {
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).expect("it fits")).collect();
    let mut choices: Vec<Vec<Answer>> =
        requests.iter().map(|request| vec![Answer::new(); request.more as usize + 1]).collect();
    while !engine.is_idle() {
        for event in engine.step().expect("the step runs") {
            if let Event::Token { request, choice, token, logprob, .. } = event {
                let at = ids.iter().position(|id| id == request).expect("a request of ours");
                choices[at][*choice as usize].push((*token, logprob.to_bits()));
            }
        }
    }
    let answers = choices.into_iter().map(|choices| choices.concat()).collect();
    let counters = engine.counters();
    Run { answers, speculation: counters.speculation, preemptions: counters.preemptions }
}

/// Checks that prompts of 1, 2, 7, 32 and 200 tokens have the answers that they have alone, to the bit, when they run
/// together in steps of so many tokens, in another order each time, on memory full of NaNs. `load` makes engines of one plan.
///
/// # Panics
/// When they differ.
pub fn check_company(load: impl Fn(&EngineOptions) -> Engine, text: &[u32]) {
    const LENGTHS: [usize; 5] = [1, 2, 7, 32, 200];
    let sampled = SampleParams { temperature: 0.8, top_p: 0.95, ..SampleParams::default() };
    let requests: Vec<Request> = LENGTHS
        .iter()
        .zip([SampleParams::default(), sampled].into_iter().cycle())
        .zip(1..)
        .map(|((&length, sampling), seed)| Request {
            tokens: text[length..2 * length].to_vec(),
            max_tokens: Some(4),
            sampling,
            seed,
            ..Request::default()
        })
        .collect();
    let run = |chunk: Option<usize>, requests: &[Request]| {
        let device = DeviceOptions { poison: true, ..DeviceOptions::default() };
        let options = EngineOptions { device, prefill_chunk: chunk, ..EngineOptions::default() };
        answers(&mut load(&options), requests).answers
    };
    let alone: Vec<Answer> = requests.iter().flat_map(|request| run(None, std::slice::from_ref(request))).collect();
    for (turn, chunk) in LENGTHS.into_iter().enumerate() {
        // Another request comes first each time, and every second time their order is turned around.
        let mut order: Vec<usize> = (0..requests.len()).map(|at| (at + turn) % requests.len()).collect();
        if turn % 2 == 1 {
            order.reverse();
        }
        let together: Vec<Request> = order.iter().map(|&at| requests[at].clone()).collect();
        for (answer, at) in run(Some(chunk), &together).into_iter().zip(order) {
            assert!(answer == alone[at], "{} tokens in steps of {chunk}: {answer:?}, not {:?}", LENGTHS[at], alone[at]);
        }
    }
}
