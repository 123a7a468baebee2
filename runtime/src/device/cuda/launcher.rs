//! How a step's kernels are started: one after the other, or all at once as a graph that was made before.
//!
//! A graph holds the launches of one size of step, with their arguments. The sizes of decoding come again and again, and
//! starting one by one what takes a GPU some microseconds would take the host longer than the GPU.

#![expect(unsafe_code, reason = "launches work on the device's memory")]

use std::{collections::HashMap, ffi::c_void};

use lathe_plan::program::{Grid, StepSize};

use super::driver::{Graph, Module, Stream};
use crate::{
    error::Result,
    exec::{Numbers, Prepared},
};

/// Most blocks of a launch along its first axis, by the driver's rules.
const MOST_BLOCKS: u64 = i32::MAX as u64;
/// Most graphs that are kept.
const MOST_GRAPHS: usize = 128;

/// The launches of a program's steps, every address resolved.
#[derive(Debug)]
pub struct Launcher {
    pub buckets: Vec<Prepared>,
    pub addresses: Vec<Vec<u64>>, // [buckets][places]
    pub grids: Vec<Grid>,         // [kernels]
    pub module: Module,
    graphs: Option<Graphs>,
    arguments: Vec<u64>,
    pointers: Vec<*mut c_void>,
}

// SAFETY: the pointers are only used while a launch is handed over.
unsafe impl Send for Launcher {}

/// Graphs by the size of their step.
#[derive(Debug, Default)]
struct Graphs {
    of: HashMap<StepSize, Graph>,
    /// The size of the last step.
    last: StepSize,
}

impl Launcher {
    /// Launches that are started one by one.
    pub fn new(buckets: Vec<Prepared>, addresses: Vec<Vec<u64>>, grids: Vec<Grid>, module: Module) -> Launcher {
        Launcher { buckets, addresses, grids, module, graphs: None, arguments: Vec::new(), pointers: Vec::new() }
    }

    /// From here on steps are started as graphs. Those of decoding as many sequences as the smallest bucket takes are made
    /// now, others when their size comes a second time in a row. What they compute is the same to the last bit.
    pub fn use_graphs(&mut self, stream: &Stream) -> Result<()> {
        let mut numbers = Numbers::default();
        let mut graphs = Graphs::default();
        let max = self.buckets.first().map(|bucket| bucket.max).unwrap_or_default();
        for n in 1..=max.tokens.min(max.sequences).min(max.rows) {
            let size = StepSize { tokens: n, sequences: n, rows: n };
            numbers.evaluate(&self.buckets, size)?;
            graphs.of.insert(size, stream.capture(|| self.start_all(stream, &numbers))?);
        }
        self.graphs = Some(graphs);
        Ok(())
    }

    /// Starts the launches of a step.
    pub fn start(&mut self, stream: &Stream, size: StepSize, numbers: &Numbers) -> Result<()> {
        let Some(mut graphs) = self.graphs.take() else { return self.start_all(stream, numbers) };
        let comes_again = std::mem::replace(&mut graphs.last, size) == size;
        let started = match graphs.of.get(&size) {
            // SAFETY: as in `start_launch`, with the same arguments.
            Some(graph) => unsafe { stream.start(graph) },
            None if comes_again && graphs.of.len() < MOST_GRAPHS => {
                stream.capture(|| self.start_all(stream, numbers)).and_then(|graph| {
                    // SAFETY: as above.
                    unsafe { stream.start(graphs.of.entry(size).or_insert(graph)) }
                })
            }
            None => self.start_all(stream, numbers),
        };
        self.graphs = Some(graphs);
        started
    }

    fn start_all(&mut self, stream: &Stream, numbers: &Numbers) -> Result<()> {
        (0..self.buckets[numbers.bucket].launches.len()).try_for_each(|index| self.start_launch(stream, numbers, index))
    }

    /// Starts a launch: the kernel's buffers, its parameters, and how many units there are.
    fn start_launch(&mut self, stream: &Stream, numbers: &Numbers, index: usize) -> Result<()> {
        let launch = &self.buckets[numbers.bucket].launches[index];
        let units = numbers.units[index];
        let Grid { threads, units: per_block, rows } = self.grids[launch.kernel];
        let blocks = units.div_ceil(u64::from(per_block)).min(MOST_BLOCKS) as u32;
        let row_blocks = match rows {
            0 => 1,
            rows => (numbers.params[launch.params.start] as u64).div_ceil(u64::from(rows)) as u32,
        };
        // A driver takes no launch without blocks: a step whose logits nobody wants has no rows for the head.
        if blocks == 0 || row_blocks == 0 {
            return Ok(());
        }
        self.arguments.clear();
        self.arguments.extend_from_slice(&self.addresses[numbers.bucket][launch.places.clone()]);
        self.arguments.extend(numbers.params[launch.params.clone()].iter().map(|&param| param as u64));
        self.arguments.push(units);
        // SAFETY: the plan's verifier has checked that what the kernel touches with these parameters lies inside its
        // buffers, which are allocated in full; launches run in order, so each finds the results of those before it.
        unsafe {
            let (arguments, pointers) = (&mut self.arguments, &mut self.pointers);
            stream.launch(&self.module, launch.kernel, [blocks, row_blocks], threads, arguments, pointers)
        }
    }
}
