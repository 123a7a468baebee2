//! Prepares a program for execution: which bucket a step takes, where each buffer lies, the numbers of each launch, and
//! which worker computes which units. Pure: a device brings the memory and calls the kernels.

use std::ops::Range;

use lathe_plan::program::{Affine, Bucket, Buffer, Input, PickWords, Picked, Program, Share, StepSize};

use crate::error::{Error, Result};

/// What every buffer, input and scratch area is aligned to, in bytes.
pub const ALIGNMENT: usize = 64;

/// How often each worker claims units of a launch at least, where there are so many: then no one waits long for another.
const CLAIMS: u64 = 4;

/// A bucket, flattened for execution.
#[derive(Debug)]
pub struct Prepared {
    /// The largest step.
    pub max: StepSize,
    /// Offset of the logits in the arena.
    pub logits: usize, // R rows of V f32
    /// Bytes from one row of the logits to the next.
    pub logits_row: usize,
    /// Offset in the arena of the tokens that the step samples, where it does: see [`Picked`].
    pub picks: Option<usize>,
    /// The launches in order.
    pub launches: Vec<PreparedLaunch>,
    /// The buffers of all launches.
    pub places: Vec<Place>,
    /// The parameters of all launches.
    params: Vec<Affine>,
}

/// A launch of a prepared bucket.
#[derive(Debug)]
pub struct PreparedLaunch {
    /// Index of the kernel.
    pub kernel: usize,
    /// Its buffers in [`Prepared::places`].
    pub places: Range<usize>,
    /// Its parameters in [`Numbers::params`].
    pub params: Range<usize>,
    /// How units are divided.
    pub share: Share,
    /// Whether all earlier launches must have finished first.
    pub barrier: bool,
    units: Affine,
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this offset in the arena.
    Arena(usize),
    /// At this offset in the worker's scratch.
    Scratch(usize),
    /// At this offset in the weight section.
    Weight(usize),
    /// The step input of this index.
    Input(usize),
    /// A tensor of a cache group.
    Cache {
        /// The group.
        group: usize,
        /// The tensor.
        tensor: usize,
    },
}

/// What depends on the step's size: evaluated when it changes, read by all workers.
#[derive(Debug, Default)]
pub struct Numbers {
    /// The size.
    of: Option<StepSize>,
    /// Index of the bucket that runs the step.
    pub bucket: usize,
    /// Units of each launch.
    pub units: Vec<u64>, // [launches]
    /// Parameters of all launches.
    pub params: Vec<i64>,
}

impl Numbers {
    /// Evaluates the smallest bucket that holds the step, of buckets that are always the same. A larger one would compute the
    /// same bits more slowly.
    pub fn evaluate(&mut self, buckets: &[Prepared], size: StepSize) -> Result<()> {
        if self.of == Some(size) {
            return Ok(());
        }
        self.of = None;
        let fits =
            |max: StepSize| size.tokens <= max.tokens && size.sequences <= max.sequences && size.rows <= max.rows;
        let found = buckets.iter().position(|bucket| fits(bucket.max));
        self.bucket = found.ok_or_else(|| Error::Step(format!("no bucket of the program holds a step of {size:?}")))?;
        let bucket = &buckets[self.bucket];
        let value = |affine: &Affine| {
            let value = affine.eval(size).and_then(|value| i64::try_from(value).ok());
            value.ok_or_else(|| Error::Program(format!("{affine:?} overflows at {size:?}")))
        };
        self.units.clear();
        for launch in &bucket.launches {
            self.units.push(value(&launch.units)? as u64);
        }
        self.params.clear();
        for param in &bucket.params {
            self.params.push(value(param)?);
        }
        self.of = Some(size);
        Ok(())
    }
}

/// Flattens all buckets of a program, smallest first.
pub fn prepare(program: &Program) -> Result<Vec<Prepared>> {
    if program.buckets.is_empty() {
        return Err(Error::Program("it has no buckets".into()));
    }
    program.buckets.iter().map(|bucket| prepare_bucket(program, bucket)).collect()
}

/// The largest step of a program.
pub fn largest_step(program: &Program) -> StepSize {
    program.buckets.last().map(|bucket| bucket.max).unwrap_or_default()
}

/// How many i32 a step input holds at most.
pub fn input_len(program: &Program, input: Input) -> Result<usize> {
    let max = largest_step(program);
    let len = match input {
        Input::Tokens | Input::Positions | Input::Sequences => Some(max.tokens as usize),
        Input::Rows => Some(max.rows as usize),
        Input::Picks => (max.rows as usize).checked_mul(PickWords::COUNT),
        Input::BlockTable { group } => (max.sequences as usize).checked_mul(table_stride(program, group)?),
    };
    len.ok_or_else(|| Error::Program(format!("the input {input:?} is too large")))
}

/// Entries of a block table per sequence.
pub fn table_stride(program: &Program, group: u32) -> Result<usize> {
    match program.cache_groups.get(group as usize) {
        Some(group) if group.page_tokens > 0 => Ok(program.max_context.div_ceil(group.page_tokens) as usize),
        _ => Err(Error::Program(format!("cache group {group} does not exist or has pages of no tokens"))),
    }
}

/// The units that a worker takes of a [`Share::Even`] launch: one contiguous range, sizes differing by at most one.
pub fn even_share(units: u64, worker: usize, workers: usize) -> Range<u64> {
    let bound = |worker: usize| (u128::from(units) * worker as u128 / workers as u128) as u64;
    bound(worker)..bound(worker + 1)
}

/// How many units a worker claims at a time of a [`Share::Claim`] launch: as many as it says, or fewer where units are so few
/// that some workers would be left without.
pub fn claimed(grain: u32, units: u64, workers: usize) -> u64 {
    u64::from(grain).min(units / (CLAIMS * workers as u64)).max(1)
}

fn prepare_bucket(program: &Program, bucket: &Bucket) -> Result<Prepared> {
    let wrong = |what: String| Error::Program(format!("bucket {:?}: {what}", bucket.max));
    let row = bucket.logits_row(program.vocabulary);
    let mut prepared = Prepared {
        max: bucket.max,
        logits: 0,
        logits_row: row as usize,
        picks: None,
        launches: Vec::new(),
        places: Vec::new(),
        params: Vec::new(),
    };
    let Place::Arena(logits) = place(program, bucket, bucket.logits, &mut 0)? else {
        return Err(wrong("the logits are outside the arena".into()));
    };
    prepared.logits = logits;
    let needed = u64::from(bucket.max.rows).saturating_mul(row);
    if bucket.arena_bytes.saturating_sub(logits as u64) < needed || !logits.is_multiple_of(ALIGNMENT) {
        return Err(wrong(format!("the logits need {needed} aligned bytes from {logits} on")));
    }
    if let Some(picks) = bucket.picks {
        let needed = u64::from(bucket.max.rows).saturating_mul(Picked::BYTES);
        match place(program, bucket, picks, &mut 0)? {
            Place::Arena(at) if bucket.arena_bytes.saturating_sub(at as u64) >= needed => prepared.picks = Some(at),
            _ => return Err(wrong(format!("the tokens that it samples need {needed} bytes of the arena"))),
        }
    }
    for (index, launch) in bucket.launches.iter().enumerate() {
        let kernel = program.kernels.get(launch.kernel as usize);
        let kernel = kernel.ok_or_else(|| wrong(format!("launch {index} names kernel {}", launch.kernel)))?;
        if kernel.operands.len() != launch.buffers.len() || kernel.params as usize != launch.params.len() {
            return Err(wrong(format!("launch {index} does not fit the signature of `{}`", kernel.name)));
        }
        if launch.share == (Share::Claim { grain: 0 }) {
            return Err(wrong(format!("launch {index} claims no units at a time")));
        }
        let places = prepared.places.len();
        let mut scratch = 0;
        for &buffer in &launch.buffers {
            prepared.places.push(place(program, bucket, buffer, &mut scratch)?);
        }
        let params = prepared.params.len();
        prepared.params.extend_from_slice(&launch.params);
        prepared.launches.push(PreparedLaunch {
            kernel: launch.kernel as usize,
            places: places..prepared.places.len(),
            params: params..prepared.params.len(),
            share: launch.share,
            barrier: launch.barrier,
            units: launch.units,
        });
    }
    Ok(prepared)
}

/// Finds a buffer's place and checks that it exists. `scratch` counts the scratch that the launch has used.
fn place(program: &Program, bucket: &Bucket, buffer: Buffer, scratch: &mut u64) -> Result<Place> {
    let wrong = || Error::Program(format!("bucket {:?}: the buffer {buffer:?} does not exist", bucket.max));
    let inside = |offset: u64, bytes: u64, limit: u64| {
        let end = offset.checked_add(bytes).ok_or_else(wrong)?;
        if end <= limit { usize::try_from(offset).map_err(|_| wrong()) } else { Err(wrong()) }
    };
    match buffer {
        Buffer::Arena { offset, bytes } => {
            let bytes = bytes.eval(bucket.max).ok_or_else(wrong)?;
            inside(offset, bytes, bucket.arena_bytes).map(Place::Arena)
        }
        Buffer::Scratch { bytes } => {
            let offset = inside(*scratch, bytes, bucket.scratch_bytes)?;
            *scratch = scratch.saturating_add(bytes).next_multiple_of(ALIGNMENT as u64);
            Ok(Place::Scratch(offset))
        }
        Buffer::Weight(index) => {
            let span = program.weights.get(index as usize).ok_or_else(wrong)?;
            usize::try_from(span.offset).map(Place::Weight).map_err(|_| wrong())
        }
        Buffer::Input(index) => {
            program.inputs.get(index as usize).ok_or_else(wrong)?;
            Ok(Place::Input(index as usize))
        }
        Buffer::Cache { group, tensor } => {
            let found = program.cache_groups.get(group as usize).and_then(|group| group.tensors.get(tensor as usize));
            found.ok_or_else(wrong)?;
            Ok(Place::Cache { group: group as usize, tensor: tensor as usize })
        }
    }
}

/// Lays out areas one after the other.
#[derive(Debug, Default)]
pub struct Layout {
    bytes: usize,
}

impl Layout {
    /// How long all areas are together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds `count` elements and returns their offset.
    pub fn add(&mut self, count: usize, bytes: usize) -> Result<usize> {
        let offset = self.bytes;
        let end = count.checked_mul(bytes).and_then(|bytes| bytes.checked_add(offset));
        let end = end.and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        self.bytes =
            end.ok_or_else(|| Error::Program(format!("{count} times {bytes} bytes exceed the address space")))?;
        Ok(offset)
    }
}

#[cfg(test)]
mod tests;
