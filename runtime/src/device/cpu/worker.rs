//! A program in memory, its steps in flight, and what a worker does of each. The workers are those of [`super::crew`].
//!
//! Within a step all workers run the same list of launches and meet at barriers; then they share out the rows to sample.

#![expect(unsafe_code, reason = "launches work on raw memory")]

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    machine::Machine,
    sync::{Abandoned, Barrier, lock},
};
use crate::{
    device::{
        IN_FLIGHT, Limits, RowOutput, Step, StepOutput, StepToken,
        timeline::{Span, Timeline, Work},
        wide,
    },
    error::{Error, Result},
    exec::Numbers,
    sample::Sampler,
};

/// What the workers and the device of a program share.
#[derive(Debug)]
pub struct Shared {
    machine: Machine,
    workers: usize,
    poison: bool,
    slots: [Slot; IN_FLIGHT], // of ticket t: t mod IN_FLIGHT
    known: Mutex<Known>,
    numbers: RwLock<Numbers>,
    samplers: Vec<Mutex<Sampler>>, // [workers]
    rows: Vec<Mutex<RowOutput>>,   // [R]
    finished: AtomicU64,           // steps whose output is there
    recording: AtomicBool,
    logs: Vec<Mutex<Vec<Span>>>, // [workers]
}

/// A step in flight.
#[derive(Debug, Default)]
struct Slot {
    step: RwLock<Step>,
    result: Mutex<(StepOutput, Option<Error>)>,
}

/// What is known of tokens when a step begins.
#[derive(Debug, Default)]
struct Known {
    recent: Recent,
    tokens: Vec<u32>, // [T] of the step
}

/// The tokens that the last steps sampled, by ticket mod [`IN_FLIGHT`].
type Recent = [Option<(u64, Vec<u32>)>; IN_FLIGHT];

impl Shared {
    /// The state before the first step.
    pub fn new(machine: Machine, limits: &Limits, workers: usize, poison: bool) -> Shared {
        let mut rows = Vec::new();
        rows.resize_with(limits.max.rows as usize, Mutex::default);
        let sampler = |_| Mutex::new(Sampler::new(limits.vocabulary as usize));
        Shared {
            machine,
            workers,
            poison,
            slots: Default::default(),
            known: Mutex::default(),
            numbers: RwLock::default(),
            samplers: (0..workers).map(sampler).collect(),
            rows,
            finished: AtomicU64::default(),
            recording: AtomicBool::new(false),
            logs: (0..workers).map(|_| Mutex::default()).collect(),
        }
    }

    /// The program in memory.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Whether workers write down what they do from the next step on.
    pub fn record(&self, on: bool) {
        self.recording.store(on, Ordering::Relaxed);
    }

    /// What the workers wrote down in the last step. None may be in flight.
    pub fn timeline(&self) -> Option<Timeline> {
        let is_recorded = self.recording.load(Ordering::Relaxed);
        let bucket = self.numbers.read().unwrap_or_else(PoisonError::into_inner).bucket;
        is_recorded.then(|| Timeline { bucket, workers: self.logs.iter().map(|log| lock(log).clone()).collect() })
    }

    /// Takes a step that has been checked. Its slot must be free.
    pub fn hold(&self, ticket: u64, step: &Step) {
        self.slot(ticket).step.write().unwrap_or_else(PoisonError::into_inner).clone_from(step);
    }

    /// Whether a step has ended.
    pub fn has_finished(&self, ticket: u64) -> bool {
        self.finished.load(Ordering::Acquire) > ticket
    }

    /// Takes the output of a step that has ended in exchange for an old one, whose memory is used again.
    pub fn collect(&self, ticket: u64, output: &mut StepOutput) -> Result<()> {
        let mut result = lock(&self.slot(ticket).result);
        std::mem::swap(&mut result.0, output);
        result.1.take().map_or(Ok(()), Err)
    }

    /// Says that a step has ended, and how. Worker 0 does this.
    pub fn finish(&self, ticket: u64, outcome: Result<()>) {
        if let Err(error) = outcome {
            lock(&self.known).recent[ticket as usize % IN_FLIGHT] = None;
            lock(&self.slot(ticket).result).1 = Some(error);
        }
        self.finished.store(ticket + 1, Ordering::Release);
    }

    /// Runs a step from its inputs to its output, as worker 0. The others may join when it is `release`d.
    pub fn run_step(&self, ticket: u64, barrier: &Barrier, release: impl FnOnce()) -> Result<()> {
        let mut recorder = self.recorder(0);
        let slot = self.slot(ticket);
        let step = slot.step.read().unwrap_or_else(PoisonError::into_inner);
        let mut known = lock(&self.known);
        let Known { recent, tokens } = &mut *known;
        tokens.clear();
        for &token in &step.tokens {
            tokens.push(resolve(token, recent)?);
        }
        self.numbers.write().unwrap_or_else(PoisonError::into_inner).evaluate(self.machine.buckets(), step.size())?;
        // SAFETY: the step was checked when it was submitted, and tokens that were sampled are below the vocabulary. The
        // other workers wait to be released: the step before this one has ended with a barrier that all have reached.
        unsafe {
            if self.poison {
                self.machine.poison();
            }
            self.machine.bring_in(&step, tokens);
        }
        release();
        recorder.done(Work::BringIn);
        let lost = |Abandoned| Error::DeviceLost("a worker failed".into());
        self.work(0, &step, barrier, &mut recorder).map_err(lost)?;

        let mut result = lock(&slot.result);
        let output = &mut result.0;
        output.rows.resize_with(step.rows.len(), RowOutput::default);
        for (row, picked) in output.rows.iter_mut().zip(&self.rows) {
            std::mem::swap(row, &mut *lock(picked));
        }
        let (of, sampled) = recent[ticket as usize % IN_FLIGHT].get_or_insert_default();
        *of = ticket;
        sampled.clear();
        sampled.extend(output.rows.iter().map(|row| row.token));
        recorder.done(Work::HandOver);
        Ok(())
    }

    /// Does another worker's share of a step that was released.
    pub fn join_step(&self, ticket: u64, worker: usize, barrier: &Barrier) -> Result<(), Abandoned> {
        let mut recorder = self.recorder(worker);
        let step = self.slot(ticket).step.read().unwrap_or_else(PoisonError::into_inner);
        self.work(worker, &step, barrier, &mut recorder)
    }

    /// A worker's share of a step. When it returns, all workers have done theirs.
    fn work(&self, worker: usize, step: &Step, barrier: &Barrier, recorder: &mut Recorder) -> Result<(), Abandoned> {
        let numbers = self.numbers.read().unwrap_or_else(PoisonError::into_inner);
        for (index, launch) in self.machine.buckets()[numbers.bucket].launches.iter().enumerate() {
            if launch.barrier && index > 0 {
                barrier.wait()?;
                recorder.done(Work::Wait);
            }
            // SAFETY: the step was brought in before it was released, each thread has its own worker index, and the plan
            // has a barrier before every launch that depends on earlier ones.
            unsafe { self.machine.launch(&numbers, index, worker) };
            recorder.done(Work::Launch(index));
        }
        barrier.wait()?;
        recorder.done(Work::Wait);
        let mut sampler = lock(&self.samplers[worker]);
        for index in (worker..step.rows.len()).step_by(self.workers) {
            // SAFETY: all launches have finished at the barrier, and the next step starts after the one below.
            let logits = unsafe { self.machine.logits(&numbers, index) };
            wide::pick(&step.rows[index], logits, &mut sampler, &mut lock(&self.rows[index]));
        }
        recorder.done(Work::Sample);
        drop((sampler, numbers));
        barrier.wait()?;
        recorder.done(Work::Wait);
        Ok(())
    }

    /// What a worker writes a step down with.
    fn recorder(&self, worker: usize) -> Recorder<'_> {
        let log = self.recording.load(Ordering::Relaxed).then(|| {
            let mut log = lock(&self.logs[worker]);
            log.clear();
            log
        });
        Recorder { log, last: Instant::now() }
    }

    fn slot(&self, ticket: u64) -> &Slot {
        &self.slots[ticket as usize % IN_FLIGHT]
    }
}

/// Writes down what a worker does, if that is wanted: each entry lasts from the one before it until now.
struct Recorder<'a> {
    log: Option<MutexGuard<'a, Vec<Span>>>,
    last: Instant,
}

impl Recorder<'_> {
    fn done(&mut self, work: Work) {
        if let Some(log) = &mut self.log {
            let now = Instant::now();
            log.push(Span { work, start: self.last, end: now });
            self.last = now;
        }
    }
}

/// The id of a token.
fn resolve(token: StepToken, recent: &Recent) -> Result<u32> {
    match token {
        StepToken::Known(token) => Ok(token),
        StepToken::SampledBy(ticket, row) => {
            let sampled = recent[ticket.0 as usize % IN_FLIGHT].as_ref().filter(|(known, _)| *known == ticket.0);
            let token = sampled.and_then(|(_, tokens)| tokens.get(row as usize)).copied();
            token.ok_or_else(|| Error::Step(format!("step {}, which samples one of its tokens, has failed", ticket.0)))
        }
    }
}
