//! Tests of the compiler from outside, in one binary: [`passes`] against the reference evaluation, [`schedule`] against
//! brute-force checkers, [`snapshots`] of every level, whole plans in [`plan`], and the command line in [`cli`].

mod cli;
mod common;
mod dry_run;
mod families;
mod passes;
mod plan;
mod schedule;
mod snapshots;
