//! Tests of the typed graph through its public interface.

mod evaluate;
mod fixtures;
mod fused;
mod graph;
mod knobs;
mod ops;
mod parse_errors;
mod shapes;
mod text;
mod verify;
