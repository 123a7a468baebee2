//! A server in this process on a fake device that a test can hold, slow down and break.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lathe_plan::StepSize;
use lathe_runtime::batcher::BatchOptions;
use lathe_runtime::chat::ChatTemplate;
use lathe_runtime::device::fault::Kind;
use lathe_runtime::device::null::NullDevice;
use lathe_runtime::device::{Device, GroupLimits, Limits, Step, StepOutput, Ticket};
use lathe_runtime::error::{Error, Result};
use lathe_runtime::kv::CacheOptions;
use lathe_runtime::sample::defaults::Defaults;
use lathe_runtime::server::ask::Reader;
use lathe_runtime::server::driver::Driver;
use lathe_runtime::server::metrics::Metrics;
use lathe_runtime::server::{Policy, Served, Shared, listen};
use lathe_runtime::tokenizer::Tokenizer;
use lathe_runtime::{Engine, EngineOptions};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::client::{Answer, Client, PATIENCE};
use crate::parrot;

/// Stands for the weights.
const WEIGHTS: u64 = 11;
/// Positions in a page.
pub const PAGE: usize = 4;

/// A template whose prompt is little longer than its messages.
const TEMPLATE: &str =
    "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}";

/// What a test wants of its server.
pub struct Setup {
    pub pages: u32,
    pub context: u32,
    pub sequences: u32,
    pub batching: BatchOptions,
    pub policy: Policy,
    /// Of so many histories one has logits that are not finite.
    pub breaks: Option<u64>,
    /// How long a step takes.
    pub pace: Duration,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            pages: 128,
            context: 256,
            sequences: 8,
            batching: BatchOptions::default(),
            policy: Policy::default(),
            breaks: None,
            pace: Duration::ZERO,
        }
    }
}

/// A server that stops with the value.
pub struct World {
    pub client: Client,
    pub gate: Arc<Gate>,
    draining: Arc<AtomicBool>,
    stop: watch::Sender<Option<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl World {
    /// Starts a server.
    pub fn start(setup: Setup) -> World {
        let gate = Arc::new(Gate { pace: setup.pace, ..Gate::default() });
        let (stop, stopped) = watch::channel(None);
        let (sender, receiver) = mpsc::channel();
        let (shared, own) = (shared(setup, &gate), Arc::clone(&gate));
        let draining = Arc::clone(&shared.draining);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
                sender.send(listener.local_addr().expect("an address").to_string()).expect("the test waits");
                listen::serve(&listener, &shared.policy, Arc::clone(&shared), stopped).await;
            });
            own.open();
            runtime.shutdown_background();
        });
        let address = receiver.recv().expect("the server listens");
        World { client: Client(address), gate, draining, stop, thread: Some(thread) }
    }

    /// Tells the server to stop as soon as nothing is in progress.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.stop.send_replace(Some(Duration::from_mins(1)));
    }

    /// Whether the server has stopped.
    pub fn has_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the server has stopped.
    pub fn wait_for_end(&mut self) {
        let thread = self.thread.take().expect("it was started");
        thread.join().expect("it does not panic");
    }

    /// Waits until nothing runs or waits and all pages are back.
    #[track_caller]
    pub fn wait_for_quiet(&self) {
        for gauge in ["lathe_num_requests_running", "lathe_num_requests_waiting", "lathe_kv_cache_usage_perc"] {
            self.client.wait_for(gauge, 0.0);
        }
    }

    /// Asks for a completion with its tokens.
    pub fn complete(&self, prompt: &Value, max_tokens: usize) -> Answer {
        self.client.post("/v1/completions", &ask(prompt, max_tokens, false))
    }

    /// Checks that a completion gets the tokens that it must.
    #[track_caller]
    pub fn check(&self, prompt: &[u32], max_tokens: usize) {
        let answer = self.complete(&json!(prompt), max_tokens);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(tokens(&answer.json()["choices"][0]), spelled(&expected(prompt, max_tokens)), "{prompt:?}");
    }

    /// Runs a test beside clients that go on asking, and checks all that those get.
    pub fn beside_others<T>(&self, test: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for other in 0..2 {
                let over = &over;
                scope.spawn(move || {
                    let mut round = 0;
                    while round == 0 || !over.load(Ordering::Relaxed) {
                        self.check(&[7 + other, 60 + round % 40, 9], 25);
                        round += 1;
                    }
                });
            }
            let _end = Raise(&over);
            test()
        })
    }
}

/// Raises a flag at the end, even where that is a panic.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.gate.open();
        self.stop.send_replace(Some(Duration::ZERO));
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the server's thread has panicked");
        }
    }
}

fn shared(setup: Setup, gate: &Arc<Gate>) -> Arc<Shared> {
    let limits = Limits {
        max: StepSize { tokens: 64, sequences: setup.sequences, rows: setup.sequences.max(16) },
        vocabulary: parrot::VOCABULARY,
        max_context: setup.context,
        groups: vec![GroupLimits { page_tokens: PAGE as u32, pages: setup.pages, window: None }],
    };
    let device = NullDevice::new(limits, WEIGHTS);
    let device = if let Some(one_in) = setup.breaks { device.that_breaks(one_in) } else { device };
    let device = Gated { device: Box::new(device), gate: Arc::clone(gate) };
    let cache = CacheOptions { quota_percent: 50, ..setup.batching.cache.clone() };
    let options = EngineOptions { batching: BatchOptions { cache, ..setup.batching }, ..EngineOptions::default() };
    let metrics = Arc::new(Metrics::default());
    let engine = Engine::with_device(Box::new(device), &options);
    let (driver, _failure) = Driver::start(engine, Arc::clone(&metrics), Duration::from_mins(10)).expect("a thread");
    let tokenizer = Tokenizer::new(parrot::tokenizer()).expect("the tables are sound");
    let template = ChatTemplate::new(TEMPLATE, &tokenizer);
    let template = Some(template.expect("the template is sound"));
    let reader = Reader { tokenizer, template, defaults: Defaults::default(), secret: [3; 32] };
    let served = Served { name: "null".to_owned(), digest: "0".repeat(64), max_context: setup.context };
    Arc::new(Shared::new(driver, reader, served, metrics, setup.policy))
}

/// The body of a completion with its tokens, which ends only with its length.
pub fn ask(prompt: &Value, max_tokens: usize, stream: bool) -> String {
    json!({"prompt": prompt, "max_tokens": max_tokens, "logprobs": 0, "ignore_eos": true, "stream": stream}).to_string()
}

/// The tokens that must follow a prompt.
pub fn expected(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut history = prompt.to_vec();
    for _ in 0..count {
        history.push(NullDevice::next_token(WEIGHTS, history.iter().copied(), parrot::VOCABULARY));
    }
    history.split_off(prompt.len())
}

/// Whether the logits after a history are not finite where one in so many is.
pub fn is_broken(history: &[u32], one_in: u64) -> bool {
    NullDevice::is_broken(NullDevice::hash(NullDevice::start(WEIGHTS), history.iter().copied()), one_in)
}

/// Tokens as answers spell them.
pub fn spelled(tokens: &[u32]) -> Vec<String> {
    let spell = |&token: &u32| match token {
        0..128 => char::from(token as u8).to_string(),
        128..256 => format!("bytes:\\x{token:02x}"),
        256 => "<|im_start|>".to_owned(),
        _ => "<|im_end|>".to_owned(),
    };
    tokens.iter().map(spell).collect()
}

/// The tokens of a choice.
#[track_caller]
pub fn tokens(choice: &Value) -> Vec<String> {
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap_or_else(|| panic!("no tokens: {choice}"));
    tokens.iter().map(|token| token.as_str().expect("a text").to_owned()).collect()
}

/// The tokens of a choice of a chunk, of which the last has none.
#[track_caller]
pub fn judged(choice: &Value) -> Vec<String> {
    if choice["logprobs"].is_null() { Vec::new() } else { tokens(choice) }
}

/// The events of a stream, without its end.
#[track_caller]
pub fn events(body: &str) -> Vec<Value> {
    let lines = body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|line| *line != "[DONE]");
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// What steps must pass.
#[derive(Debug, Default)]
pub struct Gate {
    pace: Duration,
    state: Mutex<Passing>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Passing {
    is_closed: bool,
    permits: usize,
    is_held: bool, // whether a step waits
    passed: usize,
    fault: Option<Kind>,
}

impl Gate {
    /// Holds the next step.
    pub fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Makes the next step fail.
    pub fn fail(&self, kind: Kind) {
        self.lock().fault = Some(kind);
        self.open();
    }

    /// Lets all steps pass.
    pub fn open(&self) {
        self.lock().is_closed = false;
        self.changed.notify_all();
    }

    /// Lets one step pass and waits until the next one is held.
    pub fn let_one_pass(&self) {
        self.wait_until_held();
        self.lock().permits = 1;
        self.changed.notify_all();
        let passing = self.lock();
        drop(self.changed.wait_while(passing, |passing| passing.permits > 0).expect("nobody panics here"));
        self.wait_until_held();
    }

    /// How many steps have passed.
    pub fn passed(&self) -> usize {
        self.lock().passed
    }

    /// Waits until a step is held.
    pub fn wait_until_held(&self) {
        let passing = self.lock();
        drop(self.changed.wait_while(passing, |passing| !passing.is_held).expect("nobody panics here"));
    }

    fn pass(&self) -> Option<Kind> {
        let mut passing = self.lock();
        passing.is_held = passing.is_closed && passing.permits == 0;
        self.changed.notify_all();
        passing = self
            .changed
            .wait_while(passing, |passing| passing.is_closed && passing.permits == 0)
            .expect("nobody panics here");
        passing.is_held = false;
        passing.permits = passing.permits.saturating_sub(1);
        passing.passed += 1;
        self.changed.notify_all();
        let fault = passing.fault.take();
        drop(passing);
        if !self.pace.is_zero() {
            thread::sleep(self.pace);
        }
        fault
    }

    fn lock(&self) -> MutexGuard<'_, Passing> {
        self.state.lock().expect("nobody panics here")
    }
}

/// A device whose steps pass a gate.
struct Gated {
    device: Box<dyn Device>,
    gate: Arc<Gate>,
}

impl Device for Gated {
    fn limits(&self) -> &Limits {
        self.device.limits()
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket> {
        self.device.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<()> {
        match self.gate.pass() {
            None => self.device.collect(ticket, output),
            Some(Kind::Panic) => panic!("a panic was asked for"),
            Some(_) => Err(Error::DeviceLost("a loss was asked for".into())),
        }
    }
}

impl World {
    /// Lets step after step pass until something is so.
    #[track_caller]
    pub fn step_until(&self, what: &str, is_so: impl Fn() -> bool) {
        eventually(what, || {
            self.gate.let_one_pass();
            is_so()
        });
    }
}

/// Waits until something is so.
#[track_caller]
pub fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let so = (0..PATIENCE).any(|_| {
        thread::yield_now();
        is_so()
    });
    assert!(so, "{what} never came about");
}
