//! `lathe compile`: runs the compiler, which is an executable of its own so that serving needs none of it.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, bail};

/// The compiler's file name.
const NAME: &str = "lathe-compile";

/// What to compile and how; see `lathe compile --help`, which the compiler answers.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub struct Args {
    /// Arguments of `lathe-compile`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// Becomes the compiler.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let compiler = find()?;
    check_version(&compiler)?;
    let error = Command::new(&compiler).args(&args.args).exec();
    Err(anyhow!("cannot run {}: {error}", compiler.display()))
}

/// The compiler beside this executable, else the first on PATH.
fn find() -> anyhow::Result<PathBuf> {
    let beside = env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned));
    let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    beside.into_iter().chain(on_path).map(|folder| folder.join(NAME)).find(|path| path.is_file()).ok_or_else(|| {
        anyhow!("{NAME} is neither beside this executable nor on PATH; install it with `cargo build --release -p lathe-compiler`")
    })
}

/// A compiler of another version may write plans that this runtime refuses.
fn check_version(compiler: &Path) -> anyhow::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let output = Command::new(compiler)
        .arg("--version")
        .output()
        .map_err(|error| anyhow!("cannot run {}: {error}", compiler.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().next_back() {
        Some(version) if version == own => Ok(()),
        Some(version) => {
            bail!("{} is version {version}, this lathe is {own}; install both from one version", compiler.display())
        }
        // Most often a library that it needs is missing, and it says so itself.
        None => bail!(
            "{} does not tell its version ({}): {}",
            compiler.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}
