//! `lathe serve`: a plan behind OpenAI's interface over HTTP.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lathe_runtime::batcher::{BatchOptions, Policy as QueuePolicy};
use lathe_runtime::chat::ChatTemplate;
use lathe_runtime::kv::CacheOptions;
use lathe_runtime::server::ask::{Defaults, Reader};
use lathe_runtime::server::driver::Driver;
use lathe_runtime::server::metrics::Metrics;
use lathe_runtime::server::{Policy, Shared, http};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::watch;

use super::failure::Usage;
use super::model::{MachineArgs, Model, positive};

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
    #[command(flatten)]
    queue: QueueArgs,
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
    /// Most times longer that prompts may make a step of answers in progress
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
    fn options(&self, secret: [u8; 32], keys: usize) -> BatchOptions {
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
            ..BatchOptions::default()
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if !args.host.is_loopback() && args.api_key.is_empty() && !args.insecure {
        let message =
            format!("--host {} is open to others: give --api-key, or --insecure to let everybody in", args.host);
        return Err(Usage(message).into());
    }
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let mut secret = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let model = Model::open_with(&args.plan, &args.machine, args.queue.options(secret, args.api_key.len()))?;
    let template = model.plan.chat_template().map(|source| ChatTemplate::new(source, &model.tokenizer)).transpose()?;
    let stem = args.plan.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let metrics = Arc::new(Metrics::default());
    let max_context = model.engine.limits().max_context;
    let (driver, _engine) = Driver::start(model.engine, Arc::clone(&metrics))?;
    let draining = Arc::new(AtomicBool::new(false));
    let shared = Arc::new(Shared {
        driver,
        reader: Reader {
            defaults: Defaults::read(model.plan.generation_config()),
            tokenizer: model.tokenizer,
            template,
            secret,
        },
        model: args.name.clone().unwrap_or(stem),
        digest: blake3::Hash::from_bytes(model.plan.root()).to_hex().to_string(),
        max_context,
        metrics,
        policy: Policy {
            keys: args.api_key.clone(),
            strict_fields: args.strict_fields,
            vllm_metrics: args.metrics_compat.is_some(),
            drain: Duration::from_secs(args.drain),
            ..Policy::default()
        },
        draining: Arc::clone(&draining),
        count: AtomicU64::new(0),
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
    });
    let (stop, stopped) = watch::channel(false);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if draining.swap(true, Ordering::AcqRel) {
                std::process::exit(128 + signal);
            }
            eprintln!("draining: a second signal ends at once");
            let _ = stop.send(true);
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = http::bind(&args.host.to_string(), args.port).await?;
        let address = listener.local_addr()?;
        writeln!(io::stdout(), "http://{address}")?;
        eprintln!("serving {} at http://{address}/v1", shared.model);
        http::serve(listener, shared, stopped).await;
        anyhow::Ok(())
    })?;
    runtime.shutdown_background();
    Ok(())
}
