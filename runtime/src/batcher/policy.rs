//! In what order requests run, and which are refused at once: one file per policy.
//!
//! A policy gives each request a *rank* when it arrives, which never changes. Lower ranks leave the queue first, and when
//! pages run out the highest rank gives its pages back. A rank is a time: that of arrival moved by a bounded amount. So a
//! request is overtaken only by those that arrive within that bound after it, and none waits forever.

mod deadline;
mod fcfs;
mod priority;

use std::time::Duration;

use super::request::{Request, RequestId};
use crate::error::Result;

/// The order of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// More urgent requests first, which gets less so the longer others have waited.
    Priority,
    /// The earliest deadline first; a request that will miss its own is refused.
    Deadline,
}

/// A place in the order: lower goes first. Ties go by number, then by choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Microseconds on the batcher's clock.
    pub time: i64,
    pub id: RequestId,
    pub choice: u32,
}

/// What is known when a request arrives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// The time.
    pub now: Duration,
    /// When its answer will be complete, if that can be told.
    pub done: Option<Duration>,
}

impl Policy {
    /// All policies with their names.
    pub const ALL: [(&'static str, Policy); 3] =
        [("fcfs", Policy::Fcfs), ("priority", Policy::Priority), ("deadline", Policy::Deadline)];

    /// A request's place in time.
    pub(super) fn rank(self, request: &Request, now: Duration) -> i64 {
        match self {
            Policy::Fcfs => fcfs::rank(now),
            Policy::Priority => priority::rank(request, now),
            Policy::Deadline => deadline::rank(request, now),
        }
    }

    /// Refuses a request that this policy will not run.
    pub(super) fn admit(self, request: &Request, arrival: &Arrival) -> Result<()> {
        match self {
            Policy::Fcfs => Ok(()),
            Policy::Priority => priority::admit(request),
            Policy::Deadline => deadline::admit(request, arrival),
        }
    }
}

/// A time as a rank.
fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
