//! One plan for several kinds of CPU: the code for each gives the same tokens and the same bits.

use lathe_compiler::options::Options;
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_kernels::targets::Target;
use lathe_models::open;
use lathe_plan::Plan;
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_tests::{Scratch, smollm2};

use super::{corpus, engine};

/// Tokens of the corpus whose logits are compared.
const TOKENS: usize = 70;

#[test]
fn code_for_lesser_cpus_gives_the_same_logits() {
    let scratch = Scratch::new();
    let path = scratch.file("all.plan");
    let model = open(&smollm2()).expect("the model opens");
    let targets = Target::parse_list("x86-64-v3,x86-64-v4").expect("CPU targets");
    let options = Options { targets: targets.clone(), threads: 2, ..Options::new(targets[0]) };
    compile(model, Goal::Plan(&path), &options).expect("the model compiles");
    let plan = Plan::open(&path).expect("the plan opens");
    let tokens = corpus(TOKENS);
    let expected = engine(Activations::Int8, &EngineOptions::default()).logits(&tokens).expect("it runs");
    for target in targets.iter().filter(|target| target.missing_here().is_empty()) {
        let target_name = Some(target.name.to_owned());
        let device = DeviceOptions { target: target_name, poison: true, ..DeviceOptions::default() };
        let options = EngineOptions { device, ..EngineOptions::default() };
        let found = Engine::load(&plan, &options).expect("it loads").logits(&tokens).expect("it runs");
        assert!(found == expected, "{target} differs from this CPU's best target");
    }
}
