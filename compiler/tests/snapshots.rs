//! Every level of the small model as text. After a change that is meant, look at each difference and bless it with
//! `INSTA_UPDATE=always cargo test -p lathe-compiler snapshots`.

use lathe_compiler::pipeline::{Goal, Level, compile};
use lathe_ir::scheme::Scheme;

fn check(name: &str, level: Level) {
    let outcome = compile(crate::common::model(Scheme::INT4), Goal::Text(level), &crate::common::options());
    insta::assert_snapshot!(name, outcome.expect("the small model compiles").text);
}

#[test]
fn graph() {
    check("graph", Level::Graph);
}

#[test]
fn fused() {
    check("fused", Level::Fused);
}

#[test]
fn schedule() {
    check("schedule", Level::Schedule);
}

#[test]
fn memory() {
    check("memory", Level::Memory);
}

#[test]
fn manifest() {
    check("manifest", Level::Manifest);
}
