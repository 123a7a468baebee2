//! How a user wants a plan to be run.

use std::{fmt, str::FromStr};

use lathe_plan::LoadMode;

/// The kind of device that a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// What the plan was compiled for.
    #[default]
    Auto,
    /// This machine's CPU.
    Cpu,
    /// The GPU of this number, in the driver's order.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let number = |text: &str| text.parse().ok().map(DeviceChoice::Cuda);
        match text {
            "auto" => Some(DeviceChoice::Auto),
            "cpu" => Some(DeviceChoice::Cpu),
            "cuda" => Some(DeviceChoice::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number),
        }
        .ok_or_else(|| "expected auto, cpu, cuda, or cuda:N with the number of a GPU".to_owned())
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// How a device uses its machine. None of it changes a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Which device.
    pub choice: DeviceChoice,
    /// Worker threads of a CPU; by default one per physical core that the process may use.
    pub threads: Option<usize>,
    /// Positions that the cache holds for all requests together; by default as many as they can use, as far as memory
    /// allows: a quarter of what weights leave to a CPU and at most 4 GiB, three quarters on a GPU.
    pub cache_tokens: Option<usize>,
    /// The most positions of a cache whose size is left to the device.
    pub most_cache_tokens: Option<usize>,
    /// Where the weights are kept.
    pub load: LoadMode,
    /// Leaves a CPU's workers to the operating system's scheduler instead of pinning each to a core.
    pub unpinned: bool,
    /// Which of the plan's CPU targets runs; by default the best that the CPU has.
    pub target: Option<String>,
    /// Starts every kernel of a GPU by itself instead of a step's at once.
    pub no_graphs: bool,
    /// Fills memory with NaNs before each step, to find what is read before it is written.
    pub poison: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_kind_and_number() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(3)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(wrong.parse::<DeviceChoice>().unwrap_err().contains("cuda:N"), "{wrong}");
        }
    }
}
