//! Where intermediates lie: each at the lowest offset that is free for as long as it lives.
//!
//! Launches of one phase may run at the same time, so two intermediates share bytes only when their phases are apart.

/// Every intermediate starts at a multiple of this: a cache line and a vector register.
pub const ALIGN: u64 = 64;

/// An intermediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its size in the largest step.
    pub bytes: u64,
    /// First and last phase in which it is needed.
    pub phases: (usize, usize),
    /// Where it lies.
    pub offset: u64,
}

/// Gives each, in order, the lowest aligned offset that none living at the same time occupies. Returns the bytes used in
/// all.
pub fn first_fit(spans: &mut [Span]) -> u64 {
    let mut total = 0;
    for at in 0..spans.len() {
        let (placed, rest) = spans.split_at_mut(at);
        let span = &mut rest[0];
        let mut taken: Vec<(u64, u64)> = placed
            .iter()
            .filter(|other| other.phases.0 <= span.phases.1 && span.phases.0 <= other.phases.1)
            .map(|other| (other.offset, other.offset + other.bytes))
            .collect();
        taken.sort_unstable();
        span.offset = 0;
        for (start, end) in taken {
            if span.offset + span.bytes <= start {
                break;
            }
            span.offset = span.offset.max(end.next_multiple_of(ALIGN));
        }
        total = total.max(span.offset + span.bytes);
    }
    total.next_multiple_of(ALIGN)
}
