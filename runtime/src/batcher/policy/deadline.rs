//! Earliest deadline first. A request without a deadline counts as if it had one in [`PATIENCE`], and so does one whose
//! deadline is later, so that none waits forever. A request that will miss its deadline by the prediction is refused.

use std::time::Duration;

use super::{Arrival, micros};
use crate::{
    batcher::request::Request,
    error::{Error, Result},
};

/// How long a request is content to wait for others.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) fn rank(request: &Request, now: Duration) -> i64 {
    let latest = now + PATIENCE;
    micros(request.deadline.map_or(latest, |deadline| deadline.min(latest)))
}

pub(super) fn admit(request: &Request, arrival: &Arrival) -> Result<()> {
    match (request.deadline, arrival.done) {
        (Some(deadline), Some(done)) if done > deadline => Err(Error::Late {
            predicted: done.saturating_sub(arrival.now),
            allowed: deadline.saturating_sub(arrival.now),
        }),
        _ => Ok(()),
    }
}
