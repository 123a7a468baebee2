//! `emulator`: lists the kernels of a `.ptx` file, runs one with given arguments, prints what it counted or the fault that
//! it ran into, and measures itself.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use lathe_emulator::{Chip, Device, Launch, Module, Options};

const HELP: &str = "\
Runs a kernel of a PTX file on the CPU, checks it and counts what it does.

Usage: emulator FILE.ptx [KERNEL] [OPTIONS]
       emulator bench [--threads N] [--no-checks]
       emulator --version

Without KERNEL, the kernels of the file are listed with their parameters. `bench` prints lane-instructions per second by
class.

Options:
  --chip NAME        sm_80 (default), sm_86, sm_89 or sm_90
  --grid X[,Y[,Z]]   CTAs (default 1)
  --block X[,Y[,Z]]  Threads of a CTA (default 32)
  --shared BYTES     Dynamic shared memory
  --arg TYPE=VALUE   The kernel's next argument, a number: u8, u16, u32, u64, s8, s16, s32, s64, f16, bf16, f32, f64
  --arg TYPE:N=FILL  The same, a buffer of N elements: a number, `iota` (0, 1, 2, ...), `random` (in [0, 1), or whole below 256),
                     `none` (never written) or `@FILE`
  --arg raw=HEX      The same, byte by byte, as a structure is passed: hexadecimal digits, or `@FILE`
  --print I          Print argument I, a buffer, after the run; the first one is 0
  --no-checks        Read unwritten memory and race without a fault
  --steps N          The most instructions of warps (default 2^40); past it, the kernel has a fault
  --threads N        Host threads; with 1, CTAs run in the same order each time

Examples, for the kernels in tests/fixtures:
  emulator kernels.ptx
  emulator kernels.ptx saxpy --grid 2 --arg f32=2 --arg f32:50=iota --arg f32:50=1 --arg u32=50 --print 2
  emulator kernels.ptx histogram --grid 4 --block 64 --arg u8:3000=random --arg u32:256=0 --arg u32=3000 --print 1
  emulator kernels.ptx transpose --block 32,8 --chip sm_90 --arg f32:99=iota --arg f32:99=none --arg u32=9 --arg u32=11

What is counted goes to standard error: instructions of warps and of lanes by class, bytes by space, sectors of 32 bytes
against the fewest possible (coalescing), passes lost to bank conflicts, branches at which lanes part.
The device has 2 GiB of memory, which take three to seven times as many of the host.

Exit codes:
  0  the kernel ran
  1  it has a fault, or the file cannot be read
  2  the command line was not understood
";

mod arguments;
mod bench;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() || words.iter().any(|word| word == "--help" || word == "-h") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    if words[0] == "--version" || words[0] == "-V" {
        say(concat!("emulator ", env!("CARGO_PKG_VERSION")));
        return ExitCode::SUCCESS;
    }
    if words[0] == "bench" {
        return match bench::options(&words[1..]) {
            Ok(options) => report(bench::run(&options)),
            Err(message) => usage(&message),
        };
    }
    match arguments::parse(&words) {
        Ok(command) => report(run(&command)),
        Err(message) => usage(&message),
    }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("error: {message}; `emulator --help` lists the options");
    ExitCode::from(2)
}

fn report(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &arguments::Command) -> Result<(), Box<dyn Error>> {
    let ptx = std::fs::read_to_string(&command.file).map_err(|error| {
        format!("{} cannot be read: {error}; expected PTX text, such as `nvcc -ptx` writes", command.file)
    })?;
    let device = Device::new(command.chip, MEMORY);
    let module = Module::load(&ptx, &device)?;
    let Some(kernel) = &command.kernel else {
        for kernel in module.kernels() {
            say(&described(&module, kernel));
        }
        return Ok(());
    };
    let params = module.params(kernel).ok_or_else(|| {
        format!("the module has no kernel {kernel}; it has {}", module.kernels().collect::<Vec<_>>().join(", "))
    })?;
    if params.len() != command.arguments.len() {
        let (takes, found) = (params.len(), command.arguments.len());
        let kernel = described(&module, kernel);
        return Err(format!("{takes} arguments are taken, found {found}; give `--arg` for each of\n{kernel}").into());
    }
    let (mut bytes, mut addresses) = (Vec::new(), Vec::new());
    for (param, argument) in params.iter().zip(&command.arguments) {
        bytes.resize(param.offset as usize, 0);
        let (value, address) = argument.place(&device)?;
        if value.len() != param.bytes as usize {
            let (name, bytes, found) = (&param.name, param.bytes, value.len());
            return Err(format!(
                "{name} has {bytes} bytes, found an argument of {found}; choose another type, or raw=HEX"
            )
            .into());
        }
        bytes.extend(value);
        addresses.push(address);
    }
    let options = Options { checks: command.checks, ..Options::default() };
    let options = Options {
        step_limit: command.steps.unwrap_or(options.step_limit),
        threads: command.threads.unwrap_or(options.threads),
        ..options
    };
    let launch =
        Launch { grid: command.grid, block: command.block, shared_bytes: command.shared, params: &bytes, options };
    let counters = module.launch(&device, kernel, &launch)?;
    for &index in &command.print {
        if let (Some(argument), Some(Some(address))) = (command.arguments.get(index), addresses.get(index)) {
            say(&argument.show(&device, *address)?);
        }
    }
    eprint!("{counters}");
    Ok(())
}

/// Prints a line; whoever reads may have gone by then.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A kernel with its parameters and what it needs.
fn described(module: &Module, kernel: &str) -> String {
    let params = module.params(kernel).unwrap_or_default();
    let params: Vec<String> = params.iter().map(|p| format!("{}: {} bytes", p.name, p.bytes)).collect();
    let (shared, local, threads) = module.needs(kernel).unwrap_or_default();
    let params = params.join(", ");
    format!(
        "{kernel}({params})\n    {shared} bytes of shared memory, {local} of local memory a thread, up to {threads} threads"
    )
}

/// Bytes of the device's memory: each takes up to seven of the host.
const MEMORY: u64 = 2 << 30;
/// The chip when none is named.
const DEFAULT_CHIP: Chip = Chip::Sm80;
