//! The schedule as text for people and snapshots: what is launched, with which memory, and what it costs.

use std::fmt::{self, Write};

use lathe_ir::types::StepSize;

use super::{ArenaBuffer, Bucket, Buffer, Launch, Schedule, ScheduledCache, Share};

/// Launches of every bucket. A line `--` is a barrier; a buffer prints as `b3@offset[bytes]`.
pub fn schedule(schedule: &Schedule) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_schedule(&mut text, schedule);
    text
}

fn write_schedule(text: &mut String, schedule: &Schedule) -> fmt::Result {
    let Schedule { name, machine: _, weights, caches, groups, max_context, buckets } = schedule;
    writeln!(text, "schedule {name}: {max_context} positions, {} pages per sequence", schedule.pages())?;
    writeln!(text, "\nweights")?;
    for weight in weights {
        writeln!(text, "  @{}: {}, {} bytes", weight.weight.name, weight.ty, weight.bytes)?;
    }
    writeln!(text, "\ncaches")?;
    for ScheduledCache { name, ty, group } in caches {
        let kept = groups[*group].window.map_or_else(String::new, |tokens| format!(", the last {tokens} tokens"));
        writeln!(text, "  ${name}: {ty}{kept}")?;
    }
    for bucket in buckets {
        writeln!(
            text,
            "\nbucket {}: arena {} bytes, scratch {} bytes per worker, logits in {}",
            Size(bucket.max),
            bucket.arena_bytes,
            bucket.scratch_bytes,
            operand(schedule, bucket, bucket.logits),
        )?;
        if let Some(picks) = bucket.picks {
            writeln!(text, "  sampled tokens in {}", operand(schedule, bucket, picks))?;
        }
        for (at, launch) in bucket.launches.iter().enumerate() {
            write_launch(text, schedule, bucket, at, launch)?;
        }
    }
    Ok(())
}

fn write_launch(text: &mut String, schedule: &Schedule, bucket: &Bucket, at: usize, launch: &Launch) -> fmt::Result {
    if launch.barrier {
        writeln!(text, "  --")?;
    }
    let operands: Vec<String> = launch
        .kernel
        .operands()
        .iter()
        .zip(&launch.buffers)
        .map(|(name, &buffer)| format!("{}={}", name.name, operand(schedule, bucket, buffer)))
        .collect();
    let params: Vec<String> =
        launch.kernel.params().iter().zip(&launch.params).map(|(name, value)| format!("{name}={value}")).collect();
    let share = match launch.share {
        Share::Even => "even".to_owned(),
        Share::Claim(grain) => format!("claim {grain}"),
    };
    writeln!(text, "  {at}: {} for {}", launch.kernel, launch.label)?;
    writeln!(text, "      {}", operands.join(" "))?;
    writeln!(
        text,
        "      {}; {} units, {share}; {} bytes, {} flops",
        params.join(" "),
        launch.units,
        launch.bytes,
        launch.flops
    )
}

fn operand(schedule: &Schedule, bucket: &Bucket, buffer: Buffer) -> String {
    match buffer {
        Buffer::Arena(at) => {
            let ArenaBuffer { offset, bytes, .. } = &bucket.buffers[at];
            format!("b{at}@{offset}[{bytes}]")
        }
        Buffer::Scratch(bytes) => format!("scratch[{bytes}]"),
        Buffer::Weight(at) => format!("@{}", schedule.weights[at].weight.name),
        Buffer::Input(input) => format!("%{}", input.name()),
        Buffer::Picks => "%picks".to_owned(),
        Buffer::BlockTable(0) => "%block_table".to_owned(),
        Buffer::BlockTable(group) => format!("%block_table.{group}"),
        Buffer::Cache(at) => format!("${}", schedule.caches[at].name),
    }
}

/// The arena of every bucket by offset: where each intermediate lies, at its largest, and during which phases.
pub fn memory(schedule: &Schedule) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_memory(&mut text, schedule);
    text
}

fn write_memory(text: &mut String, schedule: &Schedule) -> fmt::Result {
    let weights: u64 = schedule.weights.iter().map(|weight| weight.bytes.next_multiple_of(64)).sum();
    writeln!(text, "memory of {}: {weights} bytes of weights", schedule.name)?;
    for bucket in &schedule.buckets {
        let sum: usize = bucket.buffers.iter().map(|buffer| buffer.bytes.eval(bucket.max)).sum();
        writeln!(
            text,
            "\nbucket {}: arena {} bytes for {sum} bytes of intermediates, scratch {} bytes per worker",
            Size(bucket.max),
            bucket.arena_bytes,
            bucket.scratch_bytes,
        )?;
        let mut buffers: Vec<(usize, &ArenaBuffer)> = bucket.buffers.iter().enumerate().collect();
        buffers.sort_by_key(|(at, buffer)| (buffer.offset, buffer.phases, *at));
        writeln!(text, "  {:>10} {:>10}  {:<11} buffer", "offset", "bytes", "phases")?;
        for (at, ArenaBuffer { name, bytes, offset, phases: (first, last) }) in buffers {
            let phases = format!("{first}..={last}");
            writeln!(text, "  {offset:>10} {:>10}  {phases:<11} b{at} of {name}", bytes.eval(bucket.max))?;
        }
    }
    Ok(())
}

/// `T<=16 S<=16 R<=16`.
struct Size(StepSize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StepSize { tokens, sequences, rows } = self.0;
        write!(f, "T<={tokens} S<={sequences} R<={rows}")
    }
}
