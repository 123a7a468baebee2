//! A plan opened for work: the options that say how, and what opening gives.

use std::path::Path;
use std::thread;

use anyhow::anyhow;
use lathe_plan::{LoadMode, Plan, PlanError};
use lathe_runtime::batcher::BatchOptions;
use lathe_runtime::device::choice::About;
use lathe_runtime::device::options::{DeviceChoice, DeviceOptions};
use lathe_runtime::speculate::{Mode, Speculation, parse_depth, parse_width};
use lathe_runtime::tokenizer::Tokenizer;
use lathe_runtime::{Engine, EngineOptions, Error};

use super::failure::Unsuitable;

/// How the machine is used. None of it changes a token, the target apart.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// What runs the plan: auto (what it was compiled for), cpu, cuda, cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// Worker threads [default: one per physical core]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// Positions that the cache holds [default: as many as requests can use, in up to a quarter of the memory that
    /// weights leave and 4 GiB, on a GPU three quarters]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub cache_tokens: Option<usize>,
    /// Most prompt tokens in a step [default: as many as the plan allows]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub prefill_chunk: Option<usize>,
    /// How weights come into memory
    #[arg(long, value_enum, default_value_t = Load::Read)]
    pub load: Load,
    /// Run the plan's code for this target instead of the best for this CPU
    #[arg(long, value_name = "TARGET")]
    pub cpu: Option<String>,
    /// Start every kernel of a GPU by itself instead of a step's at once: for comparing
    #[arg(long)]
    pub no_graphs: bool,
}

/// How the tokens that follow are guessed. None of it changes a token.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Speculation")]
pub struct SpeculationArgs {
    /// Guess the tokens that follow and verify them in one step: auto (where it saves time), off, ngram (whenever
    /// prompt or answer repeat themselves), draft (by the plan's draft model, always), self (by the model without some
    /// layers, always)
    #[arg(long, value_name = "MODE", default_value_t = Mode::Auto)]
    pub speculate: Mode,
    /// Most guesses for an answer in a step, from 1 to 64; a draft model makes that many while they are likely to be right
    /// [default: as many as are worth it, at most 12]
    #[arg(long, value_name = "N", value_parser = parse_depth)]
    pub spec_depth: Option<usize>,
    /// Most ways on from one place, from 1 to 8: with more than one, guesses are a tree, no larger than --spec-depth
    /// [default: 3 where guesses must pay, else 1]
    #[arg(long, value_name = "N", value_parser = parse_width)]
    pub spec_width: Option<usize>,
}

impl SpeculationArgs {
    /// What the engine is told.
    pub fn options(&self) -> Speculation {
        Speculation { mode: self.speculate, depth: self.spec_depth, width: self.spec_width }
    }
}

/// How weights come into memory.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Load {
    /// Read into huge pages
    Read,
    /// Mapped from the file
    Mmap,
}

/// A number that is at least one.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("expected a whole number".to_owned()),
    }
}

/// A plan on a machine.
pub struct Loaded {
    /// The plan.
    pub plan: Plan,
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<Tokenizer>,
    /// Its main program on this machine.
    pub engine: Engine,
    /// What runs it: `CPU`, or the name of a GPU.
    pub device: String,
    /// Worker threads.
    pub threads: usize,
}

/// A plan with which one can talk, ready to run.
pub struct Model {
    /// The plan.
    pub plan: Plan,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its main program on this machine.
    pub engine: Engine,
}

/// Opens a plan file; an error names it.
pub fn open_plan(path: &Path) -> anyhow::Result<Plan> {
    Plan::open(path).map_err(|error| in_plan(path, error.into()))
}

/// An error about a plan with the plan's file in front, where it is not named yet.
pub fn in_plan(path: &Path, error: anyhow::Error) -> anyhow::Error {
    let (name, message) = (path.display().to_string(), error.to_string());
    let is_about_plan = error.is::<PlanError>() || matches!(error.downcast_ref(), Some(Error::Plan(_)));
    if is_about_plan && !message.contains(&name) { error.context(format!("{name}: {message}")) } else { error }
}

impl Model {
    /// Opens a plan and loads it.
    pub fn open(path: &Path, machine: &MachineArgs) -> anyhow::Result<Model> {
        Model::open_with(path, machine, BatchOptions::default())
    }

    /// The same, composing steps in a way of its own.
    pub fn open_with(path: &Path, machine: &MachineArgs, batching: BatchOptions) -> anyhow::Result<Model> {
        let plan = open_plan(path)?;
        if let Some(seed) = plan.seed() {
            return Err(Unsuitable(format!(
                "the plan's weights are random:{seed}, so it can say nothing: it is for `lathe bench` alone; compile it \
                 without --weights"
            ))
            .into());
        }
        let none = || anyhow!("the plan holds no tokenizer; compile it from a checkpoint with one");
        plan.tokenizer().ok_or_else(none)?;
        let loaded = Loaded::load(plan, machine, batching).map_err(|error| in_plan(path, error))?;
        let Loaded { plan, tokenizer, engine, .. } = loaded;
        Ok(Model { plan, tokenizer: tokenizer.ok_or_else(none)?, engine })
    }
}

impl Loaded {
    /// Opens a plan, whatever its weights are, and loads it.
    pub fn open(path: &Path, machine: &MachineArgs) -> anyhow::Result<Loaded> {
        let loaded = Loaded::load(open_plan(path)?, machine, BatchOptions::default());
        loaded.map_err(|error| in_plan(path, error))
    }

    fn load(plan: Plan, machine: &MachineArgs, batching: BatchOptions) -> anyhow::Result<Loaded> {
        let tables = plan.tokenizer().cloned();
        // The weights take longer than the tokenizer, which is ready by the time they are.
        let tokenizer = tables.map(|tables| thread::spawn(move || Tokenizer::new(tables)));
        let load = DeviceOptions {
            choice: machine.device,
            threads: machine.threads,
            cache_tokens: machine.cache_tokens,
            load: match machine.load {
                Load::Read => LoadMode::Read,
                Load::Mmap => LoadMode::Map,
            },
            target: machine.cpu.clone(),
            no_graphs: machine.no_graphs,
            ..DeviceOptions::default()
        };
        let prefill_chunk = machine.prefill_chunk;
        let options = EngineOptions { device: load, prefill_chunk, batching, ..EngineOptions::default() };
        let (engine, About { name, threads, warning }) = Engine::load_told(&plan, &options)?;
        if let Some(warning) = warning {
            eprintln!("warning: {warning}");
        }
        let panicked = |_| anyhow!("building the tokenizer panicked; this is a bug in Lathe");
        let tokenizer = tokenizer.map(|thread| thread.join().map_err(panicked)).transpose()?.transpose()?;
        Ok(Loaded { plan, tokenizer, engine, device: name, threads })
    }
}
