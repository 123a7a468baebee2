//! The process that owns the listening socket and sees to it that a worker serves on it.
//!
//! The worker is this executable once more. Its standard input is the listening socket, its standard output one end of a
//! socket pair, over which it says when it serves and hears when to stop; the end of either process shows there as well.
//! While no worker serves, this process answers: 503 with `Retry-After`, never a refused connection. A worker that has
//! served and ends is started again, later each time, until it has failed too often. One that never served has said what
//! is wrong, and starting it again would not mend it.

use std::convert::Infallible;
use std::env;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use lathe_runtime::server::listen::{self, Answer, Closed, Service};
use lathe_runtime::server::{Policy, http};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::super::failure::Passed;
use super::Args;
use super::worker::{DRAIN, READY};

/// Answers while no worker does.
struct Absent;

impl Service for Absent {
    async fn answer(self: Arc<Self>, _: Request<Incoming>) -> Answer {
        http::absent()
    }

    fn closed(&self, _: Closed) {}

    fn connections(&self, _: usize) {}
}

/// The worker's process, as seen from here.
struct Worker {
    child: Child,
    lines: BufReader<OwnedReadHalf>,
    orders: OwnedWriteHalf,
}

impl Worker {
    /// Starts a worker on the socket, with this process's own arguments.
    fn start(listener: &TcpListener, restarts: u64) -> io::Result<Worker> {
        let (ours, theirs) = Pair::pair()?;
        ours.set_nonblocking(true)?;
        let mut arguments = env::args_os();
        // The file may have been replaced by now; this link is the program that runs.
        let mut command = Command::new("/proc/self/exe");
        command.arg0(arguments.next().unwrap_or_else(|| "lathe".into()));
        // The subcommand comes first, and its own arguments follow.
        command.args(arguments.next()).args(["--supervised", &restarts.to_string()]).args(arguments);
        command.stdin(Stdio::from(OwnedFd::from(listener.try_clone()?))).stdout(Stdio::from(OwnedFd::from(theirs)));
        let child = command.spawn()?;
        let (reader, orders) = UnixStream::from_std(ours)?.into_split();
        Ok(Worker { child, lines: BufReader::new(reader), orders })
    }

    /// Whether the worker says that it serves; false when it has ended instead.
    async fn serves(&mut self) -> bool {
        let mut line = String::new();
        self.lines.read_line(&mut line).await.is_ok() && line == READY
    }

    /// Waits until the process has ended.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        let mut rest = String::new();
        // It says nothing more, so that what comes is the end of its output.
        while self.lines.read_line(&mut rest).await.is_ok_and(|bytes| bytes > 0) {}
        self.child.wait()
    }

    async fn drain(&mut self) {
        // One that has ended meanwhile needs no telling.
        let _ = self.orders.write_all(DRAIN.as_bytes()).await;
    }
}

/// How often a worker may fail, and how long to wait before the next one.
struct Patience {
    allowed: u32,
    failures: u32,
}

impl Patience {
    /// A worker that has served for so long makes up for all failures before.
    const STEADY: Duration = Duration::from_mins(1);
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(30);

    /// How long to wait after a worker that lived for so long; `None` when it was one too many.
    fn after(&mut self, life: Duration) -> Option<Duration> {
        if life >= Patience::STEADY {
            self.failures = 0;
        }
        self.failures += 1;
        let wait = Patience::FIRST.saturating_mul(1 << (self.failures - 1).min(16));
        (self.failures <= self.allowed).then_some(wait.min(Patience::LONGEST))
    }
}

/// Serves until a signal or too many failures.
pub fn run(args: &Args, listener: TcpListener) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (sender, signalled) = mpsc::unbounded_channel();
    thread::Builder::new().name("lathe-signals".to_owned()).spawn(move || {
        signals.forever().for_each(|signal| {
            // Without a receiver the process is about to end.
            let _ = sender.send(signal);
        });
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(supervise(args, listener, signalled));
    runtime.shutdown_background();
    outcome
}

async fn supervise(
    args: &Args,
    listener: TcpListener,
    mut signalled: mpsc::UnboundedReceiver<i32>,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let own = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
    let mut patience = Patience { allowed: args.restarts, failures: 0 };
    for restarts in 0.. {
        let begin = Instant::now();
        let mut worker = Worker::start(&listener, restarts)?;
        let serves = tokio::select! {
            serves = worker.serves() => serves,
            never = answer_meanwhile(&own) => match never {},
            // Nothing is in progress; the worker ends when its supervisor does.
            _ = signalled.recv() => return Ok(()),
        };
        if serves && restarts == 0 {
            writeln!(io::stdout(), "http://{address}")?;
        }
        let (status, is_stopped) = until_the_end(&mut worker, &mut signalled).await?;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        if is_stopped || (restarts == 0 && !serves) {
            return if status.success() { Ok(()) } else { Err(Passed(code as u8).into()) };
        }
        let Some(wait) = patience.after(begin.elapsed()) else {
            eprintln!("error: the engine's process has ended with {status} once more than --restarts allows");
            return Err(Passed(if code == 0 { 1 } else { code as u8 }).into());
        };
        eprintln!(
            "error: the engine's process has ended with {status}; it starts again in {:.2} s, for the {}. time of {}",
            wait.as_secs_f64(),
            patience.failures,
            patience.allowed
        );
        tokio::select! {
            () = sleep(wait) => {}
            never = answer_meanwhile(&own) => match never {},
            _ = signalled.recv() => return Ok(()),
        }
    }
    Ok(())
}

/// Waits for a worker's end and passes signals on: the first lets it drain, the second ends both processes at once.
/// Returns whether it was told to stop.
async fn until_the_end(
    worker: &mut Worker,
    signalled: &mut mpsc::UnboundedReceiver<i32>,
) -> anyhow::Result<(ExitStatus, bool)> {
    let mut is_stopped = false;
    loop {
        let signal = tokio::select! {
            status = worker.end() => return Ok((status?, is_stopped)),
            signal = signalled.recv() => signal,
        };
        if is_stopped {
            return Err(Passed(128 + signal.unwrap_or(SIGTERM) as u8).into());
        }
        is_stopped = true;
        worker.drain().await;
    }
}

/// Tells everybody who asks that there is no engine, for as long as this is waited for.
async fn answer_meanwhile(listener: &tokio::net::TcpListener) -> Infallible {
    let (_go_on, stop) = watch::channel(None);
    let policy = Policy::default();
    loop {
        listen::serve(listener, &policy, Arc::new(Absent), stop.clone()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_ends_and_comes_back() {
        let mut patience = Patience { allowed: 3, failures: 0 };
        let short = Duration::from_secs(1);
        let waits: Vec<_> = (0..4).map(|_| patience.after(short)).collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(waits, [ms(250), ms(500), ms(1000), None]);
        assert_eq!(patience.after(Patience::STEADY), ms(250), "a steady worker makes up for those before");
        let mut patience = Patience { allowed: u32::MAX, failures: 40 };
        assert_eq!(patience.after(short), Some(Patience::LONGEST));
        let mut patience = Patience { allowed: 0, failures: 0 };
        assert_eq!(patience.after(short), None);
    }
}
