//! Questions with known answers: which of several continuations the model finds likeliest, or what it says.
//!
//! A file holds one JSON object a line. With `choices`, each is scored as a continuation of `context` by the sum of its
//! tokens' log-probabilities, and `answer` is the index of the right one. Without, the model continues `context` greedily
//! up to a text of `stop` or for `max_tokens`, and `answer` is what it should say. Context and continuation are tokenized
//! together, and spaces at the context's end count as the continuation's: the conventions of lm-evaluation-harness,
//! whose scores over `lathe serve` are these.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use lathe_runtime::stream::TextStream;
use lathe_runtime::tokenizer::decoder::Decoder;
use lathe_runtime::tokenizer::{Control, Tokenizer};
use lathe_runtime::{Event, Request};
use serde::{Deserialize, Serialize};

use crate::commands::model::Model;

/// Tokens to generate where a question does not say.
const USUAL_TOKENS: usize = 64;

/// A line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    context: String,
    #[serde(default)]
    choices: Vec<String>,
    answer: Option<Right>,
    #[serde(default)]
    stop: Vec<String>,
    max_tokens: Option<usize>,
}

/// The right answer.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Right {
    Index(usize),
    Text(String),
}

/// What came of all questions.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The share of questions with an answer that were answered right.
    pub accuracy: Option<f64>,
    /// The same, where choices are compared by their log-probability per character.
    pub accuracy_normalized: Option<f64>,
    /// Each question, in the file's order.
    pub questions: Vec<Outcome>,
}

/// What came of a question.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Its choices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Score>,
    /// What the model said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Whether that was right.
    pub correct: Option<bool>,
    /// Whether the likeliest choice per character was right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correct_normalized: Option<bool>,
}

/// How likely a choice is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Score {
    /// The sum of its tokens' natural log-probabilities.
    pub logprob: f64,
    /// Its tokens.
    pub tokens: usize,
    /// Whether each of them was the likeliest.
    pub greedy: bool,
}

/// Puts all questions of a file to a model.
pub fn ask(model: &mut Model, path: &Path) -> anyhow::Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut report = Report::default();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("{}, line {}", path.display(), index + 1);
        let question: Question = serde_json::from_str(line).with_context(place)?;
        report.questions.push(one(model, &question).with_context(place)?);
    }
    ensure!(!report.questions.is_empty(), "{} holds no question", path.display());
    report.accuracy = share(report.questions.iter().filter_map(|question| question.correct));
    let normalized = |question: &Outcome| question.correct_normalized.or(question.correct);
    report.accuracy_normalized = share(report.questions.iter().filter_map(normalized));
    Ok(report)
}

fn share(correct: impl Iterator<Item = bool>) -> Option<f64> {
    let all: Vec<bool> = correct.collect();
    let right = all.iter().filter(|correct| **correct).count();
    (!all.is_empty()).then(|| right as f64 / all.len() as f64)
}

fn one(model: &mut Model, question: &Question) -> anyhow::Result<Outcome> {
    ensure!(!question.context.trim().is_empty(), "`context` is empty, and a continuation needs something before it");
    if question.choices.is_empty() {
        let text = continuation(model, question)?;
        let correct = match &question.answer {
            None => None,
            Some(Right::Text(right)) => Some(*right == text),
            Some(Right::Index(_)) => bail!("`answer` is a number, and there are no `choices`"),
        };
        return Ok(Outcome { text: Some(text), correct, ..Outcome::default() });
    }
    let right = match &question.answer {
        None => None,
        Some(Right::Index(index)) if *index < question.choices.len() => Some(*index),
        Some(_) => bail!("`answer` must be the index of one of the {} choices", question.choices.len()),
    };
    let choices = scores(model, question)?;
    let by_character = |(score, choice): (&Score, &String)| score.logprob / choice.chars().count().max(1) as f64;
    Ok(Outcome {
        text: None,
        correct: right.map(|right| largest(choices.iter().map(|score| score.logprob)) == right),
        correct_normalized: right
            .map(|right| largest(choices.iter().zip(&question.choices).map(by_character)) == right),
        choices,
    })
}

/// The index of the largest value, the first of equal ones.
fn largest(values: impl Iterator<Item = f64>) -> usize {
    let better = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    values.enumerate().reduce(better).map_or(0, |(index, _)| index)
}

/// The tokens of a context with its continuation, and how many of them are the context's.
fn tokens(tokenizer: &Tokenizer, context: &str, choice: &str) -> (Vec<u32>, usize) {
    let before = context.trim_end();
    let own = tokenizer.encode_document(before, Control::AsText).len();
    (tokenizer.encode_document(&format!("{context}{choice}"), Control::AsText), own)
}

/// How likely each choice is; all of them are computed side by side.
fn scores(model: &mut Model, question: &Question) -> anyhow::Result<Vec<Score>> {
    let mut asked = Vec::new();
    for choice in &question.choices {
        let (tokens, own) = tokens(&model.tokenizer, &question.context, choice);
        ensure!(own > 0 && own < tokens.len(), "the choice `{choice}` has no token of its own");
        let request = Request { tokens, max_tokens: Some(0), prompt_logprobs: Some(1), ..Request::default() };
        asked.push((model.engine.submit(request)?, own, Score { logprob: 0.0, tokens: 0, greedy: true }));
    }
    while !model.engine.is_idle() {
        for event in model.engine.step()? {
            let Event::Prompt { request, first, entries } = event else { continue };
            let Some((_, own, score)) = asked.iter_mut().find(|(id, ..)| id == request) else { continue };
            for (logprob, top) in entries.iter().skip(own.saturating_sub(*first)) {
                score.logprob += f64::from(*logprob);
                score.tokens += 1;
                score.greedy &= top.first().is_none_or(|(_, best)| logprob >= best);
            }
        }
    }
    Ok(asked.into_iter().map(|(.., score)| score).collect())
}

/// What the model says, greedily.
fn continuation(model: &mut Model, question: &Question) -> anyhow::Result<String> {
    let request = Request {
        tokens: model.tokenizer.encode_document(&question.context, Control::AsText),
        max_tokens: Some(question.max_tokens.unwrap_or(USUAL_TOKENS)),
        stop: model.tokenizer.tables().eos.clone(),
        ..Request::default()
    };
    let mut decoder = Decoder::after(&model.tokenizer, &request.tokens);
    let id = model.engine.submit(request)?;
    let (mut stream, mut text) = (TextStream::new(), String::new());
    let end = |text: &str| question.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
    while !model.engine.is_idle() {
        for event in model.engine.step()? {
            if let Event::Token { token, .. } = event {
                text += &stream.push(decoder.visible_bytes(&model.tokenizer, *token));
            }
        }
        if end(&text).is_some() {
            model.engine.cancel(id);
        }
    }
    text += &stream.finish();
    if let Some(at) = end(&text) {
        text.truncate(at);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_is_taken() {
        assert_eq!(largest([-3.0, -1.0, -2.0, -1.0].into_iter()), 1);
        assert_eq!(largest([-1.0].into_iter()), 0);
    }

    #[test]
    fn only_questions_with_an_answer_count() {
        assert_eq!(share([true, false, true, true].into_iter()), Some(0.75));
        assert_eq!(share([].into_iter()), None);
    }

    #[test]
    fn lines_are_read_with_either_kind_of_answer() {
        let read = |line| serde_json::from_str::<Question>(line);
        assert!(matches!(
            read(r#"{"context": "a", "choices": [" b"], "answer": 0}"#).unwrap().answer,
            Some(Right::Index(0))
        ));
        assert!(matches!(read(r#"{"context": "a", "answer": "b"}"#).unwrap().answer, Some(Right::Text(_))));
        assert!(read(r#"{"context": "a", "choice": ["b"]}"#).is_err());
        assert!(read(r#"{"choices": ["b"]}"#).is_err());
    }
}
