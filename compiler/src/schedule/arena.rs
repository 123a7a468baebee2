//! The arena: every intermediate gets a place for as long as it lives, at the lowest offset that is free.
//!
//! An intermediate lives from the phase of the launch that writes it to the phase of the last one that reads it; launches
//! of one phase may run at the same time, so two intermediates share bytes only when their phases are apart. In
//! particular a result never overlaps an operand of its own launch. Sizes are those of the largest step.
//!
//! On CPUs only intermediates with rows of the same size share bytes. Workers divide the rows of every launch alike, so a row's
//! bytes stay in the caches of one core; those of another core would have to be asked for before they are written.

use lathe_ir::types::Dim;
use lathe_kernels::targets::Machine;
use lathe_plan::arena::Span;

use super::{ArenaBuffer, Bucket, Buffer};

pub use lathe_plan::arena::ALIGN;

/// Sets phases and offsets of a bucket's buffers, its arena's size and its scratch. `phases` are those of its launches.
pub fn place(bucket: &mut Bucket, phases: &[usize], machine: Machine) {
    let last_phase = phases.last().copied().unwrap_or(0);
    for buffer in &mut bucket.buffers {
        buffer.phases = (usize::MAX, 0);
    }
    for (launch, &phase) in bucket.launches.iter().zip(phases) {
        for &buffer in &launch.buffers {
            match buffer {
                Buffer::Arena(at) => {
                    let (first, last) = bucket.buffers[at].phases;
                    bucket.buffers[at].phases = (first.min(phase), last.max(phase));
                }
                Buffer::Scratch(bytes) => bucket.scratch_bytes = bucket.scratch_bytes.max(bytes),
                _ => {}
            }
        }
    }
    // The runtime reads the logits and what was sampled from them after the step.
    for buffer in [Some(bucket.logits), bucket.picks].into_iter().flatten() {
        if let Buffer::Arena(at) = buffer {
            bucket.buffers[at].phases.1 = last_phase;
        }
    }
    let sizes: Vec<u64> = bucket.buffers.iter().map(|buffer| buffer.bytes.eval(bucket.max) as u64).collect();
    bucket.arena_bytes = first_fit(&mut bucket.buffers, &sizes, machine == Machine::X86);
}

/// Gives each buffer its place; see [`lathe_plan::arena::first_fit`]. Those with rows of one size lie apart from the others if
/// `by_rows`. Returns the bytes used in all.
pub fn first_fit(buffers: &mut [ArenaBuffer], sizes: &[u64], by_rows: bool) -> u64 {
    let mut kinds: Vec<Dim> = Vec::new();
    let kind_of = |buffer: &ArenaBuffer| if by_rows { buffer.bytes } else { Dim::of(0) };
    for kind in buffers.iter().map(kind_of) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut total = 0;
    for kind in kinds {
        let alike: Vec<usize> = (0..buffers.len()).filter(|&at| kind_of(&buffers[at]) == kind).collect();
        let span = |&at: &usize| Span { bytes: sizes[at], phases: buffers[at].phases, offset: 0 };
        let mut spans: Vec<Span> = alike.iter().map(span).collect();
        let end = lathe_plan::arena::first_fit(&mut spans);
        alike.iter().zip(spans).for_each(|(&at, span)| buffers[at].offset = total + span.offset);
        total += end;
    }
    total
}
