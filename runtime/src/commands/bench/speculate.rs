//! `lathe bench --speculate`: what guesses of the tokens that follow save on prompts of a file, against none, in turns.
//!
//! Both ways answer the same prompts on the same loaded plan, one after the other, and must give the same tokens. Times
//! begin when the first tokens are there, so that prompts count for nothing.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use lathe_runtime::batcher::BatchOptions;
use lathe_runtime::chat::{ChatTemplate, Message, Role};
use lathe_runtime::speculate::{Mode, Speculation, Tally, parse_depth, parse_width};
use lathe_runtime::tokenizer::Control;
use lathe_runtime::{Engine, Error, Event, FinishReason, Request, SampleParams};
use serde::Serialize;

use super::{Args, Output};
use crate::commands::failure::Usage;
use crate::commands::model::{MachineArgs, Model};
use crate::commands::table;

/// What divides the prompts of a file: a line of its own.
const DIVIDER: &str = "\n====\n";

/// How guesses are measured.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Speculation")]
pub struct SpeculateArgs {
    /// Compare answers with guesses of this kind (auto, ngram, draft, self) and without, on the prompts of --prompts: -n
    /// tokens each, greedy unless there is a --temperature, -s of them side by side
    #[arg(long, value_name = "MODE", requires = "prompts")]
    speculate: Option<Mode>,
    /// A text of prompts, divided by lines `====`; may be given several times
    #[arg(long, value_name = "FILE", requires = "speculate")]
    prompts: Vec<PathBuf>,
    /// Most guesses for an answer in a step, from 1 to 64
    /// [default: as many as are worth it, at most 12]
    #[arg(long, value_name = "N", value_parser = parse_depth)]
    spec_depth: Option<usize>,
    /// Most ways on from one place, from 1 to 8, for no more guesses in all
    /// [default: 3 where guesses must pay, else 1]
    #[arg(long, value_name = "N", value_parser = parse_width)]
    spec_width: Option<usize>,
    /// Divides the logits; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
}

impl SpeculateArgs {
    /// Whether this is what is to be measured.
    pub fn is_wanted(&self) -> bool {
        self.speculate.is_some()
    }

    fn speculation(&self, mode: Mode) -> Speculation {
        Speculation { mode, depth: self.spec_depth, width: self.spec_width }
    }
}

/// What came out for a file.
#[derive(Debug, Serialize)]
struct Row {
    prompts: String,
    speculate: String,
    temperature: f32,
    sequences: usize,
    tokens: usize,
    off_tokens_per_second: f64,
    tokens_per_second: f64,
    speedup: f64,
    off_steps: usize,
    steps: usize,
    off_ms_per_step: f64,
    ms_per_step: f64,
    drafting_ms_per_step: f64,
    drafted: u64,
    accepted: u64,
    accepted_on_branches: u64,
    acceptance_by_position: Vec<f64>,
}

/// What one run gave.
#[derive(Debug, Default)]
struct Run {
    answers: Vec<Vec<u32>>,
    seconds: f64,
    timed: usize, // tokens that the seconds are for
    steps: usize,
    stepping: Duration, // of the seconds, what the device took for these steps
    drafting: Duration, // and what drafters took before them
    tally: Tally,
}

/// Measures and prints.
pub fn run(args: &Args, on: &MachineArgs) -> anyhow::Result<()> {
    let mode = args.speculate.speculate.unwrap_or_default();
    let speculation = args.speculate.speculation(mode);
    let batching = BatchOptions { speculation, ..BatchOptions::default() };
    let mut model = Model::open_with(args.plan.as_deref().unwrap_or(Path::new("")), on, batching)?;
    let mut rows = Vec::new();
    for &sequences in &args.sequences {
        for path in &args.speculate.prompts {
            rows.push(measure(args, &mut model, path, sequences)?);
        }
    }
    let text = match args.output {
        Output::Md => as_table(&rows),
        Output::Json => serde_json::to_string_pretty(&rows)? + "\n",
        Output::Jsonl => {
            rows.iter().map(|row| serde_json::to_string(row).map(|row| row + "\n")).collect::<Result<_, _>>()?
        }
        Output::Csv => return Err(Usage("-o csv has no room for lists; take md, json or jsonl".to_owned()).into()),
    };
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

/// Answers the prompts of a file in both ways in turns; the medians are over all prompts and repetitions.
fn measure(args: &Args, model: &mut Model, path: &Path, sequences: usize) -> anyhow::Result<Row> {
    let mode = args.speculate.speculate.unwrap_or_default();
    let ways = [Mode::Off, mode].map(|mode| args.speculate.speculation(mode));
    let requests = requests(args, model, path)?;
    let (mut rates, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    let (mut steps, mut tokens, mut tally) = ([0, 0], 0, Tally::default());
    let (mut stepping, mut drafting) = ([Duration::ZERO; 2], Duration::ZERO);
    for repetition in 0..=args.repetitions {
        for index in 0..requests.len() {
            // With as many others beside it as are asked for, from the same file.
            let group: Vec<Request> = (0..sequences)
                .map(|n| Request { seed: n as u64, ..requests[(index + n) % requests.len()].clone() })
                .collect();
            let mut runs = Vec::with_capacity(2);
            for way in ways {
                model.engine.set_speculation(way)?;
                runs.push(answer(&mut model.engine, &group)?);
            }
            let [off, on] = [&runs[0], &runs[1]];
            ensure!(off.answers == on.answers, "guesses have changed an answer; this is a bug in Lathe");
            // The first time fills caches.
            if repetition == 0 || off.timed == 0 {
                continue;
            }
            for (way, run) in runs.iter().enumerate() {
                rates[way].push(run.timed as f64 / run.seconds);
                steps[way] += run.steps;
                stepping[way] += run.stepping;
            }
            drafting += on.drafting;
            ratios.push((on.timed as f64 / on.seconds) / (off.timed as f64 / off.seconds));
            tokens += on.timed;
            add(&mut tally, &on.tally);
        }
    }
    let name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let per_step = |took: Duration, steps: usize| 1e3 * took.as_secs_f64() / steps.max(1) as f64;
    let by_position = &tally.accepted_at[..tally.longest];
    Ok(Row {
        prompts: name,
        speculate: mode.to_string(),
        temperature: args.speculate.temperature,
        sequences,
        tokens,
        off_tokens_per_second: median(&mut rates[0]),
        tokens_per_second: median(&mut rates[1]),
        speedup: median(&mut ratios),
        off_steps: steps[0],
        steps: steps[1],
        off_ms_per_step: per_step(stepping[0], steps[0]),
        ms_per_step: per_step(stepping[1], steps[1]),
        drafting_ms_per_step: per_step(drafting, steps[1]),
        drafted: tally.drafted,
        accepted: tally.accepted,
        accepted_on_branches: tally.branched,
        acceptance_by_position: by_position.iter().map(|&at| at as f64 / tally.drafts.max(1) as f64).collect(),
    })
}

/// The requests of a file.
fn requests(args: &Args, model: &Model, path: &Path) -> anyhow::Result<Vec<Request>> {
    let text = std::fs::read_to_string(path).map_err(|error| anyhow!("cannot read {}: {error}", path.display()))?;
    let template = model.plan.chat_template().map(|source| ChatTemplate::new(source, &model.tokenizer)).transpose()?;
    let max_tokens = args.n_gen.first().copied().unwrap_or(128);
    let prompts = text.split(DIVIDER).map(str::trim).filter(|prompt| !prompt.is_empty());
    let requests: Vec<Request> = prompts
        .map(|prompt| {
            let tokens = match &template {
                Some(template) => template.encode(&model.tokenizer, &[Message::new(Role::User, prompt)], true)?,
                None => model.tokenizer.encode_prompt(prompt, Control::AsText),
            };
            let temperature = args.speculate.temperature;
            Ok(Request {
                tokens,
                max_tokens: Some(max_tokens),
                sampling: SampleParams { temperature, ..SampleParams::default() },
                stop: model.tokenizer.tables().eos.clone(),
                ..Request::default()
            })
        })
        .collect::<anyhow::Result<_>>()?;
    if requests.is_empty() {
        return Err(Usage(format!("{} holds no prompt", path.display())).into());
    }
    Ok(requests)
}

/// Answers requests side by side.
fn answer(engine: &mut Engine, requests: &[Request]) -> anyhow::Result<Run> {
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone())).collect::<Result<_, _>>()?;
    let mut run = Run { answers: vec![Vec::new(); ids.len()], ..Run::default() };
    let mut start = None;
    while !engine.is_idle() {
        let mut tokens = 0;
        for event in engine.step()? {
            match event {
                Event::Token { request, token, .. } => {
                    tokens += 1;
                    if let Some(at) = ids.iter().position(|id| id == request) {
                        run.answers[at].push(*token);
                    }
                }
                Event::Verified { drafted, accepted, branched, .. } => {
                    run.tally.count(*drafted, *accepted, *branched);
                }
                Event::Finished { reason: FinishReason::NotFinite, .. } => {
                    return Err(Error::NotFinite { row: 0 }.into());
                }
                _ => {}
            }
        }
        if start.is_some() {
            run.steps += 1;
            run.timed += tokens;
            if let Some(time) = engine.last_step() {
                run.stepping += time.measured;
                run.drafting += time.drafting;
            }
        } else if run.answers.iter().all(|answer| !answer.is_empty()) {
            start = Some(Instant::now());
        }
    }
    run.seconds = start.map_or(0.0, |start| start.elapsed().as_secs_f64().max(1e-9));
    Ok(run)
}

fn add(all: &mut Tally, one: &Tally) {
    all.drafts += one.drafts;
    all.drafted += one.drafted;
    all.accepted += one.accepted;
    all.branched += one.branched;
    all.longest = all.longest.max(one.longest);
    for (sum, count) in all.accepted_at.iter_mut().zip(&one.accepted_at) {
        *sum += count;
    }
}

/// The middle one, of an even number the mean of both; zero of none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

fn as_table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let mut positions = String::new();
        for share in row.acceptance_by_position.iter().take(8) {
            let _ = write!(positions, "{}{:.2}", if positions.is_empty() { "" } else { " " }, share);
        }
        vec![
            row.prompts.clone(),
            row.speculate.clone(),
            row.temperature.to_string(),
            row.sequences.to_string(),
            format!("{:.1}", row.off_tokens_per_second),
            format!("{:.1}", row.tokens_per_second),
            format!("{:.2}", row.speedup),
            format!("{:.2}", row.tokens as f64 / row.steps.max(1) as f64),
            format!("{:.1} / {:.1} + {:.1}", row.off_ms_per_step, row.ms_per_step, row.drafting_ms_per_step),
            format!("{:.0} %", 100.0 * (1.0 - row.steps as f64 / row.off_steps.max(1) as f64)),
            match row.accepted_on_branches {
                0 => format!("{}/{}", row.accepted, row.drafted),
                branched => format!("{}/{}, {branched} on branches", row.accepted, row.drafted),
            },
            positions,
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let header = [
        "prompts",
        "mode",
        "T",
        "sequences",
        "off t/s",
        "t/s",
        "speedup",
        "tokens/step",
        "ms of a step, off / on + guessing",
        "steps saved",
        "accepted",
        "accepted at 1, 2, …",
    ];
    table::markdown(&header, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
        assert!(median(&mut []).abs() < 1e-12);
    }

    #[test]
    fn tallies_add_up() {
        let (mut all, mut one) = (Tally::default(), Tally::default());
        all.count(2, 1, 0);
        one.count(5, 3, 2);
        add(&mut all, &one);
        assert_eq!((all.drafts, all.drafted, all.accepted, all.branched, all.longest), (2, 7, 4, 2, 5));
        assert_eq!(all.accepted_at[..4], [2, 1, 1, 0]);
    }
}
