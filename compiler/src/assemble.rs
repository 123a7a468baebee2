//! PTX to machine code by NVIDIA's assembler, where there is one, so that no driver compiles it when a plan is loaded; and
//! what the assembler says of each kernel.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use lathe_kernels::targets::Target;

use crate::error::CompileError;

/// The assembler's file name.
const NAME: &str = "ptxas";
/// Names the assembler where it is not on PATH.
const VARIABLE: &str = "LATHE_PTXAS";

/// The machine code of a target, and what each kernel takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembled {
    /// The target.
    pub target: &'static Target,
    /// The cubin.
    pub cubin: Vec<u8>,
    /// What the kernels take, in the order of the program.
    pub usage: Vec<Usage>,
}

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    /// Bytes that did not fit the registers and go through memory.
    pub spilled: u32,
}

/// The assembler that the environment names, or the first on PATH.
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    named.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(NAME)).find(|path| path.is_file())
    })
}

/// Assembles the PTX of a target.
///
/// # Errors
/// When the assembler cannot be run or refuses the text.
pub fn assemble(ptxas: &Path, target: &'static Target, ptx: &[u8], kernels: usize) -> Result<Assembled, CompileError> {
    let failed = |message: String| CompileError::Assemble { ptxas: ptxas.to_owned(), target: target.name, message };
    let folder = Folder::new().map_err(|error| failed(error.to_string()))?;
    let [text, cubin] = ["kernels.ptx", "kernels.cubin"].map(|name| folder.0.join(name));
    let written = std::fs::File::create(&text).and_then(|mut file| file.write_all(ptx));
    written.map_err(|error| failed(error.to_string()))?;
    let mut command = Command::new(ptxas);
    command.arg("-v").arg(format!("-arch={target}")).arg("-o").arg(&cubin).arg(&text);
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed(report.trim().to_owned()));
    }
    let cubin = std::fs::read(&cubin).map_err(|error| failed(error.to_string()))?;
    Ok(Assembled { target, cubin, usage: usage(&report, kernels) })
}

/// What a report says of kernels 0, 1, …: for each a line that names it, then lines with its numbers.
fn usage(report: &str, kernels: usize) -> Vec<Usage> {
    let mut found = vec![Usage::default(); kernels];
    let mut current = None;
    for line in report.lines() {
        if let Some(name) = between(line, "entry function '", "'") {
            current = name.strip_prefix("kernel").and_then(|index| index.parse::<usize>().ok());
        }
        let Some(usage) = current.and_then(|index| found.get_mut(index)) else { continue };
        let before = |what: &str| line.split(what).next().filter(|text| text.len() < line.len()).and_then(last_number);
        usage.spilled += before(" bytes spill stores").unwrap_or(0) + before(" bytes spill loads").unwrap_or(0);
        usage.registers = before(" registers").unwrap_or(usage.registers);
        usage.shared = before(" bytes smem").unwrap_or(usage.shared);
    }
    found
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(found, _)| found)
}

/// The number at the end of a text.
fn last_number(text: &str) -> Option<u32> {
    let digits = text.bytes().rev().take_while(u8::is_ascii_digit).count();
    text[text.len() - digits..].parse().ok()
}

/// A folder for the assembler's files, removed with them.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Folder> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lathe-ptxas-{}-{number}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is the system's to remove.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{Usage, usage};

    #[test]
    fn reports_are_read_kernel_by_kernel() {
        let report = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'kernel1' for 'sm_90'
ptxas info    : Function properties for kernel1
    8 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 8 bytes cumulative stack size, 4224 bytes smem
ptxas info    : Compiling entry function 'kernel0' for 'sm_90'
ptxas info    : Function properties for kernel0
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
";
        let [first, second] =
            [(32, 0, 0), (80, 4224, 24)].map(|(registers, shared, spilled)| Usage { registers, shared, spilled });
        assert_eq!(usage(report, 2), [first, second]);
        assert_eq!(usage(report, 1), [first]);
    }
}
