//! `lathe serve`: a plan behind OpenAI's interface over HTTP.
//!
//! The process that the user starts is the [`supervisor`]: it owns the listening socket and starts itself a second time as
//! the [`worker`], which loads the plan and serves. When the worker's engine fails, its process ends and another takes its
//! place; the socket stays open all the while.

mod supervisor;
mod worker;

use std::env;
use std::net::{IpAddr, TcpListener, ToSocketAddrs};
use std::num::NonZeroU64;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::builder::NonEmptyStringValueParser;
use lathe_runtime::batcher::{BatchOptions, Policy as QueuePolicy};
use lathe_runtime::kv::CacheOptions;
use lathe_runtime::server::listen;
use lathe_runtime::speculate::Speculation;

use self::worker::Seat;
use super::failure::Usage;
use super::model::{MachineArgs, SpeculationArgs, positive};

/// The variable that holds a key.
const API_KEY: &str = "LATHE_API_KEY";

/// What is Lathe's own in requests and answers.
const OWN: &str = "\
Headers and fields beside those of OpenAI's interface:
  x-deadline-ms: N      milliseconds that the whole answer may take, from 1 to 86400000; --policy deadline refuses at
                        once what cannot be in time
  x-request-id: ID      comes back with the answer, which has one of its own otherwise
  x-api-key: KEY        as Authorization: Bearer KEY
  x-unknown-fields      of an answer: the fields of the request that nobody knows; see --strict-fields
  \"cache_salt\": TEXT    answers share pages of the cache with requests of the same key and text alone
  \"priority\": N         from -100 to 100; smaller ones go first under --policy priority
  \"top_k\", \"min_p\", \"repetition_penalty\", \"min_tokens\", \"ignore_eos\", \"stop_token_ids\",
  \"include_stop_str_in_output\", \"add_special_tokens\", \"add_generation_prompt\"
                        as vLLM has them
Environment:
  LATHE_API_KEY         a key as --api-key gives it, which other users of the machine do not see in its list of processes
";

const EXAMPLES: &str = "\
Examples:
  lathe serve smol.plan --port 8000
  LATHE_API_KEY=\"$KEY\" lathe serve smol.plan --host 0.0.0.0 --policy deadline
  curl localhost:8000/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'";

/// What to serve, and to whom.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{OWN}\n{EXAMPLES}"))]
pub struct Args {
    /// The plan
    plan: PathBuf,
    /// Address to listen on, or a name of it; other than the loopback it needs a key or --insecure
    #[arg(long, default_value = "127.0.0.1", value_parser = address)]
    host: IpAddr,
    /// Port to listen on; 0 takes any and prints it
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// A key of which every request must bring one; may be given several times; the environment may hold one more, see below
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// Lets everybody in who reaches the address
    #[arg(long)]
    insecure: bool,
    /// The model's name in the interface [default: the plan's file name]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Refuse requests with unknown fields
    #[arg(long)]
    strict_fields: bool,
    /// Metrics under another server's names as well
    #[arg(long, value_name = "SERVER", value_parser = ["vllm"])]
    metrics_compat: Option<String>,
    /// Seconds that answers in progress may go on after SIGTERM
    #[arg(long, value_name = "S", default_value_t = 30)]
    drain: u64,
    /// Seconds that a request may take
    #[arg(long, value_name = "S", default_value_t = 3600)]
    request_timeout: u64,
    /// Seconds after which a step that does not come back counts as a failure of the engine
    #[arg(long, value_name = "S", default_value = "600")]
    step_timeout: NonZeroU64,
    /// Most connections at a time
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = positive)]
    max_connections: usize,
    /// Times that an engine that failed is started again before the server gives up; a minute without a failure makes
    /// up for all before
    #[arg(long, value_name = "N", default_value_t = 5)]
    restarts: u32,
    /// Work in the process that listens: when the engine fails, that process ends with code 1
    #[arg(long)]
    no_supervisor: bool,
    /// This process works for another, which has started it anew so many times
    #[arg(long, value_name = "N", hide = true)]
    supervised: Option<u64>,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// How requests share the machine.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Queue")]
struct QueueArgs {
    /// The order in which requests run
    #[arg(long, default_value = "fcfs", value_parser = ["fcfs", "priority", "deadline"])]
    policy: String,
    /// Most answers side by side [default: as many as the plan allows]
    #[arg(long, value_name = "N", value_parser = positive)]
    max_running: Option<usize>,
    /// Most answers that wait
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    max_waiting: usize,
    /// Most prompt tokens that wait
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = positive)]
    max_waiting_tokens: usize,
    /// Most times longer that prompts may make a step of answers in progress; twice that when as many answers wait for
    /// their first token, and so on
    #[arg(long, value_name = "X", default_value_t = 2.0, value_parser = at_least_one)]
    stretch: f64,
    /// Begin a batch only when the last has ended, for comparison
    #[arg(long)]
    static_batches: bool,
    /// Compute every prompt anew
    #[arg(long)]
    no_prefix_cache: bool,
}

/// The address that a name stands for, of several one of version 4.
fn address(text: &str) -> Result<IpAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let found: Vec<IpAddr> = match (text, 0).to_socket_addrs() {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(error) => return Err(format!("expected an address or a name of this machine: {error}")),
    };
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| "expected an address or a name that has one".to_owned())
}

fn at_least_one(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 1.0);
    number.ok_or_else(|| "expected a number of at least 1".to_owned())
}

impl Args {
    /// The keys that requests may bring.
    fn keys(&self) -> Result<Vec<String>, Usage> {
        let more =
            env::var_os(API_KEY).map(|key| key.into_string().map_err(|_| Usage(format!("{API_KEY} is no text"))));
        let keys: Vec<String> = self.api_key.iter().cloned().map(Ok).chain(more).collect::<Result<_, _>>()?;
        if keys.iter().any(|key| key.trim().is_empty()) {
            let message = format!(
                "expected a key that is not empty, found an empty one in --api-key or {API_KEY}; give one, or none and \
                 --insecure to let everybody in"
            );
            return Err(Usage(message));
        }
        Ok(keys)
    }
}

impl QueueArgs {
    fn options(&self, secret: [u8; 32], keys: usize, speculation: Speculation) -> BatchOptions {
        let policy = QueuePolicy::ALL.iter().find(|(name, _)| *name == self.policy);
        BatchOptions {
            stretch: self.stretch,
            policy: policy.map_or(QueuePolicy::Fcfs, |(_, policy)| *policy),
            is_static: self.static_batches,
            max_running: self.max_running.unwrap_or(usize::MAX),
            max_waiting: self.max_waiting,
            max_waiting_tokens: self.max_waiting_tokens,
            cache: CacheOptions {
                remember: !self.no_prefix_cache,
                secret,
                quota_percent: if keys > 1 { 50 } else { 100 },
                ..CacheOptions::default()
            },
            speculation,
            ..BatchOptions::default()
        }
    }
}

/// Runs the command: a process that listens and one that works, or both in one.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let keys = args.keys()?;
    if !args.host.is_loopback() && keys.is_empty() && !args.insecure {
        let message = format!(
            "--host {} is open to others: give --api-key or {API_KEY}, or --insecure to let everybody in",
            args.host
        );
        return Err(Usage(message).into());
    }
    if let Some(restarts) = args.supervised {
        return worker::run(args, Seat::of_a_supervised_process(restarts)?);
    }
    listen::raise_socket_limit();
    let bound = TcpListener::bind((args.host, args.port));
    let listener = bound.map_err(|error| anyhow!("cannot listen on {}:{}: {error}", args.host, args.port))?;
    // Both processes wait for connections on this socket, which never blocks either.
    listener.set_nonblocking(true)?;
    if args.no_supervisor {
        worker::run(args, Seat::of_a_lone_process(listener)?)
    } else {
        supervisor::run(args, listener)
    }
}
