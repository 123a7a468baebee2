//! Events of the engine into the JSON of an answer: text, stop strings, logprobs, usage.

use serde_json::{Map, Value, json};

use super::ask::{Ask, Kind};
use crate::FinishReason;
use crate::speculate::Tally;
use crate::stream::TextStream;
use crate::tokenizer::{Tokenizer, decoder::Decoder};

/// A token with its likelihood.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The token.
    pub token: u32,
    /// Its log-probability; none for the first token of a prompt.
    pub logprob: Option<f32>,
    /// The likeliest in its place.
    pub top: Vec<(u32, f32)>,
}

/// One choice as it grows.
#[derive(Debug, Default)]
pub struct Choice {
    decoder: Decoder,
    stream: TextStream,
    held: String, // text that may be the beginning of a stop string
    /// Characters of the text that went out, for offsets.
    offset: usize,
    /// All text, for an answer that is not streamed.
    pub text: String,
    /// All tokens with their logprobs, where they are wanted and the answer is not streamed.
    pub judged: Vec<Judged>,
    /// Generated tokens that were delivered.
    pub tokens: usize,
    /// Sum of their logprobs.
    pub logprob: f64,
    /// Why it ended.
    pub finish: Option<&'static str>,
}

impl Choice {
    /// One that has no token yet.
    pub fn new(decoder: Decoder) -> Choice {
        Choice { decoder, ..Choice::default() }
    }

    /// Takes a token and gives the text that can go out. A stop string ends the choice.
    pub fn push_token(&mut self, tokenizer: &Tokenizer, token: u32, ask: &Ask) -> String {
        let bytes = self.decoder.visible_bytes(tokenizer, token);
        self.push(bytes, ask)
    }

    /// Takes a token's bytes and gives the text that can go out.
    fn push(&mut self, bytes: &[u8], ask: &Ask) -> String {
        self.held += &self.stream.push(bytes);
        self.let_go(ask, false)
    }

    /// Ends the choice and gives the rest of its text.
    pub fn end(&mut self, reason: FinishReason, ask: &Ask) -> String {
        let rest = self.stream.finish();
        self.held += &rest;
        let text = self.let_go(ask, true);
        self.finish.get_or_insert(match reason {
            FinishReason::Stop(_) => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Late => "deadline",
            FinishReason::NotFinite => "not_finite",
            FinishReason::Failed => "error",
        });
        text
    }

    fn let_go(&mut self, ask: &Ask, is_end: bool) -> String {
        let first = ask.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop.len()))).min();
        if let Some((at, length)) = first {
            self.held.truncate(if ask.keep_stop { at + length } else { at });
            self.finish = Some("stop");
        }
        let keep = if is_end || first.is_some() { 0 } else { longest_beginning(&self.held, &ask.stops) };
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// The length of the longest end of `text` that a stop string begins with.
fn longest_beginning(text: &str, stops: &[String]) -> usize {
    let begins =
        |stop: &String| (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]));
    stops.iter().filter_map(begins).max().unwrap_or(0)
}

/// Builds the JSON of one request's answer.
#[derive(Debug)]
pub struct Writer<'a> {
    /// The request.
    pub ask: &'a Ask,
    /// For the texts of tokens.
    pub tokenizer: &'a Tokenizer,
    /// The answer's name.
    pub id: &'a str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: &'a str,
}

impl Writer<'_> {
    /// An answer or a chunk with these choices.
    pub fn envelope(&self, is_chunk: bool, choices: &[Value], usage: Option<Value>) -> Value {
        let object = match (self.ask.kind, is_chunk) {
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Text, _) => "text_completion",
        };
        let mut body = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        });
        if let Some(usage) = usage {
            body["usage"] = usage;
        }
        body
    }

    /// One choice of a chunk.
    pub fn delta(&self, index: usize, text: &str, judged: &[Judged], choice: &mut Choice, is_first: bool) -> Value {
        let logprobs = self.logprobs(judged, choice.offset);
        choice.offset += text.chars().count();
        match self.ask.kind {
            Kind::Chat => {
                let mut delta = Map::new();
                if is_first {
                    delta.insert("role".to_owned(), "assistant".into());
                }
                if choice.finish.is_none() || !text.is_empty() || is_first {
                    delta.insert("content".to_owned(), text.into());
                }
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": choice.finish})
            }
            Kind::Text => json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish}),
        }
    }

    /// One choice of an answer that is not streamed.
    pub fn whole(&self, index: usize, choice: &Choice) -> Value {
        let logprobs = self.logprobs(&choice.judged, 0);
        let (text, finish) = (&choice.text, choice.finish);
        match self.ask.kind {
            Kind::Chat => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
            }
            Kind::Text => json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}),
        }
    }

    fn logprobs(&self, judged: &[Judged], mut offset: usize) -> Value {
        if self.ask.logprobs.is_none() || judged.is_empty() {
            return Value::Null;
        }
        if self.ask.kind == Kind::Chat {
            let content: Vec<Value> = judged
                .iter()
                .map(|judged| {
                    let mut entry = self.entry(judged.token, judged.logprob);
                    entry["top_logprobs"] =
                        judged.top.iter().map(|(token, logprob)| self.entry(*token, Some(*logprob))).collect();
                    entry
                })
                .collect();
            return json!({"content": content, "refusal": null});
        }
        let (mut tokens, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for judged in judged {
            let text = self.spell(judged.token);
            offsets.push(offset);
            offset += text.chars().count();
            let mut top = Map::new();
            // Two tokens may be spelled alike: the likelier one keeps its place, and the chosen one is always there.
            for (token, logprob) in judged.top.iter().copied().chain(judged.logprob.map(|own| (judged.token, own))) {
                top.entry(self.spell(token)).or_insert(number(logprob));
            }
            tops.push(if judged.logprob.is_some() { Value::Object(top) } else { Value::Null });
            logprobs.push(judged.logprob.map_or(Value::Null, number));
            tokens.push(text);
        }
        json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
    }

    fn entry(&self, token: u32, logprob: Option<f32>) -> Value {
        json!({"token": self.spell(token), "logprob": logprob.map(number), "bytes": self.tokenizer.bytes(token)})
    }

    /// The text of a token; one that is no text by itself is spelled by its bytes.
    fn spell(&self, token: u32) -> String {
        let bytes = self.tokenizer.bytes(token);
        let by_bytes = || bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}"));
        std::str::from_utf8(bytes).map_or_else(|_| by_bytes(), str::to_owned)
    }
}

/// A logprob as JSON, which knows no infinity.
fn number(logprob: f32) -> Value {
    json!(logprob.max(-9999.0))
}

/// The `usage` object.
pub fn usage(prompt: usize, completion: usize, cached: usize, speculation: &Tally) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": speculation.accepted,
            "rejected_prediction_tokens": speculation.drafted - speculation.accepted,
        },
    })
}

/// What came of guesses, as vLLM's clients know it.
pub fn speculative_decoding(speculation: &Tally) -> Value {
    let (drafts, drafted, accepted) = (speculation.drafts, speculation.drafted, speculation.accepted);
    json!({
        "mean_acceptance_length": 1.0 + accepted as f64 / drafts.max(1) as f64,
        "draft_acceptance_rate": accepted as f64 / drafted.max(1) as f64,
        "acceptance_histogram": speculation.histogram(),
        "num_spec_steps": drafts,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": speculation.longest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stops: &[&str], pieces: &[&str], expected: &[&str], finish: &str) {
        let ask = Ask {
            kind: Kind::Text,
            model: None,
            requests: Vec::new(),
            n: 1,
            stops: stops.iter().map(ToString::to_string).collect(),
            keep_stop: false,
            stream: true,
            usage: false,
            continuous_usage: false,
            echo: false,
            logprobs: None,
            unknown: Vec::new(),
        };
        let mut choice = Choice::default();
        let mut found = Vec::new();
        for piece in pieces {
            found.push(choice.push(piece.as_bytes(), &ask));
            if choice.finish.is_some() {
                break;
            }
        }
        if choice.finish.is_none() {
            found.push(choice.end(FinishReason::Length, &ask));
        }
        assert_eq!(
            (found.iter().map(String::as_str).collect::<Vec<_>>(), choice.finish),
            (expected.to_vec(), Some(finish))
        );
    }

    #[test]
    fn stop_strings_are_found_across_tokens_and_held_back_until_they_are_told_from_text() {
        check(&[], &["a", "b"], &["a", "b", ""], "length");
        check(&["END"], &["one E", "N", "D two"], &["one ", "", ""], "stop");
        check(&["END"], &["one E", "N", "E"], &["one ", "", "EN", "E"], "length");
        check(&["xyz", "b"], &["a xy", "b"], &["a ", "xy"], "stop");
        check(&["é"], &["café!"], &["caf"], "stop");
    }
}
