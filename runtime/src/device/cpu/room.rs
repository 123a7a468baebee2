//! Whether a plan fits into memory, worked out before any of it is allocated.

use lathe_plan::{
    LoadMode,
    program::{Bucket, Program},
};

use crate::{
    device::{Limits, options::DeviceOptions},
    error::{Error, Result},
};

/// Bytes that a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    weights: u64,
    results: u64,
    cache: u64,
    cache_tokens: u64,
}

/// What a program needs with these options. Weights that are mapped from their file give way, so they need nothing.
pub fn needs(program: &Program, options: &DeviceOptions, workers: usize) -> Needs {
    let most = |bytes: fn(&Bucket) -> u64| program.buckets.iter().map(bytes).max().unwrap_or(0);
    let limits = Limits::of(program, options.cache_tokens);
    let (mut cache, mut cache_tokens) = (0u64, 0);
    for (group, limits) in program.cache_groups.iter().zip(&limits.groups) {
        for tensor in &group.tensors {
            cache = cache.saturating_add(tensor.page_bytes.saturating_mul(u64::from(limits.pages)));
        }
        cache_tokens = cache_tokens.max(u64::from(limits.pages) * u64::from(limits.page_tokens));
    }
    let weights = program.weights.iter().fold(0u64, |sum, span| sum.saturating_add(span.bytes));
    let scratch = most(|bucket| bucket.scratch_bytes).saturating_mul(workers as u64);
    Needs {
        weights: if options.load == LoadMode::Map { 0 } else { weights },
        results: most(|bucket| bucket.arena_bytes).saturating_add(scratch),
        cache,
        cache_tokens,
    }
}

impl Needs {
    /// All bytes together.
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.results).saturating_add(self.cache)
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
        let needs = |options: DeviceOptions| needs(&program(), &options, 3);
        let expected = Needs { weights: 1024, results: 500 + 3 * 7, cache: 7 * (64 + 128), cache_tokens: 112 };
        assert_eq!(needs(DeviceOptions::default()), expected);
        let mapped = needs(DeviceOptions { load: LoadMode::Map, ..DeviceOptions::default() });
        assert_eq!(mapped, Needs { weights: 0, ..expected });
        let large = needs(DeviceOptions { cache_tokens: Some(1600), ..DeviceOptions::default() });
        assert_eq!((large.cache, large.cache_tokens), (100 * 192, 1600));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_parts() {
        let needs = needs(&program(), &DeviceOptions { cache_tokens: Some(usize::MAX), ..DeviceOptions::default() }, 1);
        let error = needs.fit(Some(1 << 30)).unwrap_err().to_string();
        for part in ["1024.0 MiB are left", "for weights", "cache of 68719476720 positions", "--cache-tokens"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(needs.fit(None).is_ok());
        let exact = Needs { weights: 5, results: 6, cache: 7, cache_tokens: 1 };
        assert!(exact.fit(Some(18)).is_ok());
        assert!(exact.fit(Some(17)).is_err());
    }
}
