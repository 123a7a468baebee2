//! Runs a command with the emulated CUDA driver in the place of NVIDIA's.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Failure, Result, cargo, io_failure, run, target_dir};

/// The names under which programs look for NVIDIA's driver.
const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

/// Memory of the emulated device unless told otherwise: programs such as Lathe take most of what a GPU has.
const MEMORY: (&str, &str) = ("LATHE_EMULATE_MEMORY", "2G");

/// Builds the driver, and runs the command with a folder of its own first on the loader's path.
pub fn emulate(command: &[&str]) -> Result<()> {
    let [program, arguments @ ..] = command else {
        return Err(Failure::Usage(
            "`cargo xtask emulate` needs a command after `--`, such as `-- lathe run model.plan`".into(),
        ));
    };
    run(cargo().args(["build", "--quiet", "--release", "-p", "lathe-emulator-driver"]))?;
    let folder = link(&target_dir().join("release/libcuda_emulated.so"))?;
    let mut command = Command::new(program);
    command.args(arguments).env("LD_LIBRARY_PATH", first_on_path(&folder));
    if std::env::var_os(MEMORY.0).is_none() {
        command.env(MEMORY.0, MEMORY.1);
    }
    // The command takes this program's place, so that its exit code and its signals are its own.
    let error = command.exec();
    Err(Failure::Step(format!("starting {program}: {error}")))
}

/// The folder with the links, made if it is not there.
fn link(library: &Path) -> Result<PathBuf> {
    let folder = target_dir().join("emulated-driver");
    fs::create_dir_all(&folder).map_err(io_failure("making", &folder))?;
    for name in NAMES {
        let link = folder.join(name);
        if fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_failure("removing", &link)(error)),
            _ => std::os::unix::fs::symlink(library, &link).map_err(io_failure("making", &link))?,
        }
    }
    Ok(folder)
}

/// The loader's path with a folder before what is there.
fn first_on_path(folder: &Path) -> OsString {
    let mut path = folder.as_os_str().to_owned();
    if let Some(old) = std::env::var_os("LD_LIBRARY_PATH").filter(|old| !old.is_empty()) {
        path.push(":");
        path.push(old);
    }
    path
}
