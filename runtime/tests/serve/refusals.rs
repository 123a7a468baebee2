//! What a request must not be: each refusal has its status, its message in the shape that clients read, and its count.

use lathe_runtime::server::Policy;
use serde_json::{Value, json};

use crate::client::post;
use crate::world::{Setup, World};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[track_caller]
fn refused(world: &World, path: &str, body: &[u8], status: u16, part: &str) {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = world.client.raw(&[head.as_bytes(), body].concat());
    let shown: String = String::from_utf8_lossy(body).chars().take(80).collect();
    assert_eq!(answer.status, status, "{shown}: {answer:?}");
    let message = answer.json()["error"]["message"].as_str().map(str::to_owned);
    let message = message.unwrap_or_else(|| panic!("{shown}: {answer:?}"));
    assert!(message.contains(part), "{shown}: {message}");
}

#[test]
fn bodies_that_are_not_json_objects() {
    let world = World::start(Setup::default());
    let deep = |text: &str| text.repeat(10_000);
    let cases: [Vec<u8>; 15] = [
        b"".into(),
        b"{".into(),
        b"[]".into(),
        b"null".into(),
        b"\"text\"".into(),
        b"\xff\xfe{}".into(),
        b"\xef\xbb\xbf{\"prompt\": \"a\"}".into(),
        b"{\"prompt\": \"\xff\"}".into(),
        b"{\"prompt\": \"\\ud800\"}".into(),
        b"{\"prompt\": \"\\udc00\\ud800\"}".into(),
        b"{\"prompt\": \"a\", \"temperature\": NaN}".into(),
        b"{\"prompt\": \"a\", \"temperature\": 1e400}".into(),
        b"{\"prompt\": \"a\", \"temperature\": Infinity}".into(),
        format!("{{\"prompt\": {}", deep("[")).into_bytes(),
        format!("{{\"prompt\": {}{}}}", deep("{\"a\":"), deep("}")).into_bytes(),
    ];
    let count = cases.len() as f64;
    world.beside_others(|| {
        for case in cases {
            refused(&world, TEXT, &case, 400, "JSON");
        }
    });
    world.client.wait_for("lathe_requests_rejected_total{model_name=\"null\",reason=\"invalid\"}", count);
    world.wait_for_quiet();
}

#[test]
fn values_that_cannot_be() {
    let world = World::start(Setup::default());
    let many = |count: usize, one: &str| format!("[{}]", vec![one; count].join(","));
    let biased = |count: u32| {
        let map: serde_json::Map<String, Value> = (0..count).map(|token| (token.to_string(), json!(-100))).collect();
        Value::Object(map).to_string()
    };
    let cases: [(&str, String); 50] = [
        ("n", "1000000000".into()),
        ("n", "0".into()),
        ("n", "-1".into()),
        ("n", "1.5".into()),
        ("n", "\"2\"".into()),
        ("n", "64".into()),
        ("best_of", "1000000000".into()),
        ("max_tokens", "-1".into()),
        ("max_tokens", "1e30".into()),
        ("max_tokens", "18446744073709551616".into()),
        ("max_tokens", "100000".into()),
        ("min_tokens", "-5".into()),
        ("temperature", "-0.1".into()),
        ("temperature", "2.1".into()),
        ("temperature", "1e300".into()),
        ("temperature", "\"hot\"".into()),
        ("temperature", "[1]".into()),
        ("top_p", "0".into()),
        ("top_p", "1.01".into()),
        ("top_k", "-2".into()),
        ("min_p", "-1".into()),
        ("min_p", "2".into()),
        ("logprobs", "1000".into()),
        ("logprobs", "-1".into()),
        ("logprobs", "true".into()),
        ("seed", "1e99".into()),
        ("seed", "\"x\"".into()),
        ("priority", "1000000".into()),
        ("presence_penalty", "-3".into()),
        ("frequency_penalty", "3".into()),
        ("repetition_penalty", "0".into()),
        ("repetition_penalty", "-1".into()),
        ("stop", "[\"\"]".into()),
        ("stop", "5".into()),
        ("stop", many(17, "\"a\"")),
        ("stop", many(100_000, "\"a\"")),
        ("stop", format!("\"{}\"", "a".repeat(300))),
        ("stop_token_ids", "[-1]".into()),
        ("stop_token_ids", many(5000, "1")),
        ("logit_bias", "[1]".into()),
        ("logit_bias", "{\"1\": 101}".into()),
        ("logit_bias", "{\"258\": 1}".into()),
        ("logit_bias", "{\"-1\": 1}".into()),
        ("logit_bias", biased(100_000)),
        ("stream", "\"yes\"".into()),
        ("stream_options", "{\"include_usage\": 1}".into()),
        ("cache_salt", "5".into()),
        ("suffix", "\"end\"".into()),
        ("echo", "1".into()),
        ("guided_regex", "\"(a+)+$\"".into()),
    ];
    world.beside_others(|| {
        for (name, value) in &cases {
            let body = format!("{{\"prompt\": \"a\", {name:?}: {value}}}");
            refused(&world, TEXT, body.as_bytes(), 400, "");
        }
        let chat = |rest: &str| format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}], {rest}}}");
        refused(&world, TEXT, br#"{"prompt": "a", "top_p": 0}"#, 400, "above 0 and at most 1, not 0");
        refused(&world, TEXT, br#"{"prompt": "a", "add_special_tokens": 1}"#, 400, "true or false");
        for (rest, part) in [
            ("\"skip_special_tokens\": false", "skip_special_tokens"),
            ("\"return_token_ids\": true", "return_token_ids"),
            ("\"add_special_tokens\": true", "add_special_tokens"),
            ("\"verbosity\": \"high\"", "verbosity"),
            ("\"tools\": [{}]", "tools"),
            ("\"response_format\": {\"type\": \"json_object\"}", "response_format"),
            ("\"top_logprobs\": 3", "logprobs"),
            ("\"chat_template\": \"x\"", "chat_template"),
            ("\"chat_template_kwargs\": {\"messages\": []}", "chat_template_kwargs"),
        ] {
            refused(&world, CHAT, chat(rest).as_bytes(), 400, part);
        }
        for messages in
            ["[]", "\"Hi\"", "[5]", "[{}]", "[{\"role\": \"king\", \"content\": \"a\"}]", "[{\"role\": \"user\"}]"]
        {
            refused(&world, CHAT, format!("{{\"messages\": {messages}}}").as_bytes(), 400, "message");
        }
        refused(&world, CHAT, b"{}", 400, "messages");
        refused(&world, TEXT, b"{\"prompt\": \"a\", \"model\": \"other\"}", 404, "null");
        refused(&world, "/v1/nothing", b"{}", 404, "nothing");
        refused(&world, "/v1/models", b"{}", 405, "GET");
        for tokens in ["\"a\"", "[258]", "[-1]", "[]", "{}"] {
            refused(&world, "/detokenize", format!("{{\"tokens\": {tokens}}}").as_bytes(), 400, "token");
        }
        refused(&world, "/tokenize", b"{\"prompt\": 5}", 400, "prompt");
    });
    let rejected = "lathe_requests_rejected_total{model_name=\"null\",reason=";
    assert!(world.client.metric(&format!("{rejected}\"invalid\"")) >= 50.0);
    assert!(world.client.metric(&format!("{rejected}\"unsupported_field\"")) >= 5.0);
    for (reason, count) in [("model_not_found", 1.0), ("not_found", 1.0), ("method", 1.0)] {
        world.client.wait_for(&format!("{rejected}\"{reason}\""), count);
    }
    world.wait_for_quiet();
}

#[test]
fn a_method_that_does_not_fit_names_the_one_that_does() {
    let world = World::start(Setup::default());
    for (line, allowed) in [("DELETE /v1/models", "get"), ("GET /v1/completions", "post"), ("PUT /tokenize", "post")] {
        let answer = world.client.raw(format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes());
        assert_eq!(answer.status, 405, "{answer:?}");
        assert!(answer.head.contains(&format!("allow: {allowed}")), "{answer:?}");
    }
}

#[test]
fn unknown_fields_are_named_counted_and_refused_where_that_is_wanted() {
    let body = r#"{"prompt": "a", "max_tokens": 1, "zzz": 1, "bell\r\nx: y": 2, "user": "u", "metadata": null}"#;
    let world = World::start(Setup::default());
    let answer = world.client.post(TEXT, body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.contains("x-unknown-fields: bellxy, zzz"), "{answer:?}");
    world.client.wait_for("lathe_requests_with_unknown_fields_total", 1.0);
    let strict =
        World::start(Setup { policy: Policy { strict_fields: true, ..Policy::default() }, ..Setup::default() });
    refused(&strict, TEXT, body.as_bytes(), 400, "zzz");
    assert_eq!(strict.client.post(TEXT, r#"{"prompt": "a", "max_tokens": 1, "user": "u"}"#).status, 200);
}

#[test]
fn fields_of_tokenizing_and_those_inside_of_others_are_named_too() {
    let cases = [
        ("/tokenize", r#"{"prompt": "ab", "zzz": 1, "model": "null"}"#, "zzz"),
        ("/detokenize", r#"{"tokens": [97], "zzz": 1}"#, "zzz"),
        (
            CHAT,
            r#"{"messages": [{"role": "user", "content": "a", "foo": 1, "refusal": null}], "max_tokens": 1,
                "stream_options": {"include_usage": true, "bar": 1}}"#,
            "messages[].foo, stream_options.bar",
        ),
    ];
    let world = World::start(Setup::default());
    let strict =
        World::start(Setup { policy: Policy { strict_fields: true, ..Policy::default() }, ..Setup::default() });
    for (path, body, unknown) in cases {
        let answer = world.client.post(path, body);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.contains(&format!("x-unknown-fields: {unknown}\r\n")), "{answer:?}");
        refused(&strict, path, body.as_bytes(), 400, "is not known");
    }
    world.client.wait_for("lathe_requests_with_unknown_fields_total", 3.0);
    refused(&world, "/tokenize", br#"{"prompt": "a", "model": "other"}"#, 404, "null");
    refused(&world, "/detokenize", br#"{"tokens": [97], "model": "other"}"#, 404, "null");
}

#[test]
fn a_conversation_can_be_tokenized_with_and_without_an_answer_to_come() {
    let world = World::start(Setup::default());
    let asked = |path: &str, rest: &str| {
        let body = format!(r#"{{"messages": [{{"role": "user", "content": "ab"}}]{rest}}}"#);
        let answer = world.client.post(path, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    assert_eq!(asked("/tokenize", "")["tokens"], json!([97, 98, 257, 256]));
    assert_eq!(asked("/tokenize", r#", "add_generation_prompt": false"#)["tokens"], json!([97, 98, 257]));
    let prompt = |rest: &str| asked(CHAT, &format!(r#", "max_tokens": 1{rest}"#))["usage"]["prompt_tokens"].clone();
    assert_eq!([prompt(""), prompt(r#", "add_generation_prompt": false"#)], [4, 3]);
    refused(&world, "/tokenize", b"{}", 400, "messages");
}

#[test]
fn keys_come_in_any_case_of_the_scheme_and_refusals_say_how() {
    let policy = Policy { keys: vec!["k".to_owned()], ..Policy::default() };
    let world = World::start(Setup { policy, ..Setup::default() });
    let ask = |line: &str| {
        world.client.raw(format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{line}\r\n").as_bytes())
    };
    for line in ["authorization: Bearer k\r\n", "authorization: bearer k\r\n", "x-api-key: k\r\n"] {
        assert_eq!(ask(line).status, 200, "{line}");
    }
    for line in ["", "authorization: bearer j\r\n", "authorization: Basic k\r\n", "authorization: Bearerk\r\n"] {
        let answer = ask(line);
        assert_eq!(answer.status, 401, "{line}");
        assert!(answer.head.contains("www-authenticate: bearer"), "{answer:?}");
    }
}

#[test]
fn each_step_and_each_request_is_counted_once() {
    let policy = Policy { vllm_metrics: true, ..Policy::default() };
    let world = World::start(Setup { context: 64, policy, ..Setup::default() });
    world.check(&[1, 2, 3], 5);
    for _ in 0..3 {
        assert_eq!(world.complete(&json!([1]), 500).status, 400);
    }
    world.check(&[4, 5], 7);
    world.wait_for_quiet();
    let steps = world.gate.passed() as f64;
    for (name, wanted) in [
        ("lathe_step_time_seconds_count", steps),
        ("vllm:iteration_tokens_total_count", steps),
        ("vllm:request_prefill_time_seconds_count", 2.0),
        ("vllm:request_decode_time_seconds_count", 2.0),
        ("vllm:request_prompt_tokens_sum", 5.0),
        ("vllm:request_generation_tokens_sum", 12.0),
    ] {
        world.client.wait_for(&format!("{name}{{"), wanted);
    }
    // Each prompt's tokens, and each answer's but the last, which nothing follows.
    world.client.wait_for("vllm:iteration_tokens_total_sum{", 5.0 + 4.0 + 6.0);
}

#[test]
fn ids_and_usage_come_back_and_deadlines_have_a_range() {
    let world = World::start(Setup::default());
    let body = r#"{"prompt": [1, 2, 3, 4, 5, 6, 7, 8, 9], "max_tokens": 2, "ignore_eos": true}"#;
    let first = world.client.raw(&post(TEXT, "x-request-id: my-own\r\n", body));
    assert!(first.head.contains("x-request-id: my-own"), "{first:?}");
    let second = world.client.post(TEXT, body);
    assert!(
        second.head.contains("x-request-id: ")
            && second.json()["id"].as_str().is_some_and(|id| id.starts_with("cmpl-"))
    );
    let usage = |answer: &Value| answer["usage"].clone();
    assert_eq!(usage(&first.json())["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(
        usage(&second.json()),
        json!({
            "prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 8},
            "completion_tokens_details":
                {"reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
        })
    );
    assert_eq!(second.json()["timings"]["cache_n"], 8);
    // Neither another salt nor another key finds what these left in the cache.
    let salted = world.client.post(TEXT, &body.replace('{', "{\"cache_salt\": \"s\", "));
    assert_eq!(usage(&salted.json())["prompt_tokens_details"]["cached_tokens"], 0);
    let other = world.client.raw(&post(TEXT, "authorization: Bearer other\r\n", body));
    assert_eq!(usage(&other.json())["prompt_tokens_details"]["cached_tokens"], 0);
    for wrong in ["0", "-1", "x", "1e3", "99999999999"] {
        let answer = world.client.raw(&post(TEXT, &format!("x-deadline-ms: {wrong}\r\n"), body));
        assert_eq!(answer.status, 400, "{wrong}: {answer:?}");
    }
}
