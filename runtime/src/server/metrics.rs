//! What `/metrics` tells, in Prometheus' text format, under own names and on demand under vLLM's.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    Engine, FinishReason,
    batcher::{Counters, Gauges},
    speculate::Kind,
};

/// Upper bounds of the buckets of all latency histograms, in seconds.
const BOUNDS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0];

/// The same of the histograms of tokens.
const TOKENS: [f64; 18] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0,
    65_536.0, 131_072.0,
];

/// A histogram of latencies or of tokens.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64; BOUNDS.len()],
    state: Mutex<([u64; BOUNDS.len() + 1], f64)>, // by bucket, and the sum
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { bounds: &BOUNDS, state: Mutex::default() }
    }
}

impl Histogram {
    /// One of tokens.
    fn of_tokens() -> Histogram {
        Histogram { bounds: &TOKENS, state: Mutex::default() }
    }

    /// Counts a time.
    pub fn observe(&self, time: Duration) {
        self.add(time.as_secs_f64());
    }

    /// Counts tokens.
    pub fn tokens(&self, count: usize) {
        self.add(count as f64);
    }

    fn add(&self, value: f64) {
        let mut state = lock(&self.state);
        state.0[self.bounds.partition_point(|bound| *bound < value)] += 1;
        state.1 += value;
    }

    fn print(&self, out: &mut String, name: &str, labels: &str) {
        let (counts, sum) = *lock(&self.state);
        let _ = writeln!(out, "# TYPE {name} histogram");
        let mut total = 0;
        for (index, count) in counts.iter().enumerate() {
            total += count;
            let bound = self.bounds.get(index).map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {total}");
    }
}

/// All metrics of a server.
#[derive(Debug)]
pub struct Metrics {
    /// From the request's arrival to its first token.
    pub first_token: Histogram,
    /// Between tokens of a request.
    pub between_tokens: Histogram,
    /// From arrival to end.
    pub whole: Histogram,
    /// From arrival to leaving the queue.
    pub queue_time: Histogram,
    /// From leaving the queue to the first token.
    pub prefill: Histogram,
    /// From the first token to the end.
    pub decode: Histogram,
    /// Tokens of a request's prompt.
    pub prompt: Histogram,
    /// Tokens of a request's answers.
    pub generated: Histogram,
    step: Histogram,
    step_tokens: Histogram,
    state: Mutex<(Gauges, Counters)>,
    errors: Mutex<(f64, f64)>, // summed predicted and measured seconds of steps that were predicted
    counts: Mutex<BTreeMap<(&'static str, &'static str), u64>>, // by metric and label
    failed: AtomicBool,
    connections: AtomicUsize,
    restarts: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            first_token: Histogram::default(),
            between_tokens: Histogram::default(),
            whole: Histogram::default(),
            queue_time: Histogram::default(),
            prefill: Histogram::default(),
            decode: Histogram::default(),
            prompt: Histogram::of_tokens(),
            generated: Histogram::of_tokens(),
            step: Histogram::default(),
            step_tokens: Histogram::of_tokens(),
            state: Mutex::default(),
            errors: Mutex::default(),
            counts: Mutex::default(),
            failed: AtomicBool::default(),
            connections: AtomicUsize::default(),
            restarts: AtomicU64::default(),
        }
    }
}

impl Metrics {
    /// Takes over the engine's state after a step.
    pub fn observe_engine(&self, engine: &Engine) {
        *lock(&self.state) = (engine.gauges(), engine.counters());
        if let Some(step) = engine.last_step() {
            self.step.observe(step.measured);
            self.step_tokens.tokens(step.tokens);
            if let Some(predicted) = step.predicted {
                let mut errors = lock(&self.errors);
                errors.0 += predicted.as_secs_f64();
                errors.1 += step.measured.as_secs_f64();
            }
        }
    }

    /// The state after the last step.
    pub fn gauges(&self) -> Gauges {
        lock(&self.state).0
    }

    /// Counts a request that was refused.
    pub fn reject(&self, reason: &'static str) {
        self.count("requests_rejected", reason);
    }

    /// Counts a request that was broken off.
    pub fn abort(&self, cause: &'static str) {
        self.count("requests_aborted", cause);
    }

    /// Counts the end of an answer, which the server may have stopped because its text was complete.
    pub fn finished(&self, reason: FinishReason, is_stopped: bool) {
        match reason {
            FinishReason::Stop(_) => self.count("request_success", "stop"),
            FinishReason::Length | FinishReason::Cancelled if is_stopped => self.count("request_success", "stop"),
            FinishReason::Length => self.count("request_success", "length"),
            FinishReason::Cancelled => self.abort("client"),
            FinishReason::Late => self.abort("deadline"),
            FinishReason::NotFinite => self.abort("not_finite"),
            FinishReason::Failed => self.abort("failure"),
        }
    }

    /// Counts requests with fields that nobody knows.
    pub fn unknown_fields(&self) {
        self.count("requests_with_unknown_fields", "any");
    }

    /// Counts a connection that was closed against its client's will.
    pub fn closed(&self, how: &'static str) {
        self.count("connections_closed", how);
    }

    /// How many connections there are.
    pub fn connections(&self, open: usize) {
        self.connections.store(open, Ordering::Relaxed);
    }

    /// How often the engine's process was started anew before this one.
    pub fn restarted(&self, times: u64) {
        self.restarts.store(times, Ordering::Relaxed);
    }

    /// The engine is gone for good, and so are answers in progress.
    pub fn fail(&self, open: u32) {
        self.failed.store(true, Ordering::Release);
        (0..open).for_each(|_| self.abort("failure"));
        let mut state = lock(&self.state);
        (state.0.running, state.0.waiting) = (0, 0);
    }

    /// Whether the engine is gone.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn count(&self, metric: &'static str, label: &'static str) {
        *lock(&self.counts).entry((metric, label)).or_insert(0) += 1;
    }

    /// The text of `/metrics`. `vllm` adds the names that vLLM's dashboards read.
    pub fn print(&self, model: &str, digest: &str, vllm: bool) -> String {
        let mut out = String::new();
        let model = model.replace(['\\', '"', '\n'], "_");
        let label = format!("model_name=\"{model}\"");
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(out, "# TYPE lathe_build_info gauge");
        let _ = writeln!(out, "lathe_build_info{{{label},version=\"{version}\",plan=\"{digest}\"}} 1");
        let prefixes: &[&str] = if vllm { &["lathe_", "vllm:"] } else { &["lathe_"] };
        let (gauges, counters) = *lock(&self.state);
        let use_of = gauges.held_pages as f64 / gauges.pages.max(1) as f64;
        for prefix in prefixes {
            for (name, value) in [
                ("num_requests_running", gauges.running as f64),
                ("num_requests_waiting", gauges.waiting as f64),
                ("waiting_tokens", gauges.waiting_tokens as f64),
                ("kv_cache_usage_perc", use_of),
                ("prefix_cache_idle_pages", gauges.idle_pages as f64),
                ("engine_healthy", f64::from(u8::from(!self.has_failed()))),
                ("connections", self.connections.load(Ordering::Relaxed) as f64),
            ] {
                let _ = writeln!(out, "# TYPE {prefix}{name} gauge\n{prefix}{name}{{{label}}} {value}");
            }
            for (name, value) in [
                ("prompt_tokens", counters.prompt_tokens),
                ("generation_tokens", counters.generated_tokens),
                ("prefix_cache_queries", counters.prefix_queries),
                ("prefix_cache_hits", counters.prefix_hits),
                ("num_preemptions", counters.preemptions),
                ("spec_decode_num_drafts", counters.speculation.drafts),
                ("spec_decode_num_draft_tokens", counters.speculation.drafted),
                ("spec_decode_num_accepted_tokens", counters.speculation.accepted),
                ("engine_restarts", self.restarts.load(Ordering::Relaxed)),
            ] {
                let _ = writeln!(out, "# TYPE {prefix}{name}_total counter\n{prefix}{name}_total{{{label}}} {value}");
            }
            let name = format!("{prefix}spec_decode_num_accepted_tokens_per_pos_total");
            let _ = writeln!(out, "# TYPE {name} counter");
            for (place, accepted) in counters.speculation.accepted_at[..counters.speculation.longest].iter().enumerate()
            {
                let _ = writeln!(out, "{name}{{{label},position=\"{place}\"}} {accepted}");
            }
            for (name, histogram) in [
                ("time_to_first_token_seconds", &self.first_token),
                ("inter_token_latency_seconds", &self.between_tokens),
                ("e2e_request_latency_seconds", &self.whole),
                ("request_queue_time_seconds", &self.queue_time),
                ("request_prefill_time_seconds", &self.prefill),
                ("request_decode_time_seconds", &self.decode),
                ("request_prompt_tokens", &self.prompt),
                ("request_generation_tokens", &self.generated),
                ("step_time_seconds", &self.step),
                ("iteration_tokens_total", &self.step_tokens),
            ] {
                histogram.print(&mut out, &format!("{prefix}{name}"), &label);
            }
            let mut last = "";
            for ((name, value), count) in lock(&self.counts).iter() {
                if *name != last {
                    let _ = writeln!(out, "# TYPE {prefix}{name}_total counter");
                    last = name;
                }
                let key = if *name == "request_success" { "finished_reason" } else { "reason" };
                let _ = writeln!(out, "{prefix}{name}_total{{{label},{key}=\"{value}\"}} {count}");
            }
        }
        for (at, name) in ["draft_tokens", "accepted_tokens"].into_iter().enumerate() {
            let name = format!("lathe_spec_decode_drafter_{name}_total");
            let _ = writeln!(out, "# TYPE {name} counter");
            for ((drafter, _), counts) in Kind::ALL.iter().zip(&counters.by_drafter) {
                let _ = writeln!(out, "{name}{{{label},drafter=\"{drafter}\"}} {}", counts[at]);
            }
        }
        let (predicted, measured) = *lock(&self.errors);
        for (name, value) in [("predicted", predicted), ("measured", measured)] {
            let name = format!("lathe_step_time_{name}_seconds_total");
            let _ = writeln!(out, "# TYPE {name} counter\n{name}{{{label}}} {value}");
        }
        out
    }
}

/// What a lock guards is numbers: a panic elsewhere leaves none of them half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
