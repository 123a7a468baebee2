//! The engine: requests in, tokens out, one step at a time.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use lathe_plan::Plan;

use crate::{
    batcher::{BatchOptions, Batcher, Counters, Event, Gauges, Request, RequestId},
    device::{Device, Limits, Step, StepOutput, choice, options::DeviceOptions},
    error::Result,
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
    step: Step,
    output: StepOutput,
    events: Vec<Event>,
    clock: Instant,
    last: Option<StepTime>,
}

/// A step's time, predicted and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTime {
    /// As past steps told; `None` for the first ones.
    pub predicted: Option<Duration>,
    /// As it was.
    pub measured: Duration,
    /// Tokens in the step.
    pub tokens: usize,
}

impl Engine {
    /// Opens a plan file and loads its main program onto a device.
    pub fn open(path: impl AsRef<Path>, options: &EngineOptions) -> Result<Engine> {
        Engine::load(&Plan::open(path.as_ref())?, options)
    }

    /// Loads a plan's main program onto a device.
    pub fn load(plan: &Plan, options: &EngineOptions) -> Result<Engine> {
        Ok(Engine::with_device(choice::load(plan, &options.device)?.device, options))
    }

    /// An engine on any device.
    pub fn with_device(device: Box<dyn Device>, options: &EngineOptions) -> Engine {
        let batching = BatchOptions {
            prefill_chunk: options.prefill_chunk.unwrap_or(options.batching.prefill_chunk),
            token_budget: options.token_budget.unwrap_or(options.batching.token_budget),
            ..options.batching.clone()
        };
        Engine {
            batcher: Batcher::new(device.limits(), batching),
            device,
            step: Step::default(),
            output: StepOutput::default(),
            events: Vec::new(),
            clock: Instant::now(),
            last: None,
        }
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

    /// The time of the last step that ran.
    pub fn last_step(&self) -> Option<StepTime> {
        self.last
    }

    /// Whether every request has ended.
    pub fn is_idle(&self) -> bool {
        self.batcher.unfinished() == 0
    }

    /// Takes one step for all requests and returns what happened. When the step fails, all requests have ended.
    pub fn step(&mut self) -> Result<&[Event]> {
        self.events.clear();
        self.batcher.admit(self.now(), &mut self.events);
        if self.batcher.compose(&mut self.step) {
            let predicted = self.batcher.predicted();
            let start = self.now();
            if let Err(error) = self.run() {
                self.batcher.abort(&mut self.events);
                return Err(error);
            }
            let measured = self.now().saturating_sub(start);
            self.last = Some(StepTime { predicted, measured, tokens: self.step.tokens.len() });
            self.batcher.retire(measured, &self.output, &mut self.events);
        }
        Ok(&self.events)
    }

    /// Runs the step to its end.
    fn run(&mut self) -> Result<()> {
        let ticket = self.device.submit(&self.step)?;
        self.device.collect(ticket, &mut self.output)
    }
}

mod score;

#[cfg(test)]
mod tests;
