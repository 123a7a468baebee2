//! `lathe compile`: runs the compiler, which is an executable of its own so that serving needs none of it. What has to run
//! a plan to be found out is found out here, with the plan that it wrote.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, bail};

use crate::commands::failure::{Passed, Usage};

mod search;

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

/// Becomes the compiler; or, where layers are to be searched for, runs it and then the plan.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let compiler = find()?;
    check_version(&compiler)?;
    let failed = |error| anyhow!("cannot run {}: {error}", compiler.display());
    let Some(asked) = Asked::of(&args.args) else {
        return Err(failed(Command::new(&compiler).args(&args.args).exec()));
    };
    let output = asked.output.ok_or_else(|| Usage("--self-draft auto needs -o PLAN, the plan to write".to_owned()))?;
    let status = Command::new(&compiler).args(&asked.rest).status().map_err(failed)?;
    match status.code() {
        Some(0) => search::run(&output, asked.is_quiet),
        code => Err(Passed(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)).into()),
    }
}

/// What a search for layers needs to know of the compiler's arguments.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    rest: Vec<OsString>, // without `--self-draft auto`
    output: Option<PathBuf>,
    is_quiet: bool,
}

impl Asked {
    /// Those of a command line that asks for a search.
    fn of(args: &[OsString]) -> Option<Asked> {
        let value = |at: usize, names: &[&str]| -> Option<(OsString, usize)> {
            let text = args[at].to_str()?;
            let joined = names.iter().find_map(|name| text.strip_prefix(&format!("{name}=")));
            match joined {
                Some(value) => Some((value.into(), 1)),
                None => names.contains(&text).then(|| args.get(at + 1).map(|value| (value.clone(), 2))).flatten(),
            }
        };
        let (mut rest, mut output, mut is_asked) = (Vec::new(), None, false);
        let mut at = 0;
        while at < args.len() {
            if let Some((value, count)) = value(at, &["--self-draft"])
                && value == "auto"
            {
                is_asked = true;
                at += count;
                continue;
            }
            if let Some((path, _)) = value(at, &["-o", "--output"]) {
                output = Some(PathBuf::from(path));
            }
            rest.push(args[at].clone());
            at += 1;
        }
        let is_quiet = args.iter().any(|arg| arg == "-q" || arg == "--quiet");
        is_asked.then_some(Asked { rest, output, is_quiet })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_taken_out_of_the_arguments() {
        let asked = |text: &str| Asked::of(&text.split_whitespace().map(OsString::from).collect::<Vec<_>>());
        let found = |rest: &str, output: Option<&str>, is_quiet| {
            let rest = rest.split_whitespace().map(OsString::from).collect();
            Some(Asked { rest, output: output.map(PathBuf::from), is_quiet })
        };
        assert_eq!(asked("m.gguf --self-draft auto -o p.plan"), found("m.gguf -o p.plan", Some("p.plan"), false));
        let joined = "-q m.gguf --output=p.plan";
        assert_eq!(asked("-q m.gguf --self-draft=auto --output=p.plan"), found(joined, Some("p.plan"), true));
        assert_eq!(asked("m.gguf --self-draft auto"), found("m.gguf", None, false));
        for other in ["m.gguf -o p.plan", "m.gguf --self-draft 3 -o p.plan", "m.gguf -o p.plan --self-draft", "auto"] {
            assert_eq!(asked(other), None, "{other}");
        }
    }
}
