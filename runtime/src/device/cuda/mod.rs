//! The CUDA device: runs a plan's PTX on an NVIDIA GPU through its driver, which is loaded when the device is.
//!
//! `driver` wraps the driver's handles, `machine` holds a loaded program, and `launcher` starts its kernels, by graphs where
//! a size of step comes again. Steps sample by themselves, and some bytes a row come back; the host samples where that is
//! not enough, from the logits of just these rows. Work is handed over without waiting, and steps run
//! in the order of one stream: what one samples the next one takes from the device's memory.

mod driver;
mod launcher;
mod machine;
mod picking;
mod ptx;

use std::sync::Arc;

use lathe_plan::{
    LoadMode, Plan, PlanError,
    program::{CodeObject, Program},
};

use self::{
    driver::{Context, Event, Image, Module, Pinned},
    machine::{Feed, Machine, Readback, Work},
    picking::Pickers,
};
use super::{
    Device, IN_FLIGHT, Limits, Row, RowOutput, Step, StepOutput, StepToken, Ticket, options::DeviceOptions, room,
    tickets::Tickets,
};
use crate::{
    error::{Error, Result},
    exec::Numbers,
};

/// Runs the PTX of a plan.
#[derive(Debug)]
pub struct CudaDevice {
    limits: Limits,
    warning: Option<String>,
    poison: bool,
    context: Arc<Context>,
    machine: Machine,
    numbers: Numbers,
    tokens: Vec<u32>,
    feeds: Vec<Feed>,
    pickers: Pickers,
    tickets: Tickets,
    slots: [Slot; IN_FLIGHT], // of ticket t: t mod IN_FLIGHT
}

/// A step in flight.
#[derive(Debug)]
struct Slot {
    step: Step,
    staging: Pinned,
    back: Readback,
    logits_row: usize,
    done: Event,
    state: State,
    sampled: Vec<u32>, // [R] the tokens of its rows, once they are picked
    output: StepOutput,
}

/// How far a step has got.
#[derive(Debug)]
enum State {
    /// The device may still be working on it.
    Running,
    /// Its rows are picked.
    Picked,
    /// It has failed; the error is still to be collected, once.
    Failed(Option<Error>),
}

/// The prefix of the targets that are GPUs, before their compute capability.
const TARGET_PREFIX: &str = "sm_";

/// Whether a plan has code for GPUs.
pub fn has_code(plan: &Plan) -> bool {
    plan.codes("main").any(|code| code.object.target.starts_with(TARGET_PREFIX))
}

/// The name of a GPU and its compute capability, times ten.
///
/// # Errors
/// When there is no driver, or no such GPU.
pub fn describe(ordinal: usize) -> Result<(String, u32)> {
    Context::open(ordinal).map(|context| (context.name.clone(), context.capability))
}

/// The compute capability, times ten, that a code object needs; `None` when it is for no GPU.
pub fn capability(object: &CodeObject) -> Option<u32> {
    object.target.strip_prefix(TARGET_PREFIX)?.parse().ok()
}

/// The code object for the newest GPU among those that run on one of this capability.
fn choose<'a>(objects: impl Iterator<Item = &'a CodeObject>, found: u32) -> Result<&'a CodeObject> {
    let mut objects: Vec<(u32, &CodeObject)> = objects.filter_map(|o| Some((capability(o)?, o))).collect();
    objects.sort_by_key(|&(capability, _)| capability);
    let least = objects.first().map(|&(capability, _)| capability).ok_or(Error::NoPtx)?;
    match objects.into_iter().rfind(|&(capability, _)| capability <= found) {
        Some((_, object)) => Ok(object),
        None => Err(Error::Capability { needed: least, found }),
    }
}

/// Loads a target's cubin where there is one for this GPU, else its PTX; what to tell of that.
fn load_module(
    context: &Arc<Context>,
    cubin: Option<&[u8]>,
    object: &CodeObject,
    text: &str,
    entries: &[ptx::Entry<'_>],
) -> Result<(Module, Option<String>)> {
    let names: Vec<(&str, bool)> = entries.iter().map(|entry| (entry.name, entry.waits)).collect();
    let Some(cubin) = cubin else { return Ok((Module::load(context, Image::Ptx(text), &names)?, None)) };
    let (target, found) = (&object.target, context.capability);
    // Within a generation a binary runs on its own chip and on later ones.
    let why = if capability(object).is_none_or(|of| of / 10 != found / 10) {
        format!("is for another chip than this GPU's sm_{found}")
    } else {
        match Module::load(context, Image::Cubin(cubin), &names) {
            Ok(module) => return Ok((module, None)),
            Err(error) => format!("does not load here ({error})"),
        }
    };
    let warning = format!(
        "the plan's cubin for {target} {why}, so the driver compiles its PTX, which takes some seconds; compile the plan \
         with --target sm_{found} to save them"
    );
    Ok((Module::load(context, Image::Ptx(text), &names)?, Some(warning)))
}

/// Positions of the cache: unless told otherwise, it may take three quarters of what weights and results leave.
fn cache_tokens(context: &Context, program: &Program, options: &DeviceOptions) -> Result<usize> {
    if let Some(tokens) = options.cache_tokens {
        return Ok(tokens);
    }
    let taken = room::needs(program, 0, LoadMode::Read, 0).without_cache();
    let fitting = room::cache_tokens(program, context.free_bytes()?.saturating_sub(taken) / 4 * 3);
    Ok(fitting.min(options.most_cache_tokens.unwrap_or(usize::MAX)))
}

impl CudaDevice {
    /// Loads a program of a plan onto the GPU of this number, in the driver's order.
    pub fn load(plan: &Plan, name: &str, ordinal: usize, options: &DeviceOptions) -> Result<CudaDevice> {
        let missing = || Error::Plan(PlanError::Missing { what: format!("program `{name}`") });
        let program = plan.program(name).ok_or_else(missing)?;
        if !has_code(plan) {
            return Err(Error::NoPtx);
        }
        let context = Context::open(ordinal)?;
        // The target is checked before any code is handed to the driver.
        let object = choose(plan.codes(name).map(|code| &code.object), context.capability)?;
        let code = plan.codes(name).find(|code| std::ptr::eq(&raw const code.object, object));
        let layout = code.map_or("", |code| &code.layout);
        let (text, entries) = ptx::entries(object)?;
        ptx::check(&entries, program, context.shared_bytes)?;
        let (module, warning) = load_module(&context, plan.cubin(name, &object.target), object, text, &entries)?;
        let readers = std::thread::available_parallelism().map_or(1, usize::from);
        let weights = plan.load_weights(name, layout, options.load, readers)?;
        let limits = Limits::of(program, cache_tokens(&context, program, options)?);
        let pages: Vec<u32> = limits.groups.iter().map(|group| group.pages).collect();
        let mut machine = Machine::new(&context, program, module, &weights, &pages)?;
        if !options.no_graphs {
            machine.use_graphs()?;
        }
        let slot = || -> Result<Slot> {
            Ok(Slot {
                step: Step::default(),
                staging: Pinned::new(&context, machine.input_words())?,
                back: machine.readback(&context, limits.max.rows)?,
                logits_row: 0,
                done: Event::new(&context)?,
                state: State::Picked,
                sampled: Vec::new(),
                output: StepOutput::default(),
            })
        };
        Ok(CudaDevice {
            poison: options.poison,
            warning,
            slots: [slot()?, slot()?],
            pickers: Pickers::new(limits.vocabulary as usize),
            numbers: Numbers::default(),
            tokens: Vec::new(),
            feeds: Vec::new(),
            tickets: Tickets::default(),
            limits,
            machine,
            context,
        })
    }

    /// Why loading took longer than it could, and what to do.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// What the driver calls the GPU.
    pub fn name(&self) -> &str {
        &self.context.name
    }

    /// Waits for a step of the last [`IN_FLIGHT`] and picks its rows, if that is still to be done.
    fn settle(&mut self, ticket: u64) {
        let slot = &mut self.slots[ticket as usize % IN_FLIGHT];
        if !matches!(slot.state, State::Running) {
            return;
        }
        slot.state = if let Err(error) = slot.done.wait() {
            State::Failed(Some(error))
        } else {
            pick(slot, &self.machine, &mut self.pickers);
            State::Picked
        };
    }

    /// The id of a token.
    fn resolve(&mut self, token: StepToken) -> Result<u32> {
        match token {
            StepToken::Known(id) => Ok(id),
            StepToken::SampledBy(ticket, row) => {
                self.settle(ticket.0);
                let sampled = self.slots[ticket.0 as usize % IN_FLIGHT].sampled.get(row as usize).copied();
                sampled.ok_or_else(|| {
                    Error::Step(format!("step {}, which samples one of its tokens, has failed", ticket.0))
                })
            }
        }
    }

    /// The row of the newest step that samples a token, if that is still on its way and needs nobody's help.
    fn fed_by(&self, token: StepToken, ticket: u64) -> Option<usize> {
        let StepToken::SampledBy(of, row) = token else { return None };
        let slot = &self.slots[of.0 as usize % IN_FLIGHT];
        let is_running = of.0 + 1 == ticket && matches!(slot.state, State::Running);
        (is_running && self.feeds_back(slot.step.rows.get(row as usize)?)).then_some(row as usize)
    }

    /// Resolves a step's tokens and hands it to the machine.
    fn start(&mut self, ticket: u64, step: &Step) -> Result<()> {
        self.tokens.clear();
        self.feeds.clear();
        for (index, &token) in step.tokens.iter().enumerate() {
            let id = if let Some(row) = self.fed_by(token, ticket) {
                self.feeds.push(Feed { token: index, row });
                0
            } else {
                self.resolve(token)?
            };
            self.tokens.push(id);
        }
        self.numbers.evaluate(self.machine.buckets(), step.size())?;
        let slot = &mut self.slots[ticket as usize % IN_FLIGHT];
        slot.step.clone_from(step);
        slot.sampled.clear();
        slot.logits_row = self.machine.buckets()[self.numbers.bucket].logits_row / size_of::<f32>();
        let Slot { staging, back, done, .. } = slot;
        let work = Work { step, tokens: &self.tokens, feeds: &self.feeds, numbers: &self.numbers, poison: self.poison };
        self.machine.run(work, staging, back)?;
        self.machine.stream().record(done)
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // What the device still writes to must be there until it has done so; a lost one writes no more.
        for slot in self.slots.iter().filter(|slot| matches!(slot.state, State::Running)) {
            let _ = self.context.enter().and_then(|()| slot.done.wait());
        }
    }
}

/// Reads what a finished step sampled, and picks the other rows.
fn pick(slot: &mut Slot, machine: &Machine, pickers: &mut Pickers) {
    let Slot { step, back: Readback { picks, logits }, logits_row, output, sampled, .. } = slot;
    output.rows.resize_with(step.rows.len(), RowOutput::default);
    let (words, logits) = (picks.words(), logits.floats());
    let mut by_host = Vec::new();
    for (index, (row, output)) in step.rows.iter().zip(&mut output.rows).enumerate() {
        if machine.needs_logits(row) {
            by_host.push((row, &logits[index * *logits_row..], output));
        } else {
            super::picks::read(words, step.rows.len(), index, output);
        }
    }
    pickers.pick(by_host);
    sampled.extend(output.rows.iter().map(|row| row.token));
}

impl Device for CudaDevice {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn feeds_back(&self, row: &Row) -> bool {
        !self.machine.needs_logits(row)
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket> {
        step.check(&self.limits)?;
        self.tickets.admit(step)?;
        self.context.enter()?;
        let ticket = self.tickets.next();
        let started = self.start(ticket, step);
        self.slots[ticket as usize % IN_FLIGHT].state = match started {
            Ok(()) => State::Running,
            Err(error) => State::Failed(Some(error)),
        };
        Ok(Ticket(self.tickets.issue(step.rows.len())))
    }

    fn collect(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<()> {
        self.tickets.redeem(ticket)?;
        self.context.enter()?;
        self.settle(ticket.0);
        let slot = &mut self.slots[ticket.0 as usize % IN_FLIGHT];
        if let State::Failed(error) = &mut slot.state {
            return Err(error.take().unwrap_or_else(|| Error::DeviceLost("the step has failed".into())));
        }
        std::mem::swap(&mut slot.output, output);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(target: &str, code: &str, entries: &[u64]) -> CodeObject {
        let (target, code, entries) = (target.into(), code.as_bytes().to_vec(), entries.to_vec());
        CodeObject { target, code, entries, ..CodeObject::default() }
    }

    #[test]
    fn the_newest_code_that_the_gpu_runs_is_chosen() {
        let objects = [object("sm_90", "", &[]), object("x86-64-v4", "", &[]), object("sm_80", "", &[])];
        let chosen = |found| choose(objects.iter(), found).map(|object| object.target.as_str());
        assert_eq!(chosen(80).unwrap(), "sm_80");
        assert_eq!(chosen(89).unwrap(), "sm_80");
        assert_eq!(chosen(120).unwrap(), "sm_90");
        let error = chosen(75).unwrap_err().to_string();
        assert!(error.contains("sm_80") && error.contains("sm_75"), "{error}");
        assert!(matches!(choose(objects[1..2].iter(), 90), Err(Error::NoPtx)));
    }
}
