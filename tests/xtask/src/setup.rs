//! What building and testing need, brought to the machine where that is allowed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::downloads;
use crate::process::{Failure, Result, cache_dir, capture, io_failure, lock_cache, root, run, say};

/// Gets all that the tests need.
pub fn everything() -> Result<()> {
    for (what, path) in [
        ("LLVM 22", llvm()?),
        ("Python for the reference", reference_python()?),
        ("ptxas", downloads::ptxas()?),
        ("nvdisasm", downloads::nvdisasm()?),
        ("valgrind", valgrind()?),
        ("SmolLM2", downloads::model("smollm2")?),
        ("Gemma 3", downloads::model("gemma3")?),
    ] {
        say(&format!("{what}: {}", path.display()));
    }
    Ok(())
}

/// The prefix of an LLVM 22 with headers, installed if it is missing and this program may.
pub fn llvm() -> Result<PathBuf> {
    const DEFAULT: &str = "/usr/lib/llvm-22";
    let chosen = std::env::var_os("LLVM_SYS_221_PREFIX").map_or_else(|| DEFAULT.into(), PathBuf::from);
    if is_llvm_22(&chosen) {
        return Ok(chosen);
    }
    if chosen != Path::new(DEFAULT) {
        return Err(Failure::Step(format!(
            "LLVM_SYS_221_PREFIX is {}, and there is no LLVM 22 with llvm-config and headers; correct it, or unset it \
             to use {DEFAULT}",
            chosen.display()
        )));
    }
    install("LLVM 22", "llvm-22-dev")?;
    if is_llvm_22(&chosen) {
        Ok(chosen)
    } else {
        Err(Failure::Step(format!("llvm-22-dev is installed, and yet no LLVM 22 is in {DEFAULT}")))
    }
}

fn is_llvm_22(prefix: &Path) -> bool {
    let version = capture(Command::new(prefix.join("bin/llvm-config")).arg("--version"));
    version.is_some_and(|v| v.starts_with("22.")) && prefix.join("include/llvm-c/Core.h").exists()
}

/// The interpreter of a virtual environment in the cache, which has pip.
pub fn python() -> Result<PathBuf> {
    environment("python")
}

/// The same with lm-evaluation-harness, which is large and needs an environment of its own.
pub fn lm_eval_python() -> Result<PathBuf> {
    let python = environment("lm-eval")?;
    // One of its dependencies comes as source alone.
    with_packages(python, "lm-evaluation-harness", &["tests/clients/lm_eval_requirements.txt"], &[])
}

fn environment(name: &str) -> Result<PathBuf> {
    let environment = cache_dir()?.join(name);
    let python = environment.join("bin/python3");
    let has_pip = |python: &Path| capture(Command::new(python).args(["-m", "pip", "--version"])).is_some();
    if has_pip(&python) {
        return Ok(python);
    }
    let _lock = lock_cache()?;
    if has_pip(&python) {
        return Ok(python);
    }
    let new_enough = "import sys, venv, ensurepip; assert sys.version_info >= (3, 11)";
    if capture(Command::new("python3").args(["-c", new_enough])).is_none() {
        install("Python 3.11 or later with pip and venv", "python3-venv")?;
    }
    say("making a Python environment in the cache");
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    Ok(python)
}

/// What the Python programs of the tests need, in one environment.
const REQUIREMENTS: &[&str] = &["tests/reference/requirements.txt", "tests/clients/requirements.txt"];

/// An interpreter that can run the Python programs of the tests.
pub fn reference_python() -> Result<PathBuf> {
    with_packages(python()?, "NumPy, gguf, llama.cpp and clients", REQUIREMENTS, &["--only-binary", ":all:"])
}

/// Brings what some lists require into the environment of an interpreter, if it is not there.
fn with_packages(python: PathBuf, what: &str, lists: &[&str], flags: &[&str]) -> Result<PathBuf> {
    let lists: Vec<PathBuf> = lists.iter().map(|list| root().join(list)).collect();
    let read = |path: &PathBuf| fs::read_to_string(path).map_err(io_failure("reading", path));
    let wanted = lists.iter().map(read).collect::<Result<String>>()?;
    let stamp = python.with_file_name("installed-requirements.txt");
    let is_current = || fs::read_to_string(&stamp).is_ok_and(|found| found == wanted);
    let _lock = lock_cache()?;
    if !is_current() {
        say(&format!("installing {what} into a Python environment"));
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet"]).args(flags);
        for list in &lists {
            pip.arg("--requirement").arg(list);
        }
        run(&mut pip)?;
        fs::write(&stamp, &wanted).map_err(io_failure("writing", &stamp))?;
    }
    Ok(python)
}

/// The program valgrind, installed if it is missing and this program may.
pub fn valgrind() -> Result<PathBuf> {
    let version = || capture(Command::new("valgrind").arg("--version"));
    if version().is_none() {
        install("valgrind", "valgrind")?;
    }
    match version() {
        Some(_) => Ok("valgrind".into()),
        None => Err(Failure::Step("the package valgrind is installed, and yet `valgrind --version` fails".into())),
    }
}

/// Installs a Debian package when this is root on a machine with apt, and otherwise says how.
fn install(what: &str, package: &str) -> Result<()> {
    let is_root = capture(Command::new("id").arg("-u")).as_deref() == Some("0");
    let has_apt = capture(Command::new("apt-get").arg("--version")).is_some();
    if !(is_root && has_apt) {
        let sudo = if is_root { "" } else { "sudo " };
        let install = format!("{sudo}apt-get update && {sudo}apt-get install -y {package}");
        return Err(Failure::Missing { what: what.into(), install });
    }
    say(&format!("installing {what} (Debian package {package})"));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    };
    run(apt().arg("update"))?;
    run(apt().args(["install", "-y", "--no-install-recommends", package]))
}
