//! The command line: data on stdout, errors as sentences on stderr, documented exit codes.

use std::process::{Command, Output};

use lathe_compiler::error::exit;
use lathe_compiler::pass::PASSES;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lathe-compile")).args(arguments).output().expect("the compiler starts")
}

fn check(arguments: &[&str], code: u8, stdout: &str, stderr: &str) {
    let output = run(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code.into()), "{arguments:?}: {err}");
    assert!(out.contains(stdout), "{arguments:?}: stdout is {out}");
    assert!(err.contains(stderr), "{arguments:?}: stderr is {err}");
}

#[test]
fn version_and_help() {
    check(&["--version"], exit::OK, concat!("lathe-compile ", env!("CARGO_PKG_VERSION")), "");
    check(&["--help"], exit::OK, "Exit codes:", "");
    check(&["--help"], exit::OK, "lathe-compile model.gguf -o model.plan", "");
}

#[test]
fn a_dry_run_may_be_for_machines_of_several_kinds() {
    let arguments = ["smollm2-135m", "--dry-run", "--target", "sm_80,x86-64-v3,sm_90"];
    for target in ["sm_80", "x86-64-v3", "sm_90"] {
        check(&arguments, exit::OK, &format!("{target}, predicted for "), "");
    }
    check(&["model.gguf", "-o", "x.plan", "--target", "sm_80,x86-64-v3"], exit::USAGE, "", "x86-64-v3");
}

#[test]
fn the_passes_are_listed_in_order() {
    let output = run(&["--list-passes"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, PASSES.iter().map(|pass| pass.name).collect::<Vec<_>>());
}

#[test]
fn mistakes_have_their_own_codes() {
    check(&[], exit::USAGE, "", "MODEL");
    check(&["model.gguf"], exit::USAGE, "", "--output");
    check(&["model.gguf", "-o", "x.plan", "--emit", "graph"], exit::USAGE, "", "cannot be used with");
    check(&["no-such.gguf", "--emit", "graph", "--target", "sm_80"], exit::MODEL, "", "no-such.gguf");
    check(&["src", "--emit", "graph", "--target", "sm_80"], exit::MODEL, "", "config.json");
    check(&["hf://no/such", "--emit", "graph", "--target", "sm_80"], exit::MODEL, "", "hf download no/such");
    check(&["llama-3.1-8b", "-o", "x.plan", "--target", "sm_80"], exit::USAGE, "", "add --dry-run");
    check(&["no-such.gguf", "--emit", "graph", "--target", "z80"], exit::USAGE, "", "unknown target 'z80'");
}

/// What the compiler says of a model of the hub where these variables say where its cache lies, and no others do.
fn from_hub(variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lathe-compile"));
    command.args(["hf://some/model", "--emit", "graph", "--target", "sm_80"]);
    for name in ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"] {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().copied()).output().expect("the compiler starts");
    assert_eq!(output.status.code(), Some(exit::MODEL.into()), "{variables:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_cache_of_the_hub_lies_where_the_hub_s_own_tools_look() {
    let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
    let places = ["/a;", "/b/hub;", "/c/huggingface/hub;", "/d/.cache/huggingface/hub;"];
    for (first, place) in places.into_iter().enumerate() {
        let message = from_hub(&all[first..]);
        assert!(message.contains(&format!("none in {place}")), "{message}");
    }
    let message = from_hub(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/b")]);
    assert!(message.contains("none in /b/hub;"), "{message}");
    assert!(from_hub(&[]).contains("HF_HUB_CACHE, HF_HOME or HOME"), "{}", from_hub(&[]));

    let folder = std::env::temp_dir().join(format!("lathe-hub-{}", std::process::id()));
    let snapshot = folder.join("hub/models--some--model/snapshots/main");
    std::fs::create_dir_all(&snapshot).expect("a folder can be made");
    let message = from_hub(&[("HF_HOME", folder.to_str().expect("a plain path"))]);
    std::fs::remove_dir_all(&folder).expect("it is there");
    assert!(message.contains("snapshots/main") && message.contains("config.json"), "{message}");
}
