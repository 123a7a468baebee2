//! `lathe serve` as a process: who starts whom when something fails, and how all of it ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lathe_runtime::server::listen;
use serde_json::{Value, json};

use crate::client::{Client, post};
use crate::parrot;
use crate::world::eventually;

const TEXT: &str = "/v1/completions";
/// A context that takes minutes to fill.
const ENDLESS: u32 = 1 << 24;
/// Its steps take no time, so with guesses, which are all right, an endless stream would outrun any reader.
const STEADY: [&str; 2] = ["--speculate", "off"];

/// Steps that take as long as a model's: who does not read an endless stream would be dropped soon otherwise.
const PACED: &str = "slow@1";

fn plan(test: &str, context: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serve").join(test);
    fs::create_dir_all(&folder).expect("the target directory is writable");
    let path = folder.join("parrot.plan");
    parrot::write(&path, &parrot::program(context), &[], parrot::chat);
    path
}

/// A server's process; killed when dropped.
struct Server {
    process: Child,
    client: Client,
    log: PathBuf,
}

impl Server {
    fn start(test: &str, fault: &str, flags: &[&str]) -> Server {
        let plan = plan(test, ENDLESS);
        let mut command = Command::new(env!("CARGO_BIN_EXE_lathe"));
        command.arg("serve").arg(&plan).args(["--port", "0", "--threads", "1"]).args(flags);
        if !flags.contains(&"--speculate") {
            command.args(STEADY);
        }
        if !fault.is_empty() {
            command.env("LATHE_FAULT", fault);
        }
        Server::spawn(command, &plan.with_extension("log"))
    }

    fn spawn(mut command: Command, log: &Path) -> Server {
        let errors = fs::File::create(log).expect("the folder is writable");
        let mut process = command.stdout(Stdio::piped()).stderr(errors).spawn().expect("the server starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the server says where it listens");
        let address = line.trim().strip_prefix("http://").unwrap_or_else(|| panic!("{}", read(log))).to_owned();
        Server { process, client: Client(address), log: log.to_owned() }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    fn code(&mut self) -> Option<i32> {
        self.process.wait().expect("it ends").code()
    }

    fn ask(&self, tokens: usize) -> (u16, String) {
        let body = json!({"prompt": "Hi", "max_tokens": tokens, "temperature": 0}).to_string();
        let answer = self.client.post(TEXT, &body);
        (answer.status, answer.body)
    }

    /// A stream that has begun and goes on for minutes.
    fn endless(&self) -> TcpStream {
        let mut socket = self.client.connect();
        let body = json!({"prompt": "Hi", "temperature": 0, "max_tokens": 10_000_000, "stream": true}).to_string();
        socket.write_all(&post(TEXT, "", &body)).expect("it is sent");
        socket.read_exact(&mut [0; 64]).expect("the stream begins");
        socket
    }

    /// Waits until it serves again.
    fn wait_until_ready(&self) {
        eventually("the server is ready", || self.client.get("/ready").status == 200);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

/// A step that fails in one process after another: nobody is refused a connection, and short requests go on being answered.
#[track_caller]
fn comes_back(test: &str, fault: &str, flags: &[&str], statuses: &[u16]) {
    let server = Server::start(test, fault, flags);
    assert_eq!(server.ask(2).0, 200);
    let (over, seen) = (AtomicBool::new(false), std::sync::Mutex::new(BTreeSet::new()));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let status = server.client.get("/health").status;
                seen.lock().expect("nobody panics here").insert(status);
            }
        });
        for restarts in 1..=2 {
            let (status, body) = server.ask(30);
            assert!(statuses.contains(&status), "{status}: {body}");
            server.client.wait_for("lathe_engine_restarts_total", f64::from(restarts));
            server.wait_until_ready();
            let (status, body) = server.ask(2);
            assert!(status == 200 && body.contains("\"AA\""), "{status}: {body}");
        }
        over.store(true, Ordering::Relaxed);
    });
    let mut seen = seen.into_inner().expect("nobody panics here");
    // The connection that the end of a process cuts has no status.
    seen.remove(&0);
    assert_eq!(seen, BTreeSet::from([200, 503]), "what /health said meanwhile");
    assert!(read(&server.log).contains("starts again in"), "{}", read(&server.log));
}

#[test]
fn an_engine_that_panics_is_started_again() {
    comes_back("panic", "panic@8", &[], &[503]);
}

#[test]
fn an_engine_that_is_lost_is_started_again() {
    comes_back("lost", "lost@8", &[], &[503]);
}

#[test]
fn a_process_that_dies_is_started_again() {
    comes_back("abort", "abort@8", &[], &[0]);
}

#[test]
fn an_engine_that_hangs_is_started_again() {
    comes_back("hang", "hang@8", &["--step-timeout", "1"], &[503]);
}

#[test]
fn who_fails_too_often_is_given_up() {
    let mut server = Server::start("often", "panic@8", &["--restarts", "1"]);
    assert_eq!(server.ask(30).0, 503);
    server.client.wait_for("lathe_engine_restarts_total", 1.0);
    server.wait_until_ready();
    assert_eq!(server.ask(30).0, 503);
    assert_eq!(server.code(), Some(1));
    assert!(read(&server.log).contains("--restarts"), "{}", read(&server.log));
}

#[test]
fn without_a_supervisor_the_process_ends_with_its_engine() {
    let mut server = Server::start("alone", "lost@8", &["--no-supervisor"]);
    assert_eq!(server.ask(2).0, 200);
    assert_eq!(server.ask(30).0, 503);
    assert_eq!(server.code(), Some(1));
    assert!(read(&server.log).contains("the engine has failed: "), "{}", read(&server.log));
    let mut server = Server::start("alone", "", &["--no-supervisor"]);
    server.signal("TERM");
    assert_eq!(server.code(), Some(0));
}

#[test]
fn one_signal_drains_and_two_end_at_once() {
    for (test, flags) in [("signals", &[][..]), ("signals_alone", &["--no-supervisor"])] {
        let mut server = Server::start(test, PACED, flags);
        let stream = server.endless();
        server.signal("TERM");
        eventually("it drains", || server.client.get("/ready").status == 503);
        assert_eq!(server.client.get("/health").status, 200);
        assert!(server.process.try_wait().expect("it can be asked").is_none(), "a stream is in progress");
        server.signal("TERM");
        assert_eq!(server.code(), Some(128 + 15), "{test}");
        drop(stream);
        let mut server = Server::start(test, "", flags);
        assert_eq!(server.ask(2).0, 200);
        server.signal("INT");
        assert_eq!(server.code(), Some(0), "{test}");
    }
}

#[test]
fn no_worker_outlives_its_supervisor() {
    let mut server = Server::start("orphan", PACED, &[]);
    let mut stream = server.endless();
    server.process.kill().expect("it runs");
    server.process.wait().expect("it ends");
    // The stream ends with the process that served it, and so does the address.
    let _ = stream.read_to_end(&mut Vec::new());
    eventually("the address is free", || TcpListener::bind(&server.client.0).is_ok());
}

#[test]
fn what_never_served_is_not_started_again() {
    let path = plan("never", 64);
    let bytes = fs::read(&path).expect("it was written");
    fs::write(&path, &bytes[..bytes.len() - 1]).expect("the folder is writable");
    let run_with = |key: Option<&str>, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lathe"));
        command.env_remove("LATHE_API_KEY").envs(key.map(|key| ("LATHE_API_KEY", key)));
        let output = command.arg("serve").arg(&path).args(args).output().expect("the server starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let run = |args: &[&str]| run_with(None, args);
    let (code, errors) = run(&["--port", "0"]);
    assert_eq!(code, Some(3), "{errors}");
    assert!(errors.contains("cut off") && errors.lines().count() == 1, "{errors}");
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let (code, errors) = run(&["--port", &port]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("cannot listen on 127.0.0.1") && errors.contains(&port), "{errors}");
    let (code, errors) = run(&["--host", "0.0.0.0"]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("--api-key") && errors.contains("--insecure"), "{errors}");
    // A key that is empty, as an unset variable gives it, is none.
    for (key, args) in [(None, &["--api-key", ""][..]), (Some(""), &[]), (Some("k"), &["--api-key", " "])] {
        for host in ["127.0.0.1", "0.0.0.0"] {
            let (code, errors) = run_with(key, &[args, &["--host", host, "--port", "0"]].concat());
            assert_eq!(code, Some(2), "{errors}");
            assert!(errors.contains("a key that is not empty"), "{errors}");
        }
    }
    let (code, errors) = run_with(Some("k"), &["--host", "0.0.0.0", "--port", &port]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("cannot listen on 0.0.0.0"), "{errors}");
    let (code, errors) = run(&["--host", "localhost", "--port", &port]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("cannot listen on 127.0.0.1"), "{errors}");
    for (flag, wrong) in [("--host", "no host"), ("--stretch", "nan"), ("--stretch", "0.5"), ("--name", "")] {
        let (code, errors) = run(&[flag, wrong]);
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains(flag), "{errors}");
    }
}

#[test]
fn guesses_are_counted_in_usage_and_metrics() {
    let flags = ["--speculate", "ngram", "--spec-depth", "3", "--metrics-compat", "vllm"];
    let server = Server::start("guesses", "", &flags);
    let (status, body) = server.ask(12);
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    // Three tokens come alone, then four with each step; the last one is left over.
    let details = &body["usage"]["completion_tokens_details"];
    assert_eq!(
        (&details["accepted_prediction_tokens"], &details["rejected_prediction_tokens"]),
        (&json!(6), &json!(0))
    );
    assert_eq!(
        body["metrics"]["speculative_decoding"],
        json!({
            "mean_acceptance_length": 4.0, "draft_acceptance_rate": 1.0, "acceptance_histogram": [0, 0, 0, 2],
            "num_spec_steps": 2, "num_accepted_draft_tokens": 6, "num_draft_tokens": 6, "num_spec_tokens": 3,
        })
    );
    for prefix in ["lathe_", "vllm:"] {
        for (name, wanted) in [("drafts", 2.0), ("draft_tokens", 6.0), ("accepted_tokens", 6.0)] {
            let name = format!("{prefix}spec_decode_num_{name}_total{{");
            assert!((server.client.metric(&name) - wanted).abs() < 1e-9, "{name}");
        }
        let third =
            format!("{prefix}spec_decode_num_accepted_tokens_per_pos_total{{model_name=\"parrot\",position=\"2\"}}");
        assert!((server.client.metric(&third) - 2.0).abs() < 1e-9, "{third}");
    }
    for (drafter, wanted) in [("ngram", 6.0), ("draft", 0.0), ("self", 0.0)] {
        let label = format!("{{model_name=\"parrot\",drafter=\"{drafter}\"}}");
        for name in ["draft_tokens", "accepted_tokens"] {
            let name = format!("lathe_spec_decode_drafter_{name}_total{label}");
            assert!((server.client.metric(&name) - wanted).abs() < 1e-9, "{name}");
        }
    }
}

#[test]
fn a_process_without_file_descriptors_serves_on() {
    let plan = plan("descriptors", ENDLESS);
    let mut command = Command::new("sh");
    let lathe = env!("CARGO_BIN_EXE_lathe");
    command
        .args(["-c", "ulimit -n 48; exec \"$0\" \"$@\"", lathe, "serve"])
        .arg(&plan)
        .args(["--port", "0", "-t", "1"])
        .args(STEADY)
        .env("LATHE_FAULT", PACED);
    let server = Server::spawn(command, &plan.with_extension("log"));
    let stream = server.endless();
    // Its client reads on, and the model does not outrun it, or it would be dropped for taking too little.
    let mut unread = stream.try_clone().expect("a descriptor of the test's own");
    let reader = thread::spawn(move || io::copy(&mut unread, &mut io::sink()));
    let crowd: Vec<TcpStream> = (0..200).map(|_| server.client.connect()).collect();
    assert_eq!(server.client.get("/health").status, 200);
    // Those that ask nothing make room; the stream goes on.
    server.client.wait_for("lathe_num_requests_running", 1.0);
    assert!(server.client.metric("lathe_connections_closed_total{model_name=\"parrot\",reason=\"idle\"}") > 0.0);
    stream.shutdown(Shutdown::Both).expect("it is open");
    let _ = reader.join().expect("it does not panic");
    drop((stream, crowd));
    server.client.wait_for("lathe_num_requests_running", 0.0);
    assert_eq!(server.ask(2).0, 200);
}

#[test]
fn two_thousand_idle_connections_keep_nobody_out() {
    listen::raise_socket_limit();
    let server = Server::start("crowd", "", &[]);
    let crowd: Vec<TcpStream> = (0..2000).map(|_| server.client.connect()).collect();
    let (status, body) = server.ask(5);
    assert!(status == 200 && body.contains("\"AAAAA\""), "{status}: {body}");
    drop(crowd);
    server.client.wait_for("lathe_connections{", 1.0);
}

#[test]
fn a_plan_that_is_replaced_or_removed_is_served_on() {
    let server = Server::start("replaced", "", &[]);
    let path = server.log.with_extension("plan");
    let other = path.with_extension("other");
    fs::write(&other, "no plan").expect("the folder is writable");
    fs::rename(&other, &path).expect("the folder is writable");
    let (status, body) = server.ask(5);
    assert!(status == 200 && body.contains("\"AAAAA\""), "{status}: {body}");
    fs::remove_file(&path).expect("it is there");
    assert_eq!(server.ask(5).0, 200);
    assert_eq!(server.client.get("/health").status, 200);
}

#[test]
fn logs_hold_no_prompt() {
    const SECRET: &str = "correct horse battery staple";
    let server = Server::start("log", "panic@8", &[]);
    let bodies = [
        json!({"prompt": SECRET, "max_tokens": 2}),
        json!({"prompt": [SECRET], "n": -1}),
        json!({"messages": [{"role": "user", "content": SECRET}], "max_tokens": 1}),
        json!({"prompt": SECRET, "max_tokens": 30, "temperature": 0}),
    ];
    for body in &bodies {
        for path in [TEXT, "/v1/chat/completions", "/tokenize", &format!("/{}", SECRET.replace(' ', "/"))] {
            server.client.post(path, &body.to_string());
        }
    }
    server.wait_until_ready();
    let log = read(&server.log);
    assert!(log.contains("has panicked at"), "{log}");
    for word in SECRET.split(' ') {
        assert!(!log.contains(word), "{word}: {log}");
    }
}
