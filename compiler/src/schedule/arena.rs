//! The arena: every intermediate gets a place for as long as it lives, at the lowest offset that is free.
//!
//! An intermediate lives from the phase of the launch that writes it to the phase of the last one that reads it; launches
//! of one phase may run at the same time, so two intermediates share bytes only when their phases are apart. In
//! particular a result never overlaps an operand of its own launch. Sizes are those of the largest step.

use super::{ArenaBuffer, Bucket, Buffer};

/// Every intermediate starts at a multiple of this: a cache line and a vector register.
pub const ALIGN: u64 = 64;

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

/// Gives each buffer, in order, the lowest aligned offset that no buffer living at the same time occupies. Returns the
/// bytes used in all.
pub fn first_fit(buffers: &mut [ArenaBuffer], sizes: &[u64]) -> u64 {
    let mut total = 0;
    for at in 0..buffers.len() {
        let (placed, rest) = buffers.split_at_mut(at);
        let buffer = &mut rest[0];
        let mut taken: Vec<(u64, u64)> = placed
            .iter()
            .zip(sizes)
            .filter(|(other, _)| other.phases.0 <= buffer.phases.1 && buffer.phases.0 <= other.phases.1)
            .map(|(other, &bytes)| (other.offset, other.offset + bytes))
            .collect();
        taken.sort_unstable();
        buffer.offset = 0;
        for (start, end) in taken {
            if buffer.offset + sizes[at] <= start {
                break;
            }
            buffer.offset = buffer.offset.max(end.next_multiple_of(ALIGN));
        }
        total = total.max(buffer.offset + sizes[at]);
    }
    total.next_multiple_of(ALIGN)
}
