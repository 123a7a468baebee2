//! The whole GPU path on a machine without a GPU: plans with PTX, run by the runtime's CUDA device on the emulated driver.
//!
//! The loader reads its path when a process starts, so what needs the driver runs in a child: the shipped binary, or this
//! test itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use lathe_compiler::options::Options;
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_ir::scheme::Scheme;
use lathe_ir::types::DType;
use lathe_kernels::targets::Target;
use lathe_models::{Model, open, seeded};
use lathe_plan::Plan;
use lathe_runtime::device::options::{DeviceChoice, DeviceOptions};
use lathe_runtime::device::{Pick, Row, RowOutput, Step, StepOutput, StepToken, choice};
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_runtime::sample::{NoiseKey, SampleParams};
use lathe_runtime::tokenizer::{Control, Tokenizer};
use lathe_runtime::{Event, Request};
use lathe_tests::compare::relative_error;
use lathe_tests::{Scratch, emulated_driver, lathe, ptxas, smollm2};

/// Room for f32 roundings in another order, over a few layers.
const F32_BOUND: f64 = 1e-5;
/// Room for activations that are rounded to the next code, which a rounding before may tip over, or to bf16.
const INT8_BOUND: f64 = 2e-2;
/// Room for f32 roundings over thirty layers.
const DEEP_BOUND: f64 = 1e-4;
/// Names the test whose body a process runs.
const BODY: &str = "LATHE_TEST_BODY";

/// Lets a command find the emulated driver, on a machine that these variables describe.
fn emulate<'a>(command: &'a mut Command, variables: &[(&str, &str)]) -> &'a mut Command {
    command.env_remove("CUDA_VISIBLE_DEVICES").env("LD_LIBRARY_PATH", emulated_driver());
    command.envs(variables.iter().copied())
}

/// The chips of the machine on which tests run: one of the least kind, and one that begins kernels early.
const CHIPS: [&str; 2] = ["sm_80", "sm_90"];

/// Runs `body` in a process of its own with the emulated driver; `test` is the calling test's name.
fn in_child(test: &str, body: impl FnOnce()) {
    if std::env::var(BODY).as_deref() == Ok(test) {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().expect("a test has a path"));
    emulate(&mut command, &[("LATHE_EMULATE", &CHIPS.join(","))]).env(BODY, test).args([
        "--exact",
        test,
        "--nocapture",
        "--include-ignored",
    ]);
    let Output { status, stdout, stderr } = command.output().expect("the test starts itself");
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(status.success() && text.contains("1 passed"), "{test} in its own process: {status}\n{text}");
    println!("{text}");
}

/// Compiles a model for a target.
fn compile_to(model: Model, target: &str, activations: Activations, path: &Path) {
    let mut options = Options::new(Target::parse(target).expect("a known target"));
    options.passes.activations = activations;
    options.cache = Some(DType::F32);
    options.threads = 2;
    compile(model, Goal::Plan(path), &options).expect("the model compiles");
}

fn plan(model: Model, target: &str, activations: Activations) -> Plan {
    let scratch = Scratch::new();
    let path = scratch.file("model.plan");
    compile_to(model, target, activations, &path);
    Plan::open(&path).expect("the plan opens")
}

fn engine(plan: &Plan, choice: DeviceChoice, poison: bool) -> Engine {
    engine_with(plan, DeviceOptions { choice, poison, ..DeviceOptions::default() })
}

fn engine_with(plan: &Plan, device: DeviceOptions) -> Engine {
    let device = DeviceOptions { cache_tokens: Some(256), ..device };
    let options = EngineOptions { device, prefill_chunk: Some(16), ..EngineOptions::default() };
    Engine::load(plan, &options).expect("the plan loads")
}

/// Greedy answers to prompts that come while others are under way, and how many tokens of each prompt were in the cache.
fn answers(engine: &mut Engine, prompts: &[Vec<u32>]) -> Vec<(Vec<u32>, usize)> {
    let mut found = vec![(Vec::new(), 0); prompts.len()];
    let mut ids = Vec::new();
    let mut waiting = prompts.iter();
    loop {
        // A new prompt every third step: its prefill shares the step with decodes of those before it.
        if let Some(tokens) = waiting.next() {
            let request = Request { tokens: tokens.clone(), max_tokens: Some(8), ..Request::default() };
            ids.push(engine.submit(request).expect("the request is sound"));
        }
        for _ in 0..3 {
            for event in engine.step().expect("the step runs") {
                let place = |id| ids.iter().position(|other| *other == id).expect("one of ours");
                match *event {
                    Event::Token { request, token, .. } => found[place(request)].0.push(token),
                    Event::Started { request, cached, .. } => found[place(request)].1 = cached,
                    _ => {}
                }
            }
        }
        if engine.is_idle() && waiting.len() == 0 {
            return found;
        }
    }
}

#[test]
fn plans_of_every_kind_answer_as_on_the_cpu() {
    in_child("plans_of_every_kind_answer_as_on_the_cpu", || {
        let prompt = |salt: u32, count: u32| (0..count).map(|i| (i * 31 + salt) % 128).collect::<Vec<u32>>();
        // The third prompt begins as the first does.
        let prompts = [prompt(5, 40), prompt(11, 21), [prompt(5, 32), prompt(70, 5)].concat()];
        let every_family = seeded::small_configs().into_iter();
        let schemes = [Scheme::F16, Scheme::INT8, Scheme::INT4];
        for (config, scheme) in every_family.flat_map(|config| schemes.map(|scheme| (config.clone(), scheme))) {
            let family = config.architecture.clone();
            let model = || {
                let model = seeded::model(config.clone(), seeded::small_tokenizer(), 3, &|_| scheme);
                model.and_then(|model| model.with_cache(DType::F32)).expect("the model is sound")
            };
            let of = |target| plan(model(), target, Activations::F32);
            let (cpu, gpu) = (of("native"), of("sm_80"));
            let mut here = engine(&cpu, DeviceChoice::Cpu, true);
            let mut there = engine(&gpu, DeviceChoice::Cuda(0), true);
            let expected = here.logits(&prompts[0]).expect("it runs").concat();
            let found = there.logits(&prompts[0]).expect("it runs").concat();
            let error = relative_error(&found, &expected);
            assert!(error < F32_BOUND, "{family} in {scheme}: relative error {error:.1e}");
            let (expected, found) = (answers(&mut here, &prompts), answers(&mut there, &prompts));
            assert_eq!(found, expected, "{family} in {scheme}");
            assert!(found[2].1 > 0, "{family} in {scheme}: the shared beginning was in the cache");
            assert!(found.iter().all(|(tokens, _)| tokens.len() == 8), "{found:?}");
            assert!(there.counters().steps_ahead > 8 && here.counters().steps_ahead == 0, "steps wait for the host");
        }
    });
}

#[test]
fn plans_answer_on_tensor_cores_whatever_shares_their_steps() {
    in_child("plans_answer_on_tensor_cores_whatever_shares_their_steps", || {
        let prompt = |salt: u32, count: u32| (0..count).map(|i| (i * 31 + salt) % 128).collect::<Vec<u32>>();
        let prompts = [prompt(5, 40), prompt(11, 21), prompt(70, 5)];
        for (config, scheme) in
            seeded::small_configs().into_iter().cycle().zip([Scheme::INT4, Scheme::INT8, Scheme::BF16])
        {
            let family = config.architecture.clone();
            let model = || seeded::model(config.clone(), seeded::small_tokenizer(), 3, &|_| scheme);
            let of = |target| plan(model().expect("the model is sound"), target, Activations::Int8);
            let (cpu, gpu) = (of("native"), of("sm_80"));
            let logits = |plan, choice| {
                let mut engine = engine(plan, choice, true);
                engine.logits(&prompts[0]).expect("it runs").concat()
            };
            let error = relative_error(&logits(&gpu, DeviceChoice::Cuda(0)), &logits(&cpu, DeviceChoice::Cpu));
            assert!(error < INT8_BOUND, "{family} in {scheme}: relative error {error:.1e}");
            let there = |prompts: &[Vec<u32>]| answers(&mut engine(&gpu, DeviceChoice::Cuda(0), true), prompts);
            // The first prompt takes three steps, two of which nobody wants logits of.
            let together = there(&prompts);
            for (prompt, together) in prompts.iter().zip(&together) {
                let alone = there(std::slice::from_ref(prompt));
                assert!(
                    alone[0].0 == together.0 && alone[0].0.len() == 8,
                    "{family} in {scheme}: {alone:?}, {together:?}"
                );
            }
        }
    });
}

#[test]
fn graphs_give_the_bits_of_kernels_that_are_started_one_by_one() {
    in_child("graphs_give_the_bits_of_kernels_that_are_started_one_by_one", || {
        let prompt = |salt: u32, count: u32| (0..count).map(|i| (i * 31 + salt) % 128).collect::<Vec<u32>>();
        // Steps of one prompt's chunks, which come twice in a row, of several answers, and of both.
        let prompts = [prompt(5, 64), prompt(11, 21), prompt(70, 5)];
        for (ordinal, target) in CHIPS.into_iter().enumerate() {
            let model = seeded::small_model(7, Scheme::INT4).expect("the model is sound");
            let plan = plan(model, target, Activations::Int8);
            let found = [false, true].map(|no_graphs| {
                let choice = DeviceChoice::Cuda(ordinal);
                let mut engine =
                    engine_with(&plan, DeviceOptions { choice, no_graphs, poison: true, ..Default::default() });
                let logits = engine.logits(&prompts[0]).expect("it runs").concat();
                (logits, answers(&mut engine, &prompts))
            });
            assert!(found[0] == found[1], "graphs and launches differ on {target}");
            assert!(found[0].1.iter().all(|(tokens, _)| tokens.len() == 8), "{target}: {:?}", found[0].1);
        }
    });
}

#[test]
fn what_a_step_samples_is_what_the_host_picks_from_its_logits() {
    in_child("what_a_step_samples_is_what_the_host_picks_from_its_logits", || {
        let count = 14;
        let plan = plan(seeded::small_model(7, Scheme::INT8).expect("the model is sound"), "sm_80", Activations::Int8);
        let options =
            DeviceOptions { choice: DeviceChoice::Cuda(0), cache_tokens: Some(64), ..DeviceOptions::default() };
        let mut device = choice::load(&plan, &DeviceOptions { poison: true, ..options }).expect("it loads").device;
        let pages: Vec<Vec<u32>> =
            device.limits().groups.iter().map(|group| (0..64u32.div_ceil(group.page_tokens)).collect()).collect();
        let row = |token: u32| {
            let temperature = [0.0, 0.7, 1.3][token as usize % 3];
            let key = NoiseKey { seed: 11, choice: token % 2, position: token };
            let pick = match token {
                5 => Pick::Given(77),
                _ => Pick::Sample(SampleParams { temperature, ..SampleParams::default() }, key),
            };
            Row { token, pick, ..Row::default() }
        };
        // The host picks none of the rows, all of them, some by themselves, and some side by side.
        let by_host: [fn(u32) -> bool; 4] = [|_| false, |_| true, |token| token % 3 == 1, |token| token / 4 == 1];
        let outputs = by_host.map(|asks| {
            let mut step = Step::default();
            step.clear(pages.len());
            let tokens = (0..count).map(|i| StepToken::Known((i * 29 + 3) % 128));
            step.push_sequence(tokens, 0, pages.iter().map(Vec::as_slice));
            step.rows.extend((0..count).map(|token| Row { logits: asks(token), ..row(token) }));
            let mut output = StepOutput::default();
            let ticket = device.submit(&step).expect("the step is sound");
            device.collect(ticket, &mut output).expect("the step runs");
            output.rows
        });
        for (asks, rows) in by_host.iter().zip(&outputs) {
            for ((row, whole), token) in rows.iter().zip(&outputs[1]).zip(0..) {
                let bits = |row: &RowOutput| (row.token, row.logprob.to_bits(), row.is_broken);
                assert_eq!(bits(row), bits(whole), "row {token}");
                assert!(!row.is_broken);
                assert_eq!(row.logits, if asks(token) { whole.logits.clone() } else { Vec::new() }, "row {token}");
            }
        }
        let different: BTreeSet<u32> = outputs[0].iter().map(|row| row.token).collect();
        assert!(different.len() > 3 && outputs[0][5].token == 77, "{different:?}");
    });
}

/// Plans of the small llama for the CPU and for GPUs, made once and removed with the process.
fn small_plans() -> &'static [PathBuf; 2] {
    static PLANS: OnceLock<(Scratch, [PathBuf; 2])> = OnceLock::new();
    let make = || {
        let scratch = Scratch::new();
        let plans = [("native", "cpu.plan"), ("sm_80", "gpu.plan")].map(|(target, name)| {
            let path = scratch.file(name);
            let model = seeded::small_model(7, Scheme::INT8).expect("the model is sound");
            compile_to(model, target, Activations::F32, &path);
            path
        });
        (scratch, plans)
    };
    &PLANS.get_or_init(make).1
}

/// `lathe run` of a plan on a device.
fn run(plan: &Path, device: &str) -> Command {
    let mut command = Command::new(lathe());
    command.arg("run").arg(plan).args(["--device", device, "--raw", "-p", "abc", "-n", "6", "--json", "--quiet"]);
    command.args(["--temperature", "0"]);
    command
}

#[test]
fn the_shipped_binary_answers_on_a_gpu() {
    let [cpu, gpu] = small_plans();
    let tokens = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a line of JSON");
        (report["text"].clone(), report["tokens"].clone())
    };
    let expected = tokens(run(cpu, "cpu").output().expect("it starts"));
    assert!(!expected.1.is_null(), "{expected:?}");
    for chip in ["sm_80", "sm_86", "sm_89", "sm_90"] {
        let found = emulate(&mut run(gpu, "cuda:0"), &[("LATHE_EMULATE", chip)]).output().expect("it starts");
        assert_eq!(tokens(found), expected, "{chip}");
    }
}

#[test]
fn a_cubin_that_does_not_load_gives_way_to_ptx() {
    let scratch = Scratch::new();
    let path = scratch.file("assembled.plan");
    let mut options = Options::new(Target::parse("sm_80").expect("a known target"));
    options.passes.activations = Activations::F32;
    options.cache = Some(DType::F32);
    options.ptxas = Some(ptxas());
    let model = seeded::small_model(7, Scheme::INT8).expect("the model is sound");
    compile(model, Goal::Plan(&path), &options).expect("the model compiles");
    let plan = Plan::open(&path).expect("the plan opens");
    assert!(plan.cubin("main", "sm_80").is_some_and(|cubin| cubin.starts_with(b"\x7fELF")));
    let kernels = plan.report("kernels").expect("the plan has reports");
    assert!(kernels.ends_with("no kernel spills registers to memory\n"), "{kernels}");

    let text = |output: &Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("a line of JSON")["text"].clone()
    };
    let expected = text(&run(&small_plans()[0], "cpu").output().expect("it starts"));
    // The emulated driver takes PTX alone; and a binary is for chips of its own generation.
    for (chip, told) in [("sm_80", "does not load here"), ("sm_90", "is for another chip than this GPU's sm_90")] {
        let found = emulate(&mut run(&path, "cuda:0"), &[("LATHE_EMULATE", chip)]).output().expect("it starts");
        let warning = String::from_utf8_lossy(&found.stderr).into_owned();
        assert_eq!(text(&found), expected, "{chip}");
        assert!(warning.contains("the plan's cubin for sm_80") && warning.contains(told), "{chip}: {warning}");
    }
}

/// A plan, a device, variables of the emulated driver, the exit code, and what is told.
type Case<'a> = (&'a Path, &'a str, &'a [(&'a str, &'a str)], u8, &'a [&'a str]);

#[test]
fn what_a_machine_lacks_is_said_in_a_sentence() {
    let [cpu, gpu] = small_plans();
    let cases: &[Case<'_>] = &[
        (gpu, "cuda:0", &[("LATHE_EMULATE", "none")], 1, &["there is no GPU 0", "CUDA_VISIBLE_DEVICES"]),
        (gpu, "cuda:0", &[("CUDA_VISIBLE_DEVICES", "")], 1, &["there is no GPU 0", "shows 0"]),
        (gpu, "cuda:1", &[], 1, &["there is no GPU 1", "shows 1"]),
        (gpu, "cuda:0", &[("LATHE_EMULATE_DRIVER", "10.2")], 3, &["too old", "CUDA 10.2", "newer driver"]),
        (gpu, "cuda:0", &[("LATHE_EMULATE_MEMORY", "64K")], 1, &["bytes left for", "--cache-tokens"]),
        (gpu, "cuda:0", &[("LATHE_EMULATE_LOSE", "9")], 1, &["ECC_UNCORRECTABLE", "must be loaded again"]),
        (gpu, "cuda:0", &[("LATHE_EMULATE", "sm_20")], 1, &["LATHE_EMULATE is `sm_20`; expected one of sm_80"]),
        (cpu, "cuda:0", &[], 3, &["the plan holds no PTX", "--target sm_80"]),
    ];
    for &(plan, device, variables, code, told) in cases {
        let output = emulate(&mut run(plan, device), variables).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(i32::from(code)), "{variables:?}: {text}");
        assert!(told.iter().all(|part| text.contains(part)), "{variables:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    // Where a real driver is, this has nothing to show.
    if !Path::new("/dev/nvidiactl").exists() {
        let output = run(gpu, "cuda:0").output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("no CUDA driver was found"), "{text}");
        assert_eq!(output.status.code(), Some(1), "{text}");
    }
}

#[test]
#[ignore = "minutes: SmolLM2 on the emulator"]
fn smollm2_continues_on_the_emulator_as_on_the_cpu() {
    in_child("smollm2_continues_on_the_emulator_as_on_the_cpu", || {
        let model = || open(&smollm2()).expect("the model opens");
        let of = |target| plan(model(), target, Activations::F32);
        let (cpu, gpu) = (of("native"), of("sm_80"));
        let tables = gpu.tokenizer().expect("the plan has a tokenizer").clone();
        let tokenizer = Tokenizer::new(tables).expect("the tables are sound");
        let mut prompt = tokenizer.encode("Paris is large. The capital of France is", Control::AsText);
        prompt.drain(..prompt.len().saturating_sub(8));
        let mut here = engine(&cpu, DeviceChoice::Cpu, false);
        let mut there = engine(&gpu, DeviceChoice::Cuda(0), false);
        let expected = here.logits(&prompt).expect("it runs").concat();
        let begin = std::time::Instant::now();
        let found = there.logits(&prompt).expect("it runs").concat();
        println!("prefill of {} tokens: {:.1} s", prompt.len(), begin.elapsed().as_secs_f64());
        let error = relative_error(&found, &expected);
        println!("relative error {error:.1e}");
        assert!(error < DEEP_BOUND, "relative error {error:.1e}");

        let prompt = tokenizer.encode("The capital of France is", Control::AsText);
        let request = || Request { tokens: prompt.clone(), max_tokens: Some(2), ..Request::default() };
        let continued = |engine: &mut Engine| {
            let mut tokens = Vec::new();
            engine.submit(request()).expect("the request is sound");
            while !engine.is_idle() {
                for event in engine.step().expect("the step runs") {
                    if let Event::Token { token, .. } = event {
                        tokens.push(*token);
                    }
                }
            }
            tokens
        };
        let begin = std::time::Instant::now();
        let found = continued(&mut there);
        println!("prefill of {} tokens and a decode step: {:.1} s", prompt.len(), begin.elapsed().as_secs_f64());
        assert_eq!(found, continued(&mut here));
        assert_eq!(tokenizer.encode(" Paris", Control::AsText), found[..1]);
    });
}
