//! The process that loads the plan and serves it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{panic, process, thread};

use anyhow::anyhow;
use lathe_runtime::chat::ChatTemplate;
use lathe_runtime::sample::defaults::Defaults;
use lathe_runtime::server::ask::Reader;
use lathe_runtime::server::driver::Driver;
use lathe_runtime::server::metrics::Metrics;
use lathe_runtime::server::{Policy, Served, Shared, listen};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::{oneshot, watch};

use super::super::model::Model;
use super::Args;

/// What a worker says when it serves, and what it hears when it shall stop.
pub const READY: &str = "ready\n";
pub const DRAIN: &str = "drain\n";

/// How long connections may take for the news that the engine has failed.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a process was given to work with: the socket, and who tells it when to stop.
pub struct Seat {
    listener: TcpListener,
    orders: Orders,
    restarts: u64,
}

enum Orders {
    /// Signals to this process.
    Signals(Signals),
    /// The process that has started this one, whose end ends this one too.
    Supervisor(UnixStream),
}

impl Seat {
    /// A process that nobody watches.
    pub fn of_a_lone_process(listener: TcpListener) -> anyhow::Result<Seat> {
        Ok(Seat { listener, orders: Orders::Signals(Signals::new([SIGTERM, SIGINT])?), restarts: 0 })
    }

    /// A process whose standard input is the listening socket and whose standard output leads to its supervisor.
    pub fn of_a_supervised_process(restarts: u64) -> anyhow::Result<Seat> {
        let listener = TcpListener::from(inherited(io::stdin())?);
        listener.local_addr().map_err(|_| anyhow!("--supervised is for lathe itself: standard input is no socket"))?;
        // Signals go to all processes of a group or a container alike. This one leaves them to its supervisor.
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
        }
        let orders = Orders::Supervisor(UnixStream::from(inherited(io::stdout())?));
        Ok(Seat { listener, orders, restarts })
    }
}

fn inherited(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

/// Loads the plan and serves it until told to stop, or until the engine fails.
pub fn run(args: &Args, seat: Seat) -> anyhow::Result<()> {
    // A panic's message may quote what it was about, and prompts have no place in logs.
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("error: a thread has panicked at {place}; this is a bug in Lathe");
    }));
    let (stop, stopped) = watch::channel(None);
    let draining = Arc::new(AtomicBool::new(false));
    let drain = Duration::from_secs(args.drain);
    let mut announce = listen_for_orders(seat.orders, Arc::clone(&draining), stop.clone(), drain)?;
    let (shared, failure) = load(args, seat.restarts, draining)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Threads that read prompts; more of them would only take the engine's cores.
        .max_blocking_threads(thread::available_parallelism().map_or(1, usize::from))
        .build()?;
    let failure = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(seat.listener)?;
        let address = listener.local_addr()?;
        eprintln!("serving {} at http://{address}/v1", shared.served.name);
        announce(&format!("http://{address}\n"))?;
        let failed = async {
            let failure = failure.await.ok();
            if let Some(failure) = &failure {
                eprintln!("error: the engine has failed: {failure}");
                stop.send_replace(Some(FAREWELL));
            }
            failure
        };
        let served = listen::serve(&listener, &shared.policy, Arc::clone(&shared), stopped);
        tokio::pin!(failed, served);
        let failure = tokio::select! {
            () = &mut served => None,
            failure = &mut failed => { served.await; failure }
        };
        anyhow::Ok(failure)
    })?;
    runtime.shutdown_background();
    // The sentence has been said.
    if failure.is_some() { process::exit(1) } else { Ok(()) }
}

/// Loads the plan and puts everything in place that requests need.
fn load(
    args: &Args,
    restarts: u64,
    draining: Arc<AtomicBool>,
) -> anyhow::Result<(Arc<Shared>, oneshot::Receiver<String>)> {
    let mut secret = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let keys = args.keys()?;
    let batching = args.queue.options(secret, keys.len(), args.speculation.options());
    let model = Model::open_with(&args.plan, &args.machine, batching)?;
    let template = model.plan.chat_template().map(|source| ChatTemplate::new(source, &model.tokenizer)).transpose()?;
    let stem = args.plan.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let limits = model.engine.limits();
    let most = limits.max.sequences as usize;
    let side_by_side = args.queue.max_running.map_or(most, |wanted| most.min(wanted));
    eprintln!("loaded: {side_by_side} answers side by side, a cache of {} positions", limits.cache_tokens());
    let served = Served {
        name: args.name.clone().unwrap_or(stem),
        digest: blake3::Hash::from_bytes(model.plan.root()).to_hex().to_string(),
        max_context: limits.max_context,
    };
    let metrics = Arc::new(Metrics::default());
    metrics.restarted(restarts);
    let patience = Duration::from_secs(args.step_timeout.get());
    let (driver, failure) = Driver::start(model.engine, Arc::clone(&metrics), patience)?;
    let reader = Reader {
        defaults: Defaults::read(model.plan.generation_config()),
        tokenizer: model.tokenizer,
        template,
        secret,
    };
    let policy = Policy {
        keys,
        strict_fields: args.strict_fields,
        vllm_metrics: args.metrics_compat.is_some(),
        max_connections: args.max_connections,
        request_timeout: Duration::from_secs(args.request_timeout.max(1)),
        ..Policy::default()
    };
    let mut shared = Shared::new(driver, reader, served, metrics, policy);
    shared.draining = draining;
    Ok((Arc::new(shared), failure))
}

/// What tells that this process serves, and where.
type Announce = Box<dyn FnMut(&str) -> io::Result<()>>;

/// Hears when to stop, on a thread of its own: the first time answers in progress may end, the second time nothing may.
fn listen_for_orders(
    orders: Orders,
    draining: Arc<AtomicBool>,
    stop: watch::Sender<Option<Duration>>,
    drain: Duration,
) -> io::Result<Announce> {
    let heard = move |code: i32| {
        if draining.swap(true, Ordering::AcqRel) {
            process::exit(code);
        }
        eprintln!("draining: a second signal ends at once");
        stop.send_replace(Some(drain));
    };
    match orders {
        Orders::Signals(mut signals) => {
            thread::Builder::new()
                .name("lathe-orders".to_owned())
                .spawn(move || signals.forever().for_each(|signal| heard(128 + signal)))?;
            Ok(Box::new(|address| io::stdout().write_all(address.as_bytes())))
        }
        Orders::Supervisor(stream) => {
            let mut out = stream.try_clone()?;
            let lines = BufReader::new(stream).lines().map_while(Result::ok);
            thread::Builder::new().name("lathe-orders".to_owned()).spawn(move || {
                lines.filter(|line| line == DRAIN.trim_end()).for_each(|_| heard(1));
                // Nobody is left to serve for: who supervised is gone.
                process::exit(1);
            })?;
            Ok(Box::new(move |_| out.write_all(READY.as_bytes())))
        }
    }
}
