//! The CPU device: runs a plan's x86-64 code on pinned worker threads.
//!
//! From the bottom up: `memory` maps memory and code, `float` is the kernels' floating-point mode, `machine` holds a
//! loaded program and calls its kernels, `sync` is how threads wait, `worker` is what they do. `features`, `matrix`,
//! `topology` and `quota` describe the machine, `roofline` measures it, and `room` says whether a plan fits.

pub mod features;
mod float;
mod machine;
mod matrix;
mod memory;
pub mod quota;
pub mod roofline;
pub mod room;
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
use super::{Device, Limits, Step, StepOutput, Ticket, options::DeviceOptions, tickets::Tickets, timeline::Timeline};
use crate::error::{Error, Result};

/// How the targets of CPU code are called, before their level.
const TARGET_PREFIX: &str = "x86-64";

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
    /// Loads a plan's main program.
    pub fn load(plan: &Plan, options: &DeviceOptions) -> Result<CpuDevice> {
        CpuDevice::load_where(plan, options, features::has)
    }

    /// Loads a plan's main program on a CPU of these features.
    fn load_where(plan: &Plan, options: &DeviceOptions, has: impl Fn(&str) -> bool) -> Result<CpuDevice> {
        let missing = |what: &str| Error::Plan(PlanError::Missing { what: what.to_owned() });
        let program = plan.program("main").ok_or_else(|| missing("program `main`"))?;
        // The target is checked before any code is mapped.
        let codes: Vec<&Code> =
            plan.codes("main").filter(|code| code.object.target.starts_with(TARGET_PREFIX)).collect();
        let code = features::choose(&codes, options.target.as_deref(), has)?;
        // What will not fit is refused before anything is allocated, and so is a number of threads that makes no sense.
        let workers = Cpus::here().workers(options.threads)?;
        room::needs(program, options, workers.count).fit(quota::memory_left(&quota::file))?;
        let kernels = Kernels::map(&code.object, program.kernels.len())?;
        let readers = thread::available_parallelism().map_or(1, usize::from);
        let weights = plan.load_weights("main", &code.layout, options.load, readers)?;
        CpuDevice::start(program, kernels, Box::new(weights), options)
    }

    /// Allocates a program's memory and starts the workers.
    fn start(program: &Program, kernels: Kernels, weights: WeightBytes, options: &DeviceOptions) -> Result<CpuDevice> {
        let cpus = Cpus::here();
        let Workers { count: workers, warning } = cpus.workers(options.threads)?;
        let limits = Limits::of(program, options.cache_tokens);
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
