//! Programs that know nothing of the emulator, run with its driver in the place of NVIDIA's: one in C, written against the
//! documented interface, and several in Rust through cudarc.

mod c_program;
mod child;
mod faults;
mod graphs;
mod kernels;
mod machines;
mod recorded;
mod streams;
