//! Dry runs of the known shapes: sizes that were published, and texts that a person can read.

use lathe_compiler::options::Options;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_kernels::targets::{Machine, TARGETS, Target};
use lathe_models::shapes::{self, SHAPES};

/// Numbers of parameters as their publishers count them, a shared table once.
const PARAMETERS: [(&str, u64); 17] = [
    ("smollm2-135m", 134_515_008),
    ("llama-3.1-8b", 8_030_261_248),
    ("llama-3.1-70b", 70_553_706_496),
    ("llama-3.2-1b", 1_235_814_400),
    ("mistral-7b-v0.3", 7_248_023_552),
    ("qwen2.5-0.5b", 494_032_768),
    ("qwen2.5-7b", 7_615_616_512),
    ("qwen2.5-32b", 32_763_876_352),
    ("qwen3-0.6b", 596_049_920),
    ("qwen3-8b", 8_190_735_360),
    ("qwen3-32b", 32_762_123_264),
    ("gemma-2-2b", 2_614_341_888),
    ("gemma-2-9b", 9_241_705_984),
    ("gemma-3-270m", 268_098_176),
    ("gemma-3-1b", 999_885_952),
    ("phi-3-mini-4k", 3_821_079_552),
    ("phi-4", 14_659_507_200),
];

/// The text of a dry run for some targets.
fn text(name: &str, targets: Vec<&'static Target>) -> String {
    let model = shapes::open(name.as_ref()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let options = Options { targets, ..crate::common::options() };
    compile(model, Goal::DryRun, &options).unwrap_or_else(|error| panic!("{name}: {error}")).text
}

#[test]
fn every_shape_has_the_parameters_that_its_publisher_counts() {
    assert_eq!(PARAMETERS.map(|row| row.0).to_vec(), SHAPES.iter().map(|shape| shape.0).collect::<Vec<_>>());
    for (name, parameters) in PARAMETERS {
        let text = text(name, vec![&TARGETS[0]]);
        assert!(text.contains(&format!(", {parameters} parameters\n")), "{name}: {text}");
    }
}

#[test]
fn a_shape_for_every_target() {
    let text = text("smollm2-135m", TARGETS.iter().collect());
    for target in TARGETS {
        let (_, part) = text.split_once(&format!("{target}, predicted for ")).expect("a part for each target");
        let (_, kernels) = part.split_once("  kernels: ").expect("a line of kernels");
        let complete = kernels.lines().next().is_some_and(|line| line.ends_with(", 0 without a generator"));
        assert!(complete || target.machine != Machine::X86, "{kernels}");
    }
    insta::assert_snapshot!("dry_run_smollm2-135m", self::text("smollm2-135m", vec![&TARGETS[0]]));
}

/// Steps on an H100 as `lathe bench` measured them: a shape, how it was quantized, and milliseconds of a decoded token behind
/// 512 others and of a prompt of 512.
const MEASURED: [(&str, &str, f64, Option<f64>); 4] = [
    ("llama-3.1-8b", "bf16", 5.59, Some(31.3)),
    ("llama-3.1-8b", "int4:g32", 2.35, Some(69.2)),
    ("llama-3.2-1b", "bf16", 1.12, Some(6.25)),
    ("smollm2-135m", "int4:g32+min", 0.697, None),
];
/// How far a prediction may be off.
const ROOM: f64 = 0.15;

#[test]
fn predicted_steps_of_a_measured_gpu_are_as_they_were_measured() {
    let target = Target::parse("sm_90").expect("a known target");
    let mut report = Vec::new();
    let mut worst: f64 = 0.0;
    for (shape, formats, decode, prefill) in MEASURED {
        let model = shapes::open(shape.as_ref()).expect("a known shape");
        let mut options = Options::new(target);
        options.passes.formats = formats.parse().expect("a form of weights");
        let text = compile(model, Goal::DryRun, &options).expect("it compiles").text;
        for (name, measured) in [("  decode, 1 token:", Some(decode)), ("  prefill, 512 tokens:", prefill)] {
            let Some(measured) = measured else { continue };
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of the step");
            let cell = line.split(", ").find_map(|cell| cell.strip_suffix(" ms")).expect("its time");
            let off = cell.parse::<f64>().expect("a number") / measured - 1.0;
            worst = worst.max(off.abs());
            report.push(format!("{shape} in {formats},{name} {cell} ms, measured {measured}, {:+.0} %", 100.0 * off));
        }
    }
    println!("{}", report.join("\n"));
    assert!(worst <= ROOM, "predictions are off:\n{}", report.join("\n"));
}

#[test]
fn what_is_no_shape_is_refused_with_their_names() {
    let error = shapes::open("llama-9000b".as_ref()).err().expect("there is none");
    assert!(error.to_string().contains("llama-3.1-8b") && error.to_string().contains("'llama-9000b'"), "{error}");
}
