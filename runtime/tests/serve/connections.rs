//! What clients do to connections: leave, stay silent, send garbage, come in crowds.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use lathe_runtime::server::{Policy, listen};
use serde_json::json;

use crate::client::{post, read};
use crate::scheduling::{LONG, begin, held};
use crate::world::{Setup, World, ask, events, eventually, expected, judged, spelled, tokens};

const COMPLETIONS: &str = "/v1/completions";

/// So short that a test need not wait, and long enough for an honest client.
const SHORT: Duration = Duration::from_millis(300);

/// A server whose steps take a while, so that clients can leave in their middle.
fn slow_world() -> World {
    World::start(Setup { pace: Duration::from_micros(300), ..Setup::default() })
}

#[test]
fn clients_that_leave_take_nothing_with_them() {
    let world = slow_world();
    let client = &world.client;
    world.beside_others(|| {
        let long = post(COMPLETIONS, "", &ask(&json!([1, 2, 3]), 200, true));
        for _ in 0..6 {
            // Before a head, in it, in the body, in the middle of a stream, while waiting for a whole answer.
            drop(client.connect());
            client.connect().write_all(&long[..20]).expect("it is sent");
            client.connect().write_all(&long[..long.len() - 5]).expect("it is sent");
            let mut socket = client.connect();
            socket.write_all(&long).expect("it is sent");
            socket.read_exact(&mut [0; 64]).expect("the stream begins");
            drop(socket);
            let whole = post(COMPLETIONS, "", &ask(&json!([3, 2, 1]), 200, false));
            client.connect().write_all(&whole).expect("it is sent");
            // After the last token.
            assert!(client.raw(&post(COMPLETIONS, "", &ask(&json!([5]), 3, true))).body.contains("[DONE]"));
        }
        // Those whose stream had begun; others may have left before the engine heard of them.
        let left = || client.metric("lathe_requests_aborted_total{model_name=\"null\",reason=\"client\"}");
        eventually("six are counted", || left() > 5.5);
    });
    world.wait_for_quiet();
}

#[test]
fn who_closes_its_half_has_left() {
    let (world, first) = held(Setup::default());
    let leaving = begin(&world, &ask(&json!([1]), LONG, false));
    world.step_until("it runs", || world.client.metric("lathe_num_requests_running") > 1.5);
    leaving.shutdown(Shutdown::Write).expect("it is open");
    world.step_until("it is gone", || world.client.metric("lathe_num_requests_running") < 1.5);
    drop(first);
    world.gate.open();
    world.wait_for_quiet();
}

#[test]
fn silent_and_dripping_clients_are_shown_out() {
    let policy = Policy { header_timeout: SHORT, body_timeout: SHORT, ..Policy::default() };
    let world = World::start(Setup { policy, ..Setup::default() });
    let client = &world.client;
    world.beside_others(|| {
        let mut silent = client.connect();
        let mut head = client.connect();
        head.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n").expect("it is sent");
        let mut body = client.connect();
        body.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"pro")
            .expect("it is sent");
        // Between two requests as well.
        let mut idle = client.connect();
        idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").expect("it is sent");
        let end = |socket: &mut TcpStream| {
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer);
            read(&answer).status
        };
        assert_eq!(end(&mut body), 408, "a body that does not come");
        assert!([0, 408].contains(&end(&mut silent)) && [0, 408].contains(&end(&mut head)));
        assert_eq!(end(&mut idle), 200);
        client.wait_for("lathe_requests_rejected_total{model_name=\"null\",reason=\"timeout\"}", 1.0);
    });
    assert!(client.metric("lathe_connections_closed_total{model_name=\"null\",reason=\"silent\"}") >= 2.0);
    world.wait_for_quiet();
}

#[test]
fn a_client_that_takes_nothing_loses_its_stream_and_nobody_else() {
    let world = World::start(Setup { context: 1 << 20, pages: 1 << 16, ..Setup::default() });
    let client = &world.client;
    let mut socket = client.connect();
    // Four streams in one, each chunk with its logprobs, until all buffers are full.
    let body = json!({
        "prompt": [9], "max_tokens": 60_000, "n": 4, "logprobs": 5, "ignore_eos": true, "stream": true,
        "stream_options": {"continuous_usage_stats": true},
    });
    socket.write_all(&post(COMPLETIONS, "", &body.to_string())).expect("it is sent");
    world.beside_others(|| {
        client.wait_for("lathe_requests_aborted_total{model_name=\"null\",reason=\"slow_reader\"}", 1.0);
    });
    world.wait_for_quiet();
}

#[test]
fn an_answer_that_is_not_taken_is_dropped() {
    let policy = Policy { write_timeout: SHORT, ..Policy::default() };
    let world = World::start(Setup { policy, ..Setup::default() });
    let mut socket = world.client.connect();
    let body = json!({"prompt": "a".repeat(7 << 20)}).to_string();
    socket.write_all(&post("/tokenize", "", &body)).expect("it is sent");
    world.client.wait_for("lathe_connections_closed_total{model_name=\"null\",reason=\"stalled\"}", 1.0);
}

#[test]
fn a_crowd_of_idle_connections_keeps_nobody_out() {
    listen::raise_socket_limit();
    let world = World::start(Setup::default());
    let client = &world.client;
    let crowd: Vec<TcpStream> = (0..500).map(|_| client.connect()).collect();
    client.wait_for("lathe_connections{", 501.0);
    world.check(&[1, 2], 5);
    drop(crowd);
    client.wait_for("lathe_connections{", 1.0);
    // Where places run out, those that ask nothing make room for those that do.
    let policy = Policy { max_connections: 50, ..Policy::default() };
    let world = World::start(Setup { policy, ..Setup::default() });
    let crowd: Vec<TcpStream> = (0..300).map(|_| world.client.connect()).collect();
    world.check(&[1, 2], 5);
    assert!(world.client.metric("lathe_connections_closed_total{model_name=\"null\",reason=\"idle\"}") >= 250.0);
    drop(crowd);
}

#[test]
fn what_is_not_http_is_refused() {
    let policy = Policy { header_timeout: Duration::from_secs(5), ..Policy::default() };
    let world = World::start(Setup { policy, ..Setup::default() });
    let client = &world.client;
    let long = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(1 << 20));
    let lengths = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ";
    let negative = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -2\r\n\r\n{}";
    let chunks = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n";
    let garbage: [&[u8]; 12] = [
        b"\x00\xff\x00 nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS handshake",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: \x00\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
        path.as_bytes(),
        lengths.as_bytes(),
        negative.as_bytes(),
        chunks.as_bytes(),
    ];
    world.beside_others(|| {
        for request in garbage {
            let answer = client.raw(request);
            let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
            assert!(answer.status == 0 || (400..500).contains(&answer.status), "{shown}: {answer:?}");
        }
    });
    assert!(client.metric("lathe_connections_closed_total{model_name=\"null\",reason=\"malformed\"}") >= 10.0);
    world.wait_for_quiet();
}

#[test]
fn bodies_have_limits_whatever_their_head_says() {
    let policy = Policy { max_body: 1 << 20, ..Policy::default() };
    let world = World::start(Setup { policy, ..Setup::default() });
    let client = &world.client;
    let head = |length: &str, rest: &str| {
        format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{length}\r\n\r\n{rest}")
    };
    // Refused by its length alone, before a byte of it has come.
    let huge = client.raw(head("content-length: 104857600", "").as_bytes());
    assert_eq!(huge.status, 413, "{huge:?}");
    let endless = head("transfer-encoding: chunked", &format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(40));
    assert!([0, 413].contains(&client.raw(endless.as_bytes()).status));
    client.wait_for("lathe_requests_rejected_total{model_name=\"null\",reason=\"too_large\"}", 2.0);
    let packed = client.raw(&post(COMPLETIONS, "content-encoding: gzip\r\n", "{}"));
    assert_eq!(packed.status, 415, "{packed:?}");
    // Two at once on one connection are answered in order.
    let one = "GET /version HTTP/1.1\r\nhost: x\r\n\r\n";
    let two = "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let both = client.raw(format!("{one}{two}").as_bytes());
    assert!(both.body.contains("HTTP/1.1 200 OK") && both.body.contains("max_model_len"), "{both:?}");
}

#[test]
fn prompts_of_one_request_are_streamed_side_by_side() {
    let world = World::start(Setup::default());
    let prompts = [vec![1, 2], vec![3], vec![4, 5, 6]];
    let answer = world.client.raw(&post(COMPLETIONS, "", &ask(&json!(prompts), 40, true)));
    let events = events(&answer.body);
    let index = |event: &serde_json::Value| event["choices"][0]["index"].as_u64().map(|index| index as usize);
    let order: Vec<usize> = events.iter().filter_map(index).collect();
    let first_end = events.iter().position(|event| event["choices"][0]["finish_reason"] == "length").expect("an end");
    for (at, prompt) in prompts.iter().enumerate() {
        assert!(order[..first_end].contains(&at), "prompt {at} has to wait for another");
        let own = events.iter().filter(|event| index(event) == Some(at));
        let found: Vec<String> = own.flat_map(|event| judged(&event["choices"][0])).collect();
        assert_eq!(found, spelled(&expected(prompt, 40)));
    }
    assert!(answer.body.contains("[DONE]"));
    let many: Vec<Vec<u32>> = (0..100).map(|token| vec![token]).collect();
    let answer = world.complete(&json!(many), 30).json();
    for (at, prompt) in many.iter().enumerate() {
        assert_eq!(tokens(&answer["choices"][at]), spelled(&expected(prompt, 30)));
    }
    assert_eq!(answer["usage"]["completion_tokens"], 3000);
}
