//! Proves from a program alone that no launch touches memory that it was not given. It shares no code with the compiler,
//! so a mistake there is a sentence here, before any kernel runs.
//!
//! Checked is, for each bucket at its largest step (values only grow with the step):
//! - every index names something; no size is zero; buckets ascend by their largest step
//! - weights ascend without overlap in the weight section, aligned, and fill it
//! - arena buffers lie inside the arena, aligned; scratch fits the worker's; the logits are in the arena and large enough, and so
//!   are the tokens of a step that samples by itself
//! - each operand's extent, from the launch's own parameters, fits the buffer handed to it
//! - weights and step inputs are only read
//! - what an operand writes no other operand of the launch touches, except exactly the same bytes, read (in place)
//! - what runs at the same time (launches up to the next barrier) doesn't touch what one of it writes
//! - code has one entry per kernel, inside it
//!
//! The runtime's part is to give each step input and the arena the size of the bucket's largest step, to keep token ids,
//! positions, sequences, rows and pages in the ranges that [`crate::Input`] states, and to refuse larger steps.

use crate::program::{
    Access, Affine, Bucket, Buffer, CodeObject, Input, Kernel, Launch, Operand, PickWords, Picked, Program, Retention,
    Share, StepSize,
};
use crate::violation::{Fault, Place, Violation};

/// Alignment of weights and arena buffers.
pub const BUFFER_ALIGN: u64 = 64;

/// Most threads of a block on any GPU.
const MOST_THREADS: u64 = 1024;

type Checked<T = ()> = Result<T, Fault>;

/// Checks all that a program says, apart from how long the weight section is.
pub fn check_program(program: &Program) -> Result<(), Box<Violation>> {
    let violation = |place, fault| Box::new(Violation { program: program.name.clone(), place, fault });
    check_declarations(program).map_err(|fault| violation(Place::default(), fault))?;
    let mut before = StepSize::default();
    for (index, bucket) in program.buckets.iter().enumerate() {
        let place = Place { bucket: Some((index, bucket.max)), ..Place::default() };
        check_bucket(program, bucket, before).map_err(|fault| violation(place.clone(), fault))?;
        before = bucket.max;
        let mut running = Vec::new();
        for (index, launch) in bucket.launches.iter().enumerate() {
            let kernel = program.kernels.get(launch.kernel as usize);
            let name = kernel.map_or_else(|| "?".to_owned(), |kernel| kernel.name.clone());
            let place = Place { launch: Some((index, name)), ..place.clone() };
            let at = |(operand, fault)| violation(Place { operand, ..place.clone() }, fault);
            let uses = check_launch(program, bucket, launch, kernel).map_err(at)?;
            if launch.barrier {
                running.clear();
            }
            check_races(&running, &uses).map_err(at)?;
            running.extend(uses.into_iter().map(|used| (index, used)));
        }
    }
    Ok(())
}

/// Checks the weights against the length of their section.
pub fn check_weights(program: &Program, section: u64) -> Result<(), Box<Violation>> {
    let check = || {
        let mut end = 0;
        for span in &program.weights {
            if span.offset < end || !span.offset.is_multiple_of(BUFFER_ALIGN) {
                return Err(Fault::WeightOffset { weight: span.name.clone(), least: end, found: span.offset });
            }
            end = span.offset.checked_add(span.bytes).ok_or(Fault::Overflow { what: "the end of a weight" })?;
        }
        if end == section { Ok(()) } else { Err(Fault::WeightSection { expected: end, found: section }) }
    };
    check().map_err(|fault| Box::new(Violation { program: program.name.clone(), place: Place::default(), fault }))
}

/// Checks that code has an entry for each kernel.
pub fn check_code(program: &Program, code: &CodeObject) -> Result<(), Box<Violation>> {
    let check = || {
        same_count("code entries", program.kernels.len(), code.entries.len())?;
        let length = code.code.len() as u64;
        match program.kernels.iter().zip(&code.entries).find(|(_, entry)| **entry >= length) {
            None => Ok(()),
            Some((kernel, &found)) => {
                Err(Fault::Entry { kernel: kernel.name.clone(), target: code.target.clone(), expected: length, found })
            }
        }
    };
    check().map_err(|fault| Box::new(Violation { program: program.name.clone(), place: Place::default(), fault }))
}

fn check_declarations(program: &Program) -> Checked {
    const MOST: u64 = i32::MAX as u64;
    in_range("a vocabulary", program.vocabulary, MOST)?;
    in_range("a maximal context", program.max_context, MOST)?;
    for group in &program.cache_groups {
        in_range("tokens per page", group.page_tokens, MOST)?;
        if let Retention::Window { tokens } = group.retention {
            in_range("tokens in a window", tokens, MOST)?;
        }
        for tensor in &group.tensors {
            in_range("bytes per page", tensor.page_bytes, i64::MAX as u64)?;
        }
    }
    for input in &program.inputs {
        if let Input::BlockTable { group } = *input {
            named("cache group", &program.cache_groups, group)?;
        }
    }
    for kernel in &program.kernels {
        in_range("threads of a block", kernel.grid.threads, MOST_THREADS)?;
        in_range("units of a block", kernel.grid.units, MOST)?;
        let factors = kernel.operands.iter().flat_map(|operand| &operand.extent).flat_map(|term| term.factors);
        if let Some(index) = factors.flatten().find(|&index| u32::from(index) >= kernel.params) {
            return Err(Fault::Index { what: "parameter", index: index.into(), count: kernel.params as usize });
        }
    }
    in_range("buckets", program.buckets.len() as u64, MOST)
}

fn check_bucket(program: &Program, bucket: &Bucket, before: StepSize) -> Checked {
    let StepSize { tokens, sequences, rows } = bucket.max;
    for (what, count) in [("tokens", tokens), ("sequences", sequences), ("rows", rows)] {
        in_range(what, count, i32::MAX as u64)?;
    }
    if (tokens, sequences, rows) <= (before.tokens, before.sequences, before.rows) {
        return Err(Fault::BucketOrder);
    }
    if !matches!(bucket.logits, Buffer::Arena { .. }) {
        return Err(Fault::LogitsPlace { found: bucket.logits });
    }
    let found = check_buffer(program, bucket, bucket.logits)?;
    let (row, least) = (bucket.logits_row(program.vocabulary), 4 * u64::from(program.vocabulary));
    if row < least || !row.is_multiple_of(4) {
        return Err(Fault::LogitsRow { expected: least, found: row });
    }
    let expected = row.checked_mul(u64::from(rows)).ok_or(Fault::Overflow { what: "the end of the logits" })?;
    if found < expected {
        return Err(Fault::Logits { expected, found });
    }
    match bucket.picks {
        Some(picks) => check_picks(program, bucket, picks),
        None => Ok(()),
    }
}

/// Checks where the tokens that a step samples are, and that it is told how to sample.
fn check_picks(program: &Program, bucket: &Bucket, picks: Buffer) -> Checked {
    if !matches!(picks, Buffer::Arena { .. }) {
        return Err(Fault::PicksPlace { found: picks });
    }
    let (found, expected) = (check_buffer(program, bucket, picks)?, Picked::BYTES * u64::from(bucket.max.rows));
    if found < expected {
        return Err(Fault::Picks { expected, found });
    }
    if program.inputs.contains(&Input::Picks) { Ok(()) } else { Err(Fault::PicksInput) }
}

/// What an operand uses: where, from which byte to which, and how.
#[derive(Clone, Copy, Debug)]
struct Use {
    operand: usize,
    buffer: Buffer,
    bytes: u64,
    access: Access,
}

impl Use {
    fn writes(&self) -> bool {
        self.access != Access::Read
    }

    /// Whether both touch a byte that one of them writes. Scratch is each worker's own, and launches follow one another
    /// on a worker.
    fn clashes(&self, other: &Use) -> bool {
        let shared = match (self.buffer, other.buffer) {
            (Buffer::Arena { offset: a, .. }, Buffer::Arena { offset: b, .. }) => {
                self.bytes > 0 && other.bytes > 0 && a < b + other.bytes && b < a + self.bytes
            }
            (Buffer::Cache { group: a, tensor: i }, Buffer::Cache { group: b, tensor: j }) => (a, i) == (b, j),
            _ => false,
        };
        shared && (self.writes() || other.writes())
    }

    /// Whether both are the same bytes and at most one writes without reading: an operation in place.
    fn in_place(&self, other: &Use) -> bool {
        let offset = |used: &Use| match used.buffer {
            Buffer::Arena { offset, .. } => Some(offset),
            _ => None,
        };
        offset(self).is_some()
            && (offset(self), self.bytes) == (offset(other), other.bytes)
            && !(self.writes() && other.writes())
    }
}

/// Checks a launch by itself; what its operands use.
fn check_launch(
    program: &Program,
    bucket: &Bucket,
    launch: &Launch,
    kernel: Option<&Kernel>,
) -> Result<Vec<Use>, (Option<usize>, Fault)> {
    let whole = |fault| (None, fault);
    let missing = Fault::Index { what: "kernel", index: launch.kernel.into(), count: program.kernels.len() };
    let kernel = kernel.ok_or((None, missing))?;
    same_count("parameters", kernel.params as usize, launch.params.len()).map_err(whole)?;
    same_count("buffers", kernel.operands.len(), launch.buffers.len()).map_err(whole)?;
    let value = |affine: &Affine, what| {
        let value = affine.eval(bucket.max).filter(|&value| i64::try_from(value).is_ok());
        value.ok_or((None, Fault::Overflow { what }))
    };
    let params = launch.params.iter().map(|param| value(param, "a parameter")).collect::<Result<Vec<_>, _>>()?;
    value(&launch.units, "the number of units")?;
    if let Share::Claim { grain } = launch.share {
        in_range("units per claim", grain, u32::MAX.into()).map_err(whole)?;
    }
    let mut uses: Vec<Use> = Vec::with_capacity(launch.buffers.len());
    for (operand, (signature, &buffer)) in kernel.operands.iter().zip(&launch.buffers).enumerate() {
        let at = |fault| (Some(operand), fault);
        let bytes = check_buffer(program, bucket, buffer).map_err(at)?;
        let extent = extent(signature, &params).map_err(at)?;
        if extent > bytes {
            return Err(at(Fault::Extent { expected: bytes, found: extent }));
        }
        let used = Use { operand, buffer, bytes, access: signature.access };
        if used.writes() && matches!(buffer, Buffer::Weight(_) | Buffer::Input(_)) {
            return Err(at(Fault::Access { buffer, found: signature.access }));
        }
        // A second scratch buffer would start where the first does.
        let both_scratch =
            |other: &Use| matches!((buffer, other.buffer), (Buffer::Scratch { .. }, Buffer::Scratch { .. }));
        let clash = |other: &&Use| both_scratch(other) || used.clashes(other) && !used.in_place(other);
        if let Some(other) = uses.iter().find(clash) {
            return Err(at(Fault::Overlap { other: other.operand }));
        }
        uses.push(used);
    }
    Ok(uses)
}

/// Checks a launch against those that may still run when it starts.
fn check_races(running: &[(usize, Use)], uses: &[Use]) -> Result<(), (Option<usize>, Fault)> {
    for used in uses {
        if let Some((launch, other)) = running.iter().find(|(_, other)| used.clashes(other)) {
            return Err((Some(used.operand), Fault::Race { launch: *launch, operand: other.operand }));
        }
    }
    Ok(())
}

/// Checks that a buffer is where it may be; its bytes.
fn check_buffer(program: &Program, bucket: &Bucket, buffer: Buffer) -> Checked<u64> {
    match buffer {
        Buffer::Arena { offset, bytes } => {
            let overflow = Fault::Overflow { what: "the end of a buffer" };
            let bytes = bytes.eval(bucket.max).ok_or(overflow.clone())?;
            let end = offset.checked_add(bytes).ok_or(overflow)?;
            if end > bucket.arena_bytes {
                return Err(Fault::Arena { expected: bucket.arena_bytes, found: end });
            }
            if offset.is_multiple_of(BUFFER_ALIGN) { Ok(bytes) } else { Err(Fault::Alignment { found: offset }) }
        }
        Buffer::Scratch { bytes } if bytes > bucket.scratch_bytes => {
            Err(Fault::Scratch { expected: bucket.scratch_bytes, found: bytes })
        }
        Buffer::Scratch { bytes } => Ok(bytes),
        Buffer::Weight(index) => Ok(named("weight", &program.weights, index)?.bytes),
        Buffer::Input(index) => {
            let StepSize { tokens, sequences, rows } = bucket.max;
            Ok(4 * match *named("input", &program.inputs, index)? {
                Input::Tokens | Input::Positions | Input::Sequences => u64::from(tokens),
                Input::Rows => u64::from(rows),
                Input::Picks => u64::from(rows) * PickWords::COUNT as u64,
                Input::BlockTable { group } => {
                    let group = named("cache group", &program.cache_groups, group)?;
                    u64::from(sequences) * u64::from(program.max_context.div_ceil(group.page_tokens))
                }
            })
        }
        Buffer::Cache { group, tensor } => {
            let group = named("cache group", &program.cache_groups, group)?;
            Ok(named("cache tensor", &group.tensors, tensor)?.page_bytes)
        }
    }
}

/// Bytes that an operand may touch, at the parameters of the largest step.
fn extent(operand: &Operand, params: &[u64]) -> Checked<u64> {
    let factor = |index: Option<u8>| index.map_or(Some(1), |index| params.get(usize::from(index)).copied());
    let sum = operand.extent.iter().try_fold(0_u64, |sum, term| {
        let product = term.coefficient.checked_mul(factor(term.factors[0])?)?.checked_mul(factor(term.factors[1])?)?;
        sum.checked_add(product)
    });
    sum.ok_or(Fault::Overflow { what: "the extent" })
}

fn named<'a, T>(what: &'static str, items: &'a [T], index: u32) -> Checked<&'a T> {
    items.get(index as usize).ok_or(Fault::Index { what, index: index.into(), count: items.len() })
}

fn same_count(what: &'static str, expected: usize, found: usize) -> Checked {
    if expected == found { Ok(()) } else { Err(Fault::Count { what, expected, found }) }
}

fn in_range(what: &'static str, found: impl Into<u64>, most: u64) -> Checked {
    let found = found.into();
    if (1..=most).contains(&found) { Ok(()) } else { Err(Fault::Range { what, most, found }) }
}
