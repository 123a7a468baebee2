//! Builders of graphs from knobs, shared by families.

pub mod decoder;
pub mod tensors;
