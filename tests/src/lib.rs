//! What the whole-system tests share: the files they read, the binaries they run, the reference they are judged by.
//!
//! `cargo xtask test` puts everything here in place and names it in the environment; without it the same files are
//! looked for in the cache, and a test that lacks one fails with the command that brings it.

pub mod answers;
pub mod compare;
pub mod reference;
pub mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The folder of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// `SmolLM2-135M-Instruct`, a GGUF file with `Q4_1` weights.
///
/// # Panics
/// When the file is not there.
pub fn smollm2() -> PathBuf {
    prepared("LATHE_MODEL_SMOLLM2", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// `Qwen2.5-Coder-0.5B-Instruct`, a GGUF file with weights of several K types.
///
/// # Panics
/// When the file is not there.
pub fn qwen2() -> PathBuf {
    prepared("LATHE_MODEL_QWEN2", "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf")
}

/// `Qwen2.5-Coder-1.5B-Instruct`, a GGUF file with weights of several K types.
///
/// # Panics
/// When the file is not there.
pub fn qwen2_larger() -> PathBuf {
    prepared("LATHE_MODEL_QWEN2_LARGER", "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf")
}

/// `gemma-3-270m`, a GGUF file with weights of several K types.
///
/// # Panics
/// When the file is not there.
pub fn gemma3() -> PathBuf {
    prepared("LATHE_MODEL_GEMMA3", "gemma-3-270m.Q4_K_M.gguf")
}

/// A Python interpreter with NumPy, gguf and llama.cpp.
///
/// # Panics
/// When it is not there.
pub fn python() -> PathBuf {
    prepared("LATHE_PYTHON", "python/bin/python3")
}

/// A Python interpreter with lm-evaluation-harness.
///
/// # Panics
/// When it is not there.
pub fn lm_eval_python() -> PathBuf {
    prepared("LATHE_LM_EVAL_PYTHON", "lm-eval/bin/python3")
}

/// NVIDIA's assembler of PTX.
///
/// # Panics
/// When it is not there.
pub fn ptxas() -> PathBuf {
    prepared("LATHE_PTXAS", "ptxas-13.0.88")
}

fn prepared(variable: &str, in_cache: &str) -> PathBuf {
    let cache = std::env::var_os("LATHE_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache/lathe"))).unwrap_or_default();
    let path = std::env::var_os(variable).map_or_else(|| cache.join(in_cache), PathBuf::from);
    assert!(path.is_file(), "{} is not there: run `cargo xtask setup` once, or set {variable}", path.display());
    path
}

/// The text for perplexity and tokenizer tests: prose, code, lists, numbers and several scripts.
pub const CORPUS: &str = include_str!("../data/corpus.txt");

/// The path of [`CORPUS`].
pub fn corpus_path() -> PathBuf {
    root().join("tests/data/corpus.txt")
}

/// The runtime's binary, built alone and without optimizing for size.
///
/// # Panics
/// When it does not build.
pub fn lathe() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| build("--bin=lathe", "lathe"))
}

/// The compiler's binary. It lies beside [`lathe`], which starts it for `lathe compile`.
///
/// # Panics
/// When it does not build.
pub fn lathe_compile() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| build("--bin=lathe-compile", "lathe-compile"))
}

/// A folder that holds the emulated CUDA driver under the names of NVIDIA's, for `LD_LIBRARY_PATH`.
///
/// # Panics
/// When it does not build.
pub fn emulated_driver() -> &'static Path {
    static FOLDER: OnceLock<Scratch> = OnceLock::new();
    let make = || {
        let library = build("--lib", "libcuda_emulated.so");
        let folder = Scratch::new();
        for name in ["libcuda.so", "libcuda.so.1"] {
            std::os::unix::fs::symlink(&library, folder.file(name)).expect("a link in a new folder");
        }
        folder
    };
    &FOLDER.get_or_init(make).0
}

fn build(what: &str, file: &str) -> PathBuf {
    let target = target_dir();
    let mut cargo = cargo();
    // With the whole workspace and one of its tests, dependencies have the features that `cargo test --workspace` gives
    // them, and nothing is built twice.
    cargo.args(["build", "--quiet", "--workspace", "--test=house", what, "--target-dir"]).arg(&target);
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "`{file}` does not build");
    target.join("debug").join(file)
}

/// The cargo that runs the tests, in the workspace's folder.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// The folder in which cargo builds: a test runs from `<target>/<profile>/deps/`.
fn target_dir() -> PathBuf {
    let own = std::env::current_exe().ok();
    own.as_deref().and_then(|path| path.ancestors().nth(3)).map_or_else(|| root().join("target"), Path::to_path_buf)
}

/// A new empty folder that is removed when the value is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes the folder.
    ///
    /// # Panics
    /// When the system's folder for temporary files cannot be written.
    #[expect(clippy::new_without_default, reason = "making a folder is not a default value")]
    pub fn new() -> Scratch {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lathe-tests-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap_or_else(|error| panic!("making {}: {error}", path.display()));
        Scratch(path)
    }

    /// The path of a file in this folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in the folder for temporary files harms nobody, and a panic here would hide the test's own.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
