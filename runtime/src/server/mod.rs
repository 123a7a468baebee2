//! `lathe serve`: the engine behind the interface of `OpenAI` over HTTP.
//!
//! - [`driver`]: the engine on its own thread; everything else only passes messages to it.
//! - [`http`]: connections, limits, keys and routes.
//! - [`ask`] reads requests ([`fields`] one by one), [`answer`] writes what comes of them, [`complete`] does both for one.
//! - [`refusal`]: errors as clients of `OpenAI` read them; [`metrics`]: what `/metrics` tells.

pub mod answer;
pub mod ask;
pub mod complete;
pub mod driver;
pub mod fields;
pub mod http;
pub mod metrics;
pub mod refusal;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use self::{ask::Reader, driver::Driver, metrics::Metrics};

/// How a server behaves towards its clients.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Keys of which each request must bring one; none lets everybody in.
    pub keys: Vec<String>,
    /// Refuses requests with fields that nobody knows.
    pub strict_fields: bool,
    /// Adds metrics under vLLM's names.
    pub vllm_metrics: bool,
    /// The most connections at a time.
    pub max_connections: usize,
    /// The most bytes of a body.
    pub max_body: usize,
    /// How long a client may take to send its headers, and between requests.
    pub header_timeout: Duration,
    /// How long a client may take to send its body.
    pub body_timeout: Duration,
    /// How long answers in progress may go on after the server was told to stop.
    pub drain: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            keys: Vec::new(),
            strict_fields: false,
            vllm_metrics: false,
            max_connections: 4096,
            max_body: 8 << 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(30),
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    /// Hands requests to the engine.
    pub driver: Driver,
    /// Reads requests.
    pub reader: Reader,
    /// The model's name.
    pub model: String,
    /// The plan's digest in hexadecimal.
    pub digest: String,
    /// The most positions of a request.
    pub max_context: u32,
    /// Counts and times.
    pub metrics: Arc<Metrics>,
    /// Towards clients.
    pub policy: Policy,
    /// Whether the server is about to stop.
    pub draining: Arc<AtomicBool>,
    /// Requests so far.
    pub count: AtomicU64,
    /// Seconds since 1970 at the start.
    pub started: u64,
}
