//! The one place that speaks to LLVM: a builder for lane programs, their mathematics, and object emission.
//!
//! A kernel is written once, as a program over 16 lanes. On x86 a lane value is a vector of 16 elements in a 512-bit
//! register or two of 256 bits; on NVPTX it is one element in each of 16 neighbouring threads. Uniform values are scalars on both.
//! Every reduction follows the same lane tree, so both machines implement the same recipes.

mod arith;
pub mod block;
pub mod builder;
pub mod dot;
mod functions;
pub mod link;
pub mod machine;
pub mod math;
pub mod memory;
pub mod staging;
pub mod tiles;
