//! One completion, from the body of its request to the last byte of its answer, streamed or not. All its prompts run side
//! by side.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Shared,
    answer::{Choice, Judged, Writer, speculative_decoding, usage},
    ask::{Ask, Kind},
    driver::Running,
    refusal::Refusal,
};
use crate::{Event, Request, speculate::Tally, tokenizer::decoder::Decoder};

/// A completion whose requests the engine has accepted.
#[derive(Debug)]
pub struct Completion {
    shared: Arc<Shared>,
    ask: Ask,
    running: Running,
    id: String,
    start: Instant,
    created: u64,
}

/// What streams and whole answers have in common while they grow.
struct Progress {
    choices: Vec<Choice>,     // by prompt, then by choice
    judged: Vec<Vec<Judged>>, // by prompt: its tokens, where they are judged
    per_prompt: usize,
    prompt_tokens: usize,
    cached: usize,
    speculation: Tally,
    first_token: Option<Duration>,
}

/// What is new of a choice.
struct News {
    prompt: usize,
    at: usize, // among all choices
    text: String,
    judged: Option<Judged>,
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
        // The prompts are still needed here, for an echo and for counting.
        let running = shared.driver.submit(ask.requests.clone(), deadline).await.ok_or_else(Refusal::failed)??;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Ok(Completion { shared, ask, running, id, start, created })
    }

    /// Waits until the answer begins, so that one that fails before that is refused with a status of its own.
    pub async fn wait_for_token(&mut self) -> Result<(), Refusal> {
        let began = self.running.wait_for_token().await.ok_or_else(|| Refusal::failed().accepted())?;
        began.and_then(Refusal::of).map_or(Ok(()), Err)
    }

    /// The whole answer as one body.
    pub async fn whole(mut self) -> Result<Value, Refusal> {
        let mut progress = self.progress();
        while let Some((prompt, event)) = self.running.next().await {
            if let Some(news) = self.hear(&mut progress, prompt, event)? {
                let choice = &mut progress.choices[news.at];
                choice.text += &news.text;
                choice.judged.extend(news.judged);
            }
        }
        if progress.is_cut() {
            return Err(Refusal::failed().accepted());
        }
        let per_prompt = progress.per_prompt;
        if self.ask.echo {
            for (prompt, choices) in progress.choices.chunks_mut(per_prompt).enumerate() {
                let text = self.prompt_text(prompt);
                for choice in choices {
                    choice.text.insert_str(0, &text);
                    choice.judged.splice(0..0, progress.judged[prompt].iter().cloned());
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
        let mut body = writer.envelope(false, &shown, Some(progress.usage()));
        body["timings"] = self.timings(&progress);
        progress.add_metrics(&mut body);
        Ok(body)
    }

    /// Sends the answer in pieces; stops when nobody listens.
    pub async fn stream(mut self, out: mpsc::Sender<Bytes>) {
        let end = match self.pieces(&out).await {
            Ok(()) => Bytes::from_static(b"data: [DONE]\n\n"),
            Err(Some(refusal)) => data(&refusal.body()),
            Err(None) => return,
        };
        let _ = out.send(end).await;
    }

    /// Sends all pieces but the end. An error without a refusal means that nobody listens.
    async fn pieces(&mut self, out: &mpsc::Sender<Bytes>) -> Result<(), Option<Refusal>> {
        let mut progress = self.progress();
        let mut sent = vec![false; progress.choices.len()];
        loop {
            let told = tokio::select! {
                told = self.running.next() => told,
                () = out.closed() => return Err(None),
            };
            let Some((prompt, event)) = told else { break };
            let Some(news) = self.hear(&mut progress, prompt, event).map_err(Some)? else { continue };
            let is_first = !std::mem::replace(&mut sent[news.at], true);
            let (mut text, mut judged) = (news.text, Vec::from_iter(news.judged));
            if is_first && self.ask.echo {
                text.insert_str(0, &self.prompt_text(news.prompt));
                judged.splice(0..0, progress.judged[news.prompt].iter().cloned());
            }
            let writer = self.writer();
            let delta = writer.delta(news.at, &text, &judged, &mut progress.choices[news.at], is_first);
            let usage = self.ask.continuous_usage.then(|| progress.usage());
            out.send(data(&writer.envelope(true, &[delta], usage))).await.map_err(|_| None)?;
        }
        if progress.is_cut() {
            return Err(Some(Refusal::failed().accepted()));
        }
        if self.ask.usage {
            let mut last = self.writer().envelope(true, &[], Some(progress.usage()));
            last["timings"] = self.timings(&progress);
            progress.add_metrics(&mut last);
            out.send(data(&last)).await.map_err(|_| None)?;
        }
        Ok(())
    }

    /// Takes an event in and gives what a client should see of it.
    fn hear(&mut self, progress: &mut Progress, prompt: usize, event: Event) -> Result<Option<News>, Refusal> {
        match event {
            Event::Started { cached, choice, .. } => {
                progress.cached += if choice == 0 { cached } else { 0 };
                Ok(None)
            }
            Event::Verified { drafted, accepted, branched, .. } => {
                progress.speculation.count(drafted, accepted, branched);
                Ok(None)
            }
            Event::Prompt { first, entries, .. } => {
                for (judged, (logprob, top)) in progress.judged[prompt].iter_mut().skip(first).zip(entries) {
                    (judged.logprob, judged.top) = (Some(logprob), top);
                }
                Ok(None)
            }
            Event::Token { choice: number, token, logprob, top, .. } => {
                progress.first_token.get_or_insert_with(|| self.start.elapsed());
                let at = prompt * progress.per_prompt + number as usize;
                let choice = &mut progress.choices[at];
                // A stop string has ended it already.
                if choice.finish.is_some() {
                    return Ok(None);
                }
                choice.tokens += 1;
                choice.logprob += f64::from(logprob);
                let text = choice.push_token(&self.shared.reader.tokenizer, token, &self.ask);
                if choice.finish.is_some() {
                    self.running.stop(prompt, number);
                }
                Ok(Some(News { prompt, at, text, judged: Some(Judged { token, logprob: Some(logprob), top }) }))
            }
            Event::Finished { choice: number, reason, .. } => {
                if let Some(refusal) = Refusal::of(reason) {
                    return Err(refusal);
                }
                let at = prompt * progress.per_prompt + number as usize;
                let choice = &mut progress.choices[at];
                if choice.finish.is_some() {
                    return Ok(None);
                }
                let text = choice.end(reason, &self.ask);
                Ok(Some(News { prompt, at, text, judged: None }))
            }
        }
    }

    fn progress(&self) -> Progress {
        let requests = &self.ask.requests;
        let per_prompt = requests.first().map_or(1, |request| request.more as usize + 1);
        let judged = |request: &Request| match request.prompt_logprobs {
            // Nothing stands before the first token of a prompt, and that one is never judged.
            Some(_) => request.tokens.iter().map(|&token| Judged { token, logprob: None, top: Vec::new() }).collect(),
            None => Vec::new(),
        };
        let tokenizer = &self.shared.reader.tokenizer;
        let choices = |request: &Request| {
            // A message of a chat is a text of its own; a completion goes on with its prompt.
            let decoder = match self.ask.kind {
                Kind::Chat => Decoder::new(tokenizer),
                Kind::Text => Decoder::after(tokenizer, &request.tokens),
            };
            (0..per_prompt).map(move |_| Choice::new(decoder))
        };
        Progress {
            choices: requests.iter().flat_map(choices).collect(),
            judged: requests.iter().map(judged).collect(),
            per_prompt,
            prompt_tokens: requests.iter().map(|request| request.tokens.len()).sum(),
            cached: 0,
            speculation: Tally::default(),
            first_token: None,
        }
    }

    fn prompt_text(&self, prompt: usize) -> String {
        let bytes = self.shared.reader.tokenizer.decode(&self.ask.requests[prompt].tokens);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn timings(&self, progress: &Progress) -> Value {
        let total = self.start.elapsed();
        let first = progress.first_token.unwrap_or(total);
        json!({
            "prompt_n": progress.prompt_tokens,
            "cache_n": progress.cached,
            "prompt_ms": first.as_secs_f64() * 1e3,
            "predicted_n": progress.generated(),
            "predicted_ms": total.saturating_sub(first).as_secs_f64() * 1e3,
        })
    }

    fn writer(&self) -> Writer<'_> {
        let shared = &self.shared;
        Writer {
            ask: &self.ask,
            tokenizer: &shared.reader.tokenizer,
            id: &self.id,
            created: self.created,
            model: &shared.served.name,
        }
    }
}

impl Progress {
    /// Whether the engine fell silent before every choice had ended.
    fn is_cut(&self) -> bool {
        self.choices.iter().any(|choice| choice.finish.is_none())
    }

    fn generated(&self) -> usize {
        self.choices.iter().map(|choice| choice.tokens).sum()
    }

    fn usage(&self) -> Value {
        usage(self.prompt_tokens, self.generated(), self.cached, &self.speculation)
    }

    /// Adds what came of guesses, where there were any.
    fn add_metrics(&self, body: &mut Value) {
        if self.speculation.drafts > 0 {
            body["metrics"] = json!({"speculative_decoding": speculative_decoding(&self.speculation)});
        }
    }
}

/// A server-sent event.
fn data(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}
