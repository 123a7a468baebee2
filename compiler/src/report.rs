//! Texts about a compile: the report sections of a plan, and progress for people who wait.

use std::fmt::Write;

use indicatif::{ProgressBar, ProgressStyle};
use lathe_kernels::spec::KernelSpec;
use lathe_plan::manifest::Attention;
use lathe_plan::{Manifest, Program};

use crate::options::Weights;
use crate::pass::{PASSES, Record};
use crate::schedule::{Buffer, Launch, Schedule};

/// Each pass, whether it changed the graph, and the reasons that it gave. Times are left out: the same compile gives the
/// same text.
pub fn passes(records: &[Record]) -> String {
    let mut text = String::new();
    for record in records {
        let outcome = match record.changed {
            Some(true) => "changed the graph",
            Some(false) => "changed nothing",
            None => "was disabled",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {outcome}", record.name);
        for note in &record.notes {
            let _ = writeln!(text, "  @{}: {}", note.subject, note.reason);
        }
    }
    text
}

/// The attention of each layer, as a text.
pub fn attention(schedule: &Schedule) -> String {
    let lines = attentions(schedule)
        .into_iter()
        .map(|Attention { cache, variant }| ["$", &cache, ": ", &variant, "\n"].concat());
    lines.collect()
}

/// The attention of each layer and why it is of that kind: what it reads of the cache and how scores are made.
pub fn attentions(schedule: &Schedule) -> Vec<Attention> {
    let launches = schedule.buckets.first().map_or(&[][..], |bucket| &bucket.launches);
    let slides = schedule.groups.iter().any(|group| group.window.is_some());
    let of = |launch: &Launch| {
        let (KernelSpec::Attention { group, head_dim, dtype, scale, window, softcap }
        | KernelSpec::AttentionSplits { group, head_dim, dtype, scale, window, softcap }) = &launch.kernel
        else {
            return None;
        };
        let cache = launch.buffers.iter().find_map(|buffer| match buffer {
            Buffer::Cache(at) => schedule.caches.get(*at),
            _ => None,
        })?;
        let heads = cache.ty.heads;
        let kind = match (heads, group) {
            (_, 1) => "one key/value head per query head",
            (1, _) => "one key/value head for all",
            _ => "grouped queries",
        };
        let seen = match window {
            Some(tokens) => format!("sliding over {tokens} tokens, as the model says; no page before them is read"),
            None if slides => "full, as the model says: other layers slide".to_owned(),
            None => "full, since the model states no window".to_owned(),
        };
        let cap = softcap.map_or_else(String::new, |cap| format!(", bounded by {cap}"));
        let kept = &schedule.groups[cache.group].name;
        let variant = format!(
            "{seen}; {kind} ({} to {heads}, {head_dim} elements each, {dtype}), scores times {scale}{cap}; cache group {kept}",
            group * heads,
        );
        Some(Attention { cache: cache.name.clone(), variant })
    };
    launches.iter().filter_map(of).collect()
}

/// How long each pass took.
pub fn pass_times(records: &[Record]) -> String {
    let width = records.iter().map(|record| record.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for record in records.iter().filter(|record| record.changed.is_some()) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:width$} {:>9.3} ms", record.name, record.took.as_secs_f64() * 1e3);
    }
    text
}

/// The table of passes.
pub fn pass_list() -> String {
    let width = PASSES.iter().map(|pass| pass.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for pass in PASSES {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:width$}  {}", pass.name, pass.summary);
    }
    text
}

/// How far each stored tensor is from the checkpoint's, and in which schemes they are.
pub fn errors(manifest: &Manifest, weights: Weights) -> String {
    let mut text = String::new();
    for tensor in &manifest.tensors {
        let error = match tensor.error {
            Some(0.0) => "exact".to_owned(),
            Some(error) => format!("{error:.3e}"),
            None if weights != Weights::Checkpoint => format!("made from {weights}"),
            None => "not finite".to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "@{}: {} as {}, {error}", tensor.name, tensor.source, tensor.scheme);
    }
    text
}

/// Progress over the bytes of weights; hidden unless asked for, and where stderr is no terminal.
pub fn weights_bar(program: &Program, visible: bool) -> ProgressBar {
    if !visible {
        return ProgressBar::hidden();
    }
    let bytes = program.weights.iter().map(|span| span.bytes).sum();
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("weights {wide_bar} {bytes} of {total_bytes}, {eta} left") {
        bar.set_style(style);
    }
    bar
}
