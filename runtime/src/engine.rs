//! The engine: requests in, tokens out, one step at a time.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use lathe_plan::{Plan, program::StepSize};

use crate::{
    batcher::{BatchOptions, Batcher, Counters, Event, Gauges, Request, RequestId},
    device::{
        Device, Limits, Step, StepOutput, Ticket,
        choice::{self, About, Loaded},
        options::DeviceOptions,
        timeline::Timeline,
    },
    error::{Error, Result},
    speculate::{Drafter, Speculation, ngram::Ngram},
};

/// How an engine uses its machine. None of it changes a token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineOptions {
    /// The machine.
    pub device: DeviceOptions,
    /// The most tokens of one prompt in a step; by default as many as a step holds.
    pub prefill_chunk: Option<usize>,
    /// The most tokens in a step; by default as many as it holds.
    pub token_budget: Option<usize>,
    /// How steps are composed otherwise.
    pub batching: BatchOptions,
}

/// Runs requests on a device.
pub struct Engine {
    device: Box<dyn Device>,
    batcher: Batcher,
    drafters: Vec<Box<dyn Drafter>>,
    step: Step,                  // under way, or the last one
    next: Step,                  // the one behind it
    under_way: Option<UnderWay>, // what the next call of `step` waits for
    stale: Option<Ticket>,       // a step behind the end of all its answers
    output: StepOutput,
    events: Vec<Event>,
    clock: Instant,
    last: Option<StepTime>,
    is_recording: bool,
    record: Option<StepRecord>,
}

/// A step that the device has, and since when it has had nothing else to do.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    ticket: Ticket,
    begin: Duration,
}

/// How a step went, from the first to the last thing that the host did for it. Times are in order.
#[derive(Clone, Debug)]
pub struct StepRecord {
    /// The engine began to look for work.
    pub begin: Instant,
    /// The step was composed, and went to the device.
    pub composed: Instant,
    /// The device's output was there.
    pub collected: Instant,
    /// The output had become events.
    pub end: Instant,
    /// Tokens, sequences and rows.
    pub size: StepSize,
    /// Positions that a token of the step sees, itself included: their mean.
    pub context: f64,
    /// What the device did meanwhile.
    pub device: Timeline,
}

/// A step's time, predicted and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTime {
    /// As past steps told; `None` for the first ones.
    pub predicted: Option<Duration>,
    /// As it was, without the time of drafters.
    pub measured: Duration,
    /// What drafters took before it.
    pub drafting: Duration,
    /// Tokens in the step.
    pub tokens: usize,
}

impl Engine {
    /// Opens a plan file and loads its main program onto a device.
    pub fn open(path: impl AsRef<Path>, options: &EngineOptions) -> Result<Engine> {
        Engine::load(&Plan::open(path.as_ref())?, options)
    }

    /// Loads a plan's main program onto a device, and beside it what guesses tokens.
    pub fn load(plan: &Plan, options: &EngineOptions) -> Result<Engine> {
        Ok(Engine::load_told(plan, options)?.0)
    }

    /// The same; what there is to tell people of the device.
    pub fn load_told(plan: &Plan, options: &EngineOptions) -> Result<(Engine, About)> {
        let loaded = choice::load(plan, &options.device)?;
        let drafters = choice::drafters(plan, &loaded, options)?;
        let Loaded { device, about, .. } = loaded;
        Ok((Engine::with_drafters(device, drafters, options), about))
    }

    /// An engine on any device, where nothing guesses tokens but n-grams.
    pub fn with_device(device: Box<dyn Device>, options: &EngineOptions) -> Engine {
        Engine::with_drafters(device, vec![Box::new(Ngram::default())], options)
    }

    /// An engine on any device with these drafters, of which each is asked where the one before has no guess.
    pub fn with_drafters(device: Box<dyn Device>, drafters: Vec<Box<dyn Drafter>>, options: &EngineOptions) -> Engine {
        let batching = BatchOptions {
            prefill_chunk: options.prefill_chunk.unwrap_or(options.batching.prefill_chunk),
            token_budget: options.token_budget.unwrap_or(options.batching.token_budget),
            ..options.batching.clone()
        };
        Engine {
            drafters,
            batcher: Batcher::new(device.limits(), batching),
            device,
            step: Step::default(),
            next: Step::default(),
            under_way: None,
            stale: None,
            output: StepOutput::default(),
            events: Vec::new(),
            clock: Instant::now(),
            last: None,
            is_recording: false,
            record: None,
        }
    }

    /// Guesses tokens in another way from now on, for which a drafter was loaded. The engine must be idle.
    pub fn set_speculation(&mut self, speculation: Speculation) -> Result<()> {
        speculation.mode.check(&self.drafters)?;
        match self.batcher.unfinished() {
            0 => {
                self.batcher.set_speculation(speculation, &mut self.drafters);
                Ok(())
            }
            busy => Err(Error::Busy(busy)),
        }
    }

    /// Whether steps are to be recorded from now on, which costs a little time. Only CPUs can.
    pub fn set_recording(&mut self, on: bool) {
        self.is_recording = on;
        self.device.record(on);
    }

    /// The last step, if it was recorded.
    pub fn take_record(&mut self) -> Option<StepRecord> {
        self.record.take()
    }

    /// What the device was loaded for: vocabulary, context, largest step, cache pages.
    pub fn limits(&self) -> &Limits {
        self.device.limits()
    }

    /// Queues a request, or refuses one that could never run.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        self.batcher.submit(self.now(), request)
    }

    /// Ends a request at the next step. Unknown and finished ones are ignored.
    pub fn cancel(&mut self, request: RequestId) {
        self.batcher.cancel(request, None);
    }

    /// Ends one answer of a request at the next step.
    pub fn cancel_choice(&mut self, request: RequestId, choice: u32) {
        self.batcher.cancel(request, Some(choice));
    }

    /// The time since the engine was made, by which deadlines are measured.
    pub fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// The state in numbers.
    pub fn gauges(&self) -> Gauges {
        self.batcher.gauges()
    }

    /// What happened since the start.
    pub fn counters(&self) -> Counters {
        self.batcher.counters()
    }

    /// The time of the last call of [`Engine::step`], if the device ran.
    pub fn last_step(&self) -> Option<StepTime> {
        self.last
    }

    /// Whether every request has ended.
    pub fn is_idle(&self) -> bool {
        self.batcher.unfinished() == 0
    }

    /// Takes one step for all requests and returns what happened. When the step fails, all requests have ended. Where the
    /// device samples by itself, the step behind it is under way already when this returns, if that can be.
    pub fn step(&mut self) -> Result<&[Event]> {
        self.events.clear();
        self.last = None;
        if let Err(error) = self.take_step() {
            self.batcher.abort(&mut self.events);
            self.discard();
            return Err(error);
        }
        Ok(&self.events)
    }

    fn take_step(&mut self) -> Result<()> {
        let begin = self.is_recording.then(Instant::now);
        self.batcher.admit(self.now(), &mut self.events);
        let (under_way, drafting) = match self.under_way.take() {
            Some(under_way) => (Some(under_way), Duration::ZERO),
            None => self.begin_step()?,
        };
        let Some(UnderWay { ticket, begin: start }) = under_way else { return Ok(()) };
        // Kept, so that it is waited for whatever happens.
        self.stale = Some(ticket);
        let predicted = self.batcher.predicted();
        let ahead = self.step_ahead(ticket)?;
        self.stale = ahead;
        self.device.collect(ticket, &mut self.output)?;
        let collected = self.now();
        let measured = collected.saturating_sub(start);
        self.last = Some(StepTime { predicted, measured, drafting, tokens: self.step.tokens.len() });
        self.batcher.retire(measured, &self.output, &mut self.events);
        if let Some(begin) = begin {
            self.keep_record(begin, self.clock + start, self.clock + collected);
        }
        if self.batcher.is_under_way() {
            self.under_way = self.stale.take().map(|ticket| UnderWay { ticket, begin: collected });
            std::mem::swap(&mut self.step, &mut self.next);
        }
        Ok(())
    }

    /// Composes a step of what is known and hands it to the device, if there is anything to do; also how long drafters took.
    fn begin_step(&mut self) -> Result<(Option<UnderWay>, Duration)> {
        self.discard();
        let asked = self.now();
        self.batcher.draft(&mut self.drafters)?;
        let drafting = self.now().saturating_sub(asked);
        if !self.batcher.compose(&mut self.step) {
            return Ok((None, drafting));
        }
        let begin = self.now();
        let ticket = self.device.submit(&self.step)?;
        Ok((Some(UnderWay { ticket, begin }), drafting))
    }

    /// Hands the device the step behind the one under way, if it can be composed already.
    fn step_ahead(&mut self, ticket: Ticket) -> Result<Option<Ticket>> {
        let (device, rows) = (&self.device, &self.step.rows);
        let feeds_back = |row: usize| rows.get(row).is_some_and(|row| device.feeds_back(row));
        if !self.batcher.compose_ahead(ticket, feeds_back, &mut self.next) {
            return Ok(None);
        }
        self.device.submit(&self.next).map(Some)
    }

    /// Waits for the steps that nobody wants to hear of. What became of them is of no use: a device that is lost says so
    /// again.
    fn discard(&mut self) {
        let under_way = self.under_way.take().map(|under_way| under_way.ticket);
        for ticket in [under_way, self.stale.take()].into_iter().flatten() {
            let _ = self.device.collect(ticket, &mut self.output);
        }
    }

    /// Exchanges what happened in the last step for an empty list, whose memory is used again.
    pub fn take_events(&mut self, events: &mut Vec<Event>) {
        events.clear();
        std::mem::swap(&mut self.events, events);
    }

    fn keep_record(&mut self, begin: Instant, composed: Instant, collected: Instant) {
        let (step, end) = (&self.step, Instant::now());
        let seen: f64 = step.positions.iter().map(|&position| f64::from(position) + 1.0).sum();
        let context = seen / step.positions.len().max(1) as f64;
        let record = |device| StepRecord { begin, composed, collected, end, size: step.size(), context, device };
        self.record = self.device.timeline().map(record);
    }

    /// Runs the step to its end, when no other is under way.
    fn run(&mut self) -> Result<()> {
        self.discard();
        let ticket = self.device.submit(&self.step)?;
        self.device.collect(ticket, &mut self.output)
    }
}

mod score;

#[cfg(test)]
mod tests;
