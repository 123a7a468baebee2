//! Builders of graphs from knobs, shared by families.

pub mod decoder;
