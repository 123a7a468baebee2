//! `lathe serve`: a plan behind OpenAI's interface over HTTP.
//!
//! The process that the user starts is the [`supervisor`]: it owns the listening socket and starts itself a second time as
//! the [`worker`], which loads the plan and serves. When the worker's engine fails, its process ends and another takes its
//! place; the socket stays open all the while.

mod supervisor;
mod worker;

use std::net::{IpAddr, TcpListener};
use std::num::NonZeroU64;
use std::path::PathBuf;

use anyhow::anyhow;
use lathe_runtime::batcher::{BatchOptions, Policy as QueuePolicy};
use lathe_runtime::kv::CacheOptions;
use lathe_runtime::server::listen;
use lathe_runtime::speculate::Speculation;

use self::worker::Seat;
use super::failure::Usage;
use super::model::{MachineArgs, SpeculationArgs, positive};

const EXAMPLES: &str = "\
Examples:
  lathe serve smol.plan --port 8000
  lathe serve smol.plan --host 0.0.0.0 --api-key \"$KEY\" --policy deadline
  curl localhost:8000/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'";

/// What to serve, and to whom.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The plan
    plan: PathBuf,
    /// Address to listen on; other than the loopback it needs --api-key or --insecure
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes any and prints it
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// A key of which every request must bring one; may be given several times
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// Lets everybody in who reaches the address
    #[arg(long)]
    insecure: bool,
    /// The model's name in the interface [default: the plan's file name]
    #[arg(long, value_name = "NAME")]
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
    #[arg(long, value_name = "X", default_value_t = 2.0)]
    stretch: f64,
    /// Begin a batch only when the last has ended, for comparison
    #[arg(long)]
    static_batches: bool,
    /// Compute every prompt anew
    #[arg(long)]
    no_prefix_cache: bool,
}

impl QueueArgs {
    fn options(&self, secret: [u8; 32], keys: usize, speculation: Speculation) -> BatchOptions {
        let policy = QueuePolicy::ALL.iter().find(|(name, _)| *name == self.policy);
        BatchOptions {
            stretch: self.stretch.max(1.0),
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
    if !args.host.is_loopback() && args.api_key.is_empty() && !args.insecure {
        let message =
            format!("--host {} is open to others: give --api-key, or --insecure to let everybody in", args.host);
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
