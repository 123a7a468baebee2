//! Counts instructions of one decode step and one prefill chunk: a measure of speed without a clock, the same on every run.
//!
//! Callgrind executes the plan's `x86-64-v3` code, because valgrind knows no AVX-512. Kernels are what it finds outside any
//! file; of the host's code only what chooses tokens is counted, for the rest depends on how threads meet.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use crate::process::{Failure, Result, cargo, io_failure, run, say, target_dir};
use crate::{downloads, setup};

/// What is counted: its name, and the test of `lathe bench` that runs it once.
const STEPS: [(&str, [&str; 4]); 2] =
    [("decode step, 1 token", ["-p", "0", "-n", "1"]), ("prefill chunk, 32 tokens", ["-p", "32", "-n", "0"])];

/// Builds, compiles SmolLM2, counts, and prints a line for each step.
pub fn count() -> Result<()> {
    let llvm = setup::llvm()?;
    setup::valgrind()?;
    let model = downloads::model("smollm2")?;
    // As the tests build them, so that nothing is built twice.
    for (package, binary) in [("lathe-runtime", "lathe"), ("lathe-compiler", "lathe-compile")] {
        let mut build = cargo();
        build.args(["build", "--quiet", "--package", package, "--bin", binary]);
        run(build.env("LLVM_SYS_221_PREFIX", &llvm))?;
    }
    let lathe = target_dir().join("debug/lathe");
    let (plan, counts) = (target_dir().join("instructions.plan"), target_dir().join("instructions.callgrind"));
    let mut compile = Command::new(&lathe);
    run(compile.arg("compile").arg(&model).arg("-o").arg(&plan).args(["--target", "x86-64-v3", "--quiet"]))?;
    for (name, test) in STEPS {
        say(&format!("counting the instructions of a {name}"));
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--quiet"]).arg(format!("--callgrind-out-file={}", counts.display()));
        valgrind.arg(&lathe).arg("bench").arg(&plan).args(test);
        run(valgrind.args(["--repetitions", "1", "--no-warmup", "--threads", "1", "--output", "jsonl"]))?;
        let text = fs::read_to_string(&counts).map_err(io_failure("reading", &counts))?;
        let Counts { kernels, sampling } = Counts::read(&text);
        if kernels == 0 {
            return Err(Failure::Step("callgrind saw no kernel run".into()));
        }
        println!("instructions of a {name} (SmolLM2, x86-64-v3): {kernels} in kernels, {sampling} in sampling");
    }
    Ok(())
}

/// Instructions of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    kernels: u64,
    sampling: u64,
}

impl Counts {
    /// Adds up what stands in callgrind's file (format version 1): lines `ob=` and `fn=` name the object and the function to
    /// which the costs that follow belong, and a line after `calls=` is the cost of the callee, which it has itself.
    fn read(text: &str) -> Counts {
        let (mut objects, mut functions) = (Names::default(), Names::default());
        let (mut in_kernel, mut in_sampling, mut is_call) = (false, false, false);
        let mut counts = Counts::default();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("ob=") {
                in_kernel = objects.resolve(name) == "???";
            } else if let Some(name) = line.strip_prefix("cob=") {
                objects.resolve(name);
            } else if let Some(name) = line.strip_prefix("fn=") {
                let name = functions.resolve(name);
                in_sampling = ["sample::", "math::", "wide::"].iter().any(|part| name.contains(part));
            } else if let Some(name) = line.strip_prefix("cfn=") {
                functions.resolve(name);
            } else if line.starts_with("calls=") {
                is_call = true;
            } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
                let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse::<u64>().ok()).unwrap_or(0);
                if !std::mem::take(&mut is_call) {
                    counts.kernels += if in_kernel { cost } else { 0 };
                    counts.sampling += if in_sampling && !in_kernel { cost } else { 0 };
                }
            }
        }
        counts
    }
}

/// Names that stand as `(7) name` once and as `(7)` from then on.
#[derive(Default)]
struct Names<'a>(HashMap<&'a str, &'a str>);

impl<'a> Names<'a> {
    fn resolve(&mut self, text: &'a str) -> &'a str {
        match text.split_once(' ') {
            Some((number, name)) => {
                self.0.insert(number, name);
                name
            }
            None => self.0.get(text).copied().unwrap_or(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_costs_are_added_and_those_of_callees_are_not() {
        let text = "\
version: 1
events: Ir

ob=(1) /usr/bin/lathe
fl=(1) main.rs
fn=(1) lathe::main
12 5
cob=(2) ???
cfn=(2) 0x4000
calls=3 0
+1 1000
fn=(3) lathe_runtime::device::wide::pick
* 7
-2 1

ob=(2)
fn=(2)
0 900
fn=(4) 0x5000
0 100

ob=(1)
fn=(1)
30 6
fn=(3)
31 2
";
        assert_eq!(Counts::read(text), Counts { kernels: 1000, sampling: 10 });
    }
}
