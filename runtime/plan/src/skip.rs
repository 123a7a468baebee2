//! A program without some of its layers, over the same weights, caches and kernels: what it samples is a guess of what the
//! whole one would.
//!
//! A layer reads the residual stream and gives it on. Left out, whoever reads what it gives reads what it was given. What
//! then nobody needs any more goes with it; what other layers need, such as rotations, stays.
//!
//! Before, with layer 1 left out:
//! ```text
//! embed -> x0    layer 0: x0 -> x1    layer 1: x1 -> x2    layer 2: x2 -> x3    head: x3 -> logits
//! ```
//! After:
//! ```text
//! embed -> x0    layer 0: x0 -> x1    layer 2: x1 -> x3    head: x3 -> logits
//! ```
//! Which layer a launch belongs to is known by the names of its weights and caches (`layers.1.down`, `kv.1`), else by who
//! reads what it writes. Intermediates are laid out anew, for the stream may lie elsewhere than who reads it expected. It
//! errs where more than one value goes from a layer to the next.

use std::collections::{BTreeMap, BTreeSet};

use crate::arena::{Span, first_fit};
use crate::program::{Access, Bucket, Buffer, Launch, Program, StepSize};

/// The name of the program that guesses for the main one by leaving layers out of it.
pub const PROGRAM: &str = "self";

/// Why a program cannot do without some layers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkipError {
    /// None is named.
    #[error("no layer is left out; name at least one of the model's {layers} layers, 0 to {}", layers.saturating_sub(1))]
    None {
        /// Layers of the program.
        layers: u32,
    },
    /// The model has no such layer.
    #[error("layer {layer} cannot be left out: the model has {layers} layers, 0 to {}", layers.saturating_sub(1))]
    NoSuchLayer {
        /// The layer.
        layer: u32,
        /// Layers of the program.
        layers: u32,
    },
    /// All of them.
    #[error("all {layers} layers are left out, and none remains to guess with; keep at least one")]
    All {
        /// Layers of the program.
        layers: u32,
    },
    /// More than the residual stream enters or leaves it.
    #[error(
        "layer {layer} cannot be left out: {found} values go from it to the next layer or come from the one before, \
         expected the residual stream alone"
    )]
    Entangled {
        /// The layer.
        layer: u32,
        /// How many values pass.
        found: usize,
    },
    /// Its intermediates need more memory than those of the whole program.
    #[error(
        "without these layers intermediate results need {needed} bytes, more than the {most} of the whole model; leave \
         other layers out"
    )]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes that there are.
        most: u64,
    },
}

/// Where in the order of layers a launch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Before,
    Layer(u32),
    Behind,
}

/// A value in the arena: the launch that writes it, and which of its operands.
type Value = (usize, usize);

/// How many layers a program has, by the names of its weights.
pub fn layers(program: &Program) -> u32 {
    program.weights.iter().filter_map(|span| layer_of(&span.name, "layers.")).max().map_or(0, |last| last + 1)
}

/// The same program without these layers, under another name.
///
/// # Errors
/// See [`SkipError`].
pub fn without_layers(program: &Program, name: &str, left_out: &BTreeSet<u32>) -> Result<Program, SkipError> {
    let layers = layers(program);
    match (left_out.first(), left_out.last()) {
        (None, _) | (_, None) => return Err(SkipError::None { layers }),
        (_, Some(&layer)) if layer >= layers => return Err(SkipError::NoSuchLayer { layer, layers }),
        _ if left_out.len() == layers as usize => return Err(SkipError::All { layers }),
        _ => {}
    }
    let buckets = program.buckets.iter().map(|bucket| Flow::of(program, bucket).without(left_out));
    Ok(Program { name: name.to_owned(), buckets: buckets.collect::<Result<_, _>>()?, ..program.clone() })
}

/// Bytes of weights that a step of one token reads of a program and not of the same one without layers.
pub fn saved_bytes(whole: &Program, part: &Program) -> u64 {
    let read = |program: &Program| -> BTreeSet<u32> {
        let buffers = program.buckets.iter().take(1).flat_map(|bucket| &bucket.launches).flat_map(|of| &of.buffers);
        buffers.filter_map(|buffer| if let Buffer::Weight(index) = buffer { Some(*index) } else { None }).collect()
    };
    let (whole_reads, part_reads) = (read(whole), read(part));
    let saved = whole_reads.difference(&part_reads).filter_map(|&index| whole.weights.get(index as usize));
    saved.map(|span| span.bytes).sum()
}

/// Layers as people write them: `3,5-9`.
pub fn spell(layers: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &layer in layers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => ranges.push((layer, layer)),
        }
    }
    let spell = |&(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(spell).collect::<Vec<_>>().join(",")
}

/// The layer that a name says, behind a prefix.
fn layer_of(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split('.').next()?.parse().ok()
}

/// Who reads what in a bucket.
struct Flow<'a> {
    bucket: &'a Bucket,
    accesses: Vec<Vec<Access>>,                // [launches][operands]
    sources: Vec<Vec<Option<Value>>>,          // likewise: the value that an operand reads
    readers: BTreeMap<Value, BTreeSet<usize>>, // launches
    parts: Vec<Part>,                          // [launches]
}

impl<'a> Flow<'a> {
    fn of(program: &'a Program, bucket: &'a Bucket) -> Flow<'a> {
        let accesses = |launch: &Launch| {
            let kernel = program.kernels.get(launch.kernel as usize);
            let operands = kernel.map(|kernel| kernel.operands.as_slice()).unwrap_or_default();
            let access = |at: usize| operands.get(at).map_or(Access::ReadWrite, |operand| operand.access);
            (0..launch.buffers.len()).map(access).collect()
        };
        let mut flow = Flow {
            bucket,
            accesses: bucket.launches.iter().map(accesses).collect(),
            sources: Vec::new(),
            readers: BTreeMap::new(),
            parts: Vec::new(),
        };
        flow.find_sources();
        flow.find_parts(program);
        flow
    }

    /// Finds for each operand that reads the arena who wrote there last.
    fn find_sources(&mut self) {
        let mut memory = Memory::default();
        for (index, launch) in self.bucket.launches.iter().enumerate() {
            let mut sources = vec![None; launch.buffers.len()];
            for (operand, &buffer) in launch.buffers.iter().enumerate() {
                let reads = self.accesses[index][operand] != Access::Write;
                let Some(span) = span(buffer, self.bucket.max).filter(|_| reads) else { continue };
                sources[operand] = memory.find(span);
                if let Some(value) = sources[operand] {
                    self.readers.entry(value).or_default().insert(index);
                }
            }
            self.sources.push(sources);
            memory.write(launch, index, &self.accesses[index], self.bucket.max);
        }
    }

    /// Finds each launch's part, from the last on: what names nothing belongs to the first part that reads what it writes.
    fn find_parts(&mut self, program: &Program) {
        let count = self.bucket.launches.len();
        self.parts = vec![Part::Behind; count];
        let is_in_layer = |launch: &Launch| matches!(named(program, launch), Some(Part::Layer(_)));
        let first_layer = self.bucket.launches.iter().position(is_in_layer);
        for index in (0..count).rev() {
            let launch = &self.bucket.launches[index];
            self.parts[index] = match named(program, launch) {
                Some(Part::Behind) if Some(index) < first_layer => Part::Before,
                Some(part) => part,
                None => {
                    let written = (0..launch.buffers.len()).filter_map(|operand| self.readers.get(&(index, operand)));
                    written.flatten().map(|&reader| self.parts[reader]).min().unwrap_or(Part::Behind)
                }
            };
        }
    }

    /// The value that goes from one part to the next: read there and not where it is written.
    fn residual(&self, from: Part, to: Part, layer: u32) -> Result<Value, SkipError> {
        let passes = |(value, readers): &(&Value, &BTreeSet<usize>)| {
            let is_in = |part: Part| readers.iter().any(|&reader| self.parts[reader] == part);
            self.parts[value.0] == from && is_in(to) && !is_in(from)
        };
        let found: Vec<Value> = self.readers.iter().filter(passes).map(|(&value, _)| value).collect();
        match found[..] {
            [value] => Ok(value),
            _ => Err(SkipError::Entangled { layer, found: found.len() }),
        }
    }

    fn without(&self, left_out: &BTreeSet<u32>) -> Result<Bucket, SkipError> {
        let present: BTreeSet<Part> = self.parts.iter().copied().collect();
        let mut instead: BTreeMap<Value, Value> = BTreeMap::new();
        for &layer in left_out {
            let part = Part::Layer(layer);
            let before = present.range(..part).next_back().copied().unwrap_or(Part::Before);
            let behind = present.range(part..).nth(1).copied().unwrap_or(Part::Behind);
            let [input, output] = [self.residual(before, part, layer)?, self.residual(part, behind, layer)?];
            let input = instead.get(&input).copied().unwrap_or(input);
            instead.insert(output, input);
        }
        let source = |value: Value| instead.get(&value).copied().unwrap_or(value);
        let needed = self.needed(&source);
        let mut launches = Vec::new();
        let mut barrier = false;
        for (index, launch) in self.bucket.launches.iter().enumerate() {
            // Whoever waited at a launch that is gone waits at the next one.
            barrier |= launch.barrier;
            if needed.contains(&index) {
                launches.push((index, Launch { barrier: std::mem::take(&mut barrier), ..launch.clone() }));
            }
        }
        self.place(launches, source)
    }

    /// Lays these launches' intermediates out anew: what is read instead of something else lives longer than it did.
    fn place(&self, mut launches: Vec<(usize, Launch)>, source: impl Fn(Value) -> Value) -> Result<Bucket, SkipError> {
        let max = self.bucket.max;
        let mut spans: Vec<Span> = Vec::new();
        let mut span_of: BTreeMap<Value, usize> = BTreeMap::new();
        let mut used = Vec::new(); // launch, operand, span
        let mut phase = 0;
        for (at, (index, launch)) in launches.iter().enumerate() {
            phase += usize::from(launch.barrier);
            for (operand, &buffer) in launch.buffers.iter().enumerate() {
                let Some((_, bytes)) = span(buffer, max) else { continue };
                let read = self.sources[*index][operand].and_then(|value| span_of.get(&source(value)).copied());
                let span = read.unwrap_or_else(|| {
                    spans.push(Span { bytes, phases: (phase, phase), offset: 0 });
                    spans.len() - 1
                });
                spans[span].phases.1 = phase;
                if self.accesses[*index][operand] != Access::Read {
                    span_of.insert((*index, operand), span);
                }
                used.push((at, operand, span));
            }
        }
        // Programs with layers left out are for CPUs, where no step samples.
        let mut bucket = Bucket { launches: Vec::new(), picks: None, ..self.bucket.clone() };
        let logits = launches.iter().enumerate().rev().find_map(|(at, (_, launch))| {
            launch.buffers.iter().position(|&buffer| buffer == self.bucket.logits).map(|operand| (at, operand))
        });
        // The runtime reads the logits after the step.
        for &(at, operand, span) in &used {
            if logits == Some((at, operand)) {
                spans[span].phases.1 = phase;
            }
        }
        let needed = first_fit(&mut spans);
        if needed > bucket.arena_bytes {
            return Err(SkipError::Memory { needed, most: bucket.arena_bytes });
        }
        for (at, operand, span) in used {
            let buffer = &mut launches[at].1.buffers[operand];
            if let Buffer::Arena { offset, .. } = buffer {
                *offset = spans[span].offset;
            }
            if logits == Some((at, operand)) {
                bucket.logits = *buffer;
            }
        }
        bucket.launches = launches.into_iter().map(|(_, launch)| launch).collect();
        Ok(bucket)
    }

    /// The launches that the logits need.
    fn needed(&self, source: &impl Fn(Value) -> Value) -> BTreeSet<usize> {
        let launches = &self.bucket.launches;
        let mut open: Vec<usize> =
            launches.iter().rposition(|launch| launch.buffers.contains(&self.bucket.logits)).into_iter().collect();
        let mut needed = BTreeSet::new();
        while let Some(index) = open.pop() {
            if needed.insert(index) {
                open.extend(self.sources[index].iter().flatten().map(|&value| source(value).0));
                // What others of its layer put into the cache, it reads from there.
                let caches: Vec<&Buffer> = launches[index].buffers.iter().filter(|of| is_cache(of)).collect();
                open.extend((0..index).filter(|&at| launches[at].buffers.iter().any(|of| caches.contains(&of))));
            }
        }
        needed
    }
}

fn is_cache(buffer: &Buffer) -> bool {
    matches!(buffer, Buffer::Cache { .. })
}

/// The part that a launch's weights and caches name: a layer, or what is in none; nothing where it has neither.
fn named(program: &Program, launch: &Launch) -> Option<Part> {
    let part = |name: &str, prefix: &str| layer_of(name, prefix).map_or(Part::Behind, Part::Layer);
    let parts = launch.buffers.iter().filter_map(|&buffer| match buffer {
        Buffer::Weight(index) => program.weights.get(index as usize).map(|span| part(&span.name, "layers.")),
        Buffer::Cache { group, tensor } => {
            let tensor = program.cache_groups.get(group as usize)?.tensors.get(tensor as usize)?;
            Some(part(&tensor.name, "kv."))
        }
        _ => None,
    });
    parts.min()
}

/// The bytes of the arena that a buffer takes in the largest step.
fn span(buffer: Buffer, max: StepSize) -> Option<(u64, u64)> {
    match buffer {
        Buffer::Arena { offset, bytes } => Some((offset, bytes.eval(max)?)),
        _ => None,
    }
}

/// Whether two ranges of bytes have some in common.
fn overlap((a, a_bytes): (u64, u64), (b, b_bytes): (u64, u64)) -> bool {
    a < b + b_bytes && b < a + a_bytes
}

/// Which values lie where.
#[derive(Default)]
struct Memory(Vec<((u64, u64), Value)>); // offset and length

impl Memory {
    /// The value that begins at these bytes and has them all, or the last one that has some of them.
    fn find(&self, place: (u64, u64)) -> Option<Value> {
        self.0.iter().rev().find(|&&(other, _)| overlap(other, place)).map(|&(_, value)| value)
    }

    fn write(&mut self, launch: &Launch, index: usize, accesses: &[Access], max: StepSize) {
        for (operand, &buffer) in launch.buffers.iter().enumerate() {
            if accesses[operand] == Access::Read {
                continue;
            }
            if let Some(place) = span(buffer, max) {
                self.0.retain(|&(other, _)| !overlap(other, place));
                self.0.push((place, (index, operand)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
