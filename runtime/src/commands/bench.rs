//! `lathe bench`: how fast a plan is on this machine, measured and reported as llama-bench does.
//!
//! A prefill run computes a prompt of `-p` tokens; a decode run generates `-n` tokens, one at a time, from an empty
//! cache. Each is repeated `-r` times after one run that is not counted.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use indicatif::{ProgressBar, ProgressStyle};
use lathe_runtime::{Engine, Event, Request};
use serde::Serialize;

use super::model::{MachineArgs, Model, positive};
use super::table;

const EXAMPLES: &str = "\
Examples:
  lathe bench smol.plan -p 512 -n 128 -r 5
  lathe bench smol.plan -p 0 -t 2                 decode only, two threads
  lathe bench smol.plan -o json | jq '.[].avg_ts'";

/// What to measure.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The plan
    plan: PathBuf,
    /// Tokens of the prompt to prefill; 0 leaves the row out
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    n_prompt: usize,
    /// Tokens to generate; 0 leaves the row out
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    n_gen: usize,
    /// Repetitions that count
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive)]
    repetitions: usize,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    output: Output,
    #[command(flatten)]
    machine: MachineArgs,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A Markdown table
    Md,
    /// An array of objects with llama-bench's fields
    Json,
}

/// A row, with the names that llama-bench gives its fields.
#[derive(Debug, Serialize)]
struct Row {
    build_commit: &'static str,
    build_number: u32,
    cpu_info: String,
    gpu_info: &'static str,
    backends: String,
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    n_batch: u32,
    n_ubatch: u32,
    n_threads: usize,
    n_gpu_layers: u32,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    test_time: String,
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut model = Model::open(&args.plan, &args.machine)?;
    let tests = [(args.n_prompt, 0), (0, args.n_gen)].into_iter().filter(|test| *test != (0, 0));
    let tests: Vec<(usize, usize)> = tests.collect();
    let style = ProgressStyle::with_template("{bar:40} run {pos} of {len}");
    let bar = ProgressBar::new((tests.len() * (args.repetitions + 1)) as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut rows = Vec::new();
    for (n_prompt, n_gen) in tests {
        let test_time = rfc3339(SystemTime::now());
        let mut samples_ns = Vec::with_capacity(args.repetitions);
        for run in 0..=args.repetitions {
            let number = rows.len() * (args.repetitions + 1) + run;
            let nanoseconds = measure(&mut model.engine, n_prompt, n_gen, number)?;
            if run > 0 {
                samples_ns.push(nanoseconds);
            }
            bar.inc(1);
        }
        rows.push(row(&model, args, (n_prompt, n_gen), test_time, samples_ns));
    }
    bar.finish_and_clear();
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?,
        Output::Md => write!(out, "{}", as_table(&rows))?,
    }
    Ok(())
}

/// Nanoseconds of a run; `run` counts all of them.
fn measure(engine: &mut Engine, n_prompt: usize, n_gen: usize, run: usize) -> anyhow::Result<u64> {
    let vocabulary = engine.limits().vocabulary.max(1) as usize;
    // Any tokens do: what is computed does not depend on them. A step apart, so that no two rows of a step are alike, and
    // begun elsewhere in each run, so that none finds its prompt in the cache.
    let tokens: Vec<u32> = (0..n_prompt.max(1)).map(|index| ((run + index) * 7919 % vocabulary) as u32).collect();
    let hits = engine.counters().prefix_hits;
    // A prefill ends with its first token, which the last row of the prompt gives.
    let wanted = n_gen.max(1);
    let request = Request { tokens, max_tokens: Some(wanted), ..Request::default() };
    let start = Instant::now();
    engine.submit(request)?;
    let mut generated = 0;
    while !engine.is_idle() {
        generated += engine.step()?.iter().filter(|event| matches!(event, Event::Token { .. })).count();
    }
    ensure!(engine.counters().prefix_hits == hits, "a run found its prompt in the cache; this is a bug in Lathe");
    ensure!(generated == wanted, "a run gave {generated} tokens instead of {wanted}; this is a bug in Lathe");
    Ok(start.elapsed().as_nanos() as u64)
}

fn row(model: &Model, args: &Args, (n_prompt, n_gen): (usize, usize), test_time: String, samples_ns: Vec<u64>) -> Row {
    let manifest = model.plan.manifest().cloned().unwrap_or_default();
    let samples_ts: Vec<f64> = samples_ns.iter().map(|ns| (n_prompt + n_gen) as f64 * 1e9 / *ns as f64).collect();
    let times: Vec<f64> = samples_ns.iter().map(|ns| *ns as f64).collect();
    let (avg_ns, stddev_ns) = mean_and_deviation(&times);
    let (avg_ts, stddev_ts) = mean_and_deviation(&samples_ts);
    let step = model.engine.limits().max.tokens;
    let n_batch = args.machine.prefill_chunk.map_or(step, |chunk| step.min(chunk as u32));
    Row {
        build_commit: concat!("lathe-", env!("CARGO_PKG_VERSION")),
        build_number: 0,
        cpu_info: cpu_info(),
        gpu_info: "",
        backends: model.device.clone(),
        model_filename: args.plan.display().to_string(),
        model_type: format!("{} {}", manifest.architecture, manifest.quantization).trim().to_owned(),
        model_size: manifest.weights_bytes,
        model_n_params: manifest.parameters,
        n_batch,
        n_ubatch: n_batch,
        n_threads: model.threads,
        n_gpu_layers: 0,
        n_prompt,
        n_gen,
        n_depth: 0,
        test_time,
        avg_ns: avg_ns as u64,
        stddev_ns: stddev_ns as u64,
        avg_ts,
        stddev_ts,
        samples_ns,
        samples_ts,
    }
}

/// The mean and the sample standard deviation, which is zero for one value.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count.max(1.0);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

fn as_table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let test = if row.n_gen == 0 { format!("pp{}", row.n_prompt) } else { format!("tg{}", row.n_gen) };
        vec![
            row.model_type.clone(),
            table::bytes(row.model_size),
            table::count(row.model_n_params),
            row.backends.clone(),
            row.n_threads.to_string(),
            test,
            format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    table::markdown(&["model", "size", "params", "backend", "threads", "test", "t/s"], &rows)
}

/// The CPU's name, where the system tells it.
fn cpu_info() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    name.map(|(_, name)| name.trim().to_owned()).unwrap_or_default()
}

/// A time as `2026-11-23T13:05:48Z`.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, so that the leap day is the last of its year; eras of 400 such years have 146,097 days.
    let day = days + 719_468; // since 1 March of year 0
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn deviation_is_that_of_a_sample() {
        assert_eq!(mean_and_deviation(&[2.0, 4.0, 6.0]), (4.0, 2.0));
        assert_eq!(mean_and_deviation(&[3.0]), (3.0, 0.0));
    }

    #[test]
    fn times_are_written_in_utc() {
        let check = |seconds, expected| assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        // From `date -u -d @SECONDS +%FT%TZ`.
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(1_709_251_199, "2024-02-29T23:59:59Z");
        check(1_735_689_599, "2024-12-31T23:59:59Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
    }
}
