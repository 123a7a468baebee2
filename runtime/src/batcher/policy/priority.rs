//! By priority, smaller numbers first. Each level is worth [`LEVEL`] of waiting, so the most urgent overtake the least
//! urgent only if they arrive within `2 · MOST · LEVEL` of them.

use std::time::Duration;

use super::micros;
use crate::{
    batcher::request::Request,
    error::{Error, Result},
};

/// How long one level lets a request wait for those of the level before.
const LEVEL: Duration = Duration::from_secs(1);
/// Priorities lie between this and its negative.
const MOST: i32 = 100;

pub(super) fn rank(request: &Request, now: Duration) -> i64 {
    micros(now).saturating_add(i64::from(request.priority) * micros(LEVEL))
}

pub(super) fn admit(request: &Request) -> Result<()> {
    let priority = request.priority;
    if priority.abs_diff(0) <= MOST.unsigned_abs() { Ok(()) } else { Err(Error::Priority { priority, most: MOST }) }
}
