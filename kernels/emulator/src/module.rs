//! Devices and loaded modules: what a host program holds.

use std::collections::HashMap;

use crate::chip::Chip;
use crate::counters::Counters;
use crate::decode;
use crate::exec::launch::{self, Launch};
use crate::exec::op::{Kernel, Param};
use crate::fault::{Fault, FaultKind};
use crate::memory::{Memory, MemoryError};
use crate::ptx::tree::{Space, Tree};
use crate::ptx::{PtxError, parse};

/// A chip with its memory.
#[derive(Debug)]
pub struct Device {
    /// Which chip it is.
    pub chip: Chip,
    /// Its global memory.
    pub memory: Memory,
}

impl Device {
    /// A device with so many bytes of memory, none of them in use.
    pub fn new(chip: Chip, bytes: u64) -> Device {
        Device { chip, memory: Memory::new(bytes) }
    }

    /// The same for one of several devices, which share one space of addresses.
    pub fn numbered(chip: Chip, bytes: u64, number: u32) -> Device {
        Device { chip, memory: Memory::numbered(bytes, number) }
    }
}

/// Why a module could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// The text is not PTX that the emulator knows.
    #[error(transparent)]
    Ptx(#[from] PtxError),
    /// The module is for another chip.
    #[error(
        "the module is for {target}, and the device is sm_{major}{minor}; compile it for that or an earlier one, or choose \
         another device"
    )]
    Target {
        /// Its `.target`.
        target: String,
        /// The device's compute capability.
        major: u32,
        /// The same.
        minor: u32,
    },
    /// The device has no room for the module's variables.
    #[error("the module's variables: {0}")]
    Memory(#[from] MemoryError),
}

/// A module on a device.
#[derive(Debug)]
pub struct Module {
    kernels: Vec<Kernel>,
    /// Address and length of its variables.
    globals: HashMap<String, (u64, u64)>,
}

impl Module {
    /// Reads PTX, places its variables in the device's memory and decodes its kernels.
    ///
    /// # Errors
    /// When the text is no PTX that the emulator knows, is for a later chip, or does not fit.
    pub fn load(ptx: &str, device: &Device) -> Result<Module, ModuleError> {
        let tree = parse::parse(ptx)?;
        check_target(&tree, device.chip)?;
        let mut globals = HashMap::new();
        for variable in tree.variables.iter().filter(|v| v.space != Space::Shared && !v.is_extern) {
            let address = device.memory.alloc(variable.bytes)?;
            globals.insert(variable.name.clone(), (address, variable.bytes));
        }
        let loaded = Self::fill(&tree, device, &globals).and_then(|()| {
            let addresses = globals.iter().map(|(name, &(address, _))| (name.clone(), address)).collect();
            Ok(decode::kernels(&tree, &addresses)?)
        });
        match loaded {
            Ok(kernels) => Ok(Module { kernels, globals }),
            Err(error) => {
                for (address, _) in globals.into_values() {
                    device.memory.free(address)?;
                }
                Err(error)
            }
        }
    }

    fn fill(tree: &Tree, device: &Device, globals: &HashMap<String, (u64, u64)>) -> Result<(), ModuleError> {
        for variable in &tree.variables {
            let Some(&(address, bytes)) = globals.get(&variable.name) else { continue };
            let mut contents = variable.init.clone();
            for (at, symbol, addend) in &variable.references {
                let Some((target, _)) = globals.get(symbol) else {
                    let message = format!("`{symbol}` in the contents of `{}` is not a variable", variable.name);
                    return Err(PtxError::new(variable.at, message).into());
                };
                if let Some(place) = contents.get_mut(*at..at + 8) {
                    place.copy_from_slice(&target.wrapping_add_signed(*addend).to_le_bytes());
                }
            }
            // What is not initialized is zero.
            device.memory.fill(address, &[0], bytes)?;
            device.memory.write(address, &contents)?;
        }
        Ok(())
    }

    /// Frees the module's variables.
    ///
    /// # Errors
    /// When they were freed already.
    pub fn unload(&self, device: &Device) -> Result<(), MemoryError> {
        self.globals.values().try_for_each(|&(address, _)| device.memory.free(address))
    }

    /// Names of the kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|kernel| kernel.name.as_str())
    }

    /// Address and length in bytes of a variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.globals.get(name).copied()
    }

    fn find(&self, kernel: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|found| found.name == kernel)
    }

    /// The parameters of a kernel.
    pub fn params(&self, kernel: &str) -> Option<&[Param]> {
        self.find(kernel).map(|kernel| kernel.params.as_slice())
    }

    /// Static shared memory, local memory of a thread, and the most threads of a CTA of a kernel.
    pub fn needs(&self, kernel: &str) -> Option<(u64, u64, u64)> {
        self.find(kernel).map(|kernel| {
            let required = kernel.required_block.map(|block| block.iter().map(|&n| u64::from(n)).product());
            (kernel.shared_bytes, kernel.local_bytes, kernel.max_threads.or(required).unwrap_or(1024))
        })
    }

    /// The kernel of a launch, or the fault that there is none.
    fn named(&self, kernel: &str) -> Result<&Kernel, Fault> {
        self.find(kernel).ok_or_else(|| Fault {
            kind: FaultKind::Launch,
            kernel: kernel.to_owned(),
            line: 0,
            cta: [0; 3],
            warp: 0,
            lanes: 0,
            message: "the module has no kernel of this name".into(),
        })
    }

    /// Checks the sizes of a launch without running it.
    ///
    /// # Errors
    /// The fault that the launch itself is.
    pub fn check(&self, device: &Device, kernel: &str, launch: &Launch<'_>) -> Result<(), Fault> {
        launch::check(self.named(kernel)?, device.chip, launch)
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// The first fault that a CTA runs into, or that the launch itself is.
    pub fn launch(&self, device: &Device, kernel: &str, launch: &Launch<'_>) -> Result<Counters, Fault> {
        launch::launch(self.named(kernel)?, device, launch)
    }
}

fn check_target(tree: &Tree, chip: Chip) -> Result<(), ModuleError> {
    let (major, minor) = chip.capability();
    let wrong = || ModuleError::Target { target: tree.target.clone(), major, minor };
    let number = tree.target.strip_prefix("sm_").ok_or_else(wrong)?;
    let digits = number.trim_end_matches(['a', 'f']);
    let version: u32 = digits.parse().map_err(|_| wrong())?;
    let own = 10 * major + minor;
    // Code for an architecture's own features runs there only.
    if version > own || digits.len() < number.len() && version != own { Err(wrong()) } else { Ok(()) }
}
