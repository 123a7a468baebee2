//! SmolLM2-135M through the whole of Lathe: compiled into a plan, answered from by the runtime, judged by NumPy.

mod bits;
mod damage;
mod quality;
mod variants;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, Options, compile};
use lathe_kernels::targets::Target;
use lathe_models::open;
use lathe_plan::Plan;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_runtime::tokenizer::{Control, Tokenizer};
use lathe_tests::{CORPUS, Scratch, smollm2};

/// Compiles the model with the given form of activations into `path`.
fn compile_to(path: &Path, activations: Activations) {
    let model = open(&smollm2()).expect("the model opens");
    let mut options = Options::new(Target::parse("native").expect("this CPU has a target"));
    options.passes.activations = activations;
    options.threads = 2;
    compile(model, Goal::Plan(path), &options).expect("the model compiles");
}

/// The plan of the default compile, and the one with f32 activations; each made once and removed with the process.
fn plan_path(activations: Activations) -> PathBuf {
    static FOLDER: OnceLock<Scratch> = OnceLock::new();
    static PLANS: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
    let (index, name) = match activations {
        Activations::Int8 => (0, "int8.plan"),
        Activations::F32 => (1, "f32.plan"),
    };
    let make = || {
        let path = FOLDER.get_or_init(Scratch::new).file(name);
        compile_to(&path, activations);
        path
    };
    PLANS[index].get_or_init(make).clone()
}

fn plan(activations: Activations) -> Plan {
    Plan::open(&plan_path(activations)).expect("the plan opens")
}

fn engine(activations: Activations, options: &EngineOptions) -> Engine {
    Engine::load(&plan(activations), options).expect("the plan loads")
}

fn tokenizer() -> Tokenizer {
    let tables = plan(Activations::Int8).tokenizer().expect("the plan has a tokenizer").clone();
    Tokenizer::new(tables).expect("the tables are sound")
}

/// The first tokens of the corpus.
fn corpus(count: usize) -> Vec<u32> {
    let mut tokens = tokenizer().encode(CORPUS, Control::AsText);
    assert!(tokens.len() >= count, "the corpus has {} tokens", tokens.len());
    tokens.truncate(count);
    tokens
}
