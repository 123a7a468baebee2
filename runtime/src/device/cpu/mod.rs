//! The CPU device: runs a plan's x86-64 code on pinned worker threads.
//!
//! From the bottom up: `memory` maps memory and code, `float` is the kernels' floating-point mode, `machine` holds a
//! loaded program and calls its kernels, `sync` is how threads wait, `worker` is what they do. `features`, `matrix`,
//! `topology` and `quota` describe the machine, and `roofline` measures it.

pub mod features;
mod float;
mod machine;
mod matrix;
mod memory;
pub mod quota;
pub mod roofline;
mod sync;
pub mod topology;
mod worker;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
};

use lathe_plan::{Code, Plan, PlanError, program::Program};

use self::{
    machine::{Machine, WeightBytes},
    memory::Kernels,
    topology::{Cpus, Workers},
    worker::Shared,
};
use super::{
    Device, Limits, Step, StepOutput, Ticket,
    options::DeviceOptions,
    room::{self, Needs},
    tickets::Tickets,
    timeline::Timeline,
};
use crate::error::{Error, Result};

/// How the targets of CPU code are called, before their level.
const TARGET_PREFIX: &str = "x86-64";

/// Bytes that a cache takes at most unless told how large it shall be. It takes them only as they are used.
const MOST_CACHE_BYTES: u64 = 4 << 30;

/// What a program needs of a machine that has so many bytes left. Unless told otherwise, its cache may take a quarter of
/// what weights and results leave, and at most 4 GiB.
pub fn needs(program: &Program, options: &DeviceOptions, workers: usize, left: Option<u64>) -> Needs {
    let of = |cache_tokens| room::needs(program, cache_tokens, options.load, workers);
    of(options.cache_tokens.unwrap_or_else(|| {
        let rest = left.unwrap_or(0).saturating_sub(of(0).without_cache());
        room::cache_tokens(program, (rest / 4).min(MOST_CACHE_BYTES))
    }))
}

/// Runs the x86-64 code of a plan on pinned worker threads.
#[derive(Debug)]
pub struct CpuDevice {
    limits: Limits,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    tickets: Tickets,
    warning: Option<String>,
}

impl CpuDevice {
    /// Loads a program of a plan.
    pub fn load(plan: &Plan, program: &str, options: &DeviceOptions) -> Result<CpuDevice> {
        CpuDevice::load_where(plan, program, options, features::has)
    }

    /// Loads a program of a plan on a CPU of these features.
    fn load_where(plan: &Plan, name: &str, options: &DeviceOptions, has: impl Fn(&str) -> bool) -> Result<CpuDevice> {
        let missing = || Error::Plan(PlanError::Missing { what: format!("program `{name}`") });
        let program = plan.program(name).ok_or_else(missing)?;
        // The target is checked before any code is mapped.
        let codes: Vec<&Code> = plan.codes(name).filter(|code| code.object.target.starts_with(TARGET_PREFIX)).collect();
        let code = features::choose(&codes, options.target.as_deref(), has)?;
        // What will not fit is refused before anything is allocated, and so is a number of threads that makes no sense.
        let workers = Cpus::here().workers(options.threads)?;
        let left = quota::memory_left(&quota::file);
        let needs = needs(program, options, workers.count, left);
        needs.fit(left)?;
        let kernels = Kernels::map(&code.object, program.kernels.len())?;
        let readers = thread::available_parallelism().map_or(1, usize::from);
        let weights = plan.load_weights(name, &code.layout, options.load, readers)?;
        CpuDevice::start(program, kernels, Box::new(weights), needs.cache_tokens(), options)
    }

    /// Allocates a program's memory and starts the workers.
    fn start(
        program: &Program,
        kernels: Kernels,
        weights: WeightBytes,
        cache_tokens: usize,
        options: &DeviceOptions,
    ) -> Result<CpuDevice> {
        let cpus = Cpus::here();
        let Workers { count: workers, warning } = cpus.workers(options.threads)?;
        let limits = Limits::of(program, cache_tokens);
        let pages: Vec<u32> = limits.groups.iter().map(|group| group.pages).collect();
        let machine = Machine::new(program, kernels, weights, workers, &pages)?;
        let shared = Arc::new(Shared::new(machine, &limits, workers, options.poison));
        let mut device = CpuDevice { limits, shared, threads: Vec::new(), tickets: Tickets::default(), warning };
        for worker in 0..workers {
            let shared = Arc::clone(&device.shared);
            let cpu = cpus.of_worker(worker, workers).filter(|_| !options.unpinned);
            let run = move || {
                cpu.inspect(|&cpu| topology::pin(cpu));
                shared.run(worker);
            };
            let thread = thread::Builder::new().name(format!("lathe-worker-{worker}")).spawn(run);
            device.threads.push(thread.map_err(|source| Error::Thread { worker, source })?);
        }
        Ok(device)
    }

    /// The number of worker threads.
    pub fn workers(&self) -> usize {
        self.threads.len()
    }

    /// Why the workers will be slower than could be, and what to do.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

impl Device for CpuDevice {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket> {
        if let Some(failure) = self.shared.failure() {
            return Err(failure);
        }
        step.check(&self.limits)?;
        self.tickets.admit(step)?;
        self.shared.submit(self.tickets.next(), step);
        Ok(Ticket(self.tickets.issue(step.rows.len())))
    }

    fn collect(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<()> {
        self.tickets.redeem(ticket)?;
        self.shared.collect(ticket.0, output)
    }

    fn record(&mut self, on: bool) {
        self.shared.record(on);
    }

    fn timeline(&mut self) -> Option<Timeline> {
        self.shared.timeline()
    }
}

impl Drop for CpuDevice {
    fn drop(&mut self) {
        self.shared.shut_down();
        for thread in self.threads.drain(..) {
            // A worker's panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
