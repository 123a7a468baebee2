//! The memory of a loaded program and the calls of its kernels. Everything is allocated and every pointer is resolved when
//! the program is loaded. Threads are the business of [`super::worker`].

#![expect(unsafe_code, reason = "kernels work on raw memory")]

use std::{
    fmt,
    ops::Deref,
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lathe_plan::program::{Bucket, Input, Program, Share};

use super::{
    float::KernelMode,
    memory::{HUGE, Kernels, PAGE, Region},
};
use crate::{
    device::{PageCopy, Step},
    error::{Error, Result},
    exec::{self, Layout, Numbers, Place, Prepared},
};

/// Least bytes of a cache tensor that lie in small pages. Cache pages are taken from the first on, and a run that keeps few
/// tokens shall not wait for huge pages.
const SMALL_BYTES: usize = 256 << 10;

/// Bytes of the cache tensor of this index, among so many, that lie in small pages. As tensors fill alike, each begins its
/// huge pages a little later than the one before: the system takes milliseconds to bring one, and a step shall not wait for
/// one of every tensor.
fn small_bytes(index: usize, tensors: usize) -> usize {
    SMALL_BYTES + index * HUGE / tensors / PAGE * PAGE
}

/// The bytes of the weight section.
pub type WeightBytes = Box<dyn Deref<Target = [u8]> + Send + Sync>;

/// A loaded program.
pub struct Machine {
    memory: Arc<Memory>,
    buckets: Vec<Prepared>,
    buffers: Vec<Vec<Addresses>>, // [buckets][workers]
    claims: Vec<AtomicU64>,       // [launches] next unit to claim
}

/// What programs over the same weights and caches share. One step at a time runs in it.
struct Memory {
    vocabulary: usize,
    workers: usize,
    inputs: Vec<Input>,
    groups: Vec<Group>,
    kernels: Kernels,
    arena: Region,
    input: Region,
    input_offsets: Vec<usize>, // [inputs]
    cache: Region,
    scratch: Vec<Region>, // [workers]
    weights: WeightBytes,
}

/// A cache group in memory.
struct Group {
    stride: usize, // entries of a block table per sequence
    tensors: Vec<Tensor>,
}

/// A cache tensor in memory.
#[derive(Clone, Copy)]
struct Tensor {
    offset: usize, // in the cache region
    page_bytes: usize,
    huge_from: usize, // in the cache region
}

/// Addresses of all buffers of a bucket's launches, for one worker.
struct Addresses(Vec<*mut u8>);

// SAFETY: addresses by themselves do nothing; using them is unsafe and argued for where it happens.
unsafe impl Send for Addresses {}
// SAFETY: as above.
unsafe impl Sync for Addresses {}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("kernels", &self.memory.kernels).finish_non_exhaustive()
    }
}

impl Machine {
    /// Allocates everything that a program needs, with so many pages in each cache group.
    pub fn new(
        program: &Program,
        kernels: Kernels,
        weights: WeightBytes,
        workers: usize,
        pages: &[u32],
    ) -> Result<Machine> {
        if kernels.len() != program.kernels.len() {
            return Err(Error::Program("its code lacks kernels".into()));
        }
        for span in &program.weights {
            if span.offset.checked_add(span.bytes).is_none_or(|end| end > weights.len() as u64) {
                return Err(Error::Program(format!("the weight `{}` lies outside the weight section", span.name)));
            }
        }
        let most = |bytes: fn(&Bucket) -> u64| program.buckets.iter().map(bytes).max().unwrap_or(0);
        let mut layout = Layout::default();
        let mut input_offsets = Vec::new();
        for &input in &program.inputs {
            input_offsets.push(layout.add(exec::input_len(program, input)?, size_of::<i32>())?);
        }
        let input = Region::new("step inputs", layout.bytes())?;
        let mut layout = Layout::default();
        let mut groups = Vec::new();
        let tensors_in_all = program.cache_groups.iter().map(|group| group.tensors.len()).sum();
        let mut smalls = (0..tensors_in_all).map(|index| small_bytes(index, tensors_in_all));
        for (index, (group, &pages)) in program.cache_groups.iter().zip(pages).enumerate() {
            let mut tensors = Vec::new();
            for (tensor, small) in group.tensors.iter().zip(&mut smalls) {
                let page_bytes = usize::try_from(tensor.page_bytes).unwrap_or(usize::MAX);
                if page_bytes.saturating_mul(pages as usize) >= small + HUGE {
                    // So that huge pages begin where small ones end.
                    let end = layout.bytes() + small;
                    layout.add(end.next_multiple_of(HUGE) - end, 1)?;
                }
                let offset = layout.add(pages as usize, page_bytes)?;
                tensors.push(Tensor { offset, page_bytes, huge_from: offset + small });
            }
            groups.push(Group { stride: exec::table_stride(program, index as u32)?, tensors });
        }
        let mut memory = Memory {
            vocabulary: program.vocabulary as usize,
            workers,
            inputs: program.inputs.clone(),
            groups,
            kernels,
            arena: Region::huge("intermediate results", most(|bucket| bucket.arena_bytes) as usize)?,
            input,
            input_offsets,
            cache: Region::new("the cache", layout.bytes())?,
            scratch: Vec::new(),
            weights,
        };
        for _ in 0..workers {
            memory.scratch.push(Region::new("scratch", most(|bucket| bucket.scratch_bytes) as usize)?);
        }
        memory.prefer_huge_pages(pages);
        Machine::within(Arc::new(memory), program)
    }

    /// Another program over the same weights and caches, of the same kernels, which needs no more memory.
    pub fn beside(&self, program: &Program) -> Result<Machine> {
        let memory = &self.memory;
        let fits = |bucket: &Bucket| {
            let scratch = memory.scratch.iter().all(|region| bucket.scratch_bytes <= region.len() as u64);
            bucket.arena_bytes <= memory.arena.len() as u64 && scratch
        };
        let same = program.inputs == memory.inputs
            && program.kernels.len() == memory.kernels.len()
            && program.vocabulary as usize == memory.vocabulary
            && exec::largest_step(program) == self.buckets.last().map(|bucket| bucket.max).unwrap_or_default();
        if !same || !program.buckets.iter().all(fits) {
            let name = &program.name;
            return Err(Error::Program(format!("`{name}` needs other memory than the program whose weights it reads")));
        }
        Machine::within(Arc::clone(memory), program)
    }

    /// A program in memory that it fits.
    fn within(memory: Arc<Memory>, program: &Program) -> Result<Machine> {
        let mut machine = Machine { memory, buckets: exec::prepare(program)?, buffers: Vec::new(), claims: Vec::new() };
        let launches = machine.buckets.iter().map(|bucket| bucket.launches.len()).max().unwrap_or(0);
        machine.claims.resize_with(launches, AtomicU64::default);
        for bucket in &machine.buckets {
            let address = |place, worker| machine.memory.address(place, worker);
            let of_worker = |worker| Addresses(bucket.places.iter().map(|&place| address(place, worker)).collect());
            machine.buffers.push((0..machine.memory.workers).map(of_worker).collect());
        }
        Ok(machine)
    }

    /// The program's buckets.
    pub fn buckets(&self) -> &[Prepared] {
        &self.buckets
    }

    /// Brings a step into memory: its inputs, page copies and claim counters. The tokens are given apart, as ids.
    ///
    /// # Safety
    ///
    /// The step has passed [`Step::check`] for this program's limits and the pages of this machine, `tokens` has an id
    /// below the vocabulary for each of its tokens, and no other thread uses the machine meanwhile.
    pub unsafe fn bring_in(&self, step: &Step, tokens: &[u32]) {
        let memory = &*self.memory;
        for copy in &step.copies {
            memory.copy_page(copy);
        }
        for (&input, &offset) in memory.inputs.iter().zip(&memory.input_offsets) {
            #[expect(clippy::cast_ptr_alignment, reason = "inputs are laid out on multiples of 64 bytes")]
            let target = memory.input.start().wrapping_add(offset).cast::<u32>();
            let write = |at: usize, values: &[u32]| {
                // SAFETY: the input has room for the largest step, which the checked step does not exceed; ids, positions
                // and page numbers fit in an i32. Nobody else uses the region meanwhile.
                unsafe { target.add(at).copy_from_nonoverlapping(values.as_ptr(), values.len()) };
            };
            match input {
                Input::Tokens => write(0, tokens),
                Input::Positions => write(0, &step.positions),
                Input::Sequences => write(0, &step.sequences),
                // No step of a CPU samples.
                Input::Picks => {}
                Input::Rows => step.rows.iter().enumerate().for_each(|(index, row)| write(index, &[row.token])),
                Input::BlockTable { group } => {
                    let stride = memory.groups[group as usize].stride;
                    let tables = step.block_tables[group as usize].iter();
                    tables.enumerate().for_each(|(sequence, table)| write(sequence * stride, table));
                }
            }
        }
        self.claims.iter().for_each(|claim| claim.store(0, Ordering::Relaxed));
    }

    /// Fills the arena and all scratch with NaNs.
    ///
    /// # Safety
    ///
    /// No other thread uses the machine meanwhile.
    pub unsafe fn poison(&self) {
        for region in self.memory.scratch.iter().chain([&self.memory.arena]) {
            // SAFETY: the range is the region, which nobody else uses meanwhile.
            unsafe { region.start().write_bytes(0xff, region.len()) };
        }
    }

    /// Runs one worker's share of a launch.
    ///
    /// # Safety
    ///
    /// The step was brought in, `numbers` are its numbers, each worker index is used by one thread, and all launches on
    /// which this one depends have finished, with their effects visible to this thread.
    pub unsafe fn launch(&self, numbers: &Numbers, index: usize, worker: usize) {
        let launch = &self.buckets[numbers.bucket].launches[index];
        let kernel = self.memory.kernels.get(launch.kernel);
        let buffers = self.buffers[numbers.bucket][worker].0[launch.places.clone()].as_ptr();
        let params = numbers.params[launch.params.clone()].as_ptr();
        let units = numbers.units[index];
        let _mode = KernelMode::enter();
        let run = |begin: u64, end: u64| {
            // SAFETY: the plan's verifier has checked that what the kernel touches with these parameters lies inside its
            // buffers; the buffers are allocated in full; units of a launch are independent by the kernels' contract.
            unsafe { kernel(buffers, params, begin as i64, end as i64) };
        };
        match launch.share {
            Share::Even => {
                let share = exec::even_share(units, worker, self.memory.workers);
                if !share.is_empty() {
                    run(share.start, share.end);
                }
            }
            Share::Claim { grain } => {
                let grain = exec::claimed(grain, units, self.memory.workers);
                loop {
                    let begin = self.claims[index].fetch_add(grain, Ordering::Relaxed);
                    if begin >= units {
                        break;
                    }
                    run(begin, units.min(begin + grain));
                }
            }
        }
    }

    /// The logits of a row.
    ///
    /// # Safety
    ///
    /// The row is one of the step's, all of its launches have finished, and none runs while the slice is in use.
    pub unsafe fn logits(&self, numbers: &Numbers, row: usize) -> &[f32] {
        let bucket = &self.buckets[numbers.bucket];
        let offset = bucket.logits + row * bucket.logits_row;
        #[expect(clippy::cast_ptr_alignment, reason = "the logits' offset is a multiple of 64, a row's length of 4")]
        let start = self.memory.arena.start().wrapping_add(offset).cast::<f32>();
        // SAFETY: the logits of the largest step lie inside the arena at an aligned offset, the arena starts out zeroed, and
        // any bits are an f32.
        unsafe { slice::from_raw_parts(start, self.memory.vocabulary) }
    }
}

impl Memory {
    /// Asks for huge pages where the tokens of long histories, or of many sequences, will lie: of each tensor all but its
    /// beginning.
    fn prefer_huge_pages(&self, pages: &[u32]) {
        for (group, &pages) in self.groups.iter().zip(pages) {
            for tensor in &group.tensors {
                self.cache.prefer_huge(tensor.huge_from..tensor.offset + tensor.page_bytes * pages as usize);
            }
        }
    }

    fn address(&self, place: Place, worker: usize) -> *mut u8 {
        match place {
            Place::Arena(offset) => self.arena.start().wrapping_add(offset),
            Place::Scratch(offset) => self.scratch[worker].start().wrapping_add(offset),
            Place::Weight(offset) => self.weights.as_ptr().cast_mut().wrapping_add(offset),
            Place::Input(index) => self.input.start().wrapping_add(self.input_offsets[index]),
            Place::Cache { group, tensor } => {
                self.cache.start().wrapping_add(self.groups[group].tensors[tensor].offset)
            }
        }
    }

    fn copy_page(&self, copy: &PageCopy) {
        for tensor in &self.groups[copy.group as usize].tensors {
            let page = |page: u32| self.cache.start().wrapping_add(tensor.offset + page as usize * tensor.page_bytes);
            // SAFETY: `bring_in` promises that both pages exist and that nobody uses them meanwhile. `copy` allows overlap,
            // so equal pages do no harm.
            unsafe { page(copy.to).copy_from(page(copy.from), tensor.page_bytes) };
        }
    }
}
