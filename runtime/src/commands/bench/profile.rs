//! `lathe bench --profile`: where the time of a decode step and of a prefill chunk goes, kernel by kernel, and how near each
//! comes to the limits of the machine.
//!
//! Some steps of each kind run and are recorded; of them the fastest tenth counts. A kernel's time is the mean over workers.
//! Its bytes and operations are the plan's own, those of attention scaled to the positions that the steps saw. The roofline
//! is the time that the machine's limits, measured just before, allow: weights from memory, intermediate results from the L3
//! cache, arithmetic at the peak of its type, and the slowest of these. Keys and values come from memory where a step has
//! one token of each sequence, since the weights of all layers went through the caches after they were read last; tokens
//! of a prompt read them one after the other, from the L3 cache.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use lathe_plan::program::{Affine, Program, StepSize};
use lathe_runtime::device::cpu::roofline::Roofline;
use lathe_runtime::device::timeline::{Span, Work};
use lathe_runtime::engine::StepRecord;
use lathe_runtime::stream::TextStream;
use lathe_runtime::{Event, Request};
use serde::Serialize;

use super::cases::Case;
use super::measure::{Tokens, prepare};
use super::{Args, Output, machine, trace};
use crate::commands::failure::Usage;
use crate::commands::model::Loaded;
use crate::commands::table;

/// Steps at the start that do not count: caches and branch predictors are cold.
const COLD: usize = 2;
/// Positions for which the compiler prices attention.
const PRICED_CONTEXT: f64 = 512.0;

/// Where the time of a kind of step goes. Times are microseconds of a step.
#[derive(Debug, Serialize)]
struct Profile {
    step: &'static str,
    tokens: u32,
    sequences: u32,
    context: f64,
    counted_steps: usize,
    step_us: f64,
    kernels: Vec<KernelRow>,
    waiting_us: f64,
    host_us: Host,
}

/// A kernel's launches in a step, together.
#[derive(Debug, Serialize)]
struct KernelRow {
    kernel: String,
    launches: usize,
    us: f64,
    bytes: f64,
    flops: f64,
    /// The time that the machine's limits allow over the time that it took.
    roofline: f64,
}

/// What is done for a step besides its kernels, in microseconds.
#[derive(Debug, Default, Serialize)]
struct Host {
    /// Composing the step and turning its output into events.
    batching: f64,
    /// Waking the workers, bringing inputs in and handing the output over.
    handing_over: f64,
    sampling: f64,
    detokenizing: f64,
}

impl Host {
    fn total(&self) -> f64 {
        self.batching + self.handing_over + self.sampling + self.detokenizing
    }
}

/// A recorded step, and how long its tokens took to become text.
struct Recorded {
    step: StepRecord,
    detokenizing: Duration,
}

/// Records steps, and prints the profile or writes the trace or both.
pub fn run(args: &Args, model: &mut Loaded) -> anyhow::Result<()> {
    let [sequences, ref rest @ ..] = args.sequences[..] else { bail!(Usage("-s is empty".to_owned())) };
    let (&depth, &prompt, &answer) = match (&args.n_depth[..], &args.n_prompt[..], &args.n_gen[..]) {
        ([depth], [prompt], [answer]) if rest.is_empty() && args.pg.is_empty() => (depth, prompt, answer),
        _ => bail!(Usage("--profile and --trace take one number each of -p, -n, -d and -s, and no -pg".to_owned())),
    };
    let decode = Case { n_prompt: 0, n_gen: answer, n_depth: depth, sequences };
    let prefill = Case { n_prompt: prompt, n_gen: 0, n_depth: depth, sequences: 1 };
    let mut tokens = Tokens::default();
    let mut kinds = Vec::new();
    if answer > 0 {
        kinds.push(("decode step", record(model, &decode, 1, &mut tokens)?));
    }
    if prompt > 0 {
        kinds.push(("prefill chunk", record(model, &prefill, args.repetitions + COLD, &mut tokens)?));
    }

    let program = model.plan.program("main").ok_or_else(|| anyhow!("the plan has no program `main`"))?;
    if let Some(path) = &args.trace {
        let steps: Vec<_> = kinds.iter().map(|(name, records)| (*name, &records[0].step)).collect();
        fs::write(path, trace::write(program, &steps).to_string())
            .map_err(|error| anyhow!("writing {}: {error}", path.display()))?;
        eprintln!("wrote {}: open it in chrome://tracing or ui.perfetto.dev", path.display());
    }
    if !args.profile {
        return Ok(());
    }
    let limits = machine::measure(Some(model.threads))?;
    let profiles: Vec<Profile> = kinds.iter().map(|(name, records)| profile(name, program, records, &limits)).collect();
    let text = if args.output == Output::Md {
        profiles.iter().map(|profile| as_table(profile, &limits)).collect::<Vec<_>>().join("\n")
    } else {
        let json = serde_json::json!({ "machine": machine::to_json(&limits), "profiles": profiles });
        serde_json::to_string_pretty(&json)? + "\n"
    };
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

/// Runs a test so many times and keeps the fastest tenth of its largest steps, the fastest first.
fn record(model: &mut Loaded, case: &Case, runs: usize, tokens: &mut Tokens) -> anyhow::Result<Vec<Recorded>> {
    let mut records: Vec<Recorded> = Vec::new();
    for _ in 0..runs {
        let prompts = prepare(&mut model.engine, case, tokens)?;
        model.engine.set_recording(true);
        for tokens in prompts {
            model.engine.submit(Request { tokens, max_tokens: Some(case.wanted()), ..Request::default() })?;
        }
        let mut text = TextStream::new();
        while !model.engine.is_idle() {
            let sampled: Vec<u32> = model.engine.step()?.iter().filter_map(token).collect();
            let start = Instant::now();
            for token in sampled {
                let bytes = model.tokenizer.as_ref().map(|tokenizer| tokenizer.bytes(token));
                std::hint::black_box(bytes.map(|bytes| text.push(bytes)));
            }
            let detokenizing = start.elapsed();
            records.extend(model.engine.take_record().map(|step| Recorded { step, detokenizing }));
        }
        model.engine.set_recording(false);
    }
    let largest = records.iter().map(|record| record.step.size.tokens).max();
    let Some(largest) = largest else {
        bail!("this device records no steps; profiles and traces are of CPUs: choose --device cpu");
    };
    records.retain(|record| record.step.size.tokens == largest);
    records.drain(..COLD.min(records.len() - 1));
    records.sort_by_key(|record| record.step.end - record.step.begin);
    records.truncate(records.len().div_ceil(10));
    Ok(records)
}

fn token(event: &Event) -> Option<u32> {
    if let Event::Token { token, .. } = event { Some(*token) } else { None }
}

/// Adds up the records of a kind of step.
fn profile(step: &'static str, program: &Program, records: &[Recorded], limits: &Roofline) -> Profile {
    let count = records.len() as f64;
    let mean = |of: &dyn Fn(&Recorded) -> f64| records.iter().map(of).sum::<f64>() / count;
    let mut kernels: BTreeMap<u32, KernelRow> = BTreeMap::new();
    for record in records {
        let launches = &program.buckets[record.step.device.bucket].launches;
        let times = launch_times(&record.step, launches.len());
        for (launch, us) in launches.iter().zip(times) {
            let name = &program.kernels[launch.kernel as usize].name;
            let cost = Cost::of(name, [launch.bytes, launch.flops], record.step.size, record.step.context);
            let row = kernels.entry(launch.kernel).or_insert_with(|| KernelRow {
                kernel: name.clone(),
                launches: 0,
                us: 0.0,
                bytes: 0.0,
                flops: 0.0,
                roofline: 0.0,
            });
            row.launches += 1;
            row.us += us / count;
            row.bytes += (cost.memory + cost.results) / count;
            row.flops += cost.flops / count;
            row.roofline += cost.least_us(name, limits) / count;
        }
    }
    let mut kernels: Vec<KernelRow> = kernels.into_values().collect();
    for row in &mut kernels {
        row.launches /= records.len();
        row.roofline /= row.us.max(f64::MIN_POSITIVE);
    }
    kernels.sort_by(|a, b| b.us.total_cmp(&a.us));
    let host = Host {
        batching: mean(&|r| us(r.step.composed - r.step.begin) + us(r.step.end - r.step.collected)),
        handing_over: mean(&|r| us(r.step.collected - r.step.composed) - inside(&r.step)),
        sampling: mean(&|r| sampling(&r.step)),
        detokenizing: mean(&|r| us(r.detokenizing)),
    };
    let step_us = mean(&|r| us(r.step.end - r.step.begin) + us(r.detokenizing));
    let in_kernels: f64 = kernels.iter().map(|row| row.us).sum();
    let size = records[0].step.size;
    Profile {
        step,
        tokens: size.tokens,
        sequences: size.sequences,
        context: mean(&|r| r.step.context),
        counted_steps: records.len(),
        step_us,
        waiting_us: (step_us - in_kernels - host.total()).max(0.0),
        kernels,
        host_us: host,
    }
}

fn us(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// Microseconds from the release of the workers until the last of them is done with the step, as the first one sees it.
fn inside(step: &StepRecord) -> f64 {
    let spans = step.device.workers.first().map_or(&[][..], Vec::as_slice);
    let released = spans.iter().find(|span| span.work == Work::BringIn).map(|span| span.end);
    let done = spans.iter().rev().find(|span| span.work == Work::Wait).map(|span| span.end);
    released.zip(done).map_or(0.0, |(released, done)| us(done.saturating_duration_since(released)))
}

/// What the worker that sampled longest spent on it: the others wait.
fn sampling(step: &StepRecord) -> f64 {
    let of_worker =
        |spans: &Vec<Span>| spans.iter().filter(|span| span.work == Work::Sample).map(|s| us(s.duration())).sum();
    step.device.workers.iter().map(of_worker).fold(0.0, f64::max)
}

/// The mean over the workers of each launch's time.
fn launch_times(step: &StepRecord, launches: usize) -> Vec<f64> {
    let mut times = vec![0.0; launches];
    for span in step.device.workers.iter().flatten() {
        if let Work::Launch(index) = span.work {
            times[index] += us(span.duration()) / step.device.workers.len() as f64;
        }
    }
    times
}

/// What a launch costs at a size, as the plan says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    /// Bytes from memory: weights, and keys and values that no other token of the step reads.
    memory: f64,
    /// Bytes that the step itself, or another token of it, brought to the L3 cache.
    results: f64,
    flops: f64,
}

impl Cost {
    /// Bytes and operations of a kernel at a size, where tokens see so many positions.
    fn of(kernel: &str, [bytes, flops]: [Affine; 2], size: StepSize, context: f64) -> Cost {
        let value = |affine: Affine| affine.eval(size).unwrap_or(0) as f64;
        // Attention is priced for a number of positions, of which a window may leave fewer.
        let is_attention = kernel.starts_with("attention[");
        let scale = if is_attention {
            let window = window(kernel).unwrap_or(f64::INFINITY);
            context.min(window) / PRICED_CONTEXT.min(window)
        } else {
            1.0
        };
        let (fixed, grown) = (bytes.c as f64, (value(bytes) - bytes.c as f64) * scale);
        let flops = value(flops) * scale;
        if is_attention && size.tokens == size.sequences {
            return Cost { memory: fixed + grown, results: 0.0, flops };
        }
        Cost { memory: fixed, results: grown, flops }
    }

    /// Microseconds that the machine's limits allow.
    fn least_us(&self, kernel: &str, limits: &Roofline) -> f64 {
        // Attention over codes multiplies 16-bit numbers, half as many in an instruction as bytes.
        let peak = if kernel.contains(" x int8") {
            limits.int8.per_second
        } else if kernel.starts_with("attention[") && kernel.contains(" int8") {
            limits.int8.per_second / 2.0
        } else if kernel.starts_with("attention[") && kernel.contains(" bf16") {
            limits.bf16.as_ref().unwrap_or(&limits.f32).per_second
        } else {
            limits.f32.per_second
        };
        let moved = self.memory / limits.memory + self.results / limits.l3.unwrap_or(limits.memory);
        1e6 * moved.max(self.flops / peak)
    }
}

/// The window in a kernel's name (`window=512`).
fn window(kernel: &str) -> Option<f64> {
    let digits = kernel.split_once("window=")?.1;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn as_table(profile: &Profile, limits: &Roofline) -> String {
    let Profile { step_us, host_us: host, .. } = profile;
    let share = |us: f64| format!("{:.1} %", 100.0 * us / step_us);
    let kernel = |row: &KernelRow| {
        vec![
            row.kernel.clone(),
            row.launches.to_string(),
            format!("{:.1}", row.us),
            share(row.us),
            table::bytes(row.bytes as u64),
            table::count(row.flops as u64),
            format!("{:.1}", row.bytes / row.us / 1e3),
            format!("{:.1}", row.flops / row.us / 1e3),
            format!("{:.0} %", 100.0 * row.roofline),
        ]
    };
    let other = |name: &str, us: f64| {
        let mut cells = vec![name.to_owned(), String::new(), format!("{us:.1}"), share(us)];
        cells.resize(9, String::new());
        cells
    };
    let mut rows: Vec<Vec<String>> = profile.kernels.iter().map(kernel).collect();
    rows.extend([
        other("waiting for other workers", profile.waiting_us),
        other("sampling", host.sampling),
        other("batching", host.batching),
        other("handing over", host.handing_over),
        other("detokenizing", host.detokenizing),
        other("all", *step_us),
    ]);
    let header = ["kernel", "launches", "µs", "share", "bytes", "operations", "GB/s", "G/s", "of roofline"];
    format!(
        "{}: {} tokens, {} sequences, {:.0} positions seen, {} threads, mean of the fastest tenth ({} steps)\n\n{}\n\
         Host work is {:.1} µs, {} of the step. Limits: {:.1} GB/s from memory, {} from L3, {:.0} GOP/s int8, {:.0} GFLOP/s f32.\n",
        profile.step,
        profile.tokens,
        profile.sequences,
        profile.context,
        limits.threads,
        profile.counted_steps,
        table::markdown(&header, &rows),
        host.total(),
        share(host.total()),
        limits.memory / 1e9,
        limits.l3.map_or_else(|| "nothing".to_owned(), |l3| format!("{:.1} GB/s", l3 / 1e9)),
        limits.int8.per_second / 1e9,
        limits.f32.per_second / 1e9,
    )
}

#[cfg(test)]
mod tests {
    use lathe_runtime::device::cpu::roofline::Peak;

    use super::*;

    #[test]
    fn a_kernel_costs_what_the_plan_says_and_attention_what_it_saw() {
        let size = StepSize { tokens: 4, sequences: 2, rows: 2 };
        let (bytes, flops) = (Affine { t: 10, c: 1000, ..Affine::default() }, Affine::tokens(512));
        let cost = |kernel: &str, context| Cost::of(kernel, [bytes, flops], size, context);
        assert_eq!(cost("linear[x]", 7.0), Cost { memory: 1000.0, results: 40.0, flops: 2048.0 });
        assert_eq!(cost("attention[2x32]", 256.0), Cost { memory: 1000.0, results: 20.0, flops: 1024.0 });
        assert_eq!(cost("attention[2x32, window=128, x]", 256.0), cost("linear[x]", 0.0));
        assert_eq!(cost("attention[2x32, window=1024]", 256.0), cost("attention[2x32]", 256.0));
        // One token of each sequence: no other reads what it reads.
        let alone = Cost::of("attention[2x32]", [bytes, flops], StepSize { tokens: 2, ..size }, 1024.0);
        assert_eq!(alone, Cost { memory: 1040.0, results: 0.0, flops: 2048.0 });
    }

    #[test]
    fn the_slowest_of_the_limits_counts() {
        let peak = |per_second| Peak { instruction: "", per_second };
        let limits = Roofline {
            threads: 1,
            int8: peak(8e9),
            bf16: None,
            f32: peak(2e9),
            memory: 1e9,
            memory_small_pages: 1e9,
            l3: Some(4e9),
        };
        let near = |kernel: &str, cost: Cost, expected: f64| {
            let found = cost.least_us(kernel, &limits);
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        };
        let cost = Cost { memory: 1000.0, results: 400.0, flops: 4000.0 };
        near("linear[int4 x int8, add]", cost, 1.1);
        near("linear[int4 x f32, add]", cost, 2.0);
        near("linear[int4 x int8, add]", Cost { flops: 16_000.0, ..cost }, 2.0);
        near("attention[2x32 f16, scale=1]", Cost { flops: 8000.0, ..cost }, 4.0);
        near("attention[2x32 int8, scale=1]", Cost { flops: 8000.0, ..cost }, 2.0);
        near("attention[2x32 bf16, scale=1]", Cost { flops: 8000.0, ..cost }, 4.0);
        let pairs = Roofline { bf16: Some(peak(4e9)), ..limits };
        assert!((Cost { flops: 8000.0, ..cost }.least_us("attention[2x32 bf16, scale=1]", &pairs) - 2.0).abs() < 1e-9);
    }
}
