//! Queues, deadlines, cancellation at every stage, and how a server ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lathe_runtime::batcher::{BatchOptions, Policy as QueuePolicy};
use lathe_runtime::server::Policy;
use serde_json::{Value, json};

use crate::client::{Answer, post, read};
use crate::world::{Setup, World, ask, events, expected, judged, spelled, tokens};

const TEXT: &str = "/v1/completions";
const RUNNING: &str = "lathe_num_requests_running";
const WAITING: &str = "lathe_num_requests_waiting";
const ABORTED: &str = "lathe_requests_aborted_total{model_name=\"null\",reason=";
const REJECTED: &str = "lathe_requests_rejected_total{model_name=\"null\",reason=";

/// More tokens than any test waits for.
pub const LONG: usize = 20_000;

/// Sends a request and leaves its connection open.
pub fn begin(world: &World, body: &str) -> TcpStream {
    let mut socket = world.client.connect();
    socket.write_all(&post(TEXT, "", body)).expect("it is sent");
    socket
}

pub fn end(mut socket: TcpStream) -> Answer {
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("the server answers and closes");
    read(&answer)
}

/// Whether something of an answer has come.
pub fn has_begun(socket: &TcpStream) -> bool {
    socket.set_nonblocking(true).expect("it is a socket");
    let has_begun = socket.peek(&mut [0; 15]).is_ok();
    socket.set_nonblocking(false).expect("it is a socket");
    has_begun
}

/// A world with room for long answers, in which one runs, held in its first step.
pub fn held(setup: Setup) -> (World, TcpStream) {
    let world = World::start(Setup { context: 1 << 20, pages: 1 << 15, ..setup });
    world.gate.close();
    let first = begin(&world, &ask(&json!([1, 2, 3]), LONG, true));
    world.gate.wait_until_held();
    (world, first)
}

/// Lets everything go on, checks what the first stream has got so far, and leaves it.
fn release(world: &World, first: TcpStream) {
    world.gate.open();
    let expected = spelled(&expected(&[1, 2, 3], 40));
    let lines = BufReader::new(first).lines().map(|line| line.expect("the stream goes on"));
    let events = lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned));
    for (event, expected) in events.zip(&expected) {
        let event: Value = serde_json::from_str(&event).expect("it is JSON");
        assert_eq!(tokens(&event["choices"][0]), [expected.as_str()]);
    }
    world.wait_for_quiet();
}

fn one_at_a_time(batching: BatchOptions) -> Setup {
    Setup { batching: BatchOptions { max_running: 1, ..batching }, ..Setup::default() }
}

#[test]
fn who_leaves_the_queue_frees_its_place() {
    let (world, first) = held(one_at_a_time(BatchOptions::default()));
    let leaving = [begin(&world, &ask(&json!([4]), LONG, true)), begin(&world, &ask(&json!([5]), LONG, false))];
    world.step_until("both wait", || (world.client.metric(WAITING) - 2.0).abs() < 0.5);
    drop(leaving);
    world.step_until("the queue is empty", || world.client.metric(WAITING) < 0.5);
    world.client.wait_for(&format!("{ABORTED}\"client\""), 2.0);
    release(&world, first);
}

#[test]
fn who_leaves_while_its_prompt_is_computed_gives_its_pages_back() {
    let batching = BatchOptions { prefill_chunk: 8, ..BatchOptions::default() };
    let (world, first) = held(Setup { batching, ..Setup::default() });
    let computed = || world.client.metric("lathe_prompt_tokens_total");
    // The prompt of the first is counted after this.
    world.gate.let_one_pass();
    for stream in [true, false] {
        // Another prompt each time, for the pages of the first remember theirs.
        let prompt: Vec<usize> = (0..16_000).map(|at| (at + usize::from(stream)) % 251).collect();
        let leaving = begin(&world, &ask(&json!(prompt), 4, stream));
        let before = computed();
        world.step_until("its prompt is begun", || computed() > before);
        drop(leaving);
        world.step_until("it is gone", || world.client.metric(RUNNING) < 1.5);
        assert!(computed() - before < 16_000.0, "it was computed to its end");
    }
    world.client.wait_for(&format!("{ABORTED}\"client\""), 2.0);
    release(&world, first);
}

#[test]
fn who_leaves_while_it_is_answered_does_not_disturb_others() {
    let (world, first) = held(Setup::default());
    let leaving = begin(&world, &ask(&json!([9]), LONG, true));
    world.step_until("its stream has begun", || has_begun(&leaving));
    drop(leaving);
    world.step_until("it is gone", || world.client.metric(RUNNING) < 1.5);
    world.client.wait_for(&format!("{ABORTED}\"client\""), 1.0);
    release(&world, first);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let (world, first) = held(one_at_a_time(BatchOptions { max_waiting: 2, ..BatchOptions::default() }));
    let waiting: Vec<TcpStream> = (0..2).map(|at| begin(&world, &ask(&json!([at]), 3, false))).collect();
    world.step_until("both wait", || (world.client.metric(WAITING) - 2.0).abs() < 0.5);
    let refused = begin(&world, &ask(&json!([7]), 3, true));
    world.step_until("it is answered", || has_begun(&refused));
    let refused = end(refused);
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.head.contains("retry-after: "), "{refused:?}");
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    world.client.wait_for(&format!("{REJECTED}\"queue_full\""), 1.0);
    // The one that runs leaves, and those that wait take its place.
    drop(first);
    world.gate.open();
    for socket in waiting {
        assert_eq!(end(socket).status, 200);
    }
    world.wait_for_quiet();
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_with_the_prediction_and_one_that_passes_ends_the_answer() {
    let pace = Duration::from_millis(2);
    let batching = BatchOptions { policy: QueuePolicy::Deadline, ..BatchOptions::default() };
    let world = World::start(Setup { batching, pace, ..Setup::default() });
    world.check(&[1, 2, 3], 30);
    let within = |ms: &str, max: usize, stream: bool| {
        let head = format!("x-deadline-ms: {ms}\r\n");
        world.client.raw(&post(TEXT, &head, &ask(&json!([4, 5]), max, stream)))
    };
    // 200 steps of at least 2 ms each.
    let late = within("20", 200, false);
    assert_eq!(late.status, 503, "{late:?}");
    let message = late.json()["error"]["message"].as_str().map(str::to_owned).expect("a message");
    assert!(message.contains("predicted to take ") && message.contains("deadline is in 0.020 s"), "{message}");
    world.client.wait_for(&format!("{REJECTED}\"deadline\""), 1.0);
    assert_eq!(within("60000", 5, false).status, 200);
    // Other policies take it, and end it when its time is over.
    let world = World::start(Setup { pace, ..Setup::default() });
    let request = |ms: &str, stream| {
        let head = format!("x-deadline-ms: {ms}\r\n");
        world.client.raw(&post(TEXT, &head, &ask(&json!([4, 5]), 250, stream)))
    };
    assert_eq!(request("30", false).status, 504);
    assert!(request("100", true).body.contains("the deadline passed"));
    world.client.wait_for(&format!("{ABORTED}\"deadline\""), 2.0);
    world.wait_for_quiet();
}

#[test]
fn no_request_takes_longer_than_the_server_allows() {
    let policy = Policy { request_timeout: Duration::from_millis(50), ..Policy::default() };
    let world = World::start(Setup { policy, pace: Duration::from_millis(2), ..Setup::default() });
    let answer = world.client.raw(&post(TEXT, "x-deadline-ms: 60000\r\n", &ask(&json!([1]), 250, false)));
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (504, &json!("deadline")));
    world.wait_for_quiet();
}

#[test]
fn static_batches_begin_when_the_last_has_ended() {
    let batching = BatchOptions { is_static: true, ..BatchOptions::default() };
    let (world, first) = held(Setup { batching, ..Setup::default() });
    let second = begin(&world, &ask(&json!([4]), 5, false));
    world.step_until("it waits", || world.client.metric(WAITING) > 0.5);
    (0..5).for_each(|_| world.gate.let_one_pass());
    assert!((world.client.metric(WAITING) - 1.0).abs() < 0.5 && (world.client.metric(RUNNING) - 1.0).abs() < 0.5);
    drop(first);
    world.gate.open();
    assert_eq!(end(second).status, 200);
}

#[test]
fn a_draining_server_ends_what_it_began_and_begins_nothing() {
    let mut world = World::start(Setup::default());
    world.gate.close();
    let first = begin(&world, &ask(&json!([1, 2, 3]), 200, true));
    world.step_until("its stream has begun", || has_begun(&first));
    let silent = world.client.connect();
    world.drain();
    assert_eq!(world.client.get("/ready").status, 503);
    assert_eq!(world.client.get("/health").status, 200);
    let refused = world.complete(&json!([1]), 1);
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("draining")));
    assert!(!world.has_stopped());
    world.gate.open();
    let first = end(first);
    let said: Vec<String> = events(&first.body).iter().flat_map(|event| judged(&event["choices"][0])).collect();
    assert_eq!(said, spelled(&expected(&[1, 2, 3], 200)));
    assert!(first.body.contains("[DONE]"));
    // The silent connection has asked nothing and holds up nothing.
    world.wait_for_end();
    drop(silent);
}

#[test]
fn every_route_but_the_probes_asks_for_a_key_and_keys_do_not_share_pages() {
    let policy = Policy { keys: vec!["one".into(), "two".into()], ..Policy::default() };
    let world = World::start(Setup { policy, ..Setup::default() });
    for path in ["/health", "/ready"] {
        assert_eq!(world.client.get(path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/metrics", "/version", "/tokenizer_info", "/nothing", TEXT, "/tokenize", "/v1/models/x"]
    {
        assert_eq!(world.client.get(path).status, 401, "{path}");
    }
    let with =
        |key: &str| world.client.raw(&post(TEXT, &format!("{key}\r\n"), &ask(&json!([1, 2, 3, 4, 5]), 1, false)));
    for wrong in ["authorization: Bearer", "authorization: Bearer onE", "authorization: one", "x-api-key: o"] {
        assert_eq!(with(wrong).status, 401, "{wrong}");
    }
    let cached = |key: &str| with(key).json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached("authorization: Bearer one"), Some(0));
    assert_eq!(cached("x-api-key: one"), Some(4));
    assert_eq!(cached("x-api-key: two"), Some(0));
}
