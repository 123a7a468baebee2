//! The exported functions, one file a chapter of the driver API's documentation.

pub mod contexts;
pub mod copying;
pub mod devices;
pub mod events;
pub mod graphs;
pub mod launching;
pub mod lookup;
pub mod memory;
pub mod modules;
pub mod streams;
