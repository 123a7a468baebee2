//! The `lathe` executable as its users meet it: what it prints where, and its exit codes.

mod parrot;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lathe_plan::{CacheGroup, CacheTensor, Input, PlanWriter, Program, Retention};

use crate::parrot::{ANSWER, VOCABULARY, chat, program};

/// A folder of its own for a test, with what `with` adds to the plan `model.plan`; `features` are what its code needs.
fn folder(test: &str, features: &[&str], with: impl FnOnce(&mut PlanWriter)) -> PathBuf {
    folder_of(&program(64), test, features, with)
}

fn folder_of(program: &Program, test: &str, features: &[&str], with: impl FnOnce(&mut PlanWriter)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli").join(test);
    fs::create_dir_all(&folder).expect("the target directory is writable");
    parrot::write(&folder.join("model.plan"), program, features, with);
    folder
}

/// Runs `lathe` in a folder, with `input` on standard input.
fn lathe(folder: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lathe"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the executable starts");
    // It may end without reading.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

/// Runs it and compares exit code and stdout; returns stderr.
fn check(folder: &Path, args: &[&str], input: &str, code: i32, stdout: &str) -> String {
    let output = lathe(folder, args, input);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{args:?}: {stderr}");
    stderr
}

fn json(folder: &Path, args: &[&str]) -> serde_json::Value {
    let output = lathe(folder, args, "");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

#[test]
fn a_raw_prompt_is_continued() {
    let folder = folder("raw", &[], |_| ());
    let stderr = check(&folder, &["run", "model.plan", "-p", "Hi", "-n", "5"], "", 0, "AAAAA\n");
    assert!(stderr.starts_with("prompt 2 tokens") && stderr.contains("answer 5 tokens"), "{stderr}");
    let stderr = check(&folder, &["run", "model.plan", "-p", "-", "-n", "2", "--quiet"], "Hi", 0, "AA\n");
    assert_eq!(stderr, "");
}

#[test]
fn guesses_save_steps_and_change_no_answer() {
    let folder = folder("speculate", &[], chat);
    for mode in ["off", "ngram", "auto"] {
        let args = ["run", "model.plan", "--raw", "-p", "Hi", "-n", "9", "-q", "--speculate", mode];
        check(&folder, &args, "", 0, "AAAAAAAAA\n");
    }
    let run = ["run", "model.plan", "--raw", "-p", "Hi", "-n", "24", "--json", "--speculate"];
    let answer = json(&folder, &[&run[..], &["ngram", "--spec-depth", "4"]].concat());
    // The first three tokens come alone, for nothing repeats itself yet; five come in each step after that, and one is left.
    assert_eq!([&answer["drafted_tokens"], &answer["accepted_tokens"]], [16, 16]);
    let tree = json(&folder, &[&run[..], &["ngram", "--spec-depth", "4", "--spec-width", "3"]].concat());
    assert_eq!(tree["tokens"], answer["tokens"]);
    let answer = json(&folder, &[&run[..], &["off"]].concat());
    assert_eq!([&answer["drafted_tokens"], &answer["accepted_tokens"]], [0, 0]);

    fs::write(folder.join("prompts.txt"), "Hi\n====\nHello there\n").expect("the folder is writable");
    let bench = ["bench", "model.plan", "-n", "24", "-r", "2", "--prompts", "prompts.txt", "--speculate", "ngram"];
    let rows = json(&folder, &[&bench[..], &["-o", "json"]].concat());
    // Of each answer's tokens all but the first are counted, over two prompts and two repetitions.
    assert_eq!([&rows[0]["tokens"], &rows[0]["off_steps"]], [92, 92]);
    assert!(rows[0]["steps"].as_u64() < Some(30), "{rows}");
    assert_eq!(rows[0]["accepted"], rows[0]["drafted"]);
    let table = lathe(&folder, &bench, "");
    assert!(String::from_utf8_lossy(&table.stdout).contains("| prompts | ngram |"), "{table:?}");
}

#[test]
fn bad_ways_to_guess_are_refused() {
    let folder = folder("speculate_wrong", &[], chat);
    let refused = |args: &[&str], expected: &str| {
        let stderr = check(&folder, args, "", 2, "");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    };
    for command in [&["run", "model.plan", "-p", "x"][..], &["serve", "model.plan"]] {
        refused(&[command, &["--speculate", "n-gram"]].concat(), "auto, off, ngram, draft, self");
        for depth in ["0", "65", "-1", "many", "99999999999999999999"] {
            refused(&[command, &["--spec-depth", depth]].concat(), if depth == "-1" { "-1" } else { "from 1 to 64" });
            refused(&[command, &["--spec-width", depth]].concat(), if depth == "-1" { "-1" } else { "from 1 to 8" });
        }
    }
    refused(&["bench", "model.plan", "--speculate", "auto"], "--prompts");
    fs::write(folder.join("empty.txt"), "\n").expect("the folder is writable");
    refused(&["bench", "model.plan", "--speculate", "auto", "--prompts", "empty.txt"], "holds no prompt");
}

#[test]
fn json_holds_tokens_and_logprobs() {
    let folder = folder("json", &[], |_| ());
    let answer = json(&folder, &["run", "model.plan", "-p", "Hi<|im_end|>", "-n", "3", "--json"]);
    assert_eq!(answer["tokens"], serde_json::json!([ANSWER, ANSWER, ANSWER]));
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(answer["prompt_tokens"], 12, "a control token's text is text");
    let logprob = answer["logprobs"][0].as_f64().expect("a number");
    let expected = 1.0 - (1f64.exp() + f64::from(VOCABULARY - 1)).ln();
    assert!((logprob - expected).abs() < 1e-5, "{logprob} {expected}");
    let trusted = ["run", "model.plan", "--raw", "--control-tokens", "-p", "Hi<|im_end|>", "-n", "3", "--json"];
    assert_eq!(json(&folder, &trusted)["prompt_tokens"], 3);
}

#[test]
fn a_chat_answers_line_after_line() {
    let folder = folder("chat", &[], chat);
    let stderr = check(&folder, &["run", "model.plan", "-n", "4"], "Hi\n\none \\\ntwo\n", 0, "AAAA\nAAAA\n");
    let prompts: Vec<&str> = stderr.lines().filter(|line| line.starts_with("prompt")).collect();
    // "Hi" and its end; then "AAAA", "one \ntwo" and their ends, too.
    assert!(prompts[0].starts_with("prompt 3 tokens") && prompts[1].starts_with("prompt 17 tokens"), "{stderr}");
}

#[test]
fn a_chat_that_outgrows_the_context_forgets_its_oldest_turns() {
    let folder = folder("long_chat", &[], chat);
    let line = "x".repeat(30);
    let stderr = check(&folder, &["run", "model.plan", "-n", "4"], &format!("{line}\n{line}\n"), 0, "AAAA\nAAAA\n");
    assert!(stderr.contains("forgotten"), "{stderr}");
    let stderr = check(&folder, &["run", "model.plan", "-p", &"x".repeat(80)], "", 1, "");
    assert!(stderr.starts_with("error: ") && stderr.contains("64"), "{stderr}");
}

/// A context that takes minutes to fill.
const ENDLESS: u32 = 1 << 24;

fn press_ctrl_c(child: &Child) {
    let status = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status();
    assert!(status.expect("there is a shell").success());
}

fn start(folder: &Path, args: &[&str]) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lathe"));
    let command = command.args(args).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the executable starts");
    let (input, output) = (child.stdin.take().expect("it is piped"), child.stdout.take().expect("it is piped"));
    (child, input, BufReader::new(output))
}

/// Waits for the beginning of an answer, stops it, and reads what was said until then.
fn stop_an_answer(child: &Child, output: &mut BufReader<ChildStdout>) {
    let mut first = [0];
    output.read_exact(&mut first).expect("an answer begins");
    press_ctrl_c(child);
    let mut rest = String::new();
    output.read_line(&mut rest).expect("it is text");
    assert!(rest.ends_with('\n') && rest.len() < ENDLESS as usize, "the answer was stopped after {} bytes", rest.len());
}

#[test]
fn ctrl_c_stops_an_answer_and_keeps_the_chat() {
    let folder = folder_of(&program(ENDLESS), "interrupted_chat", &[], chat);
    let (mut child, mut input, mut output) = start(&folder, &["run", "model.plan", "-q"]);
    for message in ["one\n", "two\n"] {
        input.write_all(message.as_bytes()).expect("it reads on");
        stop_an_answer(&child, &mut output);
    }
    drop(input);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn workers_without_work_sleep() {
    let folder = folder("idle", &[], chat);
    let (mut child, mut input, mut output) = start(&folder, &["run", "model.plan", "-q", "-n", "2", "-t", "2"]);
    input.write_all(b"one\n").expect("it reads");
    let mut answer = String::new();
    output.read_line(&mut answer).expect("it answers");
    let workers = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).expect("it runs");
        let text = |task: &Path, file| fs::read_to_string(task.join(file)).unwrap_or_default();
        let tasks = tasks.filter_map(Result::ok).map(|task| task.path());
        // The main thread is the first worker.
        let workers = tasks.filter(|task| text(task, "comm").starts_with("lathe"));
        // After the name in parentheses stands the state.
        workers
            .map(|task| text(&task, "stat").rsplit(") ").next().unwrap_or_default().starts_with('S'))
            .collect::<Vec<_>>()
    };
    // One that spins or yields is running whenever one looks, so it would never be seen asleep so often in a row.
    let (mut asleep, begin) = (0, Instant::now());
    while asleep < 1000 {
        let workers = workers();
        assert_eq!(workers.len(), 2);
        asleep = if workers.iter().all(|&sleeps| sleeps) { asleep + 1 } else { 0 };
        assert!(begin.elapsed() < Duration::from_mins(1), "the workers stay awake");
        std::thread::yield_now();
    }
    drop(input);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn ctrl_c_ends_a_single_answer_with_code_130() {
    let folder = folder_of(&program(ENDLESS), "interrupted", &[], |_| ());
    let (mut child, _input, mut output) = start(&folder, &["run", "model.plan", "-q", "-p", "x"]);
    stop_an_answer(&child, &mut output);
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
}

#[test]
fn wrong_usage_has_code_2_and_says_what_to_do() {
    let folder = folder("usage", &[], |_| ());
    let refused = |args: &[&str], hint: &str| {
        let stderr = check(&folder, args, "", 2, "");
        assert!(stderr.contains(hint), "{args:?}: {stderr}");
    };
    refused(&[], "Usage");
    refused(&["run"], "<PLAN>");
    refused(&["run", "model.plan", "--chat", "--raw", "-p", "x"], "cannot be used with");
    refused(&["run", "model.plan", "-p", "x", "-n", "0"], "at least 1");
    refused(&["run", "model.plan"], "give a prompt with -p");
    refused(&["run", "model.plan", "--chat", "-p", "x"], "use --raw");
    refused(&["eval", "model.plan", "--text", "model.plan", "-c", "3"], "4");
    refused(&["inspect", "model.plan", "--report", "graph"], "keeps none");
    refused(&["bench", "model.plan", "-o", "xml"], "json");
}

#[test]
fn bad_plans_and_unsuitable_machines_have_code_3() {
    let folder = folder("bad", &["a_feature_of_no_cpu"], |_| ());
    let refused = |plan: &str, hint: &str| {
        let stderr = check(&folder, &["run", plan, "-p", "x"], "", 3, "");
        assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1 && stderr.contains(hint), "{stderr}");
    };
    let damaged = |plan: &str, hint: &str| {
        refused(plan, hint);
        for args in [&["inspect", plan][..], &["serve", plan, "--port", "0"], &["doctor", plan], &["run", plan]] {
            let stderr = check(&folder, args, "", 3, "");
            assert!(stderr.contains(&format!("error: {plan}: ")), "{args:?}: {stderr}");
        }
    };
    refused("model.plan", "a_feature_of_no_cpu");
    let stderr = check(&folder, &["run", "model.plan", "-p", "x", "--cpu", "z80"], "", 3, "");
    assert!(stderr.contains("no code for `z80`, only for x86-64;"), "{stderr}");
    let mut bytes = fs::read(folder.join("model.plan")).expect("it was written");
    fs::write(folder.join("cut.plan"), &bytes[..bytes.len() - 1]).expect("the folder is writable");
    damaged("cut.plan", "cut off");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(folder.join("flipped.plan"), &bytes).expect("the folder is writable");
    damaged("flipped.plan", "damaged");
    fs::write(folder.join("model.gguf"), "GGUF and more than eight bytes").expect("the folder is writable");
    damaged("model.gguf", "GGUF");
    let stderr = check(&folder, &["run", "none.plan", "-p", "x"], "", 3, "");
    assert!(stderr.contains("none.plan"), "{stderr}");
}

#[test]
fn perplexity_counts_the_second_half_of_each_whole_chunk() {
    let folder = folder("eval", &[], |_| ());
    fs::write(folder.join("text"), "x".repeat(70)).expect("the folder is writable");
    let report = json(&folder, &["eval", "model.plan", "--text", "text", "--context", "16", "--json"]);
    assert_eq!((&report["chunks"], &report["tokens"]), (&4.into(), &70.into()));
    assert_eq!(report["scored_tokens"], 4 * 7);
    // Every row favours the answer, which is not "x".
    let perplexity = report["perplexity"].as_f64().expect("a number");
    let expected = 1f64.exp() + f64::from(VOCABULARY - 1);
    assert!((perplexity - expected).abs() < 0.01, "{perplexity}");
}

#[test]
fn bench_prints_one_row_a_test() {
    let folder = folder("bench", &[], chat);
    let rows = json(&folder, &["bench", "model.plan", "-p", "8", "-n", "4", "-r", "3", "-t", "1", "-o", "json"]);
    let rows = rows.as_array().expect("an array");
    let sizes: Vec<_> = rows.iter().map(|row| (row["n_prompt"].as_u64(), row["n_gen"].as_u64())).collect();
    assert_eq!(sizes, [(Some(8), Some(0)), (Some(0), Some(4))]);
    for row in rows {
        assert_eq!(row["n_threads"], 1);
        assert_eq!(row["samples_ns"].as_array().map(Vec::len), Some(3));
        assert!(row["avg_ts"].as_f64() > Some(0.0), "{row}");
    }
    assert_eq!(json(&folder, &["bench", "model.plan", "-p", "0", "-n", "0", "-o", "json"]), serde_json::json!([]));
    let table = lathe(&folder, &["bench", "model.plan", "-p", "0", "-n", "4", "-r", "1"], "");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("| tg4 ") && !table.contains("pp"), "{table}");
}

#[test]
fn bench_crosses_depths_sequences_and_pairs() {
    let folder = folder("bench_lists", &[], chat);
    let args = ["bench", "model.plan", "-p", "8,16", "-n", "0", "-pg", "8,4", "-r", "2", "-t", "1", "-o"];
    let rows = json(&folder, &[&args[..], &["json"]].concat());
    let rows = rows.as_array().expect("an array");
    let size =
        |row: &serde_json::Value| [&row["n_prompt"], &row["n_gen"], &row["n_sequences"]].map(serde_json::Value::as_u64);
    let sizes: Vec<_> = rows.iter().map(size).collect();
    assert_eq!(sizes, [[8, 0, 1], [16, 0, 1], [8, 4, 1]].map(|row| row.map(Some)));
    let print = |format: &str| {
        let output = lathe(&folder, &[&args[..], &[format]].concat(), "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let csv = print("csv");
    let fields = |line: &str| line.split(',').map(|field| field.trim_matches('"').to_owned()).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = csv.lines().map(fields).collect();
    let column = lines[0].iter().position(|name| name == "n_prompt").expect("a column of llama-bench's");
    assert_eq!(lines[1..].iter().map(|line| line[column].as_str()).collect::<Vec<_>>(), ["8", "16", "8"]);
    let each: Vec<serde_json::Value> =
        print("jsonl").lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(each.iter().map(size).collect::<Vec<_>>(), sizes);
    assert!(print("md").contains("| pp8+tg4 "));
}

#[test]
fn threads_that_make_no_sense_are_refused() {
    let folder = folder("threads", &[], |_| ());
    for (threads, hint) in [("0", "at least 1"), ("100000", "expected from 1 to"), ("x", "whole number")] {
        for command in [&["run", "model.plan", "-p", "x"][..], &["bench", "model.plan"], &["bench", "--machine"]] {
            let stderr = check(&folder, &[command, &["--threads", threads]].concat(), "", 2, "");
            assert!(stderr.contains(hint), "{command:?} {threads}: {stderr}");
        }
    }
}

#[test]
fn a_cache_larger_than_memory_is_refused_before_it_is_allocated() {
    let mut program = program(64);
    program.cache_groups = vec![CacheGroup {
        name: "all".to_owned(),
        page_tokens: 16,
        retention: Retention::All,
        tensors: vec![CacheTensor { name: "kv.0".to_owned(), page_bytes: 1 << 20 }],
    }];
    program.inputs.push(Input::BlockTable { group: 0 });
    let folder = folder_of(&program, "memory", &[], |_| ());
    check(&folder, &["run", "model.plan", "-p", "x", "-n", "1", "-q"], "", 0, "A\n");
    let tokens = (1u64 << 31).to_string();
    let stderr = check(&folder, &["run", "model.plan", "-p", "x", "--cache-tokens", &tokens], "", 1, "");
    for part in ["needs 134217728.", "cache of 2147483648 positions", "lower --cache-tokens"] {
        assert!(stderr.contains(part), "{part} is missing in {stderr}");
    }
}

#[test]
fn the_machine_s_limits_are_measured() {
    let folder = folder("machine", &[], |_| ());
    let limits = json(&folder, &["bench", "--machine", "-t", "1", "-o", "json"]);
    assert_eq!(limits["n_threads"], 1);
    let rate = |value: &serde_json::Value| value.as_f64().expect("a number");
    // A byte takes no more arithmetic than a float, whatever the machine.
    assert!(rate(&limits["int8"]["per_second"]) > rate(&limits["f32"]["per_second"]), "{limits}");
    assert!(rate(&limits["memory_huge_pages"]) > 0.0 && rate(&limits["memory_small_pages"]) > 0.0, "{limits}");
}

#[test]
fn a_profile_accounts_for_the_step_and_a_trace_nests() {
    let folder = folder("profile", &[], chat);
    let args = ["bench", "model.plan", "-p", "8", "-n", "6", "-t", "2", "--profile", "--trace", "trace.json"];
    let all = json(&folder, &[&args[..], &["-o", "json"]].concat());
    let profiles = all["profiles"].as_array().expect("a decode step and a prefill chunk");
    assert_eq!(profiles.iter().map(|profile| profile["tokens"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(8)]);
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    for profile in profiles {
        let kernel = &profile["kernels"][0];
        assert_eq!((&kernel["kernel"], &kernel["launches"]), (&"always_the_same".into(), &1.into()));
        assert!((number(&kernel["flops"]) - 1000.0 * number(&profile["tokens"])).abs() < 1e-6, "{kernel}");
        let host = profile["host_us"].as_object().expect("parts").values().map(number).sum::<f64>();
        let parts = number(&kernel["us"]) + number(&profile["waiting_us"]) + host;
        assert!(parts >= number(&profile["step_us"]) * 0.999, "{profile}");
    }
    let trace = fs::read_to_string(folder.join("trace.json")).expect("it was written");
    let trace: serde_json::Value = serde_json::from_str(&trace).expect("it is JSON");
    let mut tracks: BTreeMap<(u64, u64), Vec<(f64, f64)>> = BTreeMap::new();
    for event in trace["traceEvents"].as_array().expect("events").iter().filter(|event| event["ph"] == "X") {
        let track = (event["pid"].as_u64().expect("a number"), event["tid"].as_u64().expect("a number"));
        let start = number(&event["ts"]);
        tracks.entry(track).or_default().push((start, start + number(&event["dur"])));
    }
    // Two steps, each with a host and two workers.
    assert_eq!(tracks.keys().copied().collect::<Vec<_>>(), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]);
    for events in tracks.values() {
        let mut open: Vec<f64> = Vec::new();
        for &(start, end) in events {
            open.retain(|&outer| start < outer - 1e-6);
            assert!(open.iter().all(|&outer| end <= outer + 1e-6), "an event outlasts the one around it: {events:?}");
            open.push(end);
        }
    }
}

#[test]
fn doctor_says_whether_a_plan_runs_here() {
    let sound = folder("doctor", &["avx2"], |_| ());
    let text = lathe(&sound, &["doctor", "--quick"], "");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("# Machine") && text.contains("# To change"), "{text}");
    let story = json(&sound, &["doctor", "model.plan", "--quick", "--json"]);
    assert_eq!(story["plan"]["chosen"], "x86-64");
    assert!(story["machine"]["threads"].as_u64() >= Some(1));
    let odd = folder("doctor_odd", &["a_feature_of_no_cpu"], |_| ());
    let output = lathe(&odd, &["doctor", "model.plan", "--quick"], "");
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("this CPU lacks a_feature_of_no_cpu") && text.contains("Recompile the plan"), "{text}");
}

#[test]
fn inspect_tells_what_is_there() {
    let folder = folder("inspect", &["avx512f"], chat);
    let story = json(&folder, &["inspect", "model.plan", "--json"]);
    assert_eq!(story["manifest"]["name"], "Parrot");
    assert_eq!(story["schemes"][0]["bytes"], 320);
    assert_eq!(story["tokenizer"]["eos"][0]["text"], "<|im_end|>");
    assert_eq!(story["programs"][0]["codes"][0]["features"][0], "avx512f");
    let bucket = &story["programs"][0]["buckets"][0];
    assert_eq!(bucket["launches"][0]["flops"], "1000·T");
    let flops: Vec<_> = bucket["steps"].as_array().expect("steps").iter().map(|step| step["flops"].as_u64()).collect();
    assert_eq!(flops, [Some(1000), Some(64_000)]);
    let text = lathe(&folder, &["inspect", "model.plan", "--verify"], "");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let parts =
        ["Parrot", "int4:g32+min", "always_the_same", "64.00 KFLOP", "<|im_end|>", "## Chat template", "not finite"];
    for part in parts {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    parrot::write(&folder.join("bare.plan"), &program(64), &[], |_| ());
    let text = lathe(&folder, &["inspect", "bare.plan"], "");
    assert!(String::from_utf8_lossy(&text.stdout).contains("\nChat template: none\n"), "{text:?}");
    check(&folder, &["inspect", "model.plan", "--report", "graph"], "", 0, "%0 = nothing\n");
}

#[test]
fn compile_becomes_a_compiler_of_the_same_version() {
    let folder = folder("compile", &[], |_| ());
    // Links, and a shell that writes: a file that this process holds open for writing could not be executed while
    // another test starts a child.
    let lathe = folder.join("lathe");
    let _ = fs::remove_file(&lathe);
    fs::hard_link(env!("CARGO_BIN_EXE_lathe"), &lathe).expect("both are in the target directory");
    let run = |version: &str| {
        let compiler =
            format!("#!/bin/sh\n[ \"$1\" = --version ] && echo lathe-compile {version} && exit\necho \"$@\"; exit 7\n");
        let write = "printf %s \"$1\" > lathe-compile && chmod +x lathe-compile";
        let written = Command::new("sh").args(["-c", write, "sh", &compiler]).current_dir(&folder).status();
        assert!(written.expect("there is a shell").success());
        Command::new(&lathe).args(["compile", "model.gguf", "-o", "x.plan", "--help"]).output().expect("it starts")
    };
    let same = run(env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&same.stdout), "model.gguf -o x.plan --help\n");
    assert_eq!(same.status.code(), Some(7), "the compiler's exit code is lathe's");
    let other = run("0.0.0");
    assert_eq!(other.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&other.stderr);
    assert!(stderr.contains("0.0.0") && stderr.contains(env!("CARGO_PKG_VERSION")), "{stderr}");
}

#[test]
fn help_has_examples_and_exit_codes() {
    let folder = folder("help", &[], |_| ());
    for command in ["run", "eval", "bench", "doctor", "inspect"] {
        let help = lathe(&folder, &[command, "--help"], "");
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(help.contains("Examples:") && help.contains(&format!("lathe {command} smol.plan")), "{help}");
    }
    let help = lathe(&folder, &["--help"], "");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("Exit codes:") && help.contains("130"), "{help}");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let folder = folder_of(&program(ENDLESS), "pipe", &[], |_| ());
    let (mut child, _input, mut output) = start(&folder, &["run", "model.plan", "-q", "-p", "x"]);
    output.read_exact(&mut [0]).expect("an answer begins");
    drop(output);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}
