//! What a compile would give, without weights and without code: sizes, schedule and predicted times.
//!
//! Times are predicted for a described machine ([`crate::machines`]), and launches follow each other.

use std::collections::BTreeMap;
use std::fmt::Write;

use lathe_ir::types::{CacheType, StepSize};
use lathe_kernels::spec::{PAGE_TOKENS, page_bytes};
use lathe_kernels::targets::{Machine as Kind, Target};
use lathe_kernels::{KernelError, TextLevel};
use lathe_models::Model;

use crate::assemble::Usage;
use crate::machines::Machine;
use crate::schedule::cost::ATTENTION_CONTEXT;
use crate::schedule::{Bucket, Launch, PREFILL, Schedule, ScheduledCache};
use crate::weights;

/// The text of a dry run.
pub fn text(model: &Model, schedule: &Schedule, targets: &[&'static Target]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, model, schedule, targets);
    text
}

fn write(text: &mut String, model: &Model, schedule: &Schedule, targets: &[&'static Target]) -> std::fmt::Result {
    let config = &model.config;
    let elements = |weight: &crate::schedule::ScheduledWeight| {
        weight.ty.shape().unwrap_or_default().iter().map(|dim| dim.c as u64).product::<u64>()
    };
    let parameters: u64 = schedule.weights.iter().map(elements).sum();
    writeln!(text, "{}: {} layers of width {}, {parameters} parameters", config.name, config.layers, config.hidden)?;

    let mut schemes: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for weight in &schedule.weights {
        let name = weights::scheme(&weight.ty).map_or_else(|| "f32".to_owned(), |scheme| scheme.to_string());
        let sum = schemes.entry(name).or_default();
        *sum = (sum.0 + 1, sum.1 + weight.bytes);
    }
    for (scheme, (tensors, bytes)) in schemes {
        writeln!(text, "  {scheme}: {tensors} tensors, {}", size(bytes))?;
    }

    let of_token = |cache: &ScheduledCache| {
        let CacheType { heads, head_dim, dtype } = cache.ty;
        (page_bytes(heads, head_dim, dtype) / PAGE_TOKENS) as u64
    };
    let cache: u64 = schedule.caches.iter().map(of_token).sum();
    let kept = |cache: &ScheduledCache| {
        let window = schedule.groups[cache.group].window.unwrap_or(schedule.max_context);
        of_token(cache) * window.min(schedule.max_context) as u64
    };
    let whole: u64 = schedule.caches.iter().map(kept).sum();
    writeln!(text, "memory")?;
    writeln!(text, "  weights: {}", size(schedule.weights.iter().map(|weight| weight.bytes).sum()))?;
    writeln!(text, "  cache: {} a token, {} for all {} positions", size(cache), size(whole), schedule.max_context)?;
    for bucket in &schedule.buckets {
        let barriers = bucket.launches.iter().filter(|launch| launch.barrier).count();
        writeln!(
            text,
            "  up to {} tokens: arena {}, scratch {} a worker; {} launches, {barriers} barriers",
            bucket.max.tokens,
            size(bucket.arena_bytes),
            size(bucket.scratch_bytes),
            bucket.launches.len(),
        )?;
    }

    let kernels = schedule.kernels();
    for target in targets {
        let machine = Machine::of(target);
        writeln!(text, "{target}, predicted for {}, {ATTENTION_CONTEXT} cached positions", machine.name)?;
        let steps = [
            ("decode, 1 token", StepSize { tokens: 1, sequences: 1, rows: 1 }),
            ("prefill", StepSize { tokens: PREFILL.tokens, sequences: 1, rows: 1 }),
        ];
        for (name, step) in steps {
            let fits = |max: StepSize| step.tokens <= max.tokens && step.rows <= max.rows;
            let Some(bucket) = schedule.buckets.iter().find(|bucket| fits(bucket.max)) else { continue };
            let sum =
                |of: fn(&Launch, StepSize) -> u64| bucket.launches.iter().map(|launch| of(launch, step)).sum::<u64>();
            let seconds: f64 = bucket.launches.iter().map(|launch| machine.seconds(launch, step)).sum();
            writeln!(
                text,
                "  {name}{}: {} moved, {:.3} GFLOP, {:.3} ms, {:.0} tokens/s",
                if step.tokens > 1 { format!(", {} tokens", step.tokens) } else { String::new() },
                size(sum(|launch, step| launch.bytes.eval(step) as u64)),
                sum(|launch, step| launch.flops.eval(step) as u64) as f64 / 1e9,
                seconds * 1e3,
                step.tokens as f64 / seconds,
            )?;
        }
        let is_missing = |kernel: &&lathe_kernels::spec::KernelSpec| {
            let text = lathe_kernels::text(std::slice::from_ref(*kernel), target, TextLevel::Llvm);
            matches!(text, Err(KernelError::Unsupported { .. }))
        };
        let missing: Vec<String> = kernels.iter().filter(is_missing).map(ToString::to_string).collect();
        writeln!(text, "  kernels: {}, {} without a generator", kernels.len(), missing.len())?;
        for kernel in missing {
            writeln!(text, "    {kernel}")?;
        }
    }
    Ok(())
}

/// What the kernels of a target take: registers, shared memory and spills where its PTX was assembled, and the time that
/// one decoded token and the largest prefill are predicted to spend in each.
pub fn kernels(schedule: &Schedule, target: &Target, usage: Option<&[Usage]>) -> String {
    let machine = Machine::of(target);
    let decode = StepSize { tokens: 1, sequences: 1, rows: 1 };
    let steps = [
        (schedule.buckets.first(), decode),
        (schedule.buckets.last(), StepSize { tokens: schedule.buckets.last().map_or(1, |of| of.max.tokens), ..decode }),
    ];
    let mut text = format!("{target}, predicted for {}, {ATTENTION_CONTEXT} cached positions\n", machine.name);
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{:>9} {:>10} {:>8} {:>7} {:>7} {:>6} {:>6}  kernel",
        "decode us", "prefill us", "launches", "threads", "regs", "shared", "spills"
    );
    let mut spills = 0;
    for (at, kernel) in schedule.kernels().iter().enumerate() {
        let launches = |bucket: Option<&Bucket>| -> Vec<Launch> {
            let all = bucket.map_or(&[][..], |bucket| &bucket.launches);
            all.iter().filter(|launch| launch.kernel == *kernel).cloned().collect()
        };
        let micros = steps.map(|(bucket, step)| {
            launches(bucket).iter().fold(0.0, |sum, launch| sum + machine.seconds(launch, step)) * 1e6
        });
        let count = launches(steps[0].0).len().max(launches(steps[1].0).len());
        let of = usage.and_then(|usage| usage.get(at));
        let number = |of: Option<u32>| of.map_or_else(|| "-".to_owned(), |number| number.to_string());
        spills += of.map_or(0, |of| u32::from(of.spilled > 0));
        let _ = writeln!(
            text,
            "{:>9.2} {:>10.1} {count:>8} {:>7} {:>7} {:>6} {:>6}  {kernel}",
            micros[0],
            micros[1],
            kernel.grid().threads,
            number(of.map(|of| of.registers)),
            number(of.map(|of| of.shared)),
            number(of.map(|of| of.spilled)),
        );
    }
    let _ = match (target.machine, usage) {
        (Kind::X86, _) => writeln!(text, "threads, registers and spills are of GPUs"),
        (Kind::Nvptx, None) => writeln!(text, "registers and spills are not known: no ptxas was there at the compile"),
        (Kind::Nvptx, Some(_)) if spills > 0 => writeln!(text, "{spills} kernels spill registers to memory"),
        (Kind::Nvptx, Some(_)) => writeln!(text, "no kernel spills registers to memory"),
    };
    text
}

/// Bytes with four digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}
