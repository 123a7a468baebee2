//! Prompts of every length and pools of every size.

use std::thread;

use serde_json::json;

use crate::world::{PAGE, Setup, World, expected, spelled, tokens};

#[test]
fn prompts_may_be_strange_but_not_empty_or_too_long() {
    let world = World::start(Setup { context: 64, ..Setup::default() });
    let ask = |prompt: &serde_json::Value, max: usize| world.complete(prompt, max);
    for (prompt, part) in [(json!(""), "prompt"), (json!([]), "prompt"), (json!([[]]), "prompt"), (json!({}), "prompt")]
    {
        let answer = ask(&prompt, 1);
        assert_eq!(answer.status, 400, "{prompt}: {answer:?}");
        assert!(answer.body.contains(part), "{prompt}: {answer:?}");
    }
    for prompt in [json!(" "), json!("\n\t \u{a0}"), json!("\u{0}"), json!("<|im_end|>"), json!("🦀é中"), json!([0])]
    {
        assert_eq!(ask(&prompt, 2).status, 200, "{prompt}");
    }
    for token in
        [json!([258]), json!([-1]), json!([1.5]), json!([1_099_511_627_776_u64]), json!([["a"]]), json!([true])]
    {
        assert_eq!(ask(&token, 1).status, 400, "{token}");
    }
    // Exactly full, with and without an answer, and one more.
    let full: Vec<u32> = (0..64).collect();
    world.check(&full[..60], 4);
    let silent = ask(&json!(full), 0);
    assert_eq!((silent.status, &silent.json()["choices"][0]["text"]), (200, &json!("")), "{silent:?}");
    for (prompt, max) in [(&full[..60], 5), (&full[..], 1)] {
        let answer = ask(&json!(prompt), max);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    }
    let long = ask(&json!("a b ".repeat(500_000)), 1);
    assert_eq!((long.status, &long.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    world.wait_for_quiet();
}

#[test]
fn a_pool_of_a_few_pages_serves_all_that_fits_it() {
    for pages in 1..=4 {
        let world = World::start(Setup { pages, context: 1000, ..Setup::default() });
        let room = pages as usize * PAGE;
        let too_long = world.complete(&json!([1, 2]), room - 1);
        assert_eq!(too_long.status, 400, "{too_long:?}");
        assert!(too_long.body.contains("--cache-tokens"), "{too_long:?}");
        // More than fit side by side: they take turns, give way to one another and are computed again.
        thread::scope(|scope| {
            for client in 0..12_u32 {
                let world = &world;
                scope.spawn(move || {
                    for round in 0..3 {
                        let length = 1 + (client as usize + round) % (room - 2);
                        let prompt: Vec<u32> = (0..length as u32).map(|at| at * 7 + client % 3).collect();
                        world.check(&prompt, 1 + (room - length - 1) * (client as usize % 2));
                    }
                });
            }
        });
        world.wait_for_quiet();
    }
}

#[test]
fn choices_of_one_prompt_share_its_pages() {
    let world = World::start(Setup { pages: 8, ..Setup::default() });
    let prompt: Vec<u32> = (0..10).collect();
    let body = json!({"prompt": prompt, "n": 3, "max_tokens": 6, "logprobs": 0, "ignore_eos": true, "seed": 4});
    let answer = world.client.post("/v1/completions", &body.to_string()).json();
    assert_eq!(tokens(&answer["choices"][0]), spelled(&expected(&prompt, 6)), "{answer}");
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(3));
    assert_eq!(answer["usage"]["completion_tokens"], 18);
    world.wait_for_quiet();
}
