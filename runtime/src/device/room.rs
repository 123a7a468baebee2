//! What a program takes of a machine's memory, worked out before any of it is allocated: whether it fits, and how large
//! a cache may be of which nobody said how large it should be.

use lathe_plan::{
    LoadMode,
    program::{Bucket, CacheGroup, Program},
};

use super::{GroupLimits, Limits};
use crate::{
    error::{Error, Result},
    exec,
};

/// Positions that a cache holds at least unless told otherwise, if the model's context is not smaller.
const LEAST_POSITIONS: usize = 8192;

/// Bytes that a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    weights: u64,
    results: u64,
    cache: u64,
    cache_tokens: u64,
}

/// What a program needs with a cache for so many positions. Weights that are mapped from their file give way, so they need
/// nothing.
pub fn needs(program: &Program, cache_tokens: usize, load: LoadMode, workers: usize) -> Needs {
    let most = |bytes: fn(&Bucket) -> u64| program.buckets.iter().map(bytes).max().unwrap_or(0);
    let groups = Limits::of(program, cache_tokens).groups;
    let weights = program.weights.iter().fold(0u64, |sum, span| sum.saturating_add(span.bytes));
    let scratch = most(|bucket| bucket.scratch_bytes).saturating_mul(workers as u64);
    Needs {
        weights: if load == LoadMode::Map { 0 } else { weights },
        results: most(|bucket| bucket.arena_bytes).saturating_add(scratch),
        cache: cache_bytes(&program.cache_groups, &groups),
        cache_tokens: cache_tokens as u64,
    }
}

/// Bytes of a cache with so many pages in each group.
fn cache_bytes(groups: &[CacheGroup], limits: &[GroupLimits]) -> u64 {
    let tensors =
        groups.iter().zip(limits).flat_map(|(group, limits)| group.tensors.iter().zip(std::iter::repeat(limits)));
    let bytes = tensors.map(|(tensor, limits)| tensor.page_bytes.saturating_mul(u64::from(limits.pages)));
    bytes.fold(0, u64::saturating_add)
}

/// Positions of a cache for which so many bytes may be taken: as many as all sequences of a step can ever use, if they
/// fit, and never fewer than one sequence's context or 8,192.
pub fn cache_tokens(program: &Program, budget: u64) -> usize {
    let context = program.max_context as usize;
    let least = context.min(LEAST_POSITIONS);
    let most = context.saturating_mul(exec::largest_step(program).sequences as usize).max(least);
    let fits = |tokens| cache_bytes(&program.cache_groups, &Limits::of(program, tokens).groups) <= budget;
    if fits(most) {
        return most;
    }
    // The most that fit, by bisection: `low` does or is the least, `high` does not.
    let (mut low, mut high) = (least, most);
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

impl Needs {
    /// All bytes together.
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.results).saturating_add(self.cache)
    }

    /// Positions that the cache holds.
    pub fn cache_tokens(self) -> usize {
        usize::try_from(self.cache_tokens).unwrap_or(usize::MAX)
    }

    /// Bytes of everything but the cache.
    pub fn without_cache(self) -> u64 {
        self.weights.saturating_add(self.results)
    }

    /// Refuses what does not fit into so many bytes; where nobody knows how many there are, the system will tell.
    pub fn fit(self, left: Option<u64>) -> Result<()> {
        let Needs { weights, results, cache, cache_tokens } = self;
        match left {
            Some(left) if self.total() > left => Err(Error::Memory { weights, results, cache, cache_tokens, left }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use lathe_plan::program::{CacheGroup, CacheTensor, Retention, WeightSpan};

    use super::*;

    fn program() -> Program {
        let span = |offset, bytes| WeightSpan { name: "w".into(), offset, bytes };
        let tensor = |page_bytes| CacheTensor { name: "kv".into(), page_bytes };
        let bucket = |arena_bytes, scratch_bytes| Bucket {
            max: lathe_plan::program::StepSize { tokens: 8, sequences: 1, rows: 1 },
            arena_bytes,
            scratch_bytes,
            logits: lathe_plan::program::Buffer::Input(0),
            picks: None,
            launches: Vec::new(),
        };
        Program {
            max_context: 100,
            weights: vec![span(0, 1000), span(1024, 24)],
            cache_groups: vec![CacheGroup {
                name: "all".into(),
                page_tokens: 16,
                retention: Retention::All,
                tensors: vec![tensor(64), tensor(128)],
            }],
            buckets: vec![bucket(10, 7), bucket(500, 3)],
            ..Program::default()
        }
    }

    #[test]
    fn weights_results_and_cache_are_counted() {
        let needs = |cache_tokens, load| needs(&program(), cache_tokens, load, 3);
        let expected = Needs { weights: 1024, results: 500 + 3 * 7, cache: 7 * (64 + 128), cache_tokens: 100 };
        assert_eq!(needs(100, LoadMode::Read), expected);
        assert_eq!(needs(100, LoadMode::Map), Needs { weights: 0, ..expected });
        let large = needs(1600, LoadMode::Read);
        assert_eq!((large.cache, large.cache_tokens), (100 * 192, 1600));
    }

    #[test]
    fn a_cache_takes_what_all_sequences_can_use_if_it_may() {
        let mut program = program();
        for bucket in &mut program.buckets {
            bucket.max.sequences = 4;
        }
        // A page of 16 positions takes 192 bytes; four contexts are 400 positions, 25 pages.
        assert_eq!(cache_tokens(&program, 25 * 192), 400);
        assert_eq!(cache_tokens(&program, u64::MAX), 400);
        assert_eq!(cache_tokens(&program, 25 * 192 - 1), 24 * 16);
        assert_eq!(cache_tokens(&program, 10 * 192 + 7), 160);
        // One context has to fit whatever is left, so that what is missing can be said.
        assert_eq!(cache_tokens(&program, 0), 100);
        program.max_context = 1 << 20;
        assert_eq!(cache_tokens(&program, 0), 8192);
        // What a window bounds takes no more for more positions.
        program.cache_groups[0].retention = Retention::Window { tokens: 32 };
        assert_eq!(cache_tokens(&program, 10 * 192), 4 << 20);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_parts() {
        let needs = needs(&program(), usize::MAX, LoadMode::Read, 1);
        let error = needs.fit(Some(1 << 30)).unwrap_err().to_string();
        for part in ["1024.0 MiB are left", "for weights", "cache of 18446744073709551615 positions", "--cache-tokens"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(needs.fit(None).is_ok());
        let exact = Needs { weights: 5, results: 6, cache: 7, cache_tokens: 1 };
        assert!(exact.fit(Some(18)).is_ok());
        assert!(exact.fit(Some(17)).is_err());
    }
}
