//! One completion, from the body of its request to the last byte of its answer, streamed or not.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Shared,
    answer::{Choice, Judged, Writer, usage},
    ask::{Ask, Kind},
    driver::Running,
    refusal::Refusal,
};
use crate::{Event, FinishReason, Request, tokenizer::decoder::Decoder};

/// A completion whose requests the engine has accepted.
#[derive(Debug)]
pub struct Completion {
    shared: Arc<Shared>,
    ask: Ask,
    running: Vec<Running>, // one per prompt
    id: String,
    start: Instant,
    created: u64,
}

/// What streams and whole answers have in common while they grow.
struct Progress {
    choices: Vec<Choice>, // by prompt, then by choice
    prompt_tokens: usize,
    cached: usize,
    first_token: Option<Duration>,
}

impl Completion {
    /// Hands all prompts to the engine; if it refuses one, none runs.
    pub async fn start(
        shared: Arc<Shared>,
        ask: Ask,
        id: String,
        deadline: Option<Duration>,
    ) -> Result<Completion, Refusal> {
        let start = Instant::now();
        let mut running = Vec::new();
        for request in &ask.requests {
            // The prompt is still needed here, for an echo and for counting.
            let accepted = shared.driver.submit(request.clone(), deadline).await;
            running.push(accepted.ok_or_else(Refusal::failed)??);
        }
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Ok(Completion { shared, ask, running, id, start, created })
    }

    /// The whole answer as one body.
    pub async fn whole(mut self) -> Result<Value, Refusal> {
        let mut progress = self.progress();
        let per_prompt = self.ask.requests.first().map_or(1, |request| request.more as usize + 1);
        let mut running = std::mem::take(&mut self.running);
        for (prompt, running) in running.iter_mut().enumerate() {
            let mut judged = self.first_judged(prompt);
            while let Some(event) = running.events.recv().await {
                match event {
                    Event::Started { cached, choice: 0, .. } => progress.cached += cached,
                    Event::Prompt { first, entries, .. } => judge(&mut judged, first, entries),
                    Event::Token { choice, token, logprob, top, .. } => {
                        progress.first_token.get_or_insert_with(|| self.start.elapsed());
                        let text =
                            self.take(&mut progress.choices[prompt * per_prompt + choice as usize], token, logprob);
                        let choice_of = &mut progress.choices[prompt * per_prompt + choice as usize];
                        if let Some(text) = text {
                            choice_of.text += &text;
                            choice_of.judged.push(Judged { token, logprob: Some(logprob), top });
                            if choice_of.finish.is_some() {
                                running.cancel(choice);
                            }
                        }
                    }
                    Event::Finished { choice, reason, .. } => {
                        let choice = &mut progress.choices[prompt * per_prompt + choice as usize];
                        finish(choice, reason, &self.ask)?;
                    }
                    Event::Started { .. } => {}
                }
            }
            let choices = &mut progress.choices[prompt * per_prompt..][..per_prompt];
            if choices.iter().any(|choice| choice.finish.is_none()) {
                return Err(Refusal::failed());
            }
            if self.ask.echo {
                let prompt_text = self.prompt_text(prompt);
                for choice in choices {
                    choice.text.insert_str(0, &prompt_text);
                    choice.judged.splice(0..0, judged.iter().cloned());
                }
            }
        }
        let writer = self.writer();
        let mut shown = Vec::new();
        for (prompt, choices) in progress.choices.chunks(per_prompt).enumerate() {
            let mut order: Vec<&Choice> = choices.iter().collect();
            // The best by mean logprob; equal ones in the order in which they were made.
            let mean = |choice: &Choice| choice.logprob / choice.tokens.max(1) as f64;
            if per_prompt > self.ask.n {
                order.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
            }
            let best = order.into_iter().take(self.ask.n).enumerate();
            shown.extend(best.map(|(at, choice)| writer.whole(prompt * self.ask.n + at, choice)));
        }
        let mut body = writer.envelope(false, &shown, Some(Completion::usage(&progress)));
        body["timings"] = self.timings(&progress);
        Ok(body)
    }

    /// Sends the answer in pieces; stops when nobody listens.
    pub async fn stream(mut self, out: mpsc::Sender<Bytes>) {
        let mut progress = self.progress();
        let per_prompt = self.ask.n;
        let mut running = std::mem::take(&mut self.running);
        let mut sent: HashSet<usize> = HashSet::new();
        for (prompt, running) in running.iter_mut().enumerate() {
            let mut judged = self.first_judged(prompt);
            let echo = if self.ask.echo { self.prompt_text(prompt) } else { String::new() };
            while let Some(event) = running.events.recv().await {
                let (choice, text, own) = match event {
                    Event::Started { cached, choice, .. } => {
                        if choice == 0 {
                            progress.cached += cached;
                        }
                        continue;
                    }
                    Event::Prompt { first, entries, .. } => {
                        judge(&mut judged, first, entries);
                        continue;
                    }
                    Event::Token { choice, token, logprob, top, .. } => {
                        progress.first_token.get_or_insert_with(|| self.start.elapsed());
                        let at = prompt * per_prompt + choice as usize;
                        let Some(text) = self.take(&mut progress.choices[at], token, logprob) else { continue };
                        if progress.choices[at].finish.is_some() {
                            running.cancel(choice);
                        }
                        (choice, text, vec![Judged { token, logprob: Some(logprob), top }])
                    }
                    Event::Finished { choice, reason, .. } => {
                        let at = prompt * per_prompt + choice as usize;
                        if progress.choices[at].finish.is_some() {
                            continue;
                        }
                        match finish(&mut progress.choices[at], reason, &self.ask) {
                            Ok(text) => (choice, text, Vec::new()),
                            Err(refusal) => {
                                let _ = out.send(data(&refusal.body())).await;
                                return;
                            }
                        }
                    }
                };
                let index = prompt * per_prompt + choice as usize;
                let is_first = sent.insert(index);
                let (text, own) = if is_first && self.ask.echo {
                    (format!("{echo}{text}"), [judged.clone(), own].concat())
                } else {
                    (text, own)
                };
                let delta = self.writer().delta(index, &text, &own, &mut progress.choices[index], is_first);
                let usage = self.ask.continuous_usage.then(|| Completion::usage(&progress));
                if out.send(data(&self.writer().envelope(true, &[delta], usage))).await.is_err() {
                    return;
                }
            }
            if progress.choices[prompt * per_prompt..][..per_prompt].iter().any(|choice| choice.finish.is_none()) {
                let _ = out.send(data(&Refusal::failed().body())).await;
                return;
            }
        }
        if self.ask.usage {
            let mut last = self.writer().envelope(true, &[], Some(Completion::usage(&progress)));
            last["timings"] = self.timings(&progress);
            if out.send(data(&last)).await.is_err() {
                return;
            }
        }
        let _ = out.send(Bytes::from_static(b"data: [DONE]\n\n")).await;
    }

    /// Takes a token into a choice. `None` where a stop string has ended that choice already.
    fn take(&self, choice: &mut Choice, token: u32, logprob: f32) -> Option<String> {
        if choice.finish.is_some() {
            return None;
        }
        choice.tokens += 1;
        choice.logprob += f64::from(logprob);
        Some(choice.push_token(&self.shared.reader.tokenizer, token, &self.ask))
    }

    fn progress(&self) -> Progress {
        let tokenizer = &self.shared.reader.tokenizer;
        let choices = |request: &Request| {
            // A message of a chat is a text of its own; a completion goes on with its prompt.
            let decoder = match self.ask.kind {
                Kind::Chat => Decoder::new(tokenizer),
                Kind::Text => Decoder::after(tokenizer, &request.tokens),
            };
            (0..=request.more).map(move |_| Choice::new(decoder))
        };
        Progress {
            choices: self.ask.requests.iter().flat_map(choices).collect(),
            prompt_tokens: self.ask.requests.iter().map(|request| request.tokens.len()).sum(),
            cached: 0,
            first_token: None,
        }
    }

    /// The first token of a prompt, where its tokens are judged: nothing stands before it.
    fn first_judged(&self, prompt: usize) -> Vec<Judged> {
        let request = &self.ask.requests[prompt];
        let judged = |&token| Judged { token, logprob: None, top: Vec::new() };
        if request.prompt_logprobs.is_some() { request.tokens.iter().map(judged).collect() } else { Vec::new() }
    }

    fn prompt_text(&self, prompt: usize) -> String {
        let bytes = self.shared.reader.tokenizer.decode(&self.ask.requests[prompt].tokens);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn usage(progress: &Progress) -> Value {
        let generated = progress.choices.iter().map(|choice| choice.tokens).sum();
        usage(progress.prompt_tokens, generated, progress.cached)
    }

    fn timings(&self, progress: &Progress) -> Value {
        let total = self.start.elapsed();
        let first = progress.first_token.unwrap_or(total);
        let generated: usize = progress.choices.iter().map(|choice| choice.tokens).sum();
        json!({
            "prompt_n": progress.prompt_tokens,
            "cache_n": progress.cached,
            "prompt_ms": first.as_secs_f64() * 1e3,
            "predicted_n": generated,
            "predicted_ms": total.saturating_sub(first).as_secs_f64() * 1e3,
        })
    }

    fn writer(&self) -> Writer<'_> {
        let shared = &self.shared;
        Writer {
            ask: &self.ask,
            tokenizer: &shared.reader.tokenizer,
            id: self.id.clone(),
            created: self.created,
            model: shared.model.clone(),
        }
    }
}

/// Ends a choice, or the whole answer where there is none to give.
fn finish(choice: &mut Choice, reason: FinishReason, ask: &Ask) -> Result<String, Refusal> {
    match reason {
        FinishReason::Failed => Err(Refusal::failed()),
        FinishReason::Late => {
            Err(Refusal::new(504, "the deadline passed before the answer was complete").code("deadline"))
        }
        _ if choice.finish.is_some() => Ok(String::new()),
        _ => {
            let text = choice.end(reason, ask);
            choice.text += &text;
            Ok(text)
        }
    }
}

/// Fills in what is known of a prompt's tokens.
fn judge(judged: &mut [Judged], first: usize, entries: Vec<(f32, Vec<(u32, f32)>)>) {
    for (judged, (logprob, top)) in judged.iter_mut().skip(first).zip(entries) {
        (judged.logprob, judged.top) = (Some(logprob), top);
    }
}

/// A server-sent event.
fn data(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}
