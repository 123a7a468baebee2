//! Execution of decoded kernels: warps of 32 lanes, CTAs with shared memory and barriers, and the host threads that run
//! them.

pub(crate) mod atomic;
pub(crate) mod barrier;
pub(crate) mod clocks;
pub(crate) mod collective;
pub(crate) mod copy;
pub(crate) mod count;
pub(crate) mod cta;
pub(crate) mod launch;
pub(crate) mod meet;
pub(crate) mod memory;
pub(crate) mod mma;
pub(crate) mod op;
pub(crate) mod ordering;
pub(crate) mod regs;
pub(crate) mod shared;
pub(crate) mod warp;
