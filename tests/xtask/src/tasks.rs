//! Chores that run cargo: demo, tests, shipped binaries, licence check.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::{Failure, Result, cache_dir, cargo, finish, io_failure, run, say, spell, target_dir};
use crate::{downloads, setup};

/// Compiles SmolLM2 and streams its answer to a prompt.
pub fn demo(prompt: &str) -> Result<()> {
    let llvm = setup::llvm()?;
    let model = downloads::model("smollm2")?;
    say("building lathe and lathe-compile");
    let mut build = cargo();
    build.args(["build", "--release", "-p", "lathe-runtime", "-p", "lathe-compiler", "--bins"]);
    run(build.env("LLVM_SYS_221_PREFIX", llvm))?;
    let lathe = target_dir().join("release/lathe");
    let plan = cache_dir()?.join("smollm2.plan");
    say("compiling SmolLM2 into a plan");
    run(Command::new(&lathe).arg("compile").arg(&model).arg("-o").arg(&plan))?;
    let mut answer = Command::new(&lathe);
    answer.arg("run").arg(&plan).args(["-p", prompt]);
    say(&spell(&answer));
    finish(&mut answer)
}

/// Runs the tests of the workspace and prints the totals.
pub fn test(all: bool, arguments: &[&str]) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]);
    if !arguments.iter().any(|a| ["-p", "--package"].contains(a)) {
        command.arg("--workspace");
    }
    command.args(arguments);
    if all {
        let separator: &[&str] = if arguments.contains(&"--") { &[] } else { &["--"] };
        command.args(separator).arg("--include-ignored");
    }
    command.env("LLVM_SYS_221_PREFIX", setup::llvm()?);
    command.env("LATHE_MODEL_SMOLLM2", downloads::model("smollm2")?);
    command.env("LATHE_MODEL_GEMMA3", downloads::model("gemma3")?);
    if all {
        command.env("LATHE_MODEL_QWEN2", downloads::model("qwen2-coder-0.5b")?);
        command.env("LATHE_MODEL_QWEN2_LARGER", downloads::model("qwen2-coder-1.5b")?);
        command.env("LATHE_LM_EVAL_PYTHON", setup::lm_eval_python()?);
    }
    command.env("LATHE_PYTHON", setup::reference_python()?);
    command.env("LATHE_PTXAS", downloads::ptxas()?);
    command.env("LATHE_NVDISASM", downloads::nvdisasm()?);
    say(&spell(&command));

    let starting = |error| Failure::Step(format!("starting cargo: {error}"));
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(starting)?;
    let (mut passed, mut failed) = (0, 0);
    for line in BufReader::new(child.stdout.take().expect("stdout is piped")).lines().map_while(io::Result::ok) {
        println!("{line}");
        if let Some((p, f)) = totals(&line) {
            passed += p;
            failed += f;
        }
    }
    let status = child.wait().map_err(starting)?;
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        Err(Failure::Step(format!("{failed} tests failed")))
    } else if !status.success() {
        Err(Failure::Step(format!("cargo test ended with {status}")))
    } else if passed == 0 {
        Err(Failure::Step("no test ran".into()))
    } else {
        Ok(())
    }
}

/// Runs the simulation of the serving core over seeds, `FROM..TO` or one, and prints how fast it went.
pub fn simulate(seeds: &str) -> Result<()> {
    let one = seeds.parse::<u64>().ok().map(|seed| format!("{seed}..{}", seed + 1));
    let mut command = cargo();
    command.args(["test", "-p", "lathe-runtime", "--test", "simulation", "--", "--nocapture"]);
    finish(command.env("LATHE_SEEDS", one.as_deref().unwrap_or(seeds)))
}

/// Passed and failed tests of a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn totals(line: &str) -> Option<(usize, usize)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |what| counts.split("; ").find_map(|c| c.strip_suffix(what)?.trim().parse().ok());
    Some((count("passed")?, count("failed")?))
}

/// Runs a fuzz target, whose process may take no more memory than any sound input needs.
pub fn fuzz(arguments: &[&str]) -> Result<()> {
    const MEMORY_KIB: u64 = 4 << 20;
    let mut build = cargo();
    build.args(["build", "--package", "lathe-fuzz"]);
    run(build.env("LLVM_SYS_221_PREFIX", setup::llvm()?))?;
    let mut fuzz = Command::new("sh");
    fuzz.arg("-c").arg(format!("ulimit -v {MEMORY_KIB} && exec \"$0\" \"$@\""));
    fuzz.arg(target_dir().join("debug/lathe-fuzz")).args(arguments);
    finish(&mut fuzz)
}

/// Builds the shipped binaries and prints their sizes.
pub fn dist() -> Result<()> {
    let llvm = setup::llvm()?;
    // One build for each, so that no feature that the compiler asks of a shared crate ends up in the runtime.
    for (package, binary) in [("lathe-runtime", "lathe"), ("lathe-compiler", "lathe-compile")] {
        let mut build = cargo();
        build.args(["build", "--profile", "dist", "--package", package, "--bin", binary]);
        run(build.env("LLVM_SYS_221_PREFIX", &llvm))?;
        let path = target_dir().join("dist").join(binary);
        let bytes = fs::metadata(&path).map_err(io_failure("reading", &path))?.len();
        println!("{binary:<14} {:>6.1} MB  {}", bytes as f64 / 1e6, path.display());
    }
    Ok(())
}

/// Checks licences, bans and sources of the dependencies by `deny.toml`: those of the workspace, and of packages outside of it.
pub fn deny() -> Result<()> {
    const VERSION: &str = "0.20.2";
    let tools = cache_dir()?.join(format!("cargo-deny-{VERSION}"));
    let binary = tools.join("bin/cargo-deny");
    if !binary.exists() {
        // An unoptimized build takes a third of the time and is fast enough for a workspace of this size.
        say("building cargo-deny, which takes a minute or two");
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--debug", "--version", VERSION, "cargo-deny", "--root"]);
        let build = target_dir().join("cargo-deny");
        run(install.arg(&tools).env("CARGO_TARGET_DIR", &build))?;
        remove(&build)?;
    }
    // Advisories are left out: their database is a repository that not every machine reaches.
    let root = crate::process::root();
    let mut folders = locked(root)?;
    folders.sort();
    for folder in folders {
        let mut check = Command::new(&binary);
        check.current_dir(root).args(["--config", "deny.toml", "--locked", "--manifest-path"]);
        check.arg(folder.join("Cargo.toml"));
        // What a package outside of the workspace does not use is no mistake there.
        if folder == root {
            check.arg("check");
        } else {
            say(&format!("dependencies of {}", folder.display()));
            check.args(["check", "--allow", "unused-wrapper"]);
        }
        run(check.args(["bans", "licenses", "sources"]))?;
    }
    Ok(())
}

/// Folders of packages with a lock file of their own, within a folder.
fn locked(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).map_err(io_failure("listing", folder))? {
        let entry = entry.map_err(io_failure("listing", folder))?;
        let (name, path) = (entry.file_name(), entry.path());
        let is_built = name == "target" || name.to_string_lossy().starts_with('.');
        if name == "Cargo.lock" {
            found.push(folder.to_owned());
        } else if !is_built && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(locked(&path)?);
        }
    }
    Ok(found)
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).map_err(io_failure("removing", folder))
}

#[cfg(test)]
mod tests {
    use super::totals;

    #[test]
    fn a_result_line_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(totals(line), Some((12, 3)));
    }

    #[test]
    fn other_lines_are_not() {
        for line in ["test result: ok", "test a_result ... ok", "12 passed; 3 failed", ""] {
            assert_eq!(totals(line), None, "{line}");
        }
    }
}
