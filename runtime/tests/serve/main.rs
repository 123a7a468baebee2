//! The server over sockets: in this process on a device without arithmetic, whose tokens tell when anything was mixed up,
//! and as a process of its own with a plan that always says the same.

#[path = "../client/mod.rs"]
mod client;
#[path = "../parrot/mod.rs"]
mod parrot;

mod connections;
mod failures;
mod process;
mod prompts;
mod refusals;
mod scheduling;
mod streams;
mod world;
