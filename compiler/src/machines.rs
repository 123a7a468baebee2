//! Machines for which step times are predicted, by what limits them.
//!
//! A launch takes what the slowest of its limits allows, and some time besides. For an H100 the limits are those that our
//! kernels reach there, fitted to measured steps, and `tests/dry_run.rs` holds the predictions against them; for other
//! machines they are what the vendor publishes, and times are bounds to compare shapes by.

use lathe_ir::scheme::Code;
use lathe_ir::types::StepSize;
use lathe_kernels::spec::{BLOCK_ROWS, KernelSpec, Tile};
use lathe_kernels::targets::{Machine as Kind, Target};

use crate::schedule::Launch;

/// A machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// What it is called, and its limits for people.
    pub name: &'static str,
    /// Bytes a second from memory.
    bandwidth: f64,
    /// Operations a second of matrix products with 16-bit weights.
    rate: f64,
    /// Seconds of a launch besides its work.
    launch: f64,
    /// What the kernels of a GPU are known to reach, if they were measured.
    kernels: Option<Kernels>,
}

/// What kernels of a GPU reach.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    /// Multiprocessors: blocks of large products go over them in whole waves.
    multiprocessors: usize,
    /// Weights a second that products of few rows decode, by their codes: of 8 bits, of fewer, of a codebook.
    decoded: [f64; 3],
    /// Operations a second of products of many rows with weights in codes.
    coded_rate: f64,
    /// Seconds that products of many rows take besides their waves.
    staged: f64,
    /// Seconds of a wave of blocks that attend to many tokens, two to a multiprocessor, at the context that is priced.
    attention: f64,
    /// Seconds that attention to few tokens takes more than another launch, for a history of few splits.
    splits: f64,
}

/// A machine of which no kernel was measured.
const fn published(name: &'static str, bandwidth: f64, rate: f64, launch: f64) -> Machine {
    Machine { name, bandwidth, rate, launch, kernels: None }
}

/// Two cores of a Zen 4 server: 43 GB/s measured from memory, 236 GFLOP/s of bf16 dot products a core.
const CPU: Machine = published("two Zen 4 cores (43 GB/s, 0.47 TFLOP/s)", 43e9, 0.472e12, 1e-6);
/// NVIDIA's published figures of the A100 with 80 GB, dense bf16; a launch inside a graph.
const A100: Machine = published("A100 80 GB (2.04 TB/s, 312 TFLOP/s)", 2.039e12, 312e12, 2e-6);
/// The same of the A10.
const A10: Machine = published("A10 (600 GB/s, 125 TFLOP/s)", 0.6e12, 125e12, 2e-6);
/// The same of the L40S.
const L40S: Machine = published("L40S (864 GB/s, 362 TFLOP/s)", 0.864e12, 362e12, 2e-6);
/// The same of the B200.
const B200: Machine = published("B200 (8 TB/s, 2250 TFLOP/s)", 8e12, 2250e12, 1.3e-6);
/// The same of the RTX 5090.
const RTX_5090: Machine = published("RTX 5090 (1.79 TB/s, 210 TFLOP/s)", 1.79e12, 210e12, 2e-6);
/// The H100 SXM as our kernels find it.
const H100: Machine = Machine {
    name: "H100 SXM (2.95 TB/s and 275 TFLOP/s reached)",
    bandwidth: 2.95e12,
    rate: 275e12,
    launch: 2.1e-6,
    kernels: Some(Kernels {
        multiprocessors: 132,
        decoded: [1.9e12, 4.5e12, 2.1e12],
        coded_rate: 120e12,
        staged: 16e-6,
        attention: 37e-6,
        splits: 4.5e-6,
    }),
};

impl Machine {
    /// The machine of a target.
    pub fn of(target: &Target) -> &'static Machine {
        match target.machine {
            Kind::X86 => &CPU,
            Kind::Nvptx => match target.name {
                "sm_80" => &A100,
                "sm_86" => &A10,
                "sm_89" => &L40S,
                "sm_90" => &H100,
                "sm_100" => &B200,
                _ => &RTX_5090,
            },
        }
    }

    /// Seconds that a launch takes in a step.
    pub fn seconds(&self, launch: &Launch, step: StepSize) -> f64 {
        let (bytes, flops) = (launch.bytes.eval(step) as f64, launch.flops.eval(step) as f64);
        let (read, computed) = (bytes / self.bandwidth, flops / self.rate);
        let work = match &self.kernels {
            None => read.max(computed),
            Some(kernels) => match &launch.kernel {
                KernelSpec::Linear { scheme, tile: Tile::Mma { .. }, .. } if scheme.is_integer() => {
                    let weights = (launch.params[1].c * launch.params[2].c * scheme.span()) as f64;
                    let kind = match scheme.code {
                        Code::Uniform { bits: 8 } => 0,
                        Code::Uniform { .. } => 1,
                        _ => 2,
                    };
                    read.max(weights / kernels.decoded[kind])
                }
                KernelSpec::Linear { tile: Tile::Staged { blocks, tokens }, scheme, .. } => {
                    let [rows, n, spans] = [0, 1, 2].map(|at| launch.params[at].eval(step));
                    let tiles = n.div_ceil(blocks * BLOCK_ROWS) * rows.div_ceil(*tokens);
                    let tile = (2 * blocks * BLOCK_ROWS * tokens * spans * scheme.span()) as f64;
                    let waves = tiles.div_ceil(kernels.multiprocessors) as f64;
                    let rate = if scheme.is_integer() { kernels.coded_rate } else { self.rate };
                    waves * tile * kernels.multiprocessors as f64 / rate + kernels.staged
                }
                KernelSpec::Attention { .. } if launch.kernel.grid().rows > 0 => {
                    let tokens = launch.params[0].eval(step).div_ceil(launch.kernel.grid().rows as usize);
                    let blocks = launch.units.eval(step) * tokens;
                    blocks.div_ceil(2 * kernels.multiprocessors) as f64 * kernels.attention
                }
                KernelSpec::AttentionSplits { .. } => read + kernels.splits,
                _ => read.max(computed),
            },
        };
        work + self.launch
    }
}
