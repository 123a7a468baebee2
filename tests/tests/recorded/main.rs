//! Small checkpoints of every family, compiled and run, judged by the logits that another implementation computed.

#[path = "../../../models/tests/recorded/as_gguf.rs"]
mod as_gguf;
#[path = "../../../models/tests/recorded/case.rs"]
mod case;
mod llama_cpp;

use lathe_compiler::options::Options;
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_ir::types::DType;
use lathe_kernels::targets::Target;
use lathe_plan::Plan;
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_tests::Scratch;
use lathe_tests::compare::relative_error;

/// Bound on the relative error of logits with f32 activations, weights and cache.
const BOUND: f64 = 1e-5;

#[test]
fn every_family_runs_to_the_recorded_logits() {
    let mut faults = Vec::new();
    let mut count = 0;
    for case in case::cases() {
        count += 1;
        let error = match error_of(&case) {
            Ok(error) => error,
            Err(message) => {
                faults.push(format!("{}: {message}", case.name));
                continue;
            }
        };
        println!("{}: {error:.1e}", case.name);
        if error.is_nan() || error > BOUND {
            faults.push(format!("{}: relative error {error:.1e}", case.name));
        }
    }
    assert!(count > 0, "no case was found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The largest relative error of prompts taken whole and in chunks.
fn error_of(case: &case::Case) -> Result<f64, String> {
    let scratch = Scratch::new();
    let folder = scratch.file("model");
    case.write(&folder);
    let model = lathe_models::open(&folder).map_err(|error| error.to_string())?;
    let vocabulary = model.config.vocab;
    let mut options = Options::new(Target::parse("native").expect("this CPU has a target"));
    options.passes.activations = Activations::F32;
    options.cache = Some(DType::F32);
    let path = scratch.file("model.plan");
    compile(model, Goal::Plan(&path), &options).map_err(|error| error.to_string())?;
    let plan = Plan::open(&path).map_err(|error| error.to_string())?;
    let tokens: Vec<u32> = case.tokens().iter().map(|&token| token as u32).collect();
    let mut worst = 0.0f64;
    for chunk in [7, 40] {
        let device = DeviceOptions { poison: true, ..DeviceOptions::default() };
        let options = EngineOptions { device, prefill_chunk: Some(chunk), ..EngineOptions::default() };
        let mut engine = Engine::load(&plan, &options).map_err(|error| error.to_string())?;
        let logits = engine.logits(&tokens).map_err(|error| error.to_string())?.concat();
        let rows = case.rows();
        let found = rows.iter().flat_map(|&row| &logits[row as usize * vocabulary..][..vocabulary]);
        worst = worst.max(relative_error(&found.copied().collect::<Vec<f32>>(), &case.logits));
    }
    Ok(worst)
}
