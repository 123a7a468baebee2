//! The CPU device: runs a plan's x86-64 code on pinned worker threads.
//!
//! From the bottom up: `memory` maps memory and code, `float` is the kernels' floating-point mode, `machine` holds a
//! loaded program and calls its kernels, `sync` is how threads wait, `worker` is what they do, `features` and
//! `topology` describe the machine.

mod features;
mod float;
mod machine;
mod memory;
mod sync;
mod topology;
mod worker;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
};

use lathe_plan::{
    Code, LoadMode, Plan, PlanError,
    program::{Program, Retention},
};

use self::{
    machine::{Machine, WeightBytes},
    memory::Kernels,
    worker::Shared,
};
use super::{Device, GroupLimits, IN_FLIGHT, Limits, Step, StepOutput, StepToken, Ticket};
use crate::{
    error::{Error, Result},
    exec,
};

/// Positions that the cache holds unless told otherwise, if the model's context is not smaller.
const DEFAULT_CACHE_TOKENS: usize = 8192;

/// How the CPU device uses its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Worker threads; by default one per physical core that the process may use.
    pub threads: Option<usize>,
    /// Positions that the cache holds; by default the program's maximal context, at most 8192.
    pub cache_tokens: Option<usize>,
    /// Where the weights are kept.
    pub load: LoadMode,
    /// Whether each worker is pinned to a core, if there are enough.
    pub pin: bool,
    /// Whether memory is filled with NaNs before each step, to find what is read before it is written.
    pub poison: bool,
    /// The target whose code runs; by default the most demanding one that this CPU runs.
    pub target: Option<String>,
}

impl Default for CpuOptions {
    fn default() -> CpuOptions {
        CpuOptions {
            threads: None,
            cache_tokens: None,
            load: LoadMode::default(),
            pin: true,
            poison: false,
            target: None,
        }
    }
}

/// Runs the x86-64 code of a plan on pinned worker threads.
#[derive(Debug)]
pub struct CpuDevice {
    limits: Limits,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    next: u64,
    waiting: [bool; IN_FLIGHT], // by ticket mod IN_FLIGHT: whether it is still to be collected
    rows: [usize; IN_FLIGHT],   // likewise: its number of rows
}

impl CpuDevice {
    /// Loads a plan's main program.
    pub fn load(plan: &Plan, options: &CpuOptions) -> Result<CpuDevice> {
        CpuDevice::load_where(plan, options, features::has)
    }

    /// Loads a plan's main program on a CPU of these features.
    fn load_where(plan: &Plan, options: &CpuOptions, has: impl Fn(&str) -> bool) -> Result<CpuDevice> {
        let missing = |what: &str| Error::Plan(PlanError::Missing { what: what.to_owned() });
        let program = plan.program("main").ok_or_else(|| missing("program `main`"))?;
        // The target is checked before any code is mapped.
        let codes: Vec<&Code> = plan.codes("main").collect();
        let code = features::choose(&codes, options.target.as_deref(), has)?;
        let kernels = Kernels::map(&code.object, program.kernels.len())?;
        let readers = thread::available_parallelism().map_or(1, usize::from);
        let weights = plan.load_weights("main", &code.layout, options.load, readers)?;
        CpuDevice::start(program, kernels, Box::new(weights), options)
    }

    /// Allocates a program's memory and starts the workers.
    fn start(program: &Program, kernels: Kernels, weights: WeightBytes, options: &CpuOptions) -> Result<CpuDevice> {
        let cpus = topology::cpus();
        let workers = options.threads.unwrap_or_else(|| cpus.default_workers()).max(1);
        let limits = limits(program, options.cache_tokens);
        let pages: Vec<u32> = limits.groups.iter().map(|group| group.pages).collect();
        let machine = Machine::new(program, kernels, weights, workers, &pages)?;
        let shared = Arc::new(Shared::new(machine, &limits, workers, options.poison));
        let mut device = CpuDevice {
            limits,
            shared,
            threads: Vec::new(),
            next: 0,
            waiting: [false; IN_FLIGHT],
            rows: [0; IN_FLIGHT],
        };
        for worker in 0..workers {
            let shared = Arc::clone(&device.shared);
            let cpu = cpus.of_worker(worker, workers).filter(|_| options.pin);
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

    /// Checks that tokens which other steps sample are known, or will be when the step runs.
    fn check_sampled(&self, step: &Step) -> Result<()> {
        for &token in &step.tokens {
            let StepToken::SampledBy(ticket, row) = token else { continue };
            if ticket.0 >= self.next || self.next - ticket.0 > IN_FLIGHT as u64 {
                return Err(Error::Ticket(ticket.0));
            }
            let rows = self.rows[ticket.0 as usize % IN_FLIGHT];
            if row as usize >= rows {
                let text = format!("a token is what row {row} of step {} samples, which has {rows} rows", ticket.0);
                return Err(Error::Step(text));
            }
        }
        Ok(())
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
        self.check_sampled(step)?;
        let slot = self.next as usize % IN_FLIGHT;
        if self.waiting[slot] {
            return Err(Error::InFlight(IN_FLIGHT));
        }
        self.shared.submit(self.next, step);
        self.waiting[slot] = true;
        self.rows[slot] = step.rows.len();
        self.next += 1;
        Ok(Ticket(self.next - 1))
    }

    fn collect(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<()> {
        let slot = ticket.0 as usize % IN_FLIGHT;
        let known = ticket.0 < self.next && self.next - ticket.0 <= IN_FLIGHT as u64 && self.waiting[slot];
        if !known {
            return Err(Error::Ticket(ticket.0));
        }
        self.waiting[slot] = false;
        self.shared.collect(ticket.0, output)
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

/// What the device takes, with a cache for so many positions.
fn limits(program: &Program, cache_tokens: Option<usize>) -> Limits {
    let tokens = cache_tokens.unwrap_or(DEFAULT_CACHE_TOKENS.min(program.max_context as usize));
    let max = exec::largest_step(program);
    let groups = program.cache_groups.iter().map(|group| {
        let window = match group.retention {
            Retention::All => None,
            Retention::Window { tokens } => Some(tokens),
        };
        // With a window, no more is ever held than every sequence's window and what a step adds to it.
        let reach = |window: u32| (max.sequences as usize).saturating_mul(window as usize + max.tokens as usize);
        let tokens = window.map_or(tokens, |window| tokens.min(reach(window)));
        GroupLimits {
            page_tokens: group.page_tokens,
            pages: u32::try_from(tokens.div_ceil(group.page_tokens.max(1) as usize)).unwrap_or(u32::MAX).max(1),
            window,
        }
    });
    Limits { max, vocabulary: program.vocabulary, max_context: program.max_context, groups: groups.collect() }
}

#[cfg(test)]
mod tests;
