//! `lathe serve` from outside, over sockets: what streams say under load, what a server refuses, and how it ends.

use std::io::{Read, Write};
use std::process::Command;
use std::thread;

use lathe_tests::lathe;
use lathe_tests::server::{Server, plan, post};
use serde_json::{Value, json};

/// How often a gauge is asked for before it is taken to be stuck.
const PATIENCE: usize = 2000;

/// A request that asks for much of what can differ: some greedy, some sampled, prompts of several lengths.
fn request(index: usize) -> Value {
    let prompt = format!("Chapter {index}. {}The", "It was a dark and stormy night. ".repeat(index % 5));
    json!({
        "model": "smol", "prompt": prompt, "max_tokens": 12 + index, "logprobs": 3, "seed": index,
        "temperature": if index.is_multiple_of(2) { 0.0 } else { 1.0 },
        "presence_penalty": if index % 4 == 3 { 0.5 } else { 0.0 },
    })
}

/// What an answer says: its texts, tokens and logprobs.
fn choices(server: &Server, index: usize) -> Value {
    let (status, body) = server.post("/v1/completions", &request(index).to_string());
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).expect("it is JSON")["choices"].take()
}

#[test]
fn answers_under_load_are_those_of_requests_alone() {
    let server = Server::start(&[]);
    let alone: Vec<Value> = (0..16).map(|index| choices(&server, index)).collect();
    let asked = alone[0][0]["logprobs"]["tokens"].as_array().map(Vec::len);
    assert_eq!(asked, Some(12), "{}", alone[0]);
    for _ in 0..2 {
        let together: Vec<Value> = thread::scope(|scope| {
            let ask = |index| {
                scope.spawn({
                    let server = &server;
                    move || choices(server, index)
                })
            };
            let asked: Vec<_> = (0..16).map(ask).collect();
            asked.into_iter().map(|thread| thread.join().expect("the client ends")).collect()
        });
        for (index, (together, alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(together, alone, "request {index}");
        }
    }
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = Server::start(&[]);
    let ask = |stream: bool| {
        let messages = json!([{"role": "user", "content": "Name three colours."}]);
        let body = json!({
            "model": "smol", "messages": messages, "max_tokens": 24, "temperature": 0,
            "stream": stream, "stream_options": if stream { json!({"include_usage": true}) } else { Value::Null },
        });
        server.post("/v1/chat/completions", &body.to_string()).1
    };
    let whole: Value = serde_json::from_str(&ask(false)).expect("it is JSON");
    let streamed = ask(true);
    let events: Vec<&str> = streamed.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"), "{streamed}");
    let events: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).unwrap_or_else(|error| panic!("{error}: {event}")))
        .collect();
    let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().expect("a text"));
    let usage = &events.last().expect("an event")["usage"];
    assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert_eq!(usage["prompt_tokens"], whole["usage"]["prompt_tokens"]);
}

#[test]
fn abuse_is_answered_and_leaves_nothing_behind() {
    let server = Server::start(&[]);
    let chat = "/v1/chat/completions";
    let hello = r#""messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2"#;
    let cases: [(&str, String, u16, &str); 14] = [
        (chat, "{".into(), 400, "JSON"),
        (chat, "[]".into(), 400, ""),
        (chat, r#"{"messages": []}"#.into(), 400, "messages"),
        (chat, r#"{"messages": "Hi"}"#.into(), 400, "messages"),
        (chat, format!(r#"{{{hello}, "n": 1000000000}}"#), 400, "`n`"),
        (chat, format!(r#"{{{hello}, "n": -1}}"#), 400, "`n`"),
        (chat, format!(r#"{{{hello}, "temperature": -1}}"#), 400, "temperature"),
        (chat, format!(r#"{{{hello}, "temperature": "hot"}}"#), 400, "temperature"),
        (chat, format!(r#"{{{hello}, "response_format": {{"type": "json_object"}}}}"#), 400, "response_format"),
        (chat, format!(r#"{{{hello}, "model": "other"}}"#), 404, "smol"),
        ("/v1/completions", r#"{"prompt": [49152], "max_tokens": 1}"#.into(), 400, "49152"),
        ("/v1/completions", r#"{"prompt": "", "max_tokens": 1}"#.into(), 400, "prompt"),
        ("/v1/completions", format!(r#"{{"prompt": "{}", "max_tokens": 1}}"#, "a b ".repeat(20_000)), 400, ""),
        ("/v1/nothing", "{}".into(), 404, ""),
    ];
    for (path, body, expected, part) in cases {
        let (status, answer) = server.post(path, &body);
        let shown: String = body.chars().take(80).collect();
        assert_eq!(status, expected, "{shown}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{shown}: {error}"));
        let message = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{shown}: {answer}"));
        assert!(message.contains(part), "{shown}: {message}");
    }
    for garbage in [&b"\x00\xff\x00 nonsense\r\n\r\n"[..], b"GET\r\n\r\n", b"POST /v1/completions HTTP/9.9\r\n\r\n"] {
        let (status, ..) = server.raw(garbage);
        assert!(status == 0 || (400..600).contains(&status), "status {status}");
    }
    // Clients that vanish: before a head, in a body, in the middle of a stream.
    drop(server.connect());
    server.connect().write_all(&post(chat, "{\"messages\": 1")[..40]).expect("it is sent");
    for _ in 0..8 {
        let body = r#"{"prompt": "Once", "max_tokens": 2000, "ignore_eos": true, "stream": true}"#;
        let mut socket = server.connect();
        socket.write_all(&post("/v1/completions", body)).expect("it is sent");
        let mut first = [0; 64];
        socket.read_exact(&mut first).expect("the stream begins");
    }
    let settled = |_: &usize| server.metric("lathe_num_requests_running") == 0;
    assert!((0..PATIENCE).any(|at| settled(&at)), "requests of clients that vanished go on");
    assert_eq!(server.metric("lathe_num_requests_waiting"), 0);
    let (status, answer) = server.post(chat, &format!("{{{hello}}}"));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(server.get("/health").0, 200);
}

#[test]
fn a_key_is_asked_for_everywhere_but_at_the_door() {
    let server = Server::start(&["--api-key", "secret"]);
    assert_eq!(server.get("/health").0, 200);
    assert_eq!(server.get("/ready").0, 200);
    for path in ["/v1/models", "/metrics", "/version", "/tokenizer_info"] {
        assert_eq!(server.get(path).0, 401, "{path}");
        let with = |key: &str| {
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n");
            server.raw(request.as_bytes()).0
        };
        assert_eq!((with("secret"), with("secreT"), with("secret2"), with("")), (200, 401, 401, 401), "{path}");
    }
}

#[test]
fn a_signal_lets_streams_end() {
    let mut server = Server::start(&[]);
    let mut socket = server.connect();
    let body = r#"{"prompt": "Once", "max_tokens": 40, "ignore_eos": true, "stream": true}"#;
    socket.write_all(&post("/v1/completions", body)).expect("it is sent");
    let mut first = [0; 64];
    socket.read_exact(&mut first).expect("the stream begins");
    server.signal("TERM");
    let mut rest = String::new();
    socket.read_to_string(&mut rest).expect("the stream goes on to its end");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let status = server.process.wait().expect("the server ends");
    assert!(status.success(), "{status}");
}

#[test]
fn another_address_than_the_loopback_needs_a_key_or_a_word() {
    let output = Command::new(lathe()).arg("serve").arg(plan()).args(["--host", "0.0.0.0", "--port", "0"]).output();
    let output = output.expect("lathe starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("--api-key") && message.contains("--insecure"), "{message}");
}
