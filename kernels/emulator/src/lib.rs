//! Executes PTX on the CPU: finds the faults of kernels, and counts what they do.
//!
//! A [`Module`] is PTX text, read and decoded for a [`Device`]; a launch runs one of its kernels to the end and gives
//! [`Counters`], or the [`Fault`] that it ran into. Registers are vectors of 32 lanes, each lane has a position of its
//! own, CTAs run on host threads and wait for each other fairly, and every access is checked: bounds, alignment, whether
//! anything was ever written there, whether an asynchronous copy is still on its way, and whether barriers, fences and
//! atomics order it against what others do.
//!
//! ```
//! use lathe_emulator::{Chip, Device, Launch, Module, Options};
//!
//! let device = Device::new(Chip::Sm80, 1 << 20);
//! let ptx = r#"
//!     .version 7.0
//!     .target sm_80
//!     .address_size 64
//!     .visible .entry twice(.param .u64 x)
//!     {
//!         .reg .b32 %r<3>;
//!         .reg .b64 %rd<4>;
//!         ld.param.u64 %rd1, [x];
//!         mov.u32 %r1, %tid.x;
//!         mul.wide.u32 %rd2, %r1, 4;
//!         add.s64 %rd3, %rd1, %rd2;
//!         ld.global.u32 %r2, [%rd3];
//!         add.s32 %r2, %r2, %r2;
//!         st.global.u32 [%rd3], %r2;
//!         ret;
//!     }"#;
//! let module = Module::load(ptx, &device)?;
//! let x = device.memory.alloc(16)?;
//! device.memory.write(x, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])?;
//! let launch =
//!     Launch { grid: [1; 3], block: [4, 1, 1], shared_bytes: 0, params: &x.to_le_bytes(), options: Options::default() };
//! let counters = module.launch(&device, "twice", &launch)?;
//! let mut out = [0; 16];
//! device.memory.read(x, &mut out)?;
//! assert_eq!(out, [2, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 8, 0, 0, 0]);
//! assert_eq!((counters.global_read, counters.sectors), (16, 2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod activity;
mod chip;
mod counters;
mod decode;
mod exec;
mod fault;
mod float;
mod memory;
mod module;
mod ptx;
mod region;

pub use activity::{Activity, Party};
pub use chip::Chip;
pub use counters::{Class, Counters};
pub use exec::launch::{Launch, Options};
pub use exec::op::Param;
pub use fault::{Fault, FaultKind};
pub use memory::{Memory, MemoryError};
pub use module::{Device, Module, ModuleError};
pub use ptx::PtxError;
