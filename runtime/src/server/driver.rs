//! The engine on a thread of its own. HTTP hands requests over and never waits for a step; a stream's reader that does not
//! keep up loses its stream and holds up nobody.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc as queue, oneshot};

use super::metrics::Metrics;
use super::watchdog::{self, Pulse};
use crate::{Engine, Event, FinishReason, Request, RequestId, Result};

/// Events that a reader may fall behind before its requests are cancelled, and how many more for each further answer.
const QUEUE: usize = 1024;
const QUEUE_PER_ANSWER: usize = 256;

/// An event, and which of the requests that were handed over together it belongs to.
type Told = (usize, Event);

/// What the engine's thread is told.
enum Command {
    Submit {
        requests: Vec<Request>,
        allowed: Option<Duration>,
        events: queue::Sender<Told>,
        accepted: oneshot::Sender<Result<Vec<RequestId>>>,
    },
    /// Its text is complete.
    Stop(RequestId, u32),
    /// Nobody wants it any more.
    Cancel(Vec<RequestId>),
}

/// Hands requests to the engine.
#[derive(Clone, Debug)]
pub struct Driver {
    commands: mpsc::Sender<Command>,
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
}

/// Requests that the engine has accepted. Dropping them cancels what has not ended.
///
/// An answer's end is counted by whoever takes it: here, where it is known whether its text was complete before the engine
/// ended it, or by the engine's thread where nobody listens any more.
#[derive(Debug)]
pub struct Running {
    ids: Vec<RequestId>,
    events: queue::Receiver<Told>,
    seen: VecDeque<Told>,       // events that were looked at before their time
    stopped: Vec<(usize, u32)>, // answers whose text is complete
    driver: Driver,
}

impl Running {
    /// What happens next, and to which of the requests. `None` before the last answer has ended means that the engine
    /// failed, or that the reader was too slow.
    pub async fn next(&mut self) -> Option<Told> {
        let told = match self.seen.pop_front() {
            Some(told) => told,
            None => self.hear().await?,
        };
        self.count(&told);
        Some(told)
    }

    /// The next event, unless the engine ends or hangs before it comes.
    async fn hear(&mut self) -> Option<Told> {
        tokio::select! {
            biased; // what happened before a failure is told
            told = self.events.recv() => told,
            () = self.driver.pulse.failed() => None,
        }
    }

    /// Counts an answer's end.
    fn count(&self, (request, event): &Told) {
        if let Event::Finished { choice, reason, .. } = event {
            self.driver.metrics.finished(*reason, self.stopped.contains(&(*request, *choice)));
        }
    }

    /// Waits until there is a token, or an answer has ended without one, and says how. `None` as in [`Running::next`].
    pub async fn wait_for_token(&mut self) -> Option<Option<FinishReason>> {
        loop {
            let told = self.hear().await?;
            let outcome = match &told.1 {
                Event::Token { .. } => Some(None),
                Event::Finished { reason, .. } => Some(Some(*reason)),
                Event::Started { .. } | Event::Prompt { .. } | Event::Verified { .. } => None,
            };
            self.seen.push_back(told);
            if let Some(outcome) = outcome {
                return Some(outcome);
            }
        }
    }

    /// Ends an answer whose text is complete.
    pub fn stop(&mut self, request: usize, choice: u32) {
        self.stopped.push((request, choice));
        // An engine that is gone has ended everything.
        let _ = self.driver.commands.send(Command::Stop(self.ids[request], choice));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // From here on the engine's thread counts, and what it has sent is counted here.
        self.events.close();
        let mut left = std::mem::take(&mut self.seen);
        left.extend(std::iter::from_fn(|| self.events.try_recv().ok()));
        for told in &left {
            self.count(told);
        }
        let _ = self.driver.commands.send(Command::Cancel(std::mem::take(&mut self.ids)));
    }
}

impl Driver {
    /// Starts the engine's thread, which ends when no driver is left or a step fails. The receiver hears of a failure, and
    /// of a step that takes longer than `patience`.
    pub fn start(
        engine: Engine,
        metrics: Arc<Metrics>,
        patience: Duration,
    ) -> std::io::Result<(Driver, oneshot::Receiver<String>)> {
        let (commands, receiver) = mpsc::channel();
        let (failed, failure) = oneshot::channel();
        let pulse = watchdog::start(patience, Arc::clone(&metrics), failed)?;
        let driver = Driver { commands, metrics: Arc::clone(&metrics), pulse: Arc::clone(&pulse) };
        let run = move || {
            let state = Loop { engine, receiver, streams: HashMap::new(), metrics, pulse, events: Vec::new() };
            state.run();
        };
        thread::Builder::new().name("lathe-engine".to_owned()).spawn(run)?;
        Ok((driver, failure))
    }

    /// Hands requests over, of which all run or none. `None` means that the engine is gone.
    pub async fn submit(&self, requests: Vec<Request>, allowed: Option<Duration>) -> Option<Result<Running>> {
        let answers: usize = requests.iter().map(|request| request.more as usize + 1).sum();
        let (events, receiver) = queue::channel(QUEUE + QUEUE_PER_ANSWER * answers);
        let (accepted, answer) = oneshot::channel();
        self.commands.send(Command::Submit { requests, allowed, events, accepted }).ok()?;
        let accepted = tokio::select! {
            accepted = answer => accepted.ok()?,
            () = self.pulse.failed() => return None,
        };
        let (seen, stopped, driver) = (VecDeque::new(), Vec::new(), self.clone());
        Some(accepted.map(|ids| Running { ids, events: receiver, seen, stopped, driver }))
    }
}

/// The state of the engine's thread.
struct Loop {
    engine: Engine,
    receiver: Receiver<Command>,
    streams: HashMap<RequestId, Stream>,
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    events: Vec<Event>, // of the step that ran last
}

/// Who listens to a request.
struct Stream {
    events: queue::Sender<Told>,
    index: usize,      // among those that were handed over together
    open: u32,         // answers that have not ended
    stopped: Vec<u32>, // choices whose text is complete
    prompt: usize,     // its tokens
    generated: usize,  // tokens of all answers so far
    arrival: Instant,
    started: Option<Instant>,   // when it left the queue
    first: Option<Instant>,     // when its first token came
    last: Vec<Option<Instant>>, // by choice: when its last token came
}

impl Loop {
    /// Steps until nobody can ask for more, or a step fails.
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
            // A panic must not leave streams hanging: they end with this thread.
            let engine = &mut self.engine;
            self.pulse.begin(self.streams.values().map(|stream| stream.open).sum());
            let outcome = catch_unwind(AssertUnwindSafe(|| engine.step().map(drop)));
            self.pulse.end();
            match outcome {
                Ok(Ok(())) => self.tell_all(),
                Ok(Err(error)) => return self.pulse.fail(error.to_string()),
                Err(_) => return self.pulse.fail("a step panicked".to_owned()),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Stop(id, choice) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.stopped.push(choice);
                    self.engine.cancel_choice(id, choice);
                }
            }
            Command::Cancel(ids) => {
                ids.into_iter().filter(|id| self.streams.contains_key(id)).for_each(|id| self.engine.cancel(id));
            }
            Command::Submit { requests, allowed, events, accepted } => {
                let outcome = self.submit(requests, allowed, &events);
                if let Err(Ok(ids)) = accepted.send(outcome) {
                    // The client left before it was told.
                    for id in ids {
                        self.engine.cancel(id);
                    }
                }
            }
        }
    }

    fn submit(
        &mut self,
        requests: Vec<Request>,
        allowed: Option<Duration>,
        events: &queue::Sender<Told>,
    ) -> Result<Vec<RequestId>> {
        let (arrival, now) = (Instant::now(), self.engine.now());
        let mut ids = Vec::with_capacity(requests.len());
        for mut request in requests {
            request.deadline = allowed.map(|allowed| now.saturating_add(allowed));
            let (open, prompt) = (request.more + 1, request.tokens.len());
            match self.engine.submit(request) {
                Ok(id) => ids.push((id, open, prompt)),
                Err(error) => {
                    // None of them was listed yet, so nobody hears of those that were taken.
                    for (id, ..) in ids {
                        self.engine.cancel(id);
                    }
                    return Err(error);
                }
            }
        }
        for (index, &(id, open, prompt)) in ids.iter().enumerate() {
            let stream = Stream {
                events: events.clone(),
                index,
                open,
                stopped: Vec::new(),
                prompt,
                generated: 0,
                arrival,
                started: None,
                first: None,
                last: vec![None; open as usize],
            };
            self.streams.insert(id, stream);
        }
        Ok(ids.into_iter().map(|(id, ..)| id).collect())
    }

    /// Passes on what happened in the last step.
    fn tell_all(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.engine.take_events(&mut events);
        // First the counts, so that who has an answer finds its tokens in `/metrics`.
        self.metrics.observe_engine(&self.engine);
        let now = Instant::now();
        for event in events.drain(..) {
            self.tell(event, now);
        }
        self.events = events;
    }

    /// Passes an event on to whoever listens.
    fn tell(&mut self, event: Event, now: Instant) {
        let (Event::Started { request: id, .. }
        | Event::Prompt { request: id, .. }
        | Event::Verified { request: id, .. }
        | Event::Token { request: id, .. }
        | Event::Finished { request: id, .. }) = event;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match &event {
            Event::Started { .. } => {
                self.metrics.queue_time.observe(now - stream.arrival);
                stream.started.get_or_insert(now);
            }
            Event::Token { choice, .. } => {
                stream.generated += 1;
                if stream.first.replace(stream.first.unwrap_or(now)).is_none() {
                    self.metrics.first_token.observe(now - stream.arrival);
                    self.metrics.prefill.observe(now - stream.started.unwrap_or(stream.arrival));
                }
                let last = stream.last.get_mut(*choice as usize).and_then(|last| last.replace(now));
                if let Some(last) = last {
                    self.metrics.between_tokens.observe(now - last);
                }
            }
            Event::Finished { choice, reason, .. } => {
                stream.open -= 1;
                let is_stopped = stream.stopped.contains(choice);
                if stream.open == 0 && (is_stopped || *reason != FinishReason::Cancelled) {
                    self.metrics.whole.observe(now - stream.arrival);
                    self.metrics.decode.observe(now - stream.first.unwrap_or(now));
                    self.metrics.prompt.tokens(stream.prompt);
                    self.metrics.generated.tokens(stream.generated);
                }
            }
            Event::Prompt { .. } | Event::Verified { .. } => {}
        }
        let mut is_over = stream.open == 0;
        if let Err(failed) = stream.events.try_send((stream.index, event)) {
            self.engine.cancel(id);
            match failed {
                queue::error::TrySendError::Full(_) => {
                    self.metrics.abort("slow_reader");
                    is_over = true;
                }
                // One whose client is gone stays listed until it has ended, to be counted.
                queue::error::TrySendError::Closed((_, Event::Finished { choice, reason, .. })) => {
                    self.metrics.finished(reason, stream.stopped.contains(&choice));
                }
                queue::error::TrySendError::Closed(_) => {}
            }
        }
        if is_over {
            self.streams.remove(&id);
        }
    }
}
