//! Which device runs a plan.

use lathe_plan::Plan;

use super::{
    Device,
    cpu::CpuDevice,
    cuda::{self, CudaDevice},
    fault,
    options::{DeviceChoice, DeviceOptions},
};
use crate::error::Result;

/// A loaded device, and what to tell people of it.
pub struct Loaded {
    /// The device.
    pub device: Box<dyn Device>,
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
    let gpu = match options.choice {
        DeviceChoice::Cpu => None,
        DeviceChoice::Cuda(ordinal) => Some(ordinal),
        DeviceChoice::Auto => cuda::has_code(plan).then_some(0),
    };
    if let Some(ordinal) = gpu {
        let device = CudaDevice::load(plan, ordinal, options)?;
        // The thread that hands steps over and samples.
        return Ok(Loaded {
            name: device.name().to_owned(),
            threads: 1,
            warning: device.warning().map(str::to_owned),
            device: fault::inject(Box::new(device))?,
        });
    }
    let device = CpuDevice::load(plan, options)?;
    let (threads, warning) = (device.workers(), device.warning().map(str::to_owned));
    Ok(Loaded { name: "CPU".to_owned(), threads, warning, device: fault::inject(Box::new(device))? })
}
