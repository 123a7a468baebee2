//! The promises of the plan file, each with a test.

mod damage;
mod files;
mod launches;
mod round_trip;
mod sample;
mod tables;
