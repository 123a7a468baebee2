//! A model and its draft in one plan: answers have the bits that they have without guesses, as many guesses are right as
//! the logits of both models say, and models that do not fit each other are refused by name.

use std::path::Path;
use std::process::Command;

use lathe_compiler::options::Options;
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile, compile_with};
use lathe_compiler::quantize::Formats;
use lathe_compiler::self_draft::LeftOut;
use lathe_ir::scheme::Scheme;
use lathe_kernels::targets::Target;
use lathe_models::config::ModelConfig;
use lathe_models::gguf::write::write_gguf;
use lathe_models::{Model, open, seeded};
use lathe_plan::{Plan, manifest};
use lathe_runtime::batcher::{BatchOptions, Penalties, Request};
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_runtime::sample::{NoiseKey, SampleParams, Sampler};
use lathe_runtime::speculate::{Mode, Speculation, Tally};
use lathe_runtime::tokenizer::{Control, Tokenizer};
use lathe_tests::answers::{Answer, Run, answers};
use lathe_tests::{CORPUS, Scratch, lathe, lathe_compile, qwen2, qwen2_larger, reference};

/// Weights of the small models.
const SEED: u64 = 3;

/// A small llama of so many layers. Its first layers are those of any other.
fn small(layers: usize) -> Model {
    let config = ModelConfig { layers, name: format!("small-{layers}"), ..seeded::small_llama() };
    seeded::model(config, seeded::small_tokenizer(), SEED, &|_| Scheme::INT8).expect("the model is sound")
}

fn options(activations: Activations) -> Options {
    let mut options = Options::new(Target::parse("native").expect("this CPU has a target"));
    // What the reference computes with are the file's own weights.
    options.draft_formats = Formats::default();
    options.passes.activations = activations;
    options.threads = 2;
    options
}

fn pair(target: Model, draft: Model, activations: Activations) -> Plan {
    let scratch = Scratch::new();
    let path = scratch.file("pair.plan");
    compile_with(target, Some(draft), Goal::Plan(&path), &options(activations)).expect("the pair compiles");
    // The plan keeps its file open, so the folder may go.
    Plan::open(&path).expect("the plan opens")
}

/// A model that guesses for itself without these layers.
fn alone_without(model: Model, layers: &str, options: &Options) -> Plan {
    let scratch = Scratch::new();
    let path = scratch.file("self.plan");
    let left_out: LeftOut = layers.parse().expect("layers");
    let options = Options { self_draft: Some(left_out), ..options.clone() };
    compile(model, Goal::Plan(&path), &options).expect("it compiles");
    Plan::open(&path).expect("the plan opens")
}

fn run(plan: &Plan, mode: Mode, depth: usize, base: &EngineOptions, requests: &[Request]) -> Run {
    let speculation = Speculation { mode, depth: Some(depth), ..base.batching.speculation };
    let batching = BatchOptions { speculation, ..base.batching.clone() };
    // With a thread for each, the tests that run side by side do not wait for one another's.
    let threads = base.device.threads.or(Some(1));
    let device = DeviceOptions { poison: true, threads, ..base.device.clone() };
    let mut engine = Engine::load(plan, &EngineOptions { device, batching, ..base.clone() }).expect("it loads");
    answers(&mut engine, requests)
}

/// Requests of every kind: greedy and sampled, with penalties, bias, stop tokens, likelihoods and several answers.
fn requests() -> Vec<Request> {
    let prompt = |n: usize, length: usize| (0..length).map(|i| ((i * 31 + n * 17) % 120 + 3) as u32).collect();
    let at = |temperature| SampleParams { temperature, ..SampleParams::default() };
    let base = Request { tokens: prompt(0, 70), max_tokens: Some(24), seed: 5, ..Request::default() };
    let penalties = Penalties { presence: 0.3, frequency: 0.2, repetition: 1.1 };
    vec![
        base.clone(),
        Request { sampling: at(0.3), ..base.clone() },
        Request { sampling: at(0.7), more: 2, top_logprobs: 2, ..base.clone() },
        Request { sampling: SampleParams { min_p: 0.05, top_k: 40, ..at(1.0) }, penalties, ..base.clone() },
        Request { tokens: prompt(1, 90), bias: vec![(28, -3.0)], stop: vec![7, 9], min_tokens: 9, ..base.clone() },
        Request { tokens: prompt(2, 33), sampling: at(1.0), prompt_logprobs: Some(0), ..base },
    ]
}

/// Each request's answer alone.
fn alone(plan: &Plan, mode: Mode, requests: &[Request]) -> (Vec<Answer>, Tally) {
    let mut all = Tally::default();
    let mut one = |request: &Request| {
        let run = run(plan, mode, 4, &EngineOptions::default(), std::slice::from_ref(request));
        all.drafted += run.speculation.drafted;
        all.accepted += run.speculation.accepted;
        run.answers.concat()
    };
    let answers = requests.iter().map(&mut one).collect();
    (answers, all)
}

#[test]
fn guesses_of_a_draft_model_change_no_bit() {
    no_bit_changes(&pair(small(3), small(2), Activations::Int8), Mode::Draft);
}

#[test]
fn guesses_of_the_model_without_layers_change_no_bit() {
    let options = options(Activations::Int8);
    let plan = alone_without(small(3), "2", &options);
    let (main, own) = (plan.program("main").expect("main"), plan.program("self").expect("self"));
    assert!(own.buckets[0].launches.len() < main.buckets[0].launches.len());
    no_bit_changes(&plan, Mode::Own);
    // Without its last layer it is the model of two layers, whose guesses are as often right from a cache of its own: what
    // it reads of the whole model's cache is what its own layers put there.
    let pair = pair(small(3), small(2), Activations::Int8);
    let request = Request { tokens: (3..60).collect(), max_tokens: Some(40), ..Request::default() };
    let base = EngineOptions::default();
    let tally = |plan: &Plan, mode| run(plan, mode, 4, &base, std::slice::from_ref(&request)).speculation;
    let [own, draft] = [tally(&plan, Mode::Own), tally(&pair, Mode::Draft)];
    assert_eq!((own.drafted, own.accepted, own.accepted_at), (draft.drafted, draft.accepted, draft.accepted_at));
}

#[test]
fn layers_that_a_model_cannot_guess_without_are_refused_by_name() {
    let scratch = Scratch::new();
    let path = scratch.file("self.plan");
    for (layers, hint) in [("3", "layer 3 cannot be left out"), ("0-2", "all 3 layers"), ("1,700", "layer 700")] {
        let left_out = Some(layers.parse().expect("layers"));
        let options = Options { self_draft: left_out, ..options(Activations::Int8) };
        let error = compile(small(3), Goal::Plan(&path), &options).expect_err(layers);
        assert!(error.to_string().contains(hint), "{error}");
        assert_eq!(error.exit_code(), lathe_compiler::error::exit::USAGE, "{error}");
        assert!(!path.exists());
    }
}

#[test]
fn a_search_finds_layers_to_leave_out() {
    let scratch = Scratch::new();
    let [model, first, second] = ["small.gguf", "first.plan", "second.plan"].map(|name| scratch.file(name));
    write_gguf(&model, &small(4)).expect("it is written");
    lathe_compile();
    let search = |path: &Path| {
        let command = Command::new(lathe())
            .arg("compile")
            .arg(&model)
            .args(["--self-draft", "auto", "-q", "-o"])
            .arg(path)
            .output();
        let output = command.expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    search(&first);
    search(&second);
    let bytes = [&first, &second].map(|path| std::fs::read(path).expect("a plan"));
    assert!(bytes[0] == bytes[1], "the same search finds the same");
    let plan = Plan::open(&first).expect("the plan opens");
    let drafter = &plan.manifest().expect("a manifest").drafters[0];
    let best = drafter.curve.iter().max_by(|a, b| a.gain.total_cmp(&b.gain)).expect("a curve");
    assert!(best.layers == drafter.left_out && (0.0..=1.0).contains(&best.right) && best.share < 1.0, "{best:?}");
    // Each choice has one layer more than the one before.
    let grows = |pair: &[manifest::LeftOut]| pair[0].layers.iter().all(|layer| pair[1].layers.contains(layer));
    assert!(drafter.curve.iter().enumerate().all(|(at, point)| point.layers.len() == at + 1));
    assert!(drafter.curve.windows(2).all(grows), "{:?}", drafter.curve);
    let request = Request { tokens: (3..40).collect(), max_tokens: Some(30), ..Request::default() };
    let answer = |mode| run(&plan, mode, 3, &EngineOptions::default(), std::slice::from_ref(&request)).answers;
    assert!(answer(Mode::Own) == answer(Mode::Off));
}

/// Compares answers of all kinds of requests, alone and among others, with those without guesses.
fn no_bit_changes(plan: &Plan, mode: Mode) {
    let mut requests = requests();
    let (off, none) = alone(plan, Mode::Off, &requests);
    assert_eq!(none.drafted, 0);
    let (guessed, tally) = alone(plan, mode, &requests);
    assert!(guessed == off, "alone");
    assert!(tally.accepted > 60 && tally.accepted < tally.drafted, "{} of {}", tally.accepted, tally.drafted);
    // Among sixteen others, which end at other times, with prompts in pieces.
    let mut expected = off;
    for n in 0..16 {
        let short = Request { max_tokens: Some(8 + n), ..requests[n % 6].clone() };
        let choices = short.more as usize + 1;
        let whole: Vec<&[(u32, u32)]> = expected[n % 6].chunks(expected[n % 6].len() / choices).collect();
        expected.push(whole.iter().flat_map(|answer| &answer[..answer.len().min(8 + n)]).copied().collect());
        requests.push(short);
    }
    let base = |cache_tokens, threads| {
        let device = DeviceOptions { cache_tokens: Some(cache_tokens), threads, ..DeviceOptions::default() };
        EngineOptions { device, prefill_chunk: Some(24), ..EngineOptions::default() }
    };
    let (roomy, crowded) = (base(4096, Some(2)), base(384, None));
    let ways =
        [(mode, 1, &roomy), (mode, 3, &roomy), (mode, 1, &crowded), (mode, 4, &crowded), (Mode::Auto, 3, &crowded)];
    for (mode, width, base) in ways {
        let mut base = base.clone();
        base.batching.speculation.width = Some(width);
        let run = run(plan, mode, 5, &base, &requests);
        for (index, (found, expected)) in run.answers.iter().zip(&expected).enumerate() {
            let cache = base.device.cache_tokens;
            assert!(found == expected, "request {index} by {mode} in {width} ways, of {cache:?} positions");
        }
        let Tally { accepted, branched, .. } = run.speculation;
        assert!(mode == Mode::Auto || (accepted > 0 && (branched > 0) == (width > 1)), "{mode} {width}");
        assert_eq!(run.preemptions > 0, base.device.cache_tokens == Some(384), "{} preemptions", run.preemptions);
    }
}

/// Drafts and guesses that were right, with one guess a step, when the guess for each place of the answer, from its second
/// token on, is right or not.
fn expected_tally(is_right: &[bool]) -> (u64, u64) {
    let (mut drafted, mut accepted, mut at) = (0, 0, 0);
    // The last token needs no guess: it is what the step samples anyhow.
    while at + 1 < is_right.len() {
        drafted += 1;
        accepted += u64::from(is_right[at]);
        at += if is_right[at] { 2 } else { 1 };
    }
    (drafted, accepted)
}

#[test]
fn as_many_guesses_are_right_as_the_logits_of_both_models_say() {
    let pair = pair(small(3), small(2), Activations::F32);
    let lone = |model: Model| {
        let scratch = Scratch::new();
        compile(model, Goal::Plan(&scratch.file("lone.plan")), &options(Activations::F32)).expect("it compiles");
        let plan = Plan::open(&scratch.file("lone.plan")).expect("the plan opens");
        let device = DeviceOptions { threads: Some(1), ..DeviceOptions::default() };
        Engine::load(&plan, &EngineOptions { device, ..EngineOptions::default() }).expect("it loads")
    };
    let (mut target, mut draft) = (lone(small(3)), lone(small(2)));
    for temperature in [0.0, 0.7, 1.0] {
        let sampling = SampleParams { temperature, ..SampleParams::default() };
        let prompt: Vec<u32> = (0..40).map(|i| (i * 7 + 5) % 120).collect();
        let request =
            Request { tokens: prompt.clone(), max_tokens: Some(120), sampling, seed: 9, ..Request::default() };
        let run = run(&pair, Mode::Draft, 1, &EngineOptions::default(), &[request]);
        let text: Vec<u32> = prompt.iter().copied().chain(run.answers[0].iter().map(|(token, _)| *token)).collect();
        let logits = [&mut target, &mut draft].map(|engine| engine.logits(&text).expect("it runs").concat());
        check_tally(&run.speculation, &text, prompt.len(), &logits, sampling, 0);
    }
}

/// Compares what came of single guesses with what the logits of both models after each token of a text say.
fn check_tally(
    found: &Tally,
    text: &[u32],
    prompt: usize,
    [target, draft]: &[Vec<f32>; 2],
    sampling: SampleParams,
    slack: u64,
) {
    let vocabulary = target.len() / text.len();
    let mut sampler = Sampler::new(vocabulary);
    let mut sample = |logits: &[f32], position: usize| {
        let key = NoiseKey { seed: 9, choice: 0, position: position as u32 };
        sampler.sample(&logits[(position - 1) * vocabulary..position * vocabulary], &sampling, key)
    };
    // The first token of the answer comes with the prompt's last step.
    let is_right: Vec<bool> = (prompt + 1..text.len()).map(|at| sample(target, at) == sample(draft, at)).collect();
    let differs = (prompt..text.len()).filter(|&at| sample(target, at) != text[at]).count() as u64;
    let (drafted, accepted) = expected_tally(&is_right);
    println!(
        "T = {}: {} of {} guesses were right, {accepted} of {drafted} by the logits, {differs} tokens differ",
        sampling.temperature, found.accepted, found.drafted
    );
    assert!(differs <= slack, "{differs} tokens of the answer are not those of the logits");
    assert!(found.drafted.abs_diff(drafted) <= 2 * slack && found.accepted.abs_diff(accepted) <= 2 * slack);
}

#[test]
fn a_plan_is_not_written_over_the_draft() {
    let scratch = Scratch::new();
    let path = scratch.file("draft.gguf");
    std::fs::write(&path, b"GGUF and so on").expect("the folder is writable");
    let mut draft = small(1);
    draft.origin.files = vec![path.clone()];
    let outcome = compile_with(small(3), Some(draft), Goal::Plan(&path), &options(Activations::Int8));
    let text = outcome.expect_err("the draft lies there").to_string();
    assert!(text.contains("a file of the model"), "{text}");
    assert_eq!(std::fs::read(&path).expect("it is still there"), b"GGUF and so on");
}

#[test]
fn models_that_do_not_fit_are_refused_by_name() {
    let refusal = |target: Model, draft: Model| {
        let scratch = Scratch::new();
        let path = scratch.file("pair.plan");
        let outcome = compile_with(target, Some(draft), Goal::Plan(&path), &options(Activations::Int8));
        assert!(!path.exists(), "a plan was written");
        let error = outcome.expect_err("they do not fit");
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    };
    let text = refusal(small(1), small(2));
    assert!(
        text.contains("small-2 has") && text.contains("of small-1") && text.contains("larger model first"),
        "{text}"
    );
    let mut tokenizer = seeded::small_tokenizer();
    tokenizer.tokens[40].bytes = b"other".to_vec();
    let config = ModelConfig { layers: 1, name: "stranger".to_owned(), ..seeded::small_llama() };
    let draft = seeded::model(config, tokenizer.clone(), SEED, &|_| Scheme::INT8).expect("the model is sound");
    let text = refusal(small(2), draft);
    assert!(text.contains("token 40 is \"other\" in stranger") && text.contains("in small-2"), "{text}");
    tokenizer.tokens.truncate(100);
    let config = ModelConfig { layers: 1, name: "shorter".to_owned(), vocab: 100, ..seeded::small_llama() };
    let draft = seeded::model(config, tokenizer, SEED, &|_| Scheme::INT8).expect("the model is sound");
    let text = refusal(small(2), draft);
    assert!(
        text.contains("shorter has a vocabulary of 100 tokens") && text.contains("small-2 has one of 128"),
        "{text}"
    );
}

#[test]
fn commands_know_of_the_draft() {
    let scratch = Scratch::new();
    let [pair, lone] = ["pair.plan", "lone.plan"].map(|name| scratch.file(name));
    compile_with(small(3), Some(small(1)), Goal::Plan(&pair), &options(Activations::Int8)).expect("it compiles");
    compile(small(3), Goal::Plan(&lone), &options(Activations::Int8)).expect("it compiles");
    let lathe = |arguments: &[&str], plan: &Path| {
        let output =
            Command::new(lathe()).arg(arguments[0]).arg(plan).args(&arguments[1..]).output().expect("it starts");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.code(), text)
    };
    let (code, text) = lathe(&["inspect"], &pair);
    let told = ["Drafter `draft`", "small-1", "per guess", "at best"];
    assert!(code == Some(0) && told.iter().all(|part| text.contains(part)), "{code:?} {text}");
    let answer = |speculate| ["run", "--raw", "-p", "the", "-n", "20", "-q", "--speculate", speculate];
    let (off, draft) = (lathe(&answer("off"), &pair), lathe(&answer("draft"), &pair));
    assert!(off.0 == Some(0) && off == draft, "{off:?} {draft:?}");
    let (code, text) = lathe(&answer("draft"), &lone);
    assert!(code != Some(0) && text.contains("--speculate draft") && text.contains("--draft MODEL"), "{code:?} {text}");
    let (code, text) = lathe(&answer("self"), &lone);
    assert!(code != Some(0) && text.contains("--self-draft LAYERS"), "{code:?} {text}");
    let own = scratch.file("own.plan");
    let left_out = Some("1".parse().expect("a layer"));
    let with_own = Options { self_draft: left_out, ..options(Activations::Int8) };
    compile(small(3), Goal::Plan(&own), &with_own).expect("it compiles");
    let (code, text) = lathe(&["inspect"], &own);
    assert!(code == Some(0) && text.contains("Drafter `self`") && text.contains("layers 1"), "{code:?} {text}");
    let (off, on) = (lathe(&answer("off"), &own), lathe(&answer("self"), &own));
    assert!(off.0 == Some(0) && off == on, "{off:?} {on:?}");
    let prompts = scratch.file("prompts.txt");
    std::fs::write(&prompts, "the quick").expect("a new file");
    let bench = ["bench", "-n", "16", "-r", "1", "--speculate", "draft", "--prompts", prompts.to_str().expect("UTF-8")];
    let (code, text) = lathe(&bench, &pair);
    assert!(code == Some(0) && text.contains("| draft "), "{code:?} {text}");
}

/// Code that a model completes.
const CODE: &str = "def fibonacci(n):\n    \"\"\"Returns the first n numbers of the sequence.\"\"\"\n";

#[test]
#[ignore = "gets Qwen 2.5 0.5B and 1.5B, 1.6 GB: part of `cargo xtask test --all`"]
fn qwen_guesses_for_qwen_as_often_right_as_numpy_says_and_changes_no_bit() {
    let open = |path: &Path| open(path).expect("the model opens");
    let plan = pair(open(&qwen2_larger()), open(&qwen2()), Activations::F32);
    let tokenizer = Tokenizer::new(plan.tokenizer().expect("a tokenizer").clone()).expect("the tables are sound");
    for temperature in [0.0, 0.7] {
        let sampling = SampleParams { temperature, ..SampleParams::default() };
        let prompt = tokenizer.encode(CODE, Control::AsText);
        let request = Request { tokens: prompt.clone(), max_tokens: Some(60), sampling, seed: 9, ..Request::default() };
        let requests = [request];
        let on = run(&plan, Mode::Draft, 1, &EngineOptions::default(), &requests);
        let text: Vec<u32> = prompt.iter().copied().chain(on.answers[0].iter().map(|(token, _)| *token)).collect();
        let logits = [qwen2_larger(), qwen2()].map(|path| reference::logits(&path, std::slice::from_ref(&text)));
        // The f16 cache moves a close race now and then.
        check_tally(&on.speculation, &text, prompt.len(), &logits, sampling, 3);
        assert!(on.answers == run(&plan, Mode::Off, 1, &EngineOptions::default(), &requests).answers);
    }
    let base = Request { tokens: tokenizer.encode(&CORPUS[..600], Control::AsText), ..requests()[0].clone() };
    let mixed: Vec<Request> = requests()
        .into_iter()
        .map(|request| Request { tokens: base.tokens.clone(), max_tokens: Some(24), ..request })
        .collect();
    let off = run(&plan, Mode::Off, 1, &EngineOptions::default(), &mixed);
    let on = run(&plan, Mode::Draft, 4, &EngineOptions { prefill_chunk: Some(48), ..EngineOptions::default() }, &mixed);
    assert!(on.answers == off.answers && on.speculation.accepted > 0);
}
