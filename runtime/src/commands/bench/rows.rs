//! What came out of the tests, with the names that llama-bench gives its fields.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use lathe_runtime::device::cpu::{quota, topology};
use serde::Serialize;
use serde_json::Value;

use super::cases::Case;
use super::{Args, Output};
use crate::commands::model::Loaded;
use crate::commands::table;

/// A row, with the names that llama-bench gives its fields.
#[derive(Debug, Serialize)]
pub struct Row {
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
    n_sequences: usize,
    #[serde(skip)]
    test: String,
    test_time: String,
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
}

/// The row of a test.
pub fn row(model: &Loaded, args: &Args, case: &Case, test_time: String, samples_ns: Vec<u64>) -> Row {
    let manifest = model.plan.manifest().cloned().unwrap_or_default();
    let samples_ts: Vec<f64> = samples_ns.iter().map(|ns| case.tokens() as f64 * 1e9 / *ns as f64).collect();
    let times: Vec<f64> = samples_ns.iter().map(|ns| *ns as f64).collect();
    let (avg_ns, stddev_ns) = mean_and_deviation(&times);
    let (avg_ts, stddev_ts) = mean_and_deviation(&samples_ts);
    let step = model.engine.limits().max.tokens;
    let kind = [&manifest.architecture, &manifest.quantization].map(String::as_str).join(" ").trim().to_owned();
    let n_batch = args.on.prefill_chunk.map_or(step, |chunk| step.min(chunk as u32));
    Row {
        build_commit: concat!("lathe-", env!("CARGO_PKG_VERSION")),
        build_number: 0,
        cpu_info: cpu_info(),
        gpu_info: "",
        backends: model.device.clone(),
        model_filename: args.plan.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        model_type: model.plan.seed().map_or_else(|| kind.clone(), |seed| format!("{kind}, random:{seed}")),
        model_size: manifest.weights_bytes,
        model_n_params: manifest.parameters,
        n_batch,
        n_ubatch: n_batch,
        n_threads: model.threads,
        n_gpu_layers: 0,
        n_prompt: case.n_prompt,
        n_gen: case.n_gen,
        n_depth: case.n_depth,
        n_sequences: case.sequences,
        test: case.name(),
        test_time,
        avg_ns: avg_ns as u64,
        stddev_ns: stddev_ns as u64,
        avg_ts,
        stddev_ts,
        samples_ns,
        samples_ts,
    }
}

/// The rows as text.
pub fn print(rows: &[Row], output: Output) -> serde_json::Result<String> {
    let mut out = match output {
        Output::Json => serde_json::to_string_pretty(rows)? + "\n",
        Output::Md => as_table(rows),
        Output::Csv | Output::Jsonl => String::new(),
    };
    for (index, row) in rows.iter().enumerate() {
        if output == Output::Jsonl {
            out += &(serde_json::to_string(row)? + "\n");
        } else if output == Output::Csv {
            csv(&mut out, &serde_json::to_value(row)?, index == 0);
        }
    }
    Ok(out)
}

/// Appends a row as comma-separated values, after a line of their names if it is the first. Lists are left out.
fn csv(out: &mut String, row: &Value, is_first: bool) {
    let fields = row.as_object().into_iter().flatten().filter(|(_, value)| !value.is_array());
    let (names, values): (Vec<&str>, Vec<String>) = fields.map(|(name, value)| (name.as_str(), quoted(value))).unzip();
    if is_first {
        let _ = writeln!(out, "{}", names.join(","));
    }
    let _ = writeln!(out, "{}", values.join(","));
}

/// A value between double quotes, those within it doubled.
fn quoted(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("\"{}\"", text.replace('"', "\"\""))
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
        vec![
            row.model_type.clone(),
            table::bytes(row.model_size),
            table::count(row.model_n_params),
            row.backends.clone(),
            row.n_threads.to_string(),
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    table::markdown(&["model", "size", "params", "backend", "threads", "test", "t/s"], &rows)
}

/// The CPU's name.
pub fn cpu_info() -> String {
    topology::name(&quota::file)
}

/// A time as `2026-11-23T13:05:48Z`.
pub fn rfc3339(time: SystemTime) -> String {
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
    fn values_between_commas_are_quoted() {
        let row = serde_json::json!({ "a": "x \"y\", z", "b": 1.5, "c": [1, 2], "d": 3 });
        let mut out = String::new();
        csv(&mut out, &row, true);
        csv(&mut out, &row, false);
        let line = "\"x \"\"y\"\", z\",\"1.5\",\"3\"\n";
        assert_eq!(out, format!("a,b,d\n{line}{line}"));
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
