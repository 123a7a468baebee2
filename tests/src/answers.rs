//! Requests answered by an engine, to the bit.

use lathe_runtime::batcher::{Event, Request};
use lathe_runtime::engine::Engine;
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
