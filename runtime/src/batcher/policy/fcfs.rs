//! First come, first served: the rank is the time of arrival.

use std::time::Duration;

use super::micros;

pub(super) fn rank(now: Duration) -> i64 {
    micros(now)
}
