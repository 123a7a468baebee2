//! `lathe serve` as clients that others wrote see it.

use std::path::Path;
use std::process::Command;

use lathe_tests::server::Server;
use lathe_tests::{python, root};

/// Runs a program of `tests/clients` with arguments; its output is shown when it fails.
fn run(program: &str, arguments: &[&str]) {
    let path = root().join(Path::new("tests/clients")).join(program);
    let output = Command::new(python()).arg(path).args(arguments).output().expect("python starts");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} ended with {}:\n{said}\n{errors}", output.status);
}

#[test]
fn the_official_client_of_openai_finds_what_it_expects() {
    let open = Server::start(&["--api-key", "secret", "--policy", "deadline", "--metrics-compat", "vllm"]);
    let strict = ["--strict-fields", "--policy", "priority", "--max-running", "1", "--max-waiting", "3"];
    let strict = Server::start(&strict);
    run("openai_client.py", &[&format!("http://{}", open.address), &format!("http://{}", strict.address)]);
}
