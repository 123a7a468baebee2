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
    refused(&["nothing.ptx"], 1, "nothing.ptx cannot be read: ");
    refused(&["kernels.cu"], 1, "PTX line ");
    refused(&["kernels.ptx", "nothing"], 1, "the module has no kernel nothing; it has ");
    refused(
        &["kernels.ptx", "saxpy"],
        1,
        "4 arguments are taken, found 0; give `--arg` for each of\nsaxpy(saxpy_param_0: 4 ",
    );
    let narrow = ["--arg", "u32=2", "--arg", "u32=1", "--arg", "u32=1", "--arg", "u32=1"];
    let told = "saxpy_param_1 has 8 bytes, found an argument of 4";
    refused(&[&["kernels.ptx", "saxpy"][..], &narrow].concat(), 1, told);
    for (option, value, told) in [
        ("--block", "x", "`x` is no value of `--block`: expected one to three whole numbers"),
        ("--grid", "1,2,3,4", "`1,2,3,4` is no value of `--grid`"),
        ("--frob", "x", "`--frob` is no option"),
        ("--chip", "sm_20", "`sm_20` is no value of `--chip`: expected sm_80, sm_86, sm_89, sm_90"),
        ("--threads", "0", "`0` is no value of `--threads`"),
        ("--print", "0", "argument 0 is no buffer"),
        ("--arg", "q8=1", "`q8` in `q8=1` is no type: u8, "),
        ("--arg", "f32", "expected TYPE=VALUE, TYPE:N=FILL or raw=HEX"),
        ("--arg", "raw=123", "`123` is no bytes: expected an even number of hexadecimal digits"),
        ("--arg", "raw=0g", "`0g` is no bytes"),
        ("--arg", "u32=-1", "`-1` is no u32: expected a whole number from 0 to 4294967295"),
        ("--arg", "s8:4=0x80", "`0x80` is no s8: expected a whole number from -128 to 127"),
        ("--arg", "f32:4=two", "`two` is no f32"),
    ] {
        refused(&["kernels.ptx", "saxpy", option, value], 2, told);
    }
    refused(&["kernels.ptx", "saxpy", "--block"], 2, "`--block` needs a value");
    refused(&["kernels.ptx", "saxpy", "--frob"], 2, "`--frob` is no option");
    refused(&["kernels.ptx", "saxpy", "scan"], 2, "expected an option, found `scan`; the kernel is `saxpy`");
    refused(&["--frob"], 2, "expected a PTX file, found `--frob`");
    refused(&["bench", "--frob"], 2, "`--frob`");
}

#[test]
fn buffers_are_filled_from_files() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("three.bin");
    std::fs::write(&path, [1f32, 2.5, -3.0].map(f32::to_le_bytes).concat()).expect("a file");
    let run = |count: usize| {
        let file = format!("f32:{count}=@{}", path.display());
        let arguments = ["--arg", "f32=2", "--arg", &file, "--arg", "f32:3=1", "--arg", "u32=3", "--print", "2"];
        emulator(&[&["kernels.ptx", "saxpy"][..], &arguments].concat())
    };
    assert_eq!(text(&run(3).stdout), "3 6 -5\n");
    let message = text(&run(2).stderr);
    assert!(message.contains("has 12 bytes, and the buffer 8"), "{message}");
}

#[test]
fn arguments_are_given_byte_by_byte() {
    let run = |factor: &str| {
        let arguments = ["--arg", factor, "--arg", "f32:2=3", "--arg", "f32:2=1", "--arg", "u32=2", "--print", "2"];
        emulator(&[&["kernels.ptx", "saxpy"][..], &arguments].concat())
    };
    assert_eq!(text(&run("raw=00000040").stdout), "7 7\n", "2.0, lowest byte first");
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("factor.bin");
    std::fs::write(&path, 0.5f32.to_le_bytes()).expect("a file");
    assert_eq!(text(&run(&format!("raw=@{}", path.display())).stdout), "2.5 2.5\n");
    let message = text(&run("raw=0000").stderr);
    assert!(message.contains("saxpy_param_0 has 4 bytes, found an argument of 2"), "{message}");
}

#[test]
fn kernels_that_cannot_run_or_do_not_end() {
    let scan = ["kernels.ptx", "scan", "--arg", "s32:4=iota", "--arg", "s32:4=0", "--arg", "s32=4"];
    refused(&[&scan[..], &["--shared", "200000"]].concat(), 1, "200000 bytes of shared memory; 166912 is the most");
    refused(&[&scan[..], &["--block", "2000"]].concat(), 1, "a block of 2000 x 1 x 1 threads; 1 to 1024 are possible");
    // Each CTA waits for a number that is never written.
    let relay = ["kernels.ptx", "relay", "--arg", "u32:1=7", "--arg", "u32:6=0", "--grid", "2"];
    refused(&relay, 1, "Deadlock in kernel relay");
    refused(&[&relay[..], &["--steps", "10"]].concat(), 1, "more than 10 instructions");
}
