//! Events: marks that a program holds.

use std::sync::{Arc, Mutex};

use crate::{
    codes::{Answer, Code, invalid},
    graph::Capture,
    state::lock,
    stream::Done,
};

/// The flag of an event without a time.
pub const DISABLE_TIMING: u32 = 2;

/// An event.
#[derive(Debug)]
pub struct Event {
    /// The handle of its context.
    pub context: usize,
    /// The flags that it was made with.
    pub flags: u32,
    /// What it marks.
    pub mark: Mutex<Mark>,
}

/// What an event marks.
#[derive(Clone, Debug, Default)]
pub enum Mark {
    /// Nothing yet.
    #[default]
    Never,
    /// The end of work in a stream.
    Work(Arc<Done>),
    /// Nodes of a graph that is being captured.
    Nodes(Arc<Capture>, Vec<usize>),
}

impl Event {
    /// The mark in a stream; nothing where the event was never recorded.
    pub fn done(&self) -> Answer<Option<Arc<Done>>> {
        match &*lock(&self.mark) {
            Mark::Never => Ok(None),
            Mark::Work(done) => Ok(Some(Arc::clone(done))),
            Mark::Nodes(..) => Err(Code::ERROR_CAPTURED_EVENT.because("the event was recorded in a capture")),
        }
    }
}

/// Milliseconds from one event to another.
pub fn elapsed(from: &Event, to: &Event) -> Answer<f32> {
    if (from.flags | to.flags) & DISABLE_TIMING != 0 {
        return Err(Code::ERROR_INVALID_HANDLE.because("an event without timing has no time"));
    }
    let done = |event: &Event| match event.done() {
        Ok(Some(done)) => Ok(done),
        Ok(None) => Err(Code::ERROR_INVALID_HANDLE.because("an event was never recorded")),
        Err(_) => invalid("an event was last recorded in a capture"),
    };
    let (from, to) = (done(from)?, done(to)?);
    let early = || Code::ERROR_NOT_READY.because("an event is not reached yet");
    let (from, to) = (from.at().ok_or_else(early)?, to.at().ok_or_else(early)?);
    let forward = to.checked_duration_since(from).map(|time| time.as_secs_f64());
    let seconds = forward.unwrap_or_else(|| -from.duration_since(to).as_secs_f64());
    Ok((seconds * 1e3) as f32)
}
