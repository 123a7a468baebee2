//! Programs that know nothing of the emulator, run with its driver in the place of NVIDIA's: one in C, written against the
//! documented interface, one in Rust through cust, and several through cudarc.

mod c_program;
mod child;
mod cust;
mod faults;
mod graphs;
mod kernels;
mod machines;
mod recorded;
mod spinning;
mod streams;
