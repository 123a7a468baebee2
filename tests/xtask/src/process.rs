//! Running other programs, and the ways in which a chore fails.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a chore ended early. The variants are the exit codes that the help documents.
#[derive(Debug)]
pub enum Failure {
    /// A step did not succeed.
    Step(String),
    /// The command line was not understood.
    Usage(String),
    /// Something is missing, and this program may not install it: what, and the command that would.
    Missing { what: String, install: String },
}

/// The result of a chore's step.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The exit code that stands for this failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Step(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Missing { .. } => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Step(message) | Failure::Usage(message) => f.write_str(message),
            Failure::Missing { what, install } => {
                write!(
                    f,
                    "{what} is missing and cannot be installed from here. Run this, then try again:\n\n    {install}"
                )
            }
        }
    }
}

/// Turns an I/O error into a failure that says what was being done.
pub fn io_failure(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let message = format!("{doing} {}", path.display());
    move |error| Failure::Step(format!("{message}: {error}"))
}

/// Says on stderr what is being done.
pub fn say(what: &str) {
    eprintln!("xtask: {what}");
}

/// Runs a command to its end with its output on stderr, for stdout belongs to what a chore makes.
pub fn run(command: &mut Command) -> Result<()> {
    finish(command.stdout(Stdio::from(io::stderr())))
}

/// Runs a command to its end with its output where ours goes.
pub fn finish(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| Failure::Step(format!("starting {}: {error}", spell(command))))?;
    if status.success() { Ok(()) } else { Err(Failure::Step(format!("{} ended with {status}", spell(command)))) }
}

/// What a command prints on stdout, without surrounding space; `None` when it cannot be started or fails.
pub fn capture(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A command as one would type it.
pub fn spell(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The cargo that runs this program.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The folder of the workspace.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).expect("the package lies two folders below the workspace")
}

/// The folder in which cargo builds: this program lies in `<target>/<profile>/`.
pub fn target_dir() -> PathBuf {
    let own = std::env::current_exe().ok();
    own.as_deref().and_then(|p| p.ancestors().nth(2)).map_or_else(|| root().join("target"), Path::to_path_buf)
}

/// The folder that keeps models and tools, made if it is not there.
pub fn cache_dir() -> Result<PathBuf> {
    let chosen = std::env::var_os("LATHE_CACHE").filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/lathe"));
    let dir = chosen.or_else(home).ok_or_else(|| {
        Failure::Step("no place for the cache: neither LATHE_CACHE nor HOME is set; set LATHE_CACHE to a folder".into())
    })?;
    fs::create_dir_all(&dir).map_err(io_failure("making", &dir))?;
    std::path::absolute(&dir).map_err(io_failure("resolving", &dir))
}

/// Keeps other runs of this program out of the cache until the returned file is dropped.
pub fn lock_cache() -> Result<File> {
    let path = cache_dir()?.join("lock");
    let file = File::create(&path).map_err(io_failure("making", &path))?;
    file.lock().map_err(io_failure("locking", &path))?;
    Ok(file)
}
