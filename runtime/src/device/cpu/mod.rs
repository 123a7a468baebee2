//! The CPU device: runs a plan's x86-64 code on pinned worker threads.
//!
//! From the bottom up: `memory` maps memory and code, `float` is the kernels' floating-point mode, `machine` holds a
//! loaded program and calls its kernels, `sync` is how threads wait, `worker` is what they do of a step, and `crew` are the
//! threads, which all programs of a plan share. `features`, `matrix`, `topology` and `quota` describe the machine, and
//! `roofline` measures it.

mod crew;
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

use std::{sync::Arc, thread};

use lathe_plan::{Code, Plan, PlanError, program::Program};

pub use self::crew::Crew;
use self::{
    machine::{Machine, WeightBytes},
    memory::Kernels,
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
        let fitting = room::cache_tokens(program, (rest / 4).min(MOST_CACHE_BYTES));
        fitting.min(options.most_cache_tokens.unwrap_or(usize::MAX))
    }))
}

/// Runs the x86-64 code of a plan on pinned worker threads.
#[derive(Debug)]
pub struct CpuDevice {
    limits: Limits,
    shared: Arc<Shared>,
    crew: Arc<Crew>,
    tickets: Tickets,
}

/// What a loaded program shares with others over the same weights and cache.
#[derive(Clone, Debug)]
pub struct Host {
    limits: Limits,
    shared: Arc<Shared>,
    crew: Arc<Crew>,
}

impl Host {
    /// The threads.
    pub fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// A program over the same weights and in the same cache, which takes turns with the one that was loaded.
    pub fn run_beside(&self, program: &Program, options: &DeviceOptions) -> Result<CpuDevice> {
        let machine = self.shared.machine().beside(program)?;
        let (limits, crew) = (self.limits.clone(), Arc::clone(&self.crew));
        let shared = Arc::new(Shared::new(machine, &limits, crew.workers(), options.poison));
        Ok(CpuDevice { limits, shared, crew, tickets: Tickets::default() })
    }
}

impl CpuDevice {
    /// What it shares with other programs.
    pub fn host(&self) -> Host {
        Host { limits: self.limits.clone(), shared: Arc::clone(&self.shared), crew: Arc::clone(&self.crew) }
    }

    /// Loads a program of a plan for workers that may serve others, too.
    pub fn load(plan: &Plan, program: &str, options: &DeviceOptions, crew: Arc<Crew>) -> Result<CpuDevice> {
        CpuDevice::load_where(plan, program, options, crew, features::has)
    }

    /// Loads a program of a plan on a CPU of these features.
    fn load_where(
        plan: &Plan,
        name: &str,
        options: &DeviceOptions,
        crew: Arc<Crew>,
        has: impl Fn(&str) -> bool,
    ) -> Result<CpuDevice> {
        let missing = || Error::Plan(PlanError::Missing { what: format!("program `{name}`") });
        let program = plan.program(name).ok_or_else(missing)?;
        // The target is checked before any code is mapped.
        let codes: Vec<&Code> = plan.codes(name).filter(|code| code.object.target.starts_with(TARGET_PREFIX)).collect();
        let code = features::choose(&codes, options.target.as_deref(), has)?;
        // What will not fit is refused before anything is allocated.
        let left = quota::memory_left(&quota::file);
        let needs = needs(program, options, crew.workers(), left);
        needs.fit(left)?;
        let kernels = Kernels::map(&code.object, program.kernels.len())?;
        let readers = thread::available_parallelism().map_or(1, usize::from);
        let weights = plan.load_weights(name, &code.layout, options.load, readers)?;
        CpuDevice::start(program, kernels, Box::new(weights), needs.cache_tokens(), options, crew)
    }

    /// Allocates a program's memory.
    fn start(
        program: &Program,
        kernels: Kernels,
        weights: WeightBytes,
        cache_tokens: usize,
        options: &DeviceOptions,
        crew: Arc<Crew>,
    ) -> Result<CpuDevice> {
        let limits = Limits::of(program, cache_tokens);
        let pages: Vec<u32> = limits.groups.iter().map(|group| group.pages).collect();
        let machine = Machine::new(program, kernels, weights, crew.workers(), &pages)?;
        let shared = Arc::new(Shared::new(machine, &limits, crew.workers(), options.poison));
        Ok(CpuDevice { limits, shared, crew, tickets: Tickets::default() })
    }
}

impl Device for CpuDevice {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket> {
        if let Some(failure) = self.crew.failure() {
            return Err(failure);
        }
        step.check(&self.limits)?;
        self.tickets.admit(step)?;
        self.shared.hold(self.tickets.next(), step);
        self.crew.submit(&self.shared, self.tickets.next());
        Ok(Ticket(self.tickets.issue(step.rows.len())))
    }

    fn collect(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<()> {
        self.tickets.redeem(ticket)?;
        self.crew.run_until(&self.shared, ticket.0);
        self.shared.collect(ticket.0, output)
    }

    fn record(&mut self, on: bool) {
        self.shared.record(on);
    }

    fn timeline(&mut self) -> Option<Timeline> {
        self.shared.timeline()
    }
}

#[cfg(test)]
mod tests;
