//! The `emulator` command as a stranger meets it: its examples run, and what it says of mistakes helps.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the command in the folder of the fixtures.
fn emulator(words: &[&str]) -> Output {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    Command::new(env!("CARGO_BIN_EXE_emulator")).args(words).current_dir(folder).output().expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it writes text")
}

/// A command that must fail with a code and say something.
fn refused(words: &[&str], code: i32, told: &str) {
    let output = emulator(words);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {message}");
    assert!(message.starts_with("error: ") && message.contains(told), "{words:?}: {message}");
}

#[test]
fn the_examples_of_the_help_run() {
    let help = text(&emulator(&["--help"]).stdout);
    assert_eq!(text(&emulator(&[]).stdout), help, "without words it helps, too");
    let examples: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  emulator ")).collect();
    assert!(examples.len() >= 3, "{help}");
    for example in examples {
        let output = emulator(&example.split_whitespace().collect::<Vec<_>>());
        assert!(output.status.success(), "{example}: {}", text(&output.stderr));
    }
}

#[test]
fn kernels_are_listed_with_what_they_take() {
    let listed = text(&emulator(&["kernels.ptx"]).stdout);
    assert!(listed.contains("saxpy(saxpy_param_0: 4 bytes, saxpy_param_1: 8 bytes"), "{listed}");
    assert!(listed.contains("bytes of shared memory"), "{listed}");
}

#[test]
fn a_kernel_runs_with_given_arguments() {
    let arguments = ["--arg", "f32=2", "--arg", "f32:5=iota", "--arg", "f32:5=1", "--arg", "u32=5", "--print", "2"];
    let output = emulator(&[&["kernels.ptx", "saxpy"][..], &arguments].concat());
    assert_eq!(text(&output.stdout), "1 3 5 7 9\n");
    let counted = text(&output.stderr);
    // x and y are read, y is written.
    let count = |name: &str| counted.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    assert_eq!((count("global bytes read"), count("global bytes written")), (Some("40"), Some("20")), "{counted}");
}

#[test]
fn a_fault_says_where_and_who() {
    let arguments = ["--arg", "f32=2", "--arg", "f32:5=none", "--arg", "f32:5=1", "--arg", "u32=5"];
    refused(&[&["kernels.ptx", "saxpy"][..], &arguments].concat(), 1, "Uninitialized in kernel saxpy, PTX line ");
    let arguments = ["--arg", "f32=2", "--arg", "f32:5=iota", "--arg", "f32:5=1", "--arg", "u32=6"];
    refused(&[&["kernels.ptx", "saxpy"][..], &arguments].concat(), 1, "in no allocation of global memory");
}

#[test]
fn mistakes_on_the_command_line() {
    refused(&["nothing.ptx"], 1, "nothing.ptx");
    refused(&["kernels.cu"], 1, "PTX line ");
    refused(&["kernels.ptx", "nothing"], 1, "the module has no kernel nothing; it has ");
    refused(&["kernels.ptx", "saxpy"], 1, "saxpy takes 4 arguments, found 0");
    let narrow = ["--arg", "u32=2", "--arg", "u32=1", "--arg", "u32=1", "--arg", "u32=1"];
    refused(&[&["kernels.ptx", "saxpy"][..], &narrow].concat(), 1, "saxpy_param_1 has 8 bytes, found 4");
    refused(&["kernels.ptx", "saxpy", "--block"], 2, "`--block` needs a value");
    refused(&["kernels.ptx", "saxpy", "--block", "x"], 2, "`x` is no value of `--block`");
    refused(&["kernels.ptx", "saxpy", "--frob", "x"], 2, "`--frob` is no option");
    refused(&["kernels.ptx", "saxpy", "--arg", "q8=1"], 2, "`q8=1` is no value of `--arg`");
    refused(&["kernels.ptx", "saxpy", "--chip", "sm_20"], 2, "`sm_20`");
    refused(&["bench", "--frob"], 2, "`--frob`");
}
