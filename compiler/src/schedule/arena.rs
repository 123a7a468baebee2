//! The arena: every intermediate gets a place for as long as it lives, at the lowest offset that is free.
//!
//! An intermediate lives from the phase of the launch that writes it to the phase of the last one that reads it; launches
//! of one phase may run at the same time, so two intermediates share bytes only when their phases are apart. In
//! particular a result never overlaps an operand of its own launch. Sizes are those of the largest step.

use lathe_plan::arena::Span;

use super::{ArenaBuffer, Bucket, Buffer};

pub use lathe_plan::arena::ALIGN;

/// Sets phases and offsets of a bucket's buffers, its arena's size and its scratch. `phases` are those of its launches.
pub fn place(bucket: &mut Bucket, phases: &[usize]) {
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
    // The runtime reads the logits after the step.
    if let Buffer::Arena(at) = bucket.logits {
        bucket.buffers[at].phases.1 = last_phase;
    }
    let sizes: Vec<u64> = bucket.buffers.iter().map(|buffer| buffer.bytes.eval(bucket.max) as u64).collect();
    bucket.arena_bytes = first_fit(&mut bucket.buffers, &sizes);
}

/// Gives each buffer its place; see [`lathe_plan::arena::first_fit`]. Returns the bytes used in all.
pub fn first_fit(buffers: &mut [ArenaBuffer], sizes: &[u64]) -> u64 {
    let sized = buffers.iter().zip(sizes);
    let mut spans: Vec<Span> = sized.map(|(buffer, &bytes)| Span { bytes, phases: buffer.phases, offset: 0 }).collect();
    let total = lathe_plan::arena::first_fit(&mut spans);
    buffers.iter_mut().zip(spans).for_each(|(buffer, span)| buffer.offset = span.offset);
    total
}
