//! Runs a fuzz target for as long as one likes, from several threads, or on one input again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lathe_fuzz::campaign::{self, Report};
use lathe_fuzz::{TARGETS, Target, target};

/// An input that takes longer is a finding.
const SLOW: Duration = Duration::from_secs(20);

const HELP: &str = "\
Usage: lathe-fuzz TARGET [--seconds N] [--threads N] [--seed N]
       lathe-fuzz TARGET --input FILE
       lathe-fuzz list

Tries changed inputs for N seconds (default 60) and prints how many there were and what became of them. An input at
which the target panics, ends the process or takes longer than 20 seconds is left in fuzz-findings/, where --input
runs it again. The seed is the time unless it is given; inputs follow from seed and thread.
";

struct Arguments {
    target: &'static Target,
    seconds: u64,
    threads: u64,
    seed: u64,
    input: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "list") {
        for target in TARGETS {
            println!("{:<12} {}", target.name, target.summary);
        }
        return ExitCode::SUCCESS;
    }
    match arguments(&words) {
        Ok(arguments) => run(&arguments),
        Err(message) => {
            eprint!("error: {message}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn arguments(words: &[String]) -> Result<Arguments, String> {
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    let name = words.first().ok_or_else(|| format!("no target was given; there are {}", names()))?;
    let target = target(name).ok_or_else(|| format!("`{name}` is no target; there are {}", names()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut arguments = Arguments { target, seconds: 60, threads: 1, seed: now, input: None };
    for pair in words[1..].chunks(2) {
        let value = pair.get(1).ok_or_else(|| format!("`{}` needs a value", pair[0]))?;
        let number = || value.parse().map_err(|_| format!("`{}` needs a number, found `{value}`", pair[0]));
        match pair[0].as_str() {
            "--seconds" => arguments.seconds = number()?,
            "--threads" => arguments.threads = number()?,
            "--seed" => arguments.seed = number()?,
            "--input" => arguments.input = Some(value.into()),
            other => return Err(format!("`{other}` is not known")),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> ExitCode {
    if let Some(path) = &arguments.input {
        return match fs::read(path) {
            Ok(input) => {
                println!("{}", (arguments.target.run)(&input));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: cannot read {}: {error}; give a file that a run has left", path.display());
                ExitCode::from(2)
            }
        };
    }
    let folder = Path::new("fuzz-findings");
    if let Err(error) = fs::create_dir_all(folder) {
        eprintln!("error: cannot make {}: {error}; start from a folder that can be written", folder.display());
        return ExitCode::FAILURE;
    }
    let (seed, name) = (arguments.seed, arguments.target.name);
    eprintln!("{name}: seed {seed}, {} threads, {} seconds", arguments.threads, arguments.seconds);
    let reports = Mutex::new(Vec::new());
    let start = Instant::now();
    thread::scope(|scope| {
        for thread in 0..arguments.threads {
            // What is left there when the process ends by itself is the input that ended it.
            let current = folder.join(format!("{name}-{seed}-{thread}"));
            let reports = &reports;
            scope.spawn(move || {
                let report = watched(arguments, thread, start, &current);
                if report.finding.is_none() {
                    let _ = fs::remove_file(&current);
                }
                reports.lock().expect("no thread panics with it").push((report, current));
            });
        }
    });
    let reports = reports.into_inner().expect("no thread panicked with it");
    print(name, &reports, start.elapsed());
    ExitCode::from(u8::from(reports.iter().any(|(report, _)| report.finding.is_some())))
}

/// One thread's loop, with each input on the disk before it is tried and a watch over the time that it takes.
fn watched(arguments: &Arguments, thread: u64, start: Instant, current: &Path) -> Report {
    const EVERY: Duration = Duration::from_millis(200);
    let (end, since) = (Duration::from_secs(arguments.seconds), AtomicU64::new(0));
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let since = &since;
        scope.spawn(move || {
            while is_done.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let began = Duration::from_millis(since.load(Ordering::Relaxed));
                if !began.is_zero() && start.elapsed().saturating_sub(began) > SLOW {
                    eprintln!("finding: {} takes longer than {} s", current.display(), SLOW.as_secs());
                    std::process::exit(1);
                }
            }
        });
        let report = campaign::run(arguments.target, arguments.seed.wrapping_add(thread << 32), |_, input| {
            // Without the file a finding can still be made again from the seed.
            let _ = fs::write(current, input);
            since.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
            start.elapsed() < end
        });
        drop(done);
        report
    })
}

fn print(name: &str, reports: &[(Report, PathBuf)], time: Duration) {
    let inputs: u64 = reports.iter().map(|(report, _)| report.inputs).sum();
    let accepted: u64 = reports.iter().map(|(report, _)| report.accepted()).sum();
    let mut outcomes: Vec<_> = reports.iter().flat_map(|(report, _)| report.outcomes.keys()).collect();
    outcomes.sort();
    outcomes.dedup();
    for outcome in &outcomes {
        eprintln!("  {outcome}");
    }
    let findings = reports.iter().filter(|(report, _)| report.finding.is_some());
    for (_, path) in findings.clone() {
        println!("finding: {}", path.display());
    }
    println!(
        "{name}: {inputs} inputs in {} s, {accepted} accepted, {} different outcomes, {} findings",
        time.as_secs(),
        outcomes.len(),
        findings.count()
    );
}
