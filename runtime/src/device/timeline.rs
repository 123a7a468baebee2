//! What a device's workers did in a step, and when: for profiles and traces.

use std::time::{Duration, Instant};

/// One step, as its workers went through it.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The bucket of the program that ran it.
    pub bucket: usize,
    /// What each worker did, in order and without overlap.
    pub workers: Vec<Vec<Span>>, // [workers]
}

/// A stretch of a worker's time.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// What it did.
    pub work: Work,
    /// When it began.
    pub start: Instant,
    /// When it was done.
    pub end: Instant,
}

impl Span {
    /// How long it took.
    pub fn duration(&self) -> Duration {
        self.end.saturating_duration_since(self.start)
    }
}

/// What a worker does in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The step's inputs come into the device's memory.
    BringIn,
    /// A launch of the bucket, by index.
    Launch(usize),
    /// Waiting for the other workers.
    Wait,
    /// Choosing tokens from logits.
    Sample,
    /// The output is handed over.
    HandOver,
}
