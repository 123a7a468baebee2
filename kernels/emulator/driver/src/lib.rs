//! A stand-in for NVIDIA's driver library: the CUDA driver API on GPUs that `lathe-emulator` executes.
//!
//! It is a C library, `libcuda_emulated.so`, which a program finds under the names `libcuda.so` and `libcuda.so.1` when a
//! folder with such links comes first on the loader's path; `cargo xtask emulate -- CMD` does that. The program runs
//! unchanged: kernels are executed with every check of the emulator, and each fault is reported with its kernel, its line
//! and its lanes, on stderr and in `$LATHE_EMULATE_LOG`. `settings` lists the variables.
//!
//! A handle that a program holds is a number, never an address: it is looked up, and one that was destroyed is known as
//! such. A stream is a thread that takes its work in order (`stream`), what streams wait for are marks (`stream::Done`), and
//! a capture turns work into the nodes of a graph (`graph`). Host memory is touched in `abi`, `arguments` and `work` alone.

mod abi;
mod arguments;
mod attributes;
mod codes;
mod context;
mod copies;
mod event;
mod exports;
mod graph;
mod module;
mod report;
mod settings;
mod state;
mod stream;
mod work;
