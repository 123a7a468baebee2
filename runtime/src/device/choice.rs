//! Which device runs a plan, and what guesses tokens beside it.

use std::sync::Arc;

use lathe_plan::Plan;

use super::{
    Device,
    cpu::{CpuDevice, Crew},
    cuda::{self, CudaDevice},
    fault,
    options::{DeviceChoice, DeviceOptions},
};
use crate::{
    engine::EngineOptions,
    error::Result,
    speculate::{Drafter, Mode, draft::DraftModel, ngram::Ngram},
};

/// The program that answers.
const MAIN: &str = "main";
/// The program of a draft model.
const DRAFT: &str = "draft";

/// Positions that a draft model's cache holds at most, unless told otherwise.
const MOST_CACHED: u64 = 16_384;

/// A loaded device, and what to tell people of it.
pub struct Loaded {
    /// The device.
    pub device: Box<dyn Device>,
    /// What to tell.
    pub about: About,
    /// The threads of a CPU, which run the plan's other programs, too.
    crew: Option<Arc<Crew>>,
}

/// What to tell people of a device.
#[derive(Clone, Debug)]
pub struct About {
    /// `CPU`, or what the driver calls the GPU.
    pub name: String,
    /// Worker threads.
    pub threads: usize,
    /// Why it will be slower than could be, and what to do.
    pub warning: Option<String>,
}

/// Loads a plan's main program onto a device.
///
/// # Errors
/// When the plan has no code for the device, or the machine lacks it.
pub fn load(plan: &Plan, options: &DeviceOptions) -> Result<Loaded> {
    let Loaded { device, about, crew } = load_program(plan, MAIN, options, None)?;
    Ok(Loaded { device: fault::inject(device)?, about, crew })
}

/// Loads what guesses tokens beside a main program: n-grams, and a draft model where the plan has one and it is wanted.
///
/// # Errors
/// When what is asked for is not in the plan or does not load.
pub fn drafters(plan: &Plan, main: &Loaded, options: &EngineOptions) -> Result<Vec<Box<dyn Drafter>>> {
    let (mode, limits) = (options.batching.speculation.mode, main.device.limits());
    let mut drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Ngram::default())];
    if matches!(mode, Mode::Auto | Mode::Draft) && plan.program(DRAFT).is_some() {
        // The default share of the memory that is left is the target's. With fewer pages there are fewer guesses.
        let most = limits.cache_tokens().min(MOST_CACHED) as usize;
        let cache_tokens = options.device.cache_tokens.unwrap_or(most);
        let device = DeviceOptions { cache_tokens: Some(cache_tokens), ..options.device.clone() };
        let draft = load_program(plan, DRAFT, &device, main.crew.as_ref())?.device;
        drafters.push(Box::new(DraftModel::new(draft, limits.vocabulary, &options.batching.cache)));
    }
    mode.check(&drafters)?;
    Ok(drafters)
}

/// Loads a program; onto a CPU for these threads, where there are some.
fn load_program(plan: &Plan, program: &str, options: &DeviceOptions, crew: Option<&Arc<Crew>>) -> Result<Loaded> {
    let gpu = match options.choice {
        DeviceChoice::Cpu => None,
        DeviceChoice::Cuda(ordinal) => Some(ordinal),
        DeviceChoice::Auto => cuda::has_code(plan).then_some(0),
    };
    if let Some(ordinal) = gpu {
        let device = CudaDevice::load(plan, program, ordinal, options)?;
        // The thread that hands steps over and samples.
        let (name, warning) = (device.name().to_owned(), device.warning().map(str::to_owned));
        return Ok(Loaded { device: Box::new(device), about: About { name, threads: 1, warning }, crew: None });
    }
    let crew = crew.map_or_else(|| Crew::start(options), |crew| Ok(Arc::clone(crew)))?;
    let device = CpuDevice::load(plan, program, options, Arc::clone(&crew))?;
    let (threads, warning) = (crew.workers(), crew.warning().map(str::to_owned));
    let about = About { name: "CPU".to_owned(), threads, warning };
    Ok(Loaded { device: Box::new(device), about, crew: Some(crew) })
}
