//! `lathe bench --machine`: what the machine reaches at best, measured.

use std::io::{self, Write};

use anyhow::anyhow;
use lathe_runtime::device::cpu::roofline::{self, Peak, Roofline};
use lathe_runtime::device::cpu::topology::Cpus;
use serde_json::{Value, json};

use super::{Args, Output, rows};
use crate::commands::table;

/// Measures and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let limits = measure(args.on.threads)?;
    let mut out = io::stdout().lock();
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&to_json(&limits))? + "\n",
        Output::Jsonl => to_json(&limits).to_string() + "\n",
        Output::Csv => {
            let lines: Vec<String> =
                lines(&limits).into_iter().map(|(what, value, unit, _)| format!("{what},{value},{unit}\n")).collect();
            "limit,value,unit\n".to_owned() + &lines.concat()
        }
        Output::Md => as_table(&limits),
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// The limits of this machine on as many threads as are asked for, or as would work.
///
/// # Errors
/// When the threads make no sense, or the CPU runs no plan.
pub fn measure(threads: Option<usize>) -> anyhow::Result<Roofline> {
    let workers = Cpus::here().workers(threads)?;
    if let Some(warning) = workers.warning {
        eprintln!("warning: {warning}");
    }
    roofline::measure(workers.count)?.ok_or_else(|| {
        anyhow!("this CPU lacks AVX2 or FMA, which every plan for CPUs needs; there is nothing to measure")
    })
}

/// Name, value, unit and manner of each limit.
fn lines(limits: &Roofline) -> Vec<(&'static str, f64, &'static str, &'static str)> {
    let peak = |what, unit, peak: &Peak| (what, peak.per_second / 1e9, unit, peak.instruction);
    let mut lines = vec![peak("int8", "GOP/s", &limits.int8)];
    lines.extend(limits.bf16.as_ref().map(|bf16| peak("bf16", "GFLOP/s", bf16)));
    lines.push(peak("f32", "GFLOP/s", &limits.f32));
    lines.push(("memory, huge pages", limits.memory / 1e9, "GB/s", "reading, pages of 2 MiB"));
    lines.push(("memory, small pages", limits.memory_small_pages / 1e9, "GB/s", "reading, pages of 4 KiB"));
    lines.extend(limits.l3.map(|l3| ("L3 cache", l3 / 1e9, "GB/s", "reading, pages of 2 MiB")));
    lines
}

/// As a table.
pub fn as_table(limits: &Roofline) -> String {
    let cells = |(what, value, unit, manner): (&str, f64, &str, &str)| {
        vec![what.to_owned(), format!("{value:.1} {unit}"), manner.to_owned()]
    };
    let rows: Vec<Vec<String>> = lines(limits).into_iter().map(cells).collect();
    let table = table::markdown(&["limit", "measured", "by"], &rows);
    format!("{}, {} threads\n\n{table}", rows::cpu_info(), limits.threads)
}

/// As JSON, in operations and bytes a second.
pub fn to_json(limits: &Roofline) -> Value {
    let peak = |peak: &Peak| json!({ "per_second": peak.per_second, "instruction": peak.instruction });
    json!({
        "cpu_info": rows::cpu_info(),
        "n_threads": limits.threads,
        "int8": peak(&limits.int8),
        "bf16": limits.bf16.as_ref().map(peak),
        "f32": peak(&limits.f32),
        "memory_huge_pages": limits.memory,
        "memory_small_pages": limits.memory_small_pages,
        "l3": limits.l3,
    })
}
