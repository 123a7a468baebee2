//! Weights in memory, every byte verified before anyone can see it.

use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};

use crate::error::PlanError;
use crate::format::{CHUNK, Digest, Section};
use crate::memory::{Filling, Region};
use crate::program::{Program, WeightSpan};
use crate::random::RandomWeights;
use crate::source::Source;

/// Where weights live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadMode {
    /// In private memory with huge pages, read and verified by several threads at once. What happens to the file
    /// afterwards does not matter.
    #[default]
    Read,
    /// In the file's own pages, which all processes share. They are verified once; the file must then not be written to
    /// or truncated while the weights are in use.
    Map,
}

/// The verified weights of a program. They dereference to the bytes of the weight section.
#[derive(Debug)]
pub struct Weights(Region);

impl Deref for Weights {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Weights {
    /// The bytes of one weight.
    pub fn span(&self, span: &WeightSpan) -> Option<&[u8]> {
        let start = usize::try_from(span.offset).ok()?;
        self.get(start..start.checked_add(usize::try_from(span.bytes).ok()?)?)
    }
}

/// A weight section and what its chunks must hash to.
pub(crate) struct Expected<'a> {
    pub section: &'a Section,
    pub digests: &'a [Digest],
}

impl Expected<'_> {
    fn check(&self, chunk: usize, bytes: &[u8]) -> Result<(), PlanError> {
        if self.digests.get(chunk).is_some_and(|expected| blake3::hash(bytes) == *expected) {
            return Ok(());
        }
        Err(PlanError::ChunkDigest { section: self.section.to_string(), chunk })
    }

    fn offset(&self, chunk: usize) -> u64 {
        self.section.offset + (chunk * CHUNK) as u64
    }
}

/// Loads and verifies.
pub(crate) fn load(source: &Source, expected: &Expected, mode: LoadMode, threads: usize) -> Result<Weights, PlanError> {
    let length = expected.section.length as usize;
    if let (LoadMode::Map, Source::File { file, .. }, 1..) = (mode, source, length) {
        let map = Region::of_file(file, expected.section.offset, length);
        let region = map.map_err(|error| source.error("map", error))?;
        let chunks = region.as_slice().chunks(CHUNK).enumerate();
        in_parallel(threads, chunks, |(chunk, bytes)| expected.check(chunk, bytes))?;
        source.check_unchanged()?;
        return Ok(Weights(region));
    }
    let mut memory = Filling::new(length).map_err(|error| source.error("find memory for the weights of", error))?;
    in_parallel(threads, memory.as_mut_slice().chunks_mut(CHUNK).enumerate(), |(chunk, bytes)| {
        source.read_at(bytes, expected.offset(chunk))?;
        expected.check(chunk, bytes)
    })?;
    memory.freeze().map(Weights).map_err(|error| source.error("protect the weights of", error))
}

/// Makes the weights of a program from a seed.
pub(crate) fn make(
    source: &Source,
    random: &RandomWeights,
    program: &Program,
    threads: usize,
) -> Result<Weights, PlanError> {
    let length = usize::try_from(RandomWeights::total(program)).unwrap_or(usize::MAX);
    let mut memory = Filling::new(length).map_err(|error| source.error("find memory for the weights of", error))?;
    in_parallel(threads, memory.as_mut_slice().chunks_mut(CHUNK).enumerate(), |(chunk, bytes)| {
        random.fill(program, chunk, bytes);
        Ok(())
    })?;
    memory.freeze().map(Weights).map_err(|error| source.error("protect the weights of", error))
}

/// Verifies and keeps nothing.
pub(crate) fn verify(source: &Source, expected: &Expected, threads: usize) -> Result<(), PlanError> {
    in_parallel(threads, 0..expected.digests.len(), |chunk| verify_chunk(source, expected, chunk))
}

/// Verifies one chunk.
pub(crate) fn verify_chunk(source: &Source, expected: &Expected, chunk: usize) -> Result<(), PlanError> {
    let left = expected.section.length - (chunk * CHUNK) as u64;
    let mut bytes = vec![0; CHUNK.min(left as usize)];
    source.read_at(&mut bytes, expected.offset(chunk))?;
    expected.check(chunk, &bytes)
}

/// Calls `work` with each item; the threads take items as they get free, and each stops at its first failure.
fn in_parallel<I>(
    threads: usize,
    items: I,
    work: impl Fn(I::Item) -> Result<(), PlanError> + Sync,
) -> Result<(), PlanError>
where
    I: ExactSizeIterator + Send,
{
    let threads = threads.clamp(1, items.len().max(1));
    let items = Mutex::new(items);
    let worker = || {
        loop {
            let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            match item {
                Some(item) => work(item)?,
                None => return Ok(()),
            }
        }
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let own = worker();
        helpers
            .into_iter()
            .fold(own, |result, helper| result.and(helper.join().unwrap_or_else(|panic| resume_unwind(panic))))
    })
}
