//! The threads of the CPU device.
//!
//! Worker 0 conducts: it takes submitted steps in order, brings each into memory, releases the others, works itself, and
//! hands the output over. The others follow. Within a step all run the same list of launches and meet at barriers; then
//! they share out the rows to sample. A worker that panics makes the device fail: nobody waits for it in vain.

#![expect(unsafe_code, reason = "launches work on raw memory")]

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::{
    machine::Machine,
    sync::{Abandoned, Barrier, Signal, lock},
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

/// What a signal is raised to when workers shall end.
const SHUTDOWN: u64 = u64::MAX;

/// What the workers and the device share.
#[derive(Debug)]
pub struct Shared {
    machine: Machine,
    vocabulary: usize,
    workers: usize,
    poison: bool,
    slots: [Slot; IN_FLIGHT], // of ticket t: t mod IN_FLIGHT
    numbers: RwLock<Numbers>,
    rows: Vec<Mutex<RowOutput>>, // [R]
    submitted: Signal,           // steps that may run
    released: Signal,            // steps that followers may work on
    finished: Signal,            // steps whose output is there
    barrier: Barrier,
    failure: Mutex<Option<String>>,
    recording: AtomicBool,
    logs: Vec<Mutex<Vec<Span>>>, // [workers]
}

/// A step in flight.
#[derive(Debug, Default)]
struct Slot {
    step: RwLock<Step>,
    result: Mutex<(StepOutput, Option<Error>)>,
}

/// The tokens that the last steps sampled, by ticket mod [`IN_FLIGHT`].
type Recent = [Option<(u64, Vec<u32>)>; IN_FLIGHT];

impl Shared {
    /// The state before the first step.
    pub fn new(machine: Machine, limits: &Limits, workers: usize, poison: bool) -> Shared {
        let mut rows = Vec::new();
        rows.resize_with(limits.max.rows as usize, Mutex::default);
        Shared {
            machine,
            vocabulary: limits.vocabulary as usize,
            workers,
            poison,
            slots: Default::default(),
            numbers: RwLock::default(),
            rows,
            submitted: Signal::default(),
            released: Signal::default(),
            finished: Signal::default(),
            barrier: Barrier::new(workers),
            failure: Mutex::new(None),
            recording: AtomicBool::new(false),
            logs: (0..workers).map(|_| Mutex::default()).collect(),
        }
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

    /// Starts a step that has been checked. Its slot must be free.
    pub fn submit(&self, ticket: u64, step: &Step) {
        self.slot(ticket).step.write().unwrap_or_else(PoisonError::into_inner).clone_from(step);
        self.submitted.raise(ticket + 1);
    }

    /// Waits for a step and takes its output in exchange for an old one, whose memory is used again.
    pub fn collect(&self, ticket: u64, output: &mut StepOutput) -> Result<()> {
        self.finished.wait(ticket + 1);
        let mut result = lock(&self.slot(ticket).result);
        std::mem::swap(&mut result.0, output);
        result.1.take().map_or(Ok(()), Err)
    }

    /// Asks all workers to end when they are done with the step at hand.
    pub fn shut_down(&self) {
        self.submitted.raise(SHUTDOWN);
    }

    /// Why the device failed, if it did.
    pub fn failure(&self) -> Option<Error> {
        lock(&self.failure).clone().map(Error::DeviceLost)
    }

    /// The life of a worker.
    pub fn run(&self, worker: usize) {
        let sampler = Sampler::new(self.vocabulary);
        if worker == 0 { self.conduct(sampler) } else { self.follow(worker, sampler) }
    }

    fn conduct(&self, mut sampler: Sampler) {
        let mut recent = Recent::default();
        let mut tokens = Vec::new();
        for ticket in 0.. {
            if self.submitted.wait_busy(ticket + 1) == SHUTDOWN {
                self.released.raise(SHUTDOWN);
                return;
            }
            let run = || self.run_step(ticket, &mut recent, &mut tokens, &mut sampler);
            let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
                self.fail(0, panic.as_ref());
                Err(Error::DeviceLost("worker 0 panicked".into()))
            });
            if let Err(error) = outcome {
                recent[ticket as usize % IN_FLIGHT] = None;
                lock(&self.slot(ticket).result).1 = Some(self.failure().unwrap_or(error));
            }
            self.finished.raise(ticket + 1);
        }
    }

    fn follow(&self, worker: usize, mut sampler: Sampler) {
        let mut seen = 0;
        loop {
            seen = self.released.wait_busy(seen + 1);
            if seen == SHUTDOWN {
                return;
            }
            let mut recorder = self.recorder(worker);
            let step = self.slot(seen - 1).step.read().unwrap_or_else(PoisonError::into_inner);
            match catch_unwind(AssertUnwindSafe(|| self.work(worker, &step, &mut sampler, &mut recorder))) {
                Ok(Ok(())) => {}
                Ok(Err(Abandoned)) => return,
                Err(panic) => return self.fail(worker, panic.as_ref()),
            }
        }
    }

    /// Runs a step from its inputs to its output.
    fn run_step(&self, ticket: u64, recent: &mut Recent, tokens: &mut Vec<u32>, sampler: &mut Sampler) -> Result<()> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let mut recorder = self.recorder(0);
        let slot = self.slot(ticket);
        let step = slot.step.read().unwrap_or_else(PoisonError::into_inner);
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
        self.released.raise(ticket + 1);
        recorder.done(Work::BringIn);
        let lost = |Abandoned| Error::DeviceLost("a worker failed".into());
        self.work(0, &step, sampler, &mut recorder).map_err(lost)?;

        let mut result = lock(&slot.result);
        let output = &mut result.0;
        output.rows.resize_with(step.rows.len(), RowOutput::default);
        for (row, picked) in output.rows.iter_mut().zip(&self.rows) {
            std::mem::swap(row, &mut *lock(picked));
        }
        let (known, sampled) = recent[ticket as usize % IN_FLIGHT].get_or_insert_default();
        *known = ticket;
        sampled.clear();
        sampled.extend(output.rows.iter().map(|row| row.token));
        recorder.done(Work::HandOver);
        Ok(())
    }

    /// A worker's share of a step. When it returns, all workers have done theirs.
    fn work(
        &self,
        worker: usize,
        step: &Step,
        sampler: &mut Sampler,
        recorder: &mut Recorder,
    ) -> Result<(), Abandoned> {
        let numbers = self.numbers.read().unwrap_or_else(PoisonError::into_inner);
        for (index, launch) in self.machine.buckets()[numbers.bucket].launches.iter().enumerate() {
            if launch.barrier && index > 0 {
                self.barrier.wait()?;
                recorder.done(Work::Wait);
            }
            // SAFETY: the step was brought in before it was released, each thread has its own worker index, and the plan
            // has a barrier before every launch that depends on earlier ones.
            unsafe { self.machine.launch(&numbers, index, worker) };
            recorder.done(Work::Launch(index));
        }
        self.barrier.wait()?;
        recorder.done(Work::Wait);
        for index in (worker..step.rows.len()).step_by(self.workers) {
            // SAFETY: all launches have finished at the barrier, and the next step starts after the one below.
            let logits = unsafe { self.machine.logits(&numbers, index) };
            wide::pick(&step.rows[index], logits, sampler, &mut lock(&self.rows[index]));
        }
        recorder.done(Work::Sample);
        drop(numbers);
        self.barrier.wait()?;
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

    fn fail(&self, worker: usize, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        lock(&self.failure).get_or_insert_with(|| format!("worker {worker} panicked: {text}"));
        self.barrier.abandon();
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
