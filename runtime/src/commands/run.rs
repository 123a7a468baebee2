//! `lathe run`: answers one prompt, or chats.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use lathe_runtime::batcher::{BatchOptions, Penalties};
use lathe_runtime::chat::{ChatTemplate, Message, Role};
use lathe_runtime::sample::defaults::Defaults;
use lathe_runtime::speculate::Tally;
use lathe_runtime::tokenizer::{Control, decoder::Decoder};
use lathe_runtime::{Error, FinishReason, Request, SampleParams};
use serde::Serialize;

use super::answer::{Answer, answer};
use super::failure::{Interrupted, Usage};
use super::interrupt::Interrupt;
use super::model::{MachineArgs, Model, SpeculationArgs, positive};

const EXAMPLES: &str = "\
Examples:
  lathe run smol.plan                                  chat; Ctrl-C stops an answer, Ctrl-D ends
  lathe run smol.plan -p \"Why is the sky blue?\"
  lathe run smol.plan --raw -p \"Once upon a time\" -n 64 --temperature 0.8 --seed 7
  lathe run smol.plan -p - --json < question.txt       one JSON object, nothing streamed
  printf 'Hi!\\nAnd now in French.\\n' | lathe run smol.plan -q      a chat, one message a line";

/// What to answer, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Args {
    /// The plan
    plan: PathBuf,
    /// The prompt; `-` reads it from standard input. Without one: chat
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Put the prompt into the model's chat template [default, if there is one]
    #[arg(long, conflicts_with = "raw")]
    chat: bool,
    /// Continue the prompt as it stands
    #[arg(long, requires = "prompt")]
    raw: bool,
    /// Read control tokens such as `<|im_end|>` in a raw prompt as what they are, not as text
    #[arg(long, requires = "raw")]
    control_tokens: bool,
    /// The system message that a chat begins with
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Most tokens of an answer [default: until it ends or the context is full]
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,
    /// Print each answer as one line of JSON: text, tokens, logprobs, timing
    #[arg(long)]
    json: bool,
    /// No timing on stderr
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// How tokens are chosen. What is not given comes from the model's generation config, if the plan has one that samples.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Divides the logits; 0 takes the likeliest token [default: the model's, else 0, or 1 with a filter below]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keep tokens at least this likely compared with the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Divide positive logits of tokens that occurred already by X, and multiply negative ones
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    fn params(&self, config: &Defaults) -> SampleParams {
        let filters = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        SampleParams {
            temperature: self.temperature.or(config.temperature).unwrap_or(if filters { 1.0 } else { 0.0 }),
            top_k: self.top_k.or(config.top_k).unwrap_or(0),
            top_p: self.top_p.or(config.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(config.min_p).unwrap_or(0.0),
        }
    }

    fn penalties(&self, config: &Defaults) -> Penalties {
        let repetition = self.repetition_penalty.or(config.repetition_penalty);
        repetition.map_or_else(Penalties::default, |repetition| Penalties { repetition, ..Penalties::default() })
    }
}

/// Runs the command of a process that began at `start`.
pub fn run(args: &Args, start: Instant) -> anyhow::Result<()> {
    let interrupt = Interrupt::listen()?;
    interrupt.end_on_next();
    let batching = BatchOptions { speculation: args.speculation.options(), ..BatchOptions::default() };
    let model = Model::open_with(&args.plan, &args.machine, batching)?;
    let template = match model.plan.chat_template() {
        Some(source) if !args.raw => Some(ChatTemplate::new(source, &model.tokenizer)?),
        _ => None,
    };
    let config = Defaults::read(model.plan.generation_config());
    let (sampling, penalties) = (args.sampling.params(&config), args.sampling.penalties(&config));
    let mut session =
        Session { args, model, sampling, penalties, interrupt, start: args.prompt.as_ref().map(|_| start) };
    match (&args.prompt, template) {
        (None, Some(template)) => session.chat(&template),
        (None, None) => {
            Err(Usage("the plan has no chat template to chat with; give a prompt with -p".to_owned()).into())
        }
        (Some(prompt), template) => session.once(&whole_prompt(prompt)?, template.as_ref()),
    }
}

/// The prompt of the command line, or standard input for `-`.
fn whole_prompt(prompt: &str) -> io::Result<String> {
    if prompt != "-" {
        return Ok(prompt.to_owned());
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

struct Session<'a> {
    args: &'a Args,
    model: Model,
    sampling: SampleParams,
    penalties: Penalties,
    interrupt: Interrupt,
    /// When the process began; only one prompt and its answer are timed from there.
    start: Option<Instant>,
}

impl Session<'_> {
    /// Answers one prompt.
    fn once(&mut self, prompt: &str, template: Option<&ChatTemplate>) -> anyhow::Result<()> {
        let tokenizer = &self.model.tokenizer;
        let (tokens, decoder) = match template {
            Some(template) => {
                let mut messages = self.opening();
                messages.push(Message::new(Role::User, prompt));
                (template.encode(tokenizer, &messages, true)?, Decoder::new(tokenizer))
            }
            None if self.args.chat || self.args.system.is_some() => {
                return Err(Usage("the plan has no chat template; use --raw, without --system".to_owned()).into());
            }
            None => {
                let control = if self.args.control_tokens { Control::Recognize } else { Control::AsText };
                let tokens = tokenizer.encode_prompt(prompt, control);
                let decoder = Decoder::after(tokenizer, &tokens);
                (tokens, decoder)
            }
        };
        let answer = self.answer(tokens, decoder)?;
        if answer.reason == FinishReason::Cancelled { Err(Interrupted.into()) } else { Ok(()) }
    }

    /// Answers line after line, each knowing those before it.
    fn chat(&mut self, template: &ChatTemplate) -> anyhow::Result<()> {
        let mut history = self.opening();
        let is_terminal = io::stdin().is_terminal();
        if is_terminal && !self.args.quiet {
            eprintln!("Ctrl-C stops an answer, Ctrl-D ends. A line that ends with \\ goes on.");
        }
        loop {
            self.interrupt.end_on_next();
            let Some(message) = read_message(is_terminal)? else { return Ok(()) };
            if message.trim().is_empty() {
                continue;
            }
            history.push(Message::new(Role::User, message));
            let answer = self.turn(template, &mut history)?;
            history.push(Message::new(Role::Assistant, answer.text));
        }
    }

    /// Answers the last message of a chat, forgetting the oldest ones when all of them no longer fit.
    fn turn(&mut self, template: &ChatTemplate, history: &mut Vec<Message>) -> anyhow::Result<Answer> {
        loop {
            let tokens = template.encode(&self.model.tokenizer, history, true)?;
            let error = match self.answer(tokens, Decoder::new(&self.model.tokenizer)) {
                Err(error) if matches!(error.downcast_ref(), Some(Error::TooLong { .. })) => error,
                outcome => return outcome,
            };
            let oldest = usize::from(self.args.system.is_some());
            if history.len() < oldest + 3 {
                return Err(error);
            }
            history.drain(oldest..oldest + 2);
            eprintln!("note: the chat has outgrown the context; its oldest question and answer are forgotten");
        }
    }

    /// What a chat begins with.
    fn opening(&self) -> Vec<Message> {
        self.args.system.iter().map(|text| Message::new(Role::System, text)).collect()
    }

    /// Continues a prompt and prints the answer.
    fn answer(&mut self, tokens: Vec<u32>, decoder: Decoder) -> anyhow::Result<Answer> {
        let Session { args, model, .. } = self;
        let request = Request {
            tokens,
            max_tokens: args.max_tokens,
            sampling: self.sampling,
            penalties: self.penalties,
            seed: args.sampling.seed,
            stop: model.tokenizer.tables().eos.clone(),
            ..Request::default()
        };
        let mut out = io::stdout().lock();
        self.interrupt.reset();
        let answer = answer(&mut model.engine, &model.tokenizer, decoder, request, &self.interrupt, |text| {
            if args.json {
                return Ok(());
            }
            out.write_all(text.as_bytes())?;
            out.flush()
        })?;
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&Report::new(&answer))?)?;
        } else if !answer.text.ends_with('\n') {
            writeln!(out)?;
        }
        out.flush()?;
        if !args.quiet {
            eprintln!("{}", self.timing(&answer));
        }
        self.start = None;
        Ok(answer)
    }

    fn timing(&self, answer: &Answer) -> String {
        let (prompt, answered) = (answer.prompt_tokens, answer.tokens.len());
        let mut line = format!("prompt {prompt} tokens, {:.1} tok/s; answer {answered} tokens", answer.prefill_speed());
        // The first token is the prefill's, so one alone tells no speed.
        if answered > 1 {
            let _ = write!(line, ", {:.1} tok/s", answer.decode_speed());
        }
        let Tally { drafted, accepted, .. } = answer.speculation;
        if drafted > 0 {
            let _ = write!(line, ", {accepted} of {drafted} guesses right");
        }
        if let Some(start) = self.start.filter(|_| !answer.tokens.is_empty()) {
            let _ = write!(line, "; first token {} ms after start", (answer.first_token - start).as_millis());
        }
        line
    }
}

/// The next message from standard input: a line, or several joined by `\` at their ends. None at the end of input.
fn read_message(is_terminal: bool) -> io::Result<Option<String>> {
    let mut message = String::new();
    let mut mark = "> ";
    loop {
        if is_terminal {
            eprint!("{mark}");
        }
        let mut line = String::new();
        if io::stdin().read_line(&mut line)? == 0 {
            if is_terminal {
                eprintln!();
            }
            return Ok((!message.is_empty()).then_some(message));
        }
        let line = line.trim_end_matches(['\r', '\n']);
        match line.strip_suffix('\\') {
            Some(line) => message.extend([line, "\n"]),
            None => return Ok(Some(message + line)),
        }
        mark = ". ";
    }
}

/// An answer as JSON.
#[derive(Serialize)]
struct Report<'a> {
    text: &'a str,
    tokens: &'a [u32],
    logprobs: &'a [f32],
    finish_reason: &'static str,
    prompt_tokens: usize,
    completion_tokens: usize,
    drafted_tokens: u64,
    accepted_tokens: u64,
    prefill_ms: f64,
    decode_ms: f64,
}

impl<'a> Report<'a> {
    fn new(answer: &'a Answer) -> Report<'a> {
        Report {
            text: &answer.text,
            tokens: &answer.tokens,
            logprobs: &answer.logprobs,
            finish_reason: match answer.reason {
                FinishReason::Stop(_) => "stop",
                FinishReason::Length => "length",
                FinishReason::Cancelled => "interrupted",
                FinishReason::Late => "late",
                FinishReason::NotFinite => "not_finite",
                FinishReason::Failed => "failed",
            },
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.tokens.len(),
            drafted_tokens: answer.speculation.drafted,
            accepted_tokens: answer.speculation.accepted,
            prefill_ms: answer.prefill.as_secs_f64() * 1e3,
            decode_ms: answer.decode.as_secs_f64() * 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(temperature: Option<f32>, top_k: Option<u32>) -> SamplingArgs {
        SamplingArgs { temperature, top_k, top_p: None, min_p: None, repetition_penalty: None, seed: 0 }
    }

    #[test]
    fn flags_come_before_the_generation_config_and_that_before_greedy() {
        let read = |config| Defaults::read(Some(config));
        let stated =
            r#"{"do_sample": true, "temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1, "eos_token_id": 2}"#;
        let (config, none) = (read(stated), Defaults::read(None));
        let greedy = SampleParams::default();
        assert_eq!(args(None, None).params(&none), greedy);
        assert_eq!(args(None, None).params(&read(r#"{"temperature": 0.2}"#)), greedy);
        assert_eq!(args(None, None).params(&read("not json")), greedy);
        let plain = read(r#"{"do_sample": true}"#);
        assert_eq!(args(None, None).params(&plain), SampleParams { temperature: 1.0, ..greedy });
        assert_eq!(args(None, None).params(&config), SampleParams { temperature: 0.2, top_p: 0.9, ..greedy });
        assert_eq!(args(Some(0.0), None).params(&config), SampleParams { top_p: 0.9, ..greedy });
        assert_eq!(args(None, Some(5)).params(&none), SampleParams { temperature: 1.0, top_k: 5, ..greedy });
        let penalties = |repetition| Penalties { repetition, ..Penalties::default() };
        assert_eq!(args(None, None).penalties(&none), Penalties::default());
        assert_eq!(args(None, None).penalties(&config), penalties(1.1));
        let own = SamplingArgs { repetition_penalty: Some(1.5), ..args(None, None) };
        assert_eq!(own.penalties(&config), penalties(1.5));
    }
}
