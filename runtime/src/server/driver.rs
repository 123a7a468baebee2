//! The engine on a thread of its own. HTTP hands requests over and never waits for a step; a stream's reader that does not
//! keep up loses its stream and holds up nobody.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc as queue, oneshot};

use super::metrics::Metrics;
use crate::{Engine, Error, Event, FinishReason, Request, RequestId, Result};

/// Events that a stream may fall behind before it is cancelled.
const QUEUE: usize = 1024;

/// What the engine's thread is told.
enum Command {
    Submit {
        request: Box<Request>,
        allowed: Option<Duration>,
        events: queue::Sender<Event>,
        accepted: oneshot::Sender<Result<RequestId>>,
    },
    Cancel(RequestId, Option<u32>),
}

/// Hands requests to the engine.
#[derive(Clone, Debug)]
pub struct Driver(mpsc::Sender<Command>);

/// A request that the engine has accepted. Dropping it cancels what has not ended.
#[derive(Debug)]
pub struct Running {
    /// Its number.
    pub id: RequestId,
    /// What happens to it. The end of the queue before the last answer has ended means that the engine failed, or that
    /// the reader was too slow.
    pub events: queue::Receiver<Event>,
    driver: Driver,
}

impl Running {
    /// Ends one of its answers.
    pub fn cancel(&self, choice: u32) {
        // An engine that is gone has ended everything.
        let _ = self.driver.0.send(Command::Cancel(self.id, Some(choice)));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.driver.0.send(Command::Cancel(self.id, None));
    }
}

impl Driver {
    /// Starts the engine's thread, which ends when no driver is left or a step fails.
    pub fn start(engine: Engine, metrics: Arc<Metrics>) -> std::io::Result<(Driver, JoinHandle<()>)> {
        let (sender, receiver) = mpsc::channel();
        let run = move || Loop { engine, receiver, streams: HashMap::new(), metrics }.run();
        let thread = thread::Builder::new().name("lathe-engine".to_owned()).spawn(run)?;
        Ok((Driver(sender), thread))
    }

    /// Hands a request over. `None` means that the engine is gone.
    pub async fn submit(&self, request: Request, allowed: Option<Duration>) -> Option<Result<Running>> {
        let (events, receiver) = queue::channel(QUEUE);
        let (accepted, answer) = oneshot::channel();
        self.0.send(Command::Submit { request: Box::new(request), allowed, events, accepted }).ok()?;
        let accepted = answer.await.ok()?;
        Some(accepted.map(|id| Running { id, events: receiver, driver: self.clone() }))
    }
}

/// The state of the engine's thread.
struct Loop {
    engine: Engine,
    receiver: Receiver<Command>,
    streams: HashMap<RequestId, Stream>,
    metrics: Arc<Metrics>,
}

/// Who listens to a request.
struct Stream {
    events: queue::Sender<Event>,
    open: u32, // answers that have not ended
    arrival: Instant,
    last: Option<Instant>,
}

impl Loop {
    fn run(mut self) {
        loop {
            if self.engine.is_idle() {
                match self.receiver.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            loop {
                match self.receiver.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            // A panic must not leave streams hanging: they end with this thread, and `/health` says so from then on.
            let engine = &mut self.engine;
            let outcome = catch_unwind(AssertUnwindSafe(|| engine.step().map(<[Event]>::to_vec)));
            let failure = match outcome {
                Ok(Ok(events)) => {
                    // First the counts, so that who has an answer finds its tokens in `/metrics`.
                    self.metrics.observe_engine(&self.engine);
                    for event in events {
                        self.tell(event);
                    }
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "a step panicked".to_owned(),
            };
            eprintln!("error: the engine has failed: {failure}");
            self.metrics.fail();
            return;
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Cancel(id, choice) => match choice {
                Some(choice) => self.engine.cancel_choice(id, choice),
                None => self.engine.cancel(id),
            },
            Command::Submit { mut request, allowed, events, accepted } => {
                request.deadline = allowed.map(|allowed| self.engine.now().saturating_add(allowed));
                let open = request.more + 1;
                let outcome = self.engine.submit(*request);
                match &outcome {
                    Ok(id) => {
                        let stream = Stream { events, open, arrival: Instant::now(), last: None };
                        self.streams.insert(*id, stream);
                    }
                    Err(Error::QueueFull { .. }) => self.metrics.reject("queue_full"),
                    Err(Error::Late { .. }) => self.metrics.reject("deadline"),
                    Err(_) => self.metrics.reject("invalid"),
                }
                if let (Err(Ok(id)), ..) = (accepted.send(outcome), ()) {
                    // Its client left before it was told.
                    self.engine.cancel(id);
                }
            }
        }
    }

    /// Passes an event on to whoever listens.
    fn tell(&mut self, event: Event) {
        let (Event::Started { request: id, .. }
        | Event::Prompt { request: id, .. }
        | Event::Token { request: id, .. }
        | Event::Finished { request: id, .. }) = event;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let now = Instant::now();
        match &event {
            Event::Started { .. } => self.metrics.queue_time.observe(now - stream.arrival),
            Event::Token { .. } => match stream.last.replace(now) {
                None => self.metrics.first_token.observe(now - stream.arrival),
                Some(last) => self.metrics.between_tokens.observe(now - last),
            },
            Event::Finished { reason, .. } => {
                stream.open -= 1;
                self.metrics.finished(*reason);
                if stream.open == 0 && *reason != FinishReason::Cancelled {
                    self.metrics.whole.observe(now - stream.arrival);
                }
            }
            Event::Prompt { .. } => {}
        }
        let is_over = stream.open == 0;
        let failed = stream.events.try_send(event);
        if matches!(failed, Err(queue::error::TrySendError::Full(_))) {
            self.metrics.abort("slow_reader");
        }
        if failed.is_err() {
            self.engine.cancel(id);
        }
        if is_over || failed.is_err() {
            self.streams.remove(&id);
        }
    }
}
