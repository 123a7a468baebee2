//! One request run to its end: text as it comes, and how long everything took.

use std::io;
use std::time::{Duration, Instant};

use lathe_runtime::speculate::Tally;
use lathe_runtime::stream::TextStream;
use lathe_runtime::tokenizer::Tokenizer;
use lathe_runtime::tokenizer::decoder::Decoder;
use lathe_runtime::{Engine, Error, Event, FinishReason, Request};

use super::interrupt::Interrupt;

/// What the model said.
#[derive(Debug)]
pub struct Answer {
    /// All of it, without control tokens.
    pub text: String,
    /// The tokens, without the one that ended the answer.
    pub tokens: Vec<u32>,
    /// The natural log-probability of each token.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// What came of guesses.
    pub speculation: Tally,
    /// From the request to the first token.
    pub prefill: Duration,
    /// From the first token to the end.
    pub decode: Duration,
    /// When the first token came.
    pub first_token: Instant,
}

impl Answer {
    /// Prompt tokens per second.
    pub fn prefill_speed(&self) -> f64 {
        rate(self.prompt_tokens, self.prefill)
    }

    /// Tokens per second after the first.
    pub fn decode_speed(&self) -> f64 {
        rate(self.tokens.len().saturating_sub(1), self.decode)
    }
}

/// Events per second; zero where there are none.
pub fn rate(count: usize, time: Duration) -> f64 {
    if count == 0 { 0.0 } else { count as f64 / time.as_secs_f64().max(1e-9) }
}

/// Runs one request, whose answer `decoder` makes bytes of. `show` gets each piece of text as soon as its characters are
/// whole; Ctrl-C ends the answer there.
pub fn answer(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    mut decoder: Decoder,
    request: Request,
    interrupt: &Interrupt,
    mut show: impl FnMut(&str) -> io::Result<()>,
) -> anyhow::Result<Answer> {
    let start = Instant::now();
    let mut answer = Answer {
        text: String::new(),
        tokens: Vec::new(),
        logprobs: Vec::new(),
        reason: FinishReason::Cancelled,
        prompt_tokens: request.tokens.len(),
        speculation: Tally::default(),
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
        first_token: start,
    };
    let mut stream = TextStream::new();
    let id = engine.submit(request)?;
    while !engine.is_idle() {
        if interrupt.is_pressed() {
            engine.cancel(id);
        }
        for event in engine.step()? {
            match event {
                Event::Token { token, logprob, .. } => {
                    if answer.tokens.is_empty() {
                        answer.first_token = Instant::now();
                        answer.prefill = answer.first_token - start;
                    }
                    answer.tokens.push(*token);
                    answer.logprobs.push(*logprob);
                    let text = stream.push(decoder.visible_bytes(tokenizer, *token));
                    if !text.is_empty() {
                        show(&text)?;
                        answer.text += &text;
                    }
                }
                Event::Finished { reason: FinishReason::NotFinite, .. } => {
                    return Err(Error::NotFinite { row: 0 }.into());
                }
                Event::Finished { reason, .. } => answer.reason = *reason,
                Event::Verified { drafted, accepted, branched, .. } => {
                    answer.speculation.count(*drafted, *accepted, *branched);
                }
                Event::Started { .. } | Event::Prompt { .. } => {}
            }
        }
    }
    let rest = stream.finish();
    if !rest.is_empty() {
        show(&rest)?;
        answer.text += &rest;
    }
    answer.decode = answer.first_token.elapsed();
    if answer.tokens.is_empty() {
        answer.prefill = start.elapsed();
        answer.decode = Duration::ZERO;
    }
    Ok(answer)
}
