//! A device that fails: a row, a step, or for good.

use std::io::Read;
use std::net::TcpStream;
use std::thread;

use lathe_runtime::device::fault::Kind;
use serde_json::json;

use crate::client::post;
use crate::scheduling::{LONG, begin, end, has_begun, held};
use crate::world::{Setup, World, ask, events, expected, is_broken, judged, spelled, tokens};

const TEXT: &str = "/v1/completions";
const ABORTED: &str = "lathe_requests_aborted_total{model_name=\"null\",reason=";
/// One history in so many has logits that are not finite.
const ONE_IN: u64 = 40;

/// When the answer to a prompt breaks, if it does within so many tokens.
fn breaks_after(prompt: &[u32], count: usize) -> Option<usize> {
    let answer = expected(prompt, count);
    (0..count).find(|&after| is_broken(&[prompt, &answer[..after]].concat(), ONE_IN))
}

#[test]
fn a_row_that_is_not_finite_ends_its_own_request_and_no_other() {
    let world = World::start(Setup { breaks: Some(ONE_IN), ..Setup::default() });
    let prompts: Vec<Vec<u32>> = (0..40).map(|n| vec![n, n + 1, n + 2, n + 3, n + 4]).collect();
    let broken = prompts.iter().filter(|prompt| breaks_after(prompt, 25).is_some()).count();
    assert!(broken > 5 && broken < 35, "{broken} of 40 break");
    // Twice, for what a broken one left in the cache must not be found again.
    for stream in [false, true] {
        thread::scope(|scope| {
            for prompt in &prompts {
                let world = &world;
                scope.spawn(move || {
                    let answer = world.client.raw(&post(TEXT, "", &ask(&json!(prompt), 25, stream)));
                    match breaks_after(prompt, 25) {
                        None if stream => {
                            let said = events(&answer.body);
                            let said: Vec<String> =
                                said.iter().flat_map(|event| judged(&event["choices"][0])).collect();
                            assert_eq!(said, spelled(&expected(prompt, 25)));
                        }
                        None => assert_eq!(tokens(&answer.json()["choices"][0]), spelled(&expected(prompt, 25))),
                        Some(after) if stream && after > 0 => {
                            assert_eq!(answer.status, 200);
                            assert_eq!(events(&answer.body).last().expect("an event")["error"]["code"], "not_finite");
                            assert!(!answer.body.contains("[DONE]"));
                        }
                        Some(_) => {
                            assert_eq!((answer.status, &answer.json()["error"]["code"]), (500, &json!("not_finite")));
                            assert!(answer.body.contains("overflowed"), "{answer:?}");
                        }
                    }
                });
            }
        });
    }
    world.client.wait_for(&format!("{ABORTED}\"not_finite\""), 2.0 * broken as f64);
    assert_eq!(world.client.get("/health").status, 200);
    world.wait_for_quiet();
}

#[test]
fn a_failed_step_tells_everybody_and_the_probes() {
    for kind in [Kind::Panic, Kind::Lost] {
        let (world, mut streamed) = held(Setup::default());
        let client = &world.client;
        world.step_until("its stream has begun", || has_begun(&streamed));
        let whole = begin(&world, &ask(&json!([2]), LONG, false));
        // More than run side by side: some wait, and their streams have not begun when the step fails.
        let waiting: Vec<TcpStream> = (0..12).map(|at| begin(&world, &ask(&json!([at, at]), LONG, true))).collect();
        world.step_until("the queue is full", || (client.metric("lathe_num_requests_waiting") - 6.0).abs() < 0.5);
        world.gate.fail(kind);
        let mut rest = String::new();
        streamed.read_to_string(&mut rest).expect("the stream ends");
        assert!(rest.contains("engine_failed") && !rest.contains("[DONE]"), "{rest}");
        let whole = end(whole);
        assert_eq!((whole.status, &whole.json()["error"]["code"]), (503, &json!("engine_failed")), "{kind:?}");
        assert!(whole.head.contains("retry-after: "), "{whole:?}");
        let waiting: Vec<_> = waiting.into_iter().map(end).collect();
        let refused = waiting.iter().filter(|answer| answer.status == 503).count();
        assert!(refused >= 6, "{refused} of 12 refused");
        assert!(waiting.iter().all(|answer| answer.body.contains("engine_failed")));
        for path in ["/health", "/ready"] {
            assert_eq!(client.get(path).status, 503, "{path}");
        }
        assert_eq!(world.complete(&json!([1]), 1).status, 503);
        assert!(client.metric("lathe_engine_healthy") < 0.5);
        client.wait_for(&format!("{ABORTED}\"failure\""), 14.0);
        client.wait_for("lathe_requests_rejected_total{model_name=\"null\",reason=\"engine_failed\"}", 1.0);
    }
}
