//! `lathe serve`: the engine behind the interface of `OpenAI` over HTTP.
//!
//! - [`driver`]: the engine on its own thread; everything else only passes messages to it. A [`watchdog`] looks after it.
//! - [`listen`]: connections and their limits, on [`socket`]s whose writes must make progress.
//! - [`http`]: routes, keys and bodies.
//! - [`ask`] reads requests ([`fields`] one by one), [`answer`] writes what comes of them, [`complete`] does both for one.
//! - [`refusal`]: errors as clients of `OpenAI` read them; [`metrics`]: what `/metrics` tells.

pub mod answer;
pub mod ask;
pub mod complete;
pub mod driver;
pub mod fields;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod refusal;
pub mod socket;
pub mod watchdog;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::Semaphore;

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
    /// How long a client may take nothing of its answer.
    pub write_timeout: Duration,
    /// How long a request may take from its head to the last token.
    pub request_timeout: Duration,
    /// The most bytes of all bodies that are being read.
    pub max_bodies: usize,
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
            write_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_hours(1),
            max_bodies: 256 << 20,
        }
    }
}

/// What is served.
#[derive(Clone, Debug)]
pub struct Served {
    /// The model's name.
    pub name: String,
    /// The plan's digest in hexadecimal.
    pub digest: String,
    /// The most positions of a request.
    pub max_context: u32,
}

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    /// Hands requests to the engine.
    pub driver: Driver,
    /// Reads requests.
    pub reader: Reader,
    /// The model.
    pub served: Served,
    /// Counts and times.
    pub metrics: Arc<Metrics>,
    /// Towards clients.
    pub policy: Policy,
    /// Whether the server is about to stop.
    pub draining: Arc<AtomicBool>,
    bodies: Arc<Semaphore>, // KiB of bodies that may still be read
    count: AtomicU64,       // requests so far
    started: u64,           // seconds since 1970 at the start
}

impl Shared {
    /// The state before the first request.
    pub fn new(driver: Driver, reader: Reader, served: Served, metrics: Arc<Metrics>, policy: Policy) -> Shared {
        Shared {
            driver,
            reader,
            served,
            metrics,
            draining: Arc::default(),
            bodies: Arc::new(Semaphore::new(policy.max_bodies.max(policy.max_body) / http::BODY_UNIT + 1)),
            policy,
            count: AtomicU64::new(0),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        }
    }
}
