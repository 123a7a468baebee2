//! What answers and metrics look like from outside: chunks, usage, names.

use lathe_runtime::server::Policy;
use serde_json::{Value, json};

use crate::client::post;
use crate::world::{Setup, World, events, expected, spelled, tokens};

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_stream_has_one_chunk_for_each_token_and_counts_them_in_one_without_choices() {
    let world = World::start(Setup::default());
    let body = json!({
        "prompt": [3, 1, 4], "max_tokens": 30, "logprobs": 0, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true},
    });
    let answer = world.client.post(TEXT, &body.to_string());
    let mut events = events(&answer.body);
    let last = events.pop().expect("an event");
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(30)));
    assert_eq!(last["timings"]["predicted_n"], 30);
    let end = events.pop().expect("an event");
    assert_eq!(end["choices"][0]["finish_reason"], "length");
    let expected = spelled(&expected(&[3, 1, 4], 30));
    assert_eq!(events.len(), expected.len());
    for (at, (event, expected)) in events.iter().zip(&expected).enumerate() {
        assert_eq!(tokens(&event["choices"][0]), [expected.as_str()]);
        assert_eq!(event["usage"]["completion_tokens"], at + 1);
        assert_eq!(event["id"], last["id"]);
    }
    assert!(answer.body.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{}", answer.body);
}

#[test]
fn a_stop_string_is_a_success_and_not_a_client_that_left() {
    let world = World::start(Setup::default());
    let text = |body: &Value| {
        let answer = world.client.post(TEXT, &body.to_string());
        let choice = answer.json()["choices"][0].clone();
        (choice["text"].as_str().expect("a text").to_owned(), choice["finish_reason"].clone())
    };
    let mut body = json!({"prompt": "abc", "max_tokens": 60, "ignore_eos": true});
    let (whole, reason) = text(&body);
    assert_eq!(reason, "length");
    let (at, stop) = whole.char_indices().find(|(at, c)| *at > 5 && c.is_ascii_graphic()).expect("a letter");
    body["stop"] = json!(stop.to_string());
    assert_eq!(text(&body), (whole[..whole.find(stop).map_or(at, |first| first)].to_owned(), json!("stop")));
    let ended = "lathe_request_success_total{model_name=\"null\",finished_reason=";
    world.client.wait_for(&format!("{ended}\"stop\""), 1.0);
    world.client.wait_for(&format!("{ended}\"length\""), 1.0);
    assert!(!world.client.get("/metrics").body.contains("lathe_requests_aborted_total"));
    world.wait_for_quiet();
}

#[test]
fn metrics_have_the_names_that_people_look_for() {
    let world = World::start(Setup { policy: Policy { vllm_metrics: true, ..Policy::default() }, ..Setup::default() });
    for turn in 0..12 {
        world.check(&[turn, 2, 3, 4, 5], 9);
    }
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "n": -1});
    assert_eq!(world.client.raw(&post(CHAT, "", &chat.to_string())).status, 400);
    let text = world.client.get("/metrics").body;
    for prefix in ["lathe_", "vllm:"] {
        for name in [
            "num_requests_running{",
            "num_requests_waiting{",
            "kv_cache_usage_perc{",
            "prefix_cache_queries_total{",
            "prefix_cache_hits_total{",
            "prompt_tokens_total{",
            "generation_tokens_total{",
            "num_preemptions_total{",
            "request_success_total{",
            "requests_rejected_total{",
            "time_to_first_token_seconds_bucket{",
            "inter_token_latency_seconds_bucket{",
            "e2e_request_latency_seconds_bucket{",
            "request_queue_time_seconds_bucket{",
            "engine_healthy{",
        ] {
            assert!(text.lines().any(|line| line.starts_with(&format!("{prefix}{name}"))), "{prefix}{name}: {text}");
        }
    }
    let digest = "0".repeat(64);
    assert!(text.contains(&format!("plan=\"{digest}\"")) && text.contains("lathe_engine_restarts_total{"), "{text}");
    for name in ["predicted", "measured"] {
        assert!(world.client.metric(&format!("lathe_step_time_{name}_seconds_total")) > 0.0, "{name}: {text}");
    }
    // Every family is declared once, and every line is a name, labels and a number.
    let mut declared: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let count = declared.len();
    declared.sort_unstable();
    declared.dedup();
    assert_eq!(declared.len(), count, "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once("} ").unwrap_or_else(|| panic!("{line}"));
        assert!(name.contains('{') && value.parse::<f64>().is_ok(), "{line}");
    }
}
