//! SmolLM2-135M through the whole of Lathe: compiled into a plan, answered from by the runtime, judged by NumPy.

mod bits;
mod damage;
mod quality;
mod variants;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lathe_compiler::options::Options;
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_ir::types::DType;
use lathe_kernels::targets::Target;
use lathe_models::open;
use lathe_plan::Plan;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_runtime::tokenizer::{Control, Tokenizer};
use lathe_tests::{CORPUS, Scratch, smollm2};

/// Compiles the model with the given form of activations and of cache into `path`.
fn compile_to(path: &Path, activations: Activations, cache: Option<DType>) {
    let model = open(&smollm2()).expect("the model opens");
    let mut options = Options::new(Target::parse("native").expect("this CPU has a target"));
    options.passes.activations = activations;
    options.cache = cache;
    options.threads = 2;
    compile(model, Goal::Plan(path), &options).expect("the model compiles");
}

/// Where plans lie that are made once and removed with the process.
static FOLDER: OnceLock<Scratch> = OnceLock::new();

/// The plan of the default compile, and the one with f32 activations.
fn plan_path(activations: Activations) -> PathBuf {
    static PLANS: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
    let (plan, name) = match activations {
        Activations::Int8 => (&PLANS[0], "int8.plan"),
        Activations::F32 => (&PLANS[1], "f32.plan"),
    };
    made_once(plan, name, activations, None)
}

/// The plan of the default compile but for pages of int8 codes.
fn plan_of_codes() -> Plan {
    static PLAN: OnceLock<PathBuf> = OnceLock::new();
    Plan::open(&made_once(&PLAN, "codes.plan", Activations::Int8, Some(DType::Int8))).expect("the plan opens")
}

fn made_once(plan: &OnceLock<PathBuf>, name: &str, activations: Activations, cache: Option<DType>) -> PathBuf {
    let make = || {
        let path = FOLDER.get_or_init(Scratch::new).file(name);
        compile_to(&path, activations, cache);
        path
    };
    plan.get_or_init(make).clone()
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
