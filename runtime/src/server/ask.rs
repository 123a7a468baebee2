//! Request bodies into requests for the engine.

use serde_json::Value;

use super::{fields::Fields, refusal::Refusal};
use crate::{
    Request, SampleParams,
    batcher::Penalties,
    chat::{ChatTemplate, Message, Role},
    kv::prefix::Root,
    sample::defaults::Defaults,
    tokenizer::{Control, Tokenizer},
};

/// The most choices of one request.
const MOST_CHOICES: i64 = 64;
/// The most prompts of one request.
const MOST_PROMPTS: usize = 128;
/// The most answers to all prompts of one request.
const MOST_ANSWERS: usize = 256;
/// The most likeliest tokens to report.
const MOST_TOP: i64 = 20;
/// What is known of a message: what is read, and what clients send back of an answer.
const MESSAGE: &[&str] = &["role", "content", "tool_calls", "annotations"];
/// The most stop strings, and the longest.
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 256;
/// The most tokens with a bias.
const MOST_BIASED: usize = 1024;

/// Which interface a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

/// What a client asks for.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the request")]
pub struct Ask {
    /// The interface.
    pub kind: Kind,
    /// The model's name, if it was given.
    pub model: Option<String>,
    /// One request for the engine per prompt.
    pub requests: Vec<Request>,
    /// Choices to return of each prompt: the best of those that are made.
    pub n: usize,
    /// Texts that end an answer.
    pub stops: Vec<String>,
    /// Whether the text of an ending is kept.
    pub keep_stop: bool,
    /// Whether tokens come as they are made.
    pub stream: bool,
    /// Whether a last chunk counts tokens.
    pub usage: bool,
    /// Whether every chunk does.
    pub continuous_usage: bool,
    /// Whether the answer begins with the prompt.
    pub echo: bool,
    /// Whether logprobs are wanted, and how many of the likeliest.
    pub logprobs: Option<u32>,
    /// Fields that nobody knows.
    pub unknown: Vec<String>,
}

/// What reading needs to know of the model.
#[derive(Debug)]
pub struct Reader {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, if the model has one.
    pub template: Option<ChatTemplate>,
    /// How to sample where a request does not say.
    pub defaults: Defaults,
    /// The key of the names of cached pages.
    pub secret: [u8; 32],
}

impl Reader {
    /// Reads a body. `owner` is the caller's API key, `seed` what to sample by if none is given.
    pub fn read(&self, kind: Kind, body: &[u8], owner: &str, seed: u64) -> Result<Ask, Refusal> {
        let mut fields = Fields::read(body)?;
        let model = fields.text("model")?;
        let prompts = match kind {
            Kind::Chat => vec![self.conversation(&mut fields)?],
            Kind::Text => self.prompts(&mut fields)?,
        };
        let n = fields.integer("n", 1, MOST_CHOICES)?.unwrap_or(1) as usize;
        let best_of = match kind {
            Kind::Text => fields.integer("best_of", n as i64, MOST_CHOICES)?.unwrap_or(n as i64) as u32,
            Kind::Chat => n as u32,
        };
        if prompts.len() * best_of as usize > MOST_ANSWERS {
            let prompts = prompts.len();
            let message = format!("{prompts} prompts with {best_of} answers each are more than {MOST_ANSWERS} answers");
            return Err(Refusal::field("n", message));
        }
        let stream = fields.flag("stream")?.unwrap_or(false);
        if stream && best_of as usize > n {
            return Err(Refusal::field("best_of", "`best_of` above `n` cannot be streamed"));
        }
        let (usage, continuous_usage) = stream_options(&mut fields)?;
        let echo = kind == Kind::Text && fields.flag("echo")?.unwrap_or(false);
        let logprobs = logprobs(kind, &mut fields)?;
        let prompt_logprobs = if echo { logprobs } else { None };
        let mut max_tokens = fields.integer("max_completion_tokens", 0, i64::from(u32::MAX))?;
        max_tokens = max_tokens.or(fields.integer("max_tokens", 0, i64::from(u32::MAX))?);
        let default_max = (kind == Kind::Text).then_some(16);
        let min_tokens = fields.integer("min_tokens", 0, i64::from(u32::MAX))?.unwrap_or(0) as usize;
        let ignore_eos = fields.flag("ignore_eos")?.unwrap_or(false);
        let stops = stops(&mut fields)?;
        let keep_stop = fields.flag("include_stop_str_in_output")?.unwrap_or(false);
        let mut stop = if ignore_eos { Vec::new() } else { self.tokenizer.tables().eos.clone() };
        if let Some(ids) = fields.take("stop_token_ids") {
            stop.extend(ids_of(&ids).filter(|ids| ids.len() <= MOST_BIASED).ok_or_else(|| {
                Refusal::field(
                    "stop_token_ids",
                    format!("`stop_token_ids` must be a list of at most {MOST_BIASED} token ids"),
                )
            })?);
        }
        let sampling = self.sampling(&mut fields)?;
        let penalties = Penalties {
            presence: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0) as f32,
            frequency: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0) as f32,
            repetition: match fields.number("repetition_penalty", 0.01, 10.0)? {
                Some(penalty) => penalty as f32,
                None => self.defaults.repetition_penalty.unwrap_or(1.0),
            },
        };
        let bias = bias(&mut fields)?;
        let seed = fields.integer("seed", i64::MIN, i64::MAX)?.map_or(seed, |seed| seed as u64);
        let salt = fields.text("cache_salt")?.unwrap_or_default();
        let priority = fields.integer("priority", -100, 100)?.unwrap_or(0) as i32;
        let unknown = fields.finish()?;
        let requests = prompts
            .into_iter()
            .map(|tokens| Request {
                tokens,
                max_tokens: max_tokens.map(|most| most as usize).or(default_max),
                min_tokens,
                sampling,
                bias: bias.clone(),
                penalties,
                seed,
                more: best_of - 1,
                stop: stop.clone(),
                top_logprobs: logprobs.unwrap_or(0),
                prompt_logprobs,
                priority,
                root: Root::new(&self.secret, owner, &salt),
                ..Request::default()
            })
            .collect();
        Ok(Ask { kind, model, requests, n, stops, keep_stop, stream, usage, continuous_usage, echo, logprobs, unknown })
    }

    fn sampling(&self, fields: &mut Fields) -> Result<SampleParams, Refusal> {
        let defaults = &self.defaults;
        let temperature = fields.number("temperature", 0.0, 2.0)?.map(|t| t as f32);
        let top_k = fields.integer("top_k", -1, i64::from(u32::MAX))?.map(|k| u32::try_from(k).unwrap_or(0));
        let top_p = fields
            .number_that("top_p", "above 0 and at most 1", |p| p > 0.0 && p <= 1.0)?
            .map(|p| (p as f32).max(f32::MIN_POSITIVE));
        let min_p = fields.number("min_p", 0.0, 1.0)?.map(|p| p as f32);
        Ok(SampleParams {
            temperature: temperature.or(defaults.temperature).unwrap_or(1.0),
            top_k: top_k.or(defaults.top_k).unwrap_or(0),
            top_p: top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: min_p.or(defaults.min_p).unwrap_or(0.0),
        })
    }

    /// The prompt of a conversation.
    pub fn conversation(&self, fields: &mut Fields) -> Result<Vec<u32>, Refusal> {
        let messages = fields.take("messages").ok_or_else(|| Refusal::field("messages", "`messages` is missing"))?;
        let messages = messages.as_array().ok_or_else(|| Refusal::field("messages", "`messages` must be a list"))?;
        if messages.is_empty() {
            return Err(Refusal::field("messages", "`messages` is empty"));
        }
        let answer = fields.flag("add_generation_prompt")?.unwrap_or(true);
        for message in messages {
            fields.nobody_knows("messages[]", message, MESSAGE);
        }
        let messages: Vec<Message> =
            messages.iter().enumerate().map(|(at, m)| message(at, m)).collect::<Result<_, _>>()?;
        let missing = "the model has no chat template; use /v1/completions";
        let template = self.template.as_ref().ok_or_else(|| Refusal::new(400, missing))?;
        Ok(template.encode(&self.tokenizer, &messages, answer)?)
    }

    /// The prompts of a completion: a text, tokens, or a list of either.
    fn prompts(&self, fields: &mut Fields) -> Result<Vec<Vec<u32>>, Refusal> {
        let wrong = || {
            Refusal::field(
                "prompt",
                format!("`prompt` must be a text, a list of token ids, or 1 to {MOST_PROMPTS} of either"),
            )
        };
        let prompt = fields.take("prompt").ok_or_else(|| Refusal::field("prompt", "`prompt` is missing"))?;
        let special = fields.flag("add_special_tokens")?.unwrap_or(true);
        if let Some(one) = self.prompt(&prompt, special) {
            return Ok(vec![one]);
        }
        let list = prompt.as_array().filter(|list| (1..=MOST_PROMPTS).contains(&list.len())).ok_or_else(wrong)?;
        list.iter().map(|prompt| self.prompt(prompt, special).ok_or_else(wrong)).collect()
    }

    fn prompt(&self, prompt: &Value, special: bool) -> Option<Vec<u32>> {
        match prompt {
            Value::String(text) => Some(self.text(text, special)),
            other => ids_of(other),
        }
    }

    /// The tokens of a text, with those that stand around a document or without.
    pub fn text(&self, text: &str, special: bool) -> Vec<u32> {
        if special {
            self.tokenizer.encode_document(text, Control::Recognize)
        } else {
            self.tokenizer.encode(text, Control::Recognize)
        }
    }
}

/// A list of token ids that is not empty.
pub fn ids_of(value: &Value) -> Option<Vec<u32>> {
    let list = value.as_array().filter(|list| !list.is_empty())?;
    list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// One message, whose content is a text or a list of texts.
fn message(index: usize, value: &Value) -> Result<Message, Refusal> {
    let wrong = |what: &str| {
        Refusal::field(
            &format!("messages[{index}].{what}"),
            format!("message {index}: `{what}` is missing or of a kind that is not supported"),
        )
    };
    let role = match value["role"].as_str() {
        Some("system") => Role::System,
        Some("developer") => Role::Developer,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        _ => return Err(wrong("role")),
    };
    if value.get("tool_calls").is_some_and(|calls| !calls.is_null()) {
        return Err(wrong("tool_calls"));
    }
    let content = match &value["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().map(|part| match part["type"].as_str() {
                Some("text") => part["text"].as_str().ok_or_else(|| wrong("content")),
                _ => Err(wrong("content")),
            });
            texts.collect::<Result<Vec<_>, _>>()?.concat()
        }
        _ => return Err(wrong("content")),
    };
    Ok(Message::new(role, content))
}

fn stream_options(fields: &mut Fields) -> Result<(bool, bool), Refusal> {
    let Some(options) = fields.take("stream_options") else { return Ok((false, false)) };
    fields.nobody_knows("stream_options", &options, &["include_usage", "continuous_usage_stats"]);
    let wrong = || Refusal::field("stream_options", "`stream_options` must be an object of flags");
    let options = options.as_object().ok_or_else(wrong)?;
    let flag = |name: &str| match options.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(value) => value.as_bool().ok_or_else(wrong),
    };
    let continuous = flag("continuous_usage_stats")?;
    Ok((flag("include_usage")?, continuous))
}

fn logprobs(kind: Kind, fields: &mut Fields) -> Result<Option<u32>, Refusal> {
    if kind == Kind::Text {
        return Ok(fields.integer("logprobs", 0, MOST_TOP)?.map(|top| top as u32));
    }
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, MOST_TOP)?;
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(Refusal::field("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    Ok(wanted.then(|| top.unwrap_or(0) as u32))
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Refusal> {
    let wrong = || {
        let message =
            format!("`stop` must be a text or a list of at most {MOST_STOPS}, each of 1 to {LONGEST_STOP} bytes");
        Refusal::field("stop", message)
    };
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if list.len() > MOST_STOPS {
        return Err(wrong());
    }
    let text = |value: &Value| value.as_str().filter(|s| (1..=LONGEST_STOP).contains(&s.len())).map(str::to_owned);
    list.iter().map(|value| text(value).ok_or_else(wrong)).collect()
}

fn bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Refusal> {
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let wrong = || {
        let message = format!("`logit_bias` must map at most {MOST_BIASED} token ids to numbers from -100 to 100");
        Refusal::field("logit_bias", message)
    };
    let map = value.as_object().filter(|map| map.len() <= MOST_BIASED).ok_or_else(wrong)?;
    let entry = |(token, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((token.parse().ok()?, bias as f32))
    };
    map.iter().map(|pair| entry(pair).ok_or_else(wrong)).collect()
}
