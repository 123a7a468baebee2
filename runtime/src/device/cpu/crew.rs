//! The threads of the CPU device, and the order in which they work.
//!
//! One crew serves all programs of a plan: threads that wait for a program's next step would disturb those that run
//! another's. Steps run one after the other in the order in which they were submitted. Whoever waits for a step conducts,
//! as worker 0: it takes steps from the queue until its own has run, brings each into memory, releases the others, works
//! itself, and hands the output over. So nobody has to be woken when a step ends, and no thread waits for results on a CPU
//! that computes them. The others follow. A worker that panics makes all programs fail: nobody waits for it in vain.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread::{self, JoinHandle},
};

use super::{
    sync::{Abandoned, Barrier, Signal, lock},
    topology::{self, Cpus, Workers},
    worker::Shared,
};
use crate::{
    device::options::DeviceOptions,
    error::{Error, Result},
};

/// What a signal is raised to when workers shall end.
const SHUTDOWN: u64 = u64::MAX;

/// Worker threads, all but the first worker's. They end when the last device that they serve is gone.
#[derive(Debug)]
pub struct Crew {
    core: Arc<Core>,
    followers: Vec<JoinHandle<()>>,
    cpu: Option<usize>, // of who conducts
    warning: Option<String>,
}

/// What the workers and the devices share.
#[derive(Debug)]
struct Core {
    queue: Mutex<VecDeque<Job>>,
    conducted: Mutex<u64>, // steps in all; held by who conducts
    current: RwLock<Option<Job>>,
    released: Signal, // steps that followers may work on
    barrier: Barrier,
    failure: Mutex<Option<String>>,
}

/// A step of a program.
#[derive(Clone, Debug)]
struct Job {
    program: Arc<Shared>,
    ticket: u64,
}

impl Crew {
    /// Starts as many workers as the options ask for, or as suit the machine.
    pub fn start(options: &DeviceOptions) -> Result<Arc<Crew>> {
        let cpus = Cpus::here();
        let Workers { count, warning } = cpus.workers(options.threads)?;
        let core = Arc::new(Core {
            queue: Mutex::default(),
            conducted: Mutex::default(),
            current: RwLock::default(),
            released: Signal::default(),
            barrier: Barrier::new(count),
            failure: Mutex::default(),
        });
        let cpu_of = |worker| cpus.of_worker(worker, count).filter(|_| !options.unpinned);
        let mut crew = Crew { core, followers: Vec::with_capacity(count - 1), cpu: cpu_of(0), warning };
        for worker in 1..count {
            let (core, cpu) = (Arc::clone(&crew.core), cpu_of(worker));
            let run = move || {
                cpu.inspect(|&cpu| topology::pin(cpu));
                core.follow(worker);
            };
            let thread = thread::Builder::new().name(format!("lathe-worker-{worker}")).spawn(run);
            crew.followers.push(thread.map_err(|source| Error::Thread { worker, source })?);
        }
        Ok(Arc::new(crew))
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.followers.len() + 1
    }

    /// Why they will be slower than could be, and what to do.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Lines a step up that its program holds, after those that were submitted before.
    pub fn submit(&self, program: &Arc<Shared>, ticket: u64) {
        lock(&self.core.queue).push_back(Job { program: Arc::clone(program), ticket });
    }

    /// Runs the steps in the queue, as worker 0, until this one has run.
    pub fn run_until(&self, program: &Shared, ticket: u64) {
        if program.has_finished(ticket) {
            return;
        }
        let mut conducted = lock(&self.core.conducted);
        self.cpu.inspect(|&cpu| topology::move_to(cpu));
        while !program.has_finished(ticket) {
            let Some(job) = lock(&self.core.queue).pop_front() else { return };
            *conducted += 1;
            self.core.conduct(job, *conducted);
        }
    }

    /// Why the workers failed, if they did.
    pub fn failure(&self) -> Option<Error> {
        self.core.failure()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.core.released.raise(SHUTDOWN);
        for thread in self.followers.drain(..) {
            // A worker's panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Core {
    /// Runs a step, the one of this number, from its inputs to its output.
    fn conduct(&self, Job { program, ticket }: Job, number: u64) {
        let release = || {
            let job = Job { program: Arc::clone(&program), ticket };
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(job);
            self.released.raise(number);
        };
        let run = || program.run_step(ticket, &self.barrier, release);
        let outcome = match self.failure() {
            Some(failure) => Err(failure),
            None => catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
                self.fail(0, panic.as_ref());
                Err(Error::DeviceLost("worker 0 panicked".into()))
            }),
        };
        // All have read it; and a program that is not needed any more shall not stay for its sake.
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
        program.finish(ticket, outcome.map_err(|error| self.failure().unwrap_or(error)));
    }

    /// The life of another worker.
    fn follow(&self, worker: usize) {
        let mut seen = 0;
        loop {
            seen = self.released.wait(seen + 1);
            if seen == SHUTDOWN {
                return;
            }
            // It stays until this worker has done its share.
            let job = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(Job { program, ticket }) = job else { return };
            match catch_unwind(AssertUnwindSafe(|| program.join_step(ticket, worker, &self.barrier))) {
                Ok(Ok(())) => {}
                Ok(Err(Abandoned)) => return,
                Err(panic) => return self.fail(worker, panic.as_ref()),
            }
        }
    }

    fn failure(&self) -> Option<Error> {
        lock(&self.failure).clone().map(Error::DeviceLost)
    }

    fn fail(&self, worker: usize, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        lock(&self.failure).get_or_insert_with(|| format!("worker {worker} panicked: {text}"));
        self.barrier.abandon();
    }
}
