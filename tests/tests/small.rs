//! A small seeded model through compiler and runtime: every bit of its plan, and its numbers against the reference
//! evaluation of its graph.

use std::process::Command;

use lathe_compiler::options::{Options, Weights};
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_compiler::quantize::Quantize;
use lathe_ir::eval::{Caches, StepInputs, Tensor, evaluate};
use lathe_ir::graph::Weight;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{DType, Type};
use lathe_kernels::targets::Target;
use lathe_models::checkpoint::assemble;
use lathe_models::config::ModelConfig;
use lathe_models::hf::generation::Generation;
use lathe_models::tokenizer::Token;
use lathe_models::{Model, seeded};
use lathe_plan::{Plan, SectionKind};
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_runtime::sample::defaults::Defaults;
use lathe_tests::compare::relative_error;
use lathe_tests::{Scratch, lathe};

/// Room for f32 roundings in another order, over a few layers.
const F32_BOUND: f64 = 1e-5;

/// How the matrices of the small models are stored.
const SCHEMES: [Scheme; 3] = [Scheme::BF16, Scheme::INT8, Scheme::INT4];

fn options(activations: Activations) -> Options {
    let mut options = Options::new(Target::parse("native").expect("this CPU has a target"));
    options.passes.activations = activations;
    options.passes.formats.base = Quantize::Source;
    options.cache = Some(DType::F32);
    options
}

fn plan_bytes(model: Model, options: &Options) -> Vec<u8> {
    let scratch = Scratch::new();
    let path = scratch.file("small.plan");
    compile(model, Goal::Plan(&path), options).expect("the model compiles");
    std::fs::read(path).expect("the plan is there")
}

/// Whether a plan in memory is sound to its last byte.
fn is_sound(bytes: &[u8]) -> bool {
    Plan::from_bytes(bytes.to_vec()).and_then(|plan| plan.verify_weights(1)).is_ok()
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_compiled_plan_is_refused() {
    let config = ModelConfig { layers: 1, hidden: 32, heads: 1, kv_heads: 1, ffn: 32, ..seeded::small_llama() };
    let model = seeded::model(config, seeded::small_tokenizer(), 7, &|_| Scheme::INT4).expect("the model is sound");
    let bytes = plan_bytes(model, &Options { report: false, ..options(Activations::Int8) });
    println!("a plan of {} bytes", bytes.len());
    assert!(bytes.len() <= 128 << 10, "the plan has {} bytes", bytes.len());
    assert!(is_sound(&bytes), "the plan itself");
    for cut in 0..bytes.len() {
        assert!(!is_sound(&bytes[..cut]), "cut after {cut} bytes");
    }
    let half = bytes.len() / 2;
    std::thread::scope(|scope| {
        for range in [0..half, half..bytes.len()] {
            let mut bytes = bytes.clone();
            scope.spawn(move || {
                for at in range {
                    for bit in 0..8 {
                        bytes[at] ^= 1 << bit;
                        assert!(!is_sound(&bytes), "bit {bit} of byte {at}");
                        bytes[at] ^= 1 << bit;
                    }
                }
            });
        }
    });
}

/// The logits of every token by the reference evaluation of the model's graph.
fn evaluated(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let tokens: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    let mut inputs = StepInputs::sequence(0, 0, &tokens);
    inputs.rows = (0..tokens.len() as i32).collect();
    let load = |weight: &Weight, ty: &Type| {
        let matrix = assemble(model.checkpoint.as_ref(), weight).map_err(|error| error.to_string())?;
        let shape = ty.shape().expect("a weight is a tensor");
        Ok(if shape.len() == 1 { Tensor::f32(vec![matrix.cols], matrix.to_f32()) } else { Tensor::matrix(matrix) })
    };
    let outputs = evaluate(&model.graph, &load, &inputs, &mut Caches::new()).expect("the graph evaluates");
    outputs["logits"].as_f32().expect("logits are f32").to_vec()
}

#[test]
fn a_compiled_plan_computes_what_its_graph_says() {
    let tokens: Vec<i32> = (0..45).map(|i| (i * 31 + 5) % 128).collect();
    let every_family = seeded::small_configs().into_iter();
    for (config, scheme) in every_family.flat_map(|config| SCHEMES.map(|scheme| (config.clone(), scheme))) {
        let family = config.architecture.clone();
        let model = seeded::model(config, seeded::small_tokenizer(), 3, &|_| scheme).expect("the model is sound");
        let model = model.with_cache(DType::F32).expect("a cache");
        let ids: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
        let expected = evaluated(&model, &ids);

        let plan = Plan::from_bytes(plan_bytes(model, &options(Activations::F32))).expect("the plan is sound");
        for chunk in [1, 16, 45] {
            let device = DeviceOptions { poison: true, ..DeviceOptions::default() };
            let options = EngineOptions { device, prefill_chunk: Some(chunk), ..EngineOptions::default() };
            let found = Engine::load(&plan, &options).expect("it loads").logits(&ids).expect("it runs").concat();
            let error = relative_error(&found, &expected);
            assert!(error < F32_BOUND, "{family} in {scheme}, in chunks of {chunk}: relative error {error:.1e}");
        }
    }
}

#[test]
fn how_the_authors_would_sample_reaches_the_server() {
    let mut model = seeded::small_model(3, Scheme::BF16).expect("the model is sound");
    let compiled = |model: Model| Plan::from_bytes(plan_bytes(model, &options(Activations::F32))).expect("it is sound");
    let generation =
        Generation { do_sample: Some(true), top_k: Some(20), repetition_penalty: Some(1.1), ..model.generation };
    model.generation = generation;
    let plan = compiled(model);
    let config = plan.generation_config().expect("a plan has one");
    assert!(!config.contains("min_p"), "nobody states it: {config}");
    let defaults = Defaults::read(Some(config));
    assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (Some(1.0), Some(20), None));
    assert_eq!((defaults.min_p, defaults.repetition_penalty), (None, Some(1.1)));

    let mut model = seeded::small_model(3, Scheme::BF16).expect("the model is sound");
    model.generation = Generation { do_sample: Some(false), ..generation };
    assert_eq!(Defaults::read(compiled(model).generation_config()), Defaults::default());
}

#[test]
fn a_vocabulary_may_have_any_size() {
    let mut tokenizer = seeded::small_tokenizer();
    let tokens: Vec<u32> = (0..45).map(|i| (i * 31 + 5) % 128).collect();
    // Sizes that are no multiple of 16 rows, of 32, and one of both.
    for (size, scheme) in [(131, Scheme::INT8), (144, Scheme::BF16), (147, Scheme::INT4), (160, Scheme::INT8)] {
        let filler = tokenizer.tokens[5].clone();
        tokenizer.tokens.resize_with(size, || Token { bytes: b"unused".to_vec(), ..filler.clone() });
        let config = ModelConfig { vocab: size, ..seeded::small_llama() };
        let model = seeded::model(config, tokenizer.clone(), 3, &|_| scheme).expect("the model is sound");
        let model = model.with_cache(DType::F32).expect("a cache");
        let expected = evaluated(&model, &tokens);
        let plan = Plan::from_bytes(plan_bytes(model, &options(Activations::F32))).expect("the plan is sound");
        let device = DeviceOptions { poison: true, ..DeviceOptions::default() };
        let options = EngineOptions { device, prefill_chunk: Some(16), ..EngineOptions::default() };
        let found = Engine::load(&plan, &options).expect("it loads").logits(&tokens).expect("it runs");
        assert!(found.iter().all(|row| row.len() == size), "{size} logits a row");
        let error = relative_error(&found.concat(), &expected);
        assert!(error < F32_BOUND, "a vocabulary of {size} in {scheme}: relative error {error:.1e}");
    }
}

#[test]
fn one_plan_for_several_cpus_shares_its_weights_and_gives_the_same_bits_on_each() {
    let tokens: Vec<u32> = (0..45).map(|i| (i * 31 + 5) % 128).collect();
    let targets = Target::parse_list("all-cpu").expect("CPU targets");
    assert!(targets.len() > 2, "{targets:?}");
    let model = |targets: &[&'static Target]| {
        let config = seeded::small_llama();
        let model = seeded::model(config, seeded::small_tokenizer(), 3, &|_| Scheme::INT8).expect("the model is sound");
        let options = Options { targets: targets.to_vec(), ..options(Activations::Int8) };
        Plan::from_bytes(plan_bytes(model, &options)).expect("the plan is sound")
    };
    let (one, all) = (model(&targets[..1]), model(&targets));
    let weights = |plan: &Plan| {
        let of_kind = plan.sections().iter().filter(|section| section.kind == SectionKind::Weights);
        of_kind.map(|section| (section.length, section.digest)).collect::<Vec<_>>()
    };
    assert_eq!(weights(&one), weights(&all), "one section of weights");
    let held: Vec<&str> = all.codes("main").map(|code| code.object.target.as_str()).collect();
    assert!(targets.iter().all(|target| held.contains(&target.name)) && held.len() == targets.len(), "{held:?}");

    let mut first: Option<Vec<Vec<f32>>> = None;
    for target in targets.iter().filter(|target| target.missing_here().is_empty()) {
        let target_name = Some(target.name.to_owned());
        let device = DeviceOptions { target: target_name, poison: true, ..DeviceOptions::default() };
        let options = EngineOptions { device, ..EngineOptions::default() };
        let logits = Engine::load(&all, &options).expect("it loads").logits(&tokens).expect("it runs");
        let first = first.get_or_insert_with(|| logits.clone());
        assert!(*first == logits, "{target} differs from the best target");
    }
    assert!(first.is_some(), "this CPU runs one of the targets");
}

#[test]
fn weights_from_a_seed_run_in_every_scheme_and_are_for_benchmarks_alone() {
    let tokens: Vec<u32> = (0..20).map(|i| (i * 31 + 5) % 128).collect();
    let config = ModelConfig { hidden: 256, heads: 4, kv_heads: 4, head_dim: 64, ffn: 256, ..seeded::small_llama() };
    let scratch = Scratch::new();
    let path = scratch.file("random.plan");
    let plan = |scheme: Scheme, seed: u64| {
        let model = seeded::model(config.clone(), seeded::small_tokenizer(), 3, &|_| scheme).expect("it is sound");
        let options = Options { weights: Weights::Random(seed), report: false, ..options(Activations::Int8) };
        compile(model, Goal::Plan(&path), &options).expect("the model compiles");
        Plan::open(&path).expect("the plan opens")
    };
    let logits = |scheme: Scheme, seed: u64| {
        let engine = Engine::load(&plan(scheme, seed), &EngineOptions::default());
        engine.expect("it loads").logits(&tokens).expect("it runs").concat()
    };
    for scheme in Scheme::ALL {
        let first = logits(scheme, 1);
        let largest = first.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert!(first.iter().all(|value| value.is_finite()) && (1e-2..1e3).contains(&largest), "{scheme}: {largest}");
        assert!(first == logits(scheme, 1) && first != logits(scheme, 2), "{scheme}");
    }
    let plan = plan(Scheme::INT4, 9);
    assert!(plan.length() < 128 << 10 && plan.tokenizer().is_none(), "{} bytes", plan.length());
    let output = |command: &str, arguments: &[&str]| {
        let output = Command::new(lathe()).arg(command).arg(&path).args(arguments).output().expect("it starts");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.code(), text)
    };
    for (command, arguments) in
        [("run", &["-p", "abc"][..]), ("serve", &["--port", "0"]), ("eval", &["--text", "Cargo.toml"])]
    {
        let (code, text) = output(command, arguments);
        assert!(
            code == Some(3) && text.contains("random:9") && text.contains("`lathe bench` alone"),
            "{code:?} {text}"
        );
    }
    let (code, text) = output("bench", &["-p", "16", "-n", "2", "-r", "1"]);
    assert!(code == Some(0) && text.contains("llama source, random:9"), "{code:?} {text}");
    let (code, text) = output("inspect", &[]);
    assert!(code == Some(0) && text.contains("random:9, made when the plan is loaded"), "{code:?} {text}");
}
