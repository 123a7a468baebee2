//! Where faults and reasons go: to stderr, and to the file that `LATHE_EMULATE_LOG` names.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    sync::{Mutex, OnceLock, PoisonError},
};

use lathe_emulator::{Fault, FaultKind};

use crate::codes::Code;

/// How each line on stderr begins.
const MARK: &str = "[emulated GPU]";

fn log() -> Option<&'static Mutex<File>> {
    static LOG: OnceLock<Option<Mutex<File>>> = OnceLock::new();
    let open = || {
        let path = std::env::var_os("LATHE_EMULATE_LOG")?;
        match OpenOptions::new().create(true).append(true).open(&path) {
            Ok(file) => Some(Mutex::new(file)),
            Err(error) => {
                eprintln!("{MARK} LATHE_EMULATE_LOG, {}: {error}", path.display());
                None
            }
        }
    };
    LOG.get_or_init(open).as_ref()
}

/// Writes a line to the log alone.
pub fn note(text: &str) {
    if let Some(log) = log() {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written is no reason to fail the program's call.
        let _ = writeln!(log, "{text}");
    }
}

/// Writes a line to stderr and to the log.
pub fn tell(text: &str) {
    eprintln!("{MARK} {text}");
    note(text);
}

/// Tells of a fault with the line of PTX, and the line of the source where the PTX names one.
pub fn fault(fault: &Fault, ptx: &str) {
    let line = (fault.line as usize).checked_sub(1).and_then(|index| ptx.lines().nth(index));
    let line = line.map_or(String::new(), |line| format!("\n    PTX: {}", line.trim()));
    let source =
        source_line(ptx, fault.line).map_or(String::new(), |(file, line)| format!("\n    source: {file}:{line}"));
    tell(&format!("{fault}{line}{source}"));
}

/// File and line of the source that the last `.loc` before a line of PTX names.
fn source_line(ptx: &str, line: u32) -> Option<(String, u32)> {
    let before: Vec<&str> = ptx.lines().take(line as usize).map(str::trim).collect();
    let mut place = before.iter().rev().take_while(|text| !text.starts_with('}') && !text.contains(".entry"));
    let mut words = place.find_map(|text| text.strip_prefix(".loc"))?.split_whitespace();
    let file = words.next()?;
    let line = words.next()?.parse().ok()?;
    let is_file = |text: &&str| {
        text.trim().strip_prefix(".file").is_some_and(|rest| rest.split_whitespace().next() == Some(file))
    };
    let name = ptx.lines().find(is_file)?.split('"').nth(1)?;
    Some((name.to_owned(), line))
}

/// The error that a context keeps after a fault.
pub fn code_of(fault: &Fault) -> Code {
    match fault.kind {
        FaultKind::Trap if fault.message.contains("assertion") => Code::ERROR_ASSERT,
        FaultKind::OutOfBounds => Code::ERROR_ILLEGAL_ADDRESS,
        FaultKind::Misaligned => Code::ERROR_MISALIGNED_ADDRESS,
        FaultKind::Deadlock | FaultKind::StepLimit => Code::ERROR_LAUNCH_TIMEOUT,
        // What a device would not notice, or answer with nonsense, ends the context here.
        _ => Code::ERROR_LAUNCH_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_line_is_that_of_the_last_loc() {
        let ptx = ".version 7.0\n.file 1 \"a.cu\"\n.file 2 \"b.cuh\"\n.visible .entry k()\n{\n.loc 1 7 3\nmov.u32 %r1, 1;\n\
            .loc 2 40 1\nst.global.u32 [%rd1], %r1;\n}\n.visible .entry l()\n{\nret;\n}";
        assert_eq!(source_line(ptx, 7), Some(("a.cu".into(), 7)));
        assert_eq!(source_line(ptx, 9), Some(("b.cuh".into(), 40)));
        assert_eq!(source_line(ptx, 13), None, "another kernel's line says nothing");
    }
}
