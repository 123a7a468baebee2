//! How often a model says the same without some of its layers, for choosing those.
//!
//! The whole model runs over a text once, and its keys and values stay. Then a program without layers computes each token
//! of the text at its own place, with the whole model's keys and values before it, as it does when it guesses. Tokens
//! share steps: each is a sequence of its own, whose last page is a copy, so that none sees what another puts there.

use lathe_plan::{Plan, Program};

use crate::{
    device::{
        Device, PageCopy, Pick, Row, RowOutput, Step, StepOutput, StepToken,
        cpu::{CpuDevice, Crew, Host},
        options::DeviceOptions,
    },
    error::{Error, Result},
    sample::{NoiseKey, SampleParams},
};

/// Tokens of a text that are compared at the most.
pub const MOST: usize = 192;
/// Tokens at the beginning of a text that are not: nobody knows what comes behind a word or two.
const SKIPPED: usize = 8;

/// A model and what it says along a text.
pub struct Calibration {
    host: Host,
    tokens: Vec<u32>,
    said: Vec<u32>,  // [tokens] what the whole model says comes behind each
    at_once: usize,  // tokens of a step
    pages: Vec<u32>, // per cache group, how many the text takes
}

impl Calibration {
    /// Loads a plan's main program onto the CPU and runs it over a text.
    ///
    /// # Errors
    /// When the plan has no code for this CPU, or the text is shorter than what is skipped of it.
    pub fn new(plan: &Plan, tokens: &[u32], options: &DeviceOptions) -> Result<Calibration> {
        let program = plan.program("main").ok_or_else(|| Error::Program("there is no main program".into()))?;
        let largest = crate::exec::largest_step(program);
        let at_once = largest.rows.min(largest.sequences).min(largest.tokens) as usize;
        let tokens = tokens[..tokens.len().min(MOST).min(program.max_context as usize)].to_vec();
        if tokens.len() <= SKIPPED {
            return Err(Error::EmptyPrompt);
        }
        let page = program.cache_groups.iter().map(|group| group.page_tokens as usize).max().unwrap_or(1);
        let cache_tokens = Some(tokens.len().next_multiple_of(page) + at_once * page);
        let options = DeviceOptions { cache_tokens, ..options.clone() };
        let mut device = CpuDevice::load(plan, "main", &options, Crew::start(&options)?)?;
        let groups = &device.limits().groups;
        let pages = groups.iter().map(|group| (tokens.len() as u32).div_ceil(group.page_tokens)).collect();
        let mut calibration = Calibration { host: device.host(), tokens, said: Vec::new(), at_once, pages };
        calibration.said = calibration.run_whole(&mut device)?;
        Ok(calibration)
    }

    /// Of at most `most` tokens all over the text, how many a program over the same weights and cache says as the whole one
    /// does.
    ///
    /// # Errors
    /// When the program does not fit, or fails.
    pub fn agreement(&self, program: &Program, most: usize) -> Result<f64> {
        self.mean(program, most, greedy, |place, row| f64::from(u8::from(row.token == self.said[place])))
    }

    /// The mean log-probability that a program over the same weights and cache gives what the whole one says behind at most
    /// `most` tokens all over the text: fewer of them tell as much as of agreements.
    ///
    /// # Errors
    /// When the program does not fit, or fails.
    pub fn likelihood(&self, program: &Program, most: usize) -> Result<f64> {
        let given = |token, place: usize| Row { pick: Pick::Given(self.said[place]), ..greedy(token, place) };
        self.mean(program, most, given, |_, row| f64::from(row.logprob))
    }

    /// The mean of what a program's rows give at such places.
    fn mean(
        &self,
        program: &Program,
        most: usize,
        row: impl Fn(usize, usize) -> Row,
        value: impl Fn(usize, &RowOutput) -> f64,
    ) -> Result<f64> {
        let mut device = self.host.run_beside(program, &DeviceOptions::default())?;
        let (mut step, mut output) = (Step::default(), StepOutput::default());
        let all = self.tokens.len() - SKIPPED;
        let count = all.min(most.max(1));
        let places: Vec<usize> = (0..count).map(|at| SKIPPED + at * all / count).collect();
        let mut sum = 0.0;
        for places in places.chunks(self.at_once) {
            self.compose(&mut step, places, &device);
            step.rows.extend(places.iter().enumerate().map(|(token, &place)| row(token, place)));
            run(&mut device, &step, &mut output)?;
            sum += places.iter().zip(&output.rows).map(|(&place, row)| value(place, row)).sum::<f64>();
        }
        Ok(sum / count as f64)
    }

    /// A step of these tokens, each with a copy of its page.
    fn compose(&self, step: &mut Step, places: &[usize], device: &CpuDevice) {
        let groups = &device.limits().groups;
        step.clear(groups.len());
        for (index, &place) in places.iter().enumerate() {
            let mut tables = Vec::new();
            for (group, (limits, &pages)) in groups.iter().zip(&self.pages).enumerate() {
                let (from, to) = (place as u32 / limits.page_tokens, pages + index as u32);
                step.copies.push(PageCopy { group: group as u32, from, to });
                tables.push((0..from).chain([to]).collect::<Vec<u32>>());
            }
            let token = StepToken::Known(self.tokens[place]);
            step.push_sequence([token], place as u32, tables.iter().map(Vec::as_slice));
        }
    }

    /// Runs the whole model over the text; the token that it says behind each.
    fn run_whole(&self, device: &mut CpuDevice) -> Result<Vec<u32>> {
        let (mut step, mut output) = (Step::default(), StepOutput::default());
        let mut said = Vec::with_capacity(self.tokens.len());
        for (index, tokens) in self.tokens.chunks(self.at_once).enumerate() {
            step.clear(self.pages.len());
            let tables: Vec<Vec<u32>> = self.pages.iter().map(|&pages| (0..pages).collect()).collect();
            let known = tokens.iter().map(|&token| StepToken::Known(token));
            step.push_sequence(known, (index * self.at_once) as u32, tables.iter().map(Vec::as_slice));
            step.rows.extend((0..tokens.len()).map(|token| greedy(token, 0)));
            run(device, &step, &mut output)?;
            said.extend(output.rows.iter().map(|row| row.token));
        }
        Ok(said)
    }
}

fn greedy(token: usize, _place: usize) -> Row {
    let pick = Pick::Sample(SampleParams::default(), NoiseKey::default());
    Row { token: token as u32, pick, ..Row::default() }
}

fn run(device: &mut CpuDevice, step: &Step, output: &mut StepOutput) -> Result<()> {
    let ticket = device.submit(step)?;
    device.collect(ticket, output)?;
    match output.rows.iter().position(|row| row.is_broken) {
        Some(row) => Err(Error::NotFinite { row }),
        None => Ok(()),
    }
}
