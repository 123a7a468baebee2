//! Which device runs a plan, and what guesses tokens beside it.

use std::sync::Arc;

use lathe_plan::{Plan, skip};

use super::{
    Device,
    cpu::{CpuDevice, Crew, Host},
    cuda::{self, CudaDevice},
    fault,
    options::{DeviceChoice, DeviceOptions},
};
use crate::{
    engine::EngineOptions,
    error::Result,
    speculate::{Drafter, Mode, draft::DraftModel, ngram::Ngram, own::OwnModel},
};

/// The program that answers.
const MAIN: &str = "main";
/// The program of a draft model.
const DRAFT: &str = "draft";

/// Positions that a draft model's cache holds at most, unless told otherwise.
const MOST_CACHED: usize = 16_384;

/// A loaded device, and what to tell people of it.
pub struct Loaded {
    /// The device.
    pub device: Box<dyn Device>,
    /// What to tell.
    pub about: About,
    /// What a CPU's programs share.
    host: Option<Host>,
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
    let Loaded { device, about, host } = load_program(plan, MAIN, options, None)?;
    Ok(Loaded { device: fault::inject(device)?, about, host })
}

/// Loads what guesses tokens beside a main program: n-grams, and where the plan has them and they are wanted, a draft model
/// and the model itself without some of its layers.
///
/// # Errors
/// When what is asked for is not in the plan or does not load.
pub fn drafters(plan: &Plan, main: &Loaded, options: &EngineOptions) -> Result<Vec<Box<dyn Drafter>>> {
    let (mode, limits) = (options.batching.speculation.mode, main.device.limits());
    let mut drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Ngram::default())];
    if matches!(mode, Mode::Auto | Mode::Draft) && plan.program(DRAFT).is_some() {
        // It takes what its target leaves: with fewer pages there are fewer guesses, and nothing fails for want of them.
        let most = options.device.cache_tokens.unwrap_or(MOST_CACHED).min(limits.cache_tokens() as usize);
        let device = DeviceOptions { cache_tokens: None, most_cache_tokens: Some(most), ..options.device.clone() };
        let draft = load_program(plan, DRAFT, &device, main.host.as_ref().map(Host::crew))?.device;
        drafters.push(Box::new(DraftModel::new(draft, limits.vocabulary, &options.batching.cache)));
    }
    if matches!(mode, Mode::Auto | Mode::Own)
        && let (Some(program), Some(host)) = (plan.program(skip::PROGRAM), &main.host)
    {
        drafters.push(Box::new(OwnModel::new(Box::new(host.run_beside(program, &options.device)?))));
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
        return Ok(Loaded { device: Box::new(device), about: About { name, threads: 1, warning }, host: None });
    }
    let crew = crew.map_or_else(|| Crew::start(options), |crew| Ok(Arc::clone(crew)))?;
    let device = CpuDevice::load(plan, program, options, Arc::clone(&crew))?;
    let (threads, warning) = (crew.workers(), crew.warning().map(str::to_owned));
    let about = About { name: "CPU".to_owned(), threads, warning };
    let host = Some(device.host());
    Ok(Loaded { device: Box::new(device), about, host })
}
