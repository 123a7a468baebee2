//! The memory of a loaded program on a GPU, and its steps. Everything is allocated, and every address
//! resolved, when the program is loaded.

#![expect(unsafe_code, reason = "launches work on the device's memory")]

use std::sync::Arc;

use lathe_plan::program::{Bucket, Input, PickWords, Picked, Program};

use super::{
    driver::{Context, Memory, Module, Pinned, Stream},
    launcher::Launcher,
};
use crate::{
    device::{PageCopy, Row, Step, picks},
    error::{Error, Result},
    exec::{self, Layout, Numbers, Place, Prepared},
};

/// A loaded program.
#[derive(Debug)]
pub struct Machine {
    launcher: Launcher,
    inputs: Vec<Input>,
    input_words: Vec<usize>, // [inputs] where each starts in the upload
    groups: Vec<Group>,
    sampled: u64, // where the ids are that the newest step samples
    stream: Stream,
    input: Memory,
    arena: Memory,
    // Held because the launcher's addresses point into them.
    cache: Memory,
    _weights: Memory,
}

/// A token of a step that the step before it samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feed {
    /// The token's index in the step.
    pub token: usize,
    /// The row of the step before it.
    pub row: usize,
}

/// A step for the device.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The step. It has passed [`Step::check`] for the program's limits and pages.
    pub step: &'a Step,
    /// An id below the vocabulary for each of its tokens.
    pub tokens: &'a [u32],
    /// Which of these are other ones: those that rows of the newest step sample, which need no logits.
    pub feeds: &'a [Feed],
    /// Its bucket, and what depends on its size.
    pub numbers: &'a Numbers,
    /// Whether intermediate results are to be NaNs before.
    pub poison: bool,
}

/// What comes back from a step.
#[derive(Debug)]
pub struct Readback {
    /// What the step itself sampled, if it does.
    pub picks: Pinned,
    /// R rows of logits and what pads them, of those rows that need them.
    pub logits: Pinned,
}

/// A cache group in memory.
#[derive(Debug)]
struct Group {
    stride: usize,                // entries of a block table per sequence
    tensors: Vec<(usize, usize)>, // offset in the cache, bytes of a page
}

impl Machine {
    /// Allocates everything that a program needs, with so many pages in each cache group.
    pub fn new(
        context: &Arc<Context>,
        program: &Program,
        module: Module,
        weights: &[u8],
        pages: &[u32],
    ) -> Result<Machine> {
        let buckets = exec::prepare(program)?;
        for span in &program.weights {
            if span.offset.checked_add(span.bytes).is_none_or(|end| end > weights.len() as u64) {
                return Err(Error::Program(format!("the weight `{}` lies outside the weight section", span.name)));
            }
        }
        let mut layout = Layout::default();
        let mut input_words = Vec::new();
        for &input in &program.inputs {
            input_words.push(layout.add(exec::input_len(program, input)?, size_of::<u32>())? / size_of::<u32>());
        }
        let input = Memory::new(context, "step inputs", layout.bytes())?;
        let mut layout = Layout::default();
        let mut groups = Vec::new();
        for (index, (group, &pages)) in program.cache_groups.iter().zip(pages).enumerate() {
            let mut tensors = Vec::new();
            for tensor in &group.tensors {
                let page_bytes = usize::try_from(tensor.page_bytes).unwrap_or(usize::MAX);
                tensors.push((layout.add(pages as usize, page_bytes)?, page_bytes));
            }
            groups.push(Group { stride: exec::table_stride(program, index as u32)?, tensors });
        }
        let cache = Memory::new(context, "the cache", layout.bytes())?;
        cache.set(0)?;
        let arena_bytes = program.buckets.iter().map(|bucket: &Bucket| bucket.arena_bytes).max().unwrap_or(0);
        let arena = Memory::new(context, "intermediate results", arena_bytes as usize)?;
        let device_weights = Memory::new(context, "weights", weights.len())?;
        device_weights.fill(weights)?;
        let address = |place: Place| match place {
            Place::Arena(offset) => arena.address() + offset as u64,
            Place::Weight(offset) => device_weights.address() + offset as u64,
            Place::Input(index) => input.address() + (input_words[index] * size_of::<u32>()) as u64,
            Place::Cache { group, tensor } => cache.address() + groups[group].tensors[tensor].0 as u64,
            // Checked below: there are no bytes of it to touch.
            Place::Scratch(_) => 0,
        };
        if program.buckets.iter().any(|bucket| bucket.scratch_bytes > 0) {
            return Err(Error::Program("a kernel for a GPU wants a worker's scratch".into()));
        }
        let of_bucket = |bucket: &Prepared| bucket.places.iter().map(|&place| address(place)).collect();
        let addresses = buckets.iter().map(of_bucket).collect();
        let grids = program.kernels.iter().map(|kernel| kernel.grid).collect();
        Ok(Machine {
            launcher: Launcher::new(buckets, addresses, grids, module),
            inputs: program.inputs.clone(),
            stream: Stream::new(context)?,
            _weights: device_weights,
            input_words,
            groups,
            sampled: 0,
            input,
            arena,
            cache,
        })
    }

    /// The program's buckets.
    pub fn buckets(&self) -> &[Prepared] {
        &self.launcher.buckets
    }

    /// From here on steps are started as graphs.
    pub fn use_graphs(&mut self) -> Result<()> {
        self.launcher.use_graphs(&self.stream)
    }

    /// The stream of all work.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Words of the step inputs.
    pub fn input_words(&self) -> usize {
        self.input.bytes() / size_of::<u32>()
    }

    /// Hands a step to the device: page copies, inputs, launches, and what was sampled, and logits where they are needed, on
    /// their way back.
    ///
    /// The device is done with `staging` and `back`, which stay untouched until it is so again.
    pub fn run(&mut self, work: Work<'_>, staging: &mut Pinned, back: &mut Readback) -> Result<()> {
        let Work { step, tokens, feeds, numbers, poison } = work;
        for copy in &step.copies {
            self.copy_page(*copy)?;
        }
        let words = self.write_inputs(step, tokens, staging.words());
        // SAFETY: the staging words stay as they are until the step is done; the input is as large as they are.
        unsafe { self.stream.upload(staging, words, self.input.address())? };
        self.feed(feeds)?;
        if poison {
            self.stream.set(&self.arena, 0xff)?;
        }
        self.launcher.start(&self.stream, step.size(), numbers)?;
        let bucket = &self.launcher.buckets[numbers.bucket];
        if let Some(picks) = bucket.picks {
            let words = step.rows.len() * (Picked::BYTES as usize / size_of::<u32>());
            let from = self.arena.address() + picks as u64;
            self.sampled = from + (step.rows.len() * Picked::WORDS * size_of::<u32>()) as u64;
            // SAFETY: as below.
            unsafe { self.stream.download(from, 0..words, &mut back.picks)? };
        }
        let row = bucket.logits_row / size_of::<f32>();
        let mut end = 0;
        // Rows side by side come at once.
        for rows in step.rows.chunk_by(|a, b| self.needs_logits(a) == self.needs_logits(b)) {
            let begin = end;
            end += rows.len();
            if self.needs_logits(&rows[0]) {
                let from = self.arena.address() + (bucket.logits + begin * bucket.logits_row) as u64;
                // SAFETY: the logits lie inside the arena, and nobody uses the host's copy until the step is done.
                unsafe { self.stream.download(from, begin * row..end * row, &mut back.logits)? };
            }
        }
        Ok(())
    }

    /// Whether steps sample by themselves.
    pub fn samples(&self) -> bool {
        self.inputs.contains(&Input::Picks)
    }

    /// Whether a row cannot do with what a step samples by itself.
    pub fn needs_logits(&self, row: &Row) -> bool {
        !self.samples() || row.words().is_none()
    }

    /// Where the results of a step go on the host.
    pub fn readback(&self, context: &Arc<Context>, rows: u32) -> Result<Readback> {
        let row = self.buckets().iter().map(|bucket| bucket.logits_row).max().unwrap_or(0) / size_of::<f32>();
        let rows = rows as usize;
        let picks = if self.samples() { rows * Picked::BYTES as usize / size_of::<u32>() } else { 0 };
        Ok(Readback { picks: Pinned::new(context, picks)?, logits: Pinned::new(context, rows * row)? })
    }

    /// Copies ids that the newest step has sampled to where this one's tokens are.
    fn feed(&self, feeds: &[Feed]) -> Result<()> {
        let Some(input) = self.inputs.iter().position(|&input| input == Input::Tokens) else { return Ok(()) };
        let tokens = self.input.address() + (self.input_words[input] * size_of::<u32>()) as u64;
        for run in feeds.chunk_by(|a, b| (a.token + 1, a.row + 1) == (b.token, b.row)) {
            let [from, to] = [(self.sampled, run[0].row), (tokens, run[0].token)]
                .map(|(base, index)| base + (index * size_of::<u32>()) as u64);
            // SAFETY: rows are of the newest step and tokens of this one; the ids lie in the arena, in which nothing was
            // written since. The plan's kernels leave ids below the vocabulary.
            unsafe { self.stream.copy(from, to, run.len() * size_of::<u32>())? };
        }
        Ok(())
    }

    fn copy_page(&self, copy: PageCopy) -> Result<()> {
        for &(offset, page_bytes) in &self.groups[copy.group as usize].tensors {
            let page = |page: u32| self.cache.address() + (offset + page as usize * page_bytes) as u64;
            if copy.from != copy.to {
                // SAFETY: both pages exist, since the step was checked.
                unsafe { self.stream.copy(page(copy.from), page(copy.to), page_bytes)? };
            }
        }
        Ok(())
    }

    /// Writes a step's inputs and returns how many words of them there are up to the last one used.
    fn write_inputs(&self, step: &Step, tokens: &[u32], words: &mut [u32]) -> usize {
        let mut end = 0;
        for (&input, &start) in self.inputs.iter().zip(&self.input_words) {
            let mut write = |at: usize, values: &[u32]| {
                words[start + at..start + at + values.len()].copy_from_slice(values);
                end = end.max(start + at + values.len());
            };
            match input {
                Input::Tokens => write(0, tokens),
                Input::Positions => write(0, &step.positions),
                Input::Sequences => write(0, &step.sequences),
                Input::Rows => step.rows.iter().enumerate().for_each(|(index, row)| write(index, &[row.token])),
                Input::Picks => {
                    for (index, row) in step.rows.iter().enumerate() {
                        write(index * PickWords::COUNT, &row.words().unwrap_or(picks::UNUSED).words());
                    }
                }
                Input::BlockTable { group } => {
                    let stride = self.groups[group as usize].stride;
                    let tables = step.block_tables[group as usize].iter();
                    tables.enumerate().for_each(|(sequence, table)| write(sequence * stride, table));
                }
            }
        }
        end
    }
}
