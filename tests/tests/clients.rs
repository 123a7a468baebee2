//! `lathe serve` as clients that others wrote see it.

use std::path::Path;
use std::process::Command;

use lathe_tests::server::{Server, plan};
use lathe_tests::{Scratch, lathe, lm_eval_python, python, root};
use serde_json::Value;

/// Runs a program of `tests/clients` with arguments and gives what it prints, which is shown when it fails.
fn run(python: &Path, program: &str, arguments: &[&str]) -> String {
    let path = root().join("tests/clients").join(program);
    let output = Command::new(python).arg(path).args(arguments).output().expect("python starts");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} ended with {}:\n{said}\n{errors}", output.status);
    said.into_owned()
}

#[test]
fn the_official_client_of_openai_finds_what_it_expects() {
    let open = Server::start(&["--api-key", "secret", "--policy", "deadline", "--metrics-compat", "vllm"]);
    let strict = ["--strict-fields", "--policy", "priority", "--max-running", "1", "--max-waiting", "3"];
    let strict = Server::start(&strict);
    let addresses = [&open, &strict].map(|server| format!("http://{}", server.address));
    run(&python(), "openai_client.py", &[&addresses[0], &addresses[1]]);
}

#[test]
#[ignore = "needs lm-evaluation-harness, 760 MB: `cargo xtask test --all`"]
fn lm_eval_gives_the_scores_that_lathe_eval_computes() {
    let server = Server::start(&[]);
    let questions = root().join("tests/clients/questions.jsonl");
    let arguments = [&format!("http://{}", server.address), &*questions.to_string_lossy()];
    let harness = run(&lm_eval_python(), "lm_eval_client.py", &arguments);
    let harness: Value = serde_json::from_str(harness.trim()).expect("it prints JSON");
    let output =
        Command::new(lathe()).arg("eval").arg(plan()).arg("--questions").arg(&questions).arg("--json").output();
    let own: Value = serde_json::from_slice(&output.expect("lathe starts").stdout).expect("it prints JSON");
    let (harness, own) =
        (harness["questions"].as_array().expect("a list"), own["questions"].as_array().expect("a list"));
    assert_eq!((harness.len(), own.len()), (11, 11));
    for (number, (harness, own)) in harness.iter().zip(own).enumerate() {
        assert_eq!(harness["text"], own["text"], "question {number}");
        for field in ["correct", "correct_normalized"] {
            assert_eq!(harness[field], own[field], "{field} of question {number}");
        }
        let scores = |of: &Value| -> Vec<(Value, Value)> {
            let choices = of["choices"].as_array().into_iter().flatten();
            choices.map(|choice| (choice["logprob"].clone(), choice["greedy"].clone())).collect()
        };
        assert_eq!(scores(harness), scores(own), "question {number}");
    }
    let right = |of: &[Value]| of.iter().filter(|question| question["correct"] == true).count();
    assert!(right(own) > 0 && right(own) < own.len(), "the questions tell right from wrong");
}

/// Runs `lathe bench serve` against a server; gives its exit code, rows and messages.
fn bench(address: &str, arguments: &[&str]) -> (Option<i32>, Value, String) {
    let output = Command::new(lathe()).args(["bench", "serve", address, "-o", "json"]).args(arguments).output();
    let output = output.expect("lathe starts");
    let rows = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), rows, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_load_generator_counts_what_the_server_counts() {
    let server = Server::start(&[]);
    let address = format!("mine=http://{}", server.address);
    let (scratch, generated) = (Scratch::new(), || server.metric("lathe_generation_tokens_total"));
    let picture = scratch.file("load.svg");
    let load = ["--clients", "1,3", "--requests", "6", "--prompt", "8-16", "--generate", "5", "--rounds", "2"];
    let (code, rows, errors) = bench(&address, &[&load[..], &["--svg", &picture.to_string_lossy()]].concat());
    assert_eq!(code, Some(0), "{errors}");
    // A round of each of the two loads warms up with one more.
    assert_eq!(generated(), 2 * 2 * 7 * 5, "{rows}");
    for (row, clients) in rows.as_array().expect("rows").iter().zip([1, 3]) {
        assert_eq!((&row["server"], &row["max_concurrency"]), (&"mine".into(), &clients.into()));
        assert_eq!(
            (&row["completed"], &row["failed"], &row["total_output_tokens"]),
            (&12.into(), &0.into(), &60.into())
        );
        let times = ["ttft_ms", "itl_ms", "e2el_ms"].map(|name| row[name]["median"].as_f64().expect("a time"));
        assert!(times.iter().all(|time| *time > 0.0) && times[2] > times[0] && times[2] > times[1], "{row}");
    }
    let picture = std::fs::read_to_string(picture).expect("there is a picture");
    assert!(picture.starts_with("<svg") && picture.contains("mine, 3 clients"), "{picture}");

    let beside =
        ["--clients", "1", "--requests", "2", "--prompt", "64", "--generate", "1", "--streams", "2", "--quiet", "1"];
    let (code, rows, errors) = bench(&address, &beside);
    assert_eq!(code, Some(0), "{errors}");
    let streams = &rows[0]["streams"];
    assert_eq!(streams["count"], 2, "{rows}");
    assert!(streams["p99_ratio"].as_f64() > Some(0.0) && streams["load_began"].as_f64() >= Some(1.0), "{streams}");

    let (code, _, errors) = bench(&address, &["--model", "other"]);
    assert!(code == Some(1) && errors.contains("404") && errors.contains("smol"), "{errors}");
    let (code, _, errors) = bench("ftp://nowhere", &[]);
    assert!(code == Some(2) && errors.contains("http://127.0.0.1:8000"), "{errors}");
}
