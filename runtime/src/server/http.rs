//! Routes, keys and bodies: what a request must bring before the engine hears of it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};

use super::{
    Shared,
    ask::{Ask, Kind, ids_of},
    complete::Completion,
    fields::Fields,
    listen::{Answer, Closed, Service},
    refusal::Refusal,
};

/// Pieces of a stream that wait for its reader, besides the engine's own queue.
const PIECES: usize = 32;
/// What bodies are counted in.
pub const BODY_UNIT: usize = 1024;

impl Service for Shared {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        respond(request, &self).await
    }

    fn closed(&self, how: Closed) {
        self.metrics.closed(how.name());
    }

    fn connections(&self, open: usize) {
        self.metrics.connections(open);
    }
}

async fn respond(request: Request<Incoming>, shared: &Arc<Shared>) -> Answer {
    let number = shared.count.fetch_add(1, Ordering::Relaxed);
    let given = request.headers().get("x-request-id").filter(|id| id.len() <= 128).cloned();
    let name = format!("{:x}-{number}", shared.started);
    let path = request.uri().path().to_owned();
    let mut answer = match route(request, shared, number, &name).await {
        Ok(answer) => answer,
        Err(refusal) => {
            if !refusal.was_accepted && !is_probe(&path) {
                shared.metrics.reject(refusal.reason());
            }
            refuse(&refusal, &path)
        }
    };
    let id = given.or_else(|| HeaderValue::from_str(&name).ok());
    if let Some(id) = id {
        answer.headers_mut().insert("x-request-id", id);
    }
    answer
}

/// Paths that say how the server is, without a key.
fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/ready")
}

/// The method that a path takes, if there is anything at it.
fn method_of(path: &str) -> Option<Method> {
    match path {
        "/health" | "/ready" | "/v1/models" | "/version" | "/metrics" | "/tokenizer_info" => Some(Method::GET),
        "/v1/chat/completions" | "/v1/completions" | "/tokenize" | "/detokenize" => Some(Method::POST),
        _ => path.starts_with("/v1/models/").then_some(Method::GET),
    }
}

async fn route(request: Request<Incoming>, shared: &Arc<Shared>, number: u64, name: &str) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let is_draining = shared.draining.load(Ordering::Acquire);
    let failed = shared.metrics.has_failed();
    match path {
        "/health" if failed => return Err(Refusal::failed()),
        "/ready" if failed || is_draining => return Err(Refusal::new(503, "not ready")),
        "/health" | "/ready" => return Ok(text("ok\n")),
        _ => {}
    }
    let owner = key(&head.headers, &shared.policy.keys)?;
    let wanted = method_of(path).ok_or_else(|| Refusal::new(404, "there is nothing at this path"))?;
    if head.method != wanted {
        return Err(Refusal::new(405, format!("this path takes {wanted}")));
    }
    if wanted == Method::GET {
        return get(path, shared);
    }
    if is_draining {
        return Err(Refusal::new(503, "the server is about to stop").code("draining"));
    }
    let most = shared.policy.request_timeout;
    let allowed = deadline(&head.headers)?.map_or(most, |allowed| allowed.min(most));
    let body = read(&head.headers, body, shared).await?;
    match path {
        "/tokenize" | "/detokenize" => {
            let (reading, read) = (Arc::clone(shared), if path == "/tokenize" { tokenized } else { detokenized });
            let work = move || {
                let mut fields = Fields::read(&body.0)?;
                known_model(fields.text("model")?.as_deref(), &reading)?;
                Ok((read(&mut fields, &reading)?, fields.finish()?))
            };
            let (value, unknown) = blocking(work).await?;
            let mut answer = json_of(200, &value);
            answer.headers_mut().extend(unknown_fields(&unknown, shared)?);
            Ok(answer)
        }
        _ => {
            let kind = if path == "/v1/completions" { Kind::Text } else { Kind::Chat };
            complete(kind, body, owner, allowed, number, name, Arc::clone(shared)).await
        }
    }
}

async fn complete(
    kind: Kind,
    body: (Bytes, OwnedSemaphorePermit),
    owner: String,
    allowed: Duration,
    number: u64,
    name: &str,
    shared: Arc<Shared>,
) -> Result<Answer, Refusal> {
    // Templates and tokenizers take their time with long prompts, and no connection shall wait for another's.
    let reading = Arc::clone(&shared);
    let seed = shared.started ^ number << 32;
    let ask: Ask = blocking(move || reading.reader.read(kind, &body.0, &owner, seed)).await?;
    known_model(ask.model.as_deref(), &shared)?;
    let unknown = unknown_fields(&ask.unknown, &shared)?;
    let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
    let is_streamed = ask.stream;
    let id = format!("{prefix}-{name}");
    let mut completion = Completion::start(Arc::clone(&shared), ask, id, Some(allowed)).await?;
    let mut answer = if is_streamed {
        completion.wait_for_token().await?;
        let (sender, receiver) = mpsc::channel(PIECES);
        tokio::spawn(completion.stream(sender));
        let mut answer = Response::new(Pieces(receiver).boxed());
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        answer
    } else {
        json_of(200, &completion.whole().await?)
    };
    answer.headers_mut().extend(unknown);
    Ok(answer)
}

fn get(path: &str, shared: &Shared) -> Result<Answer, Refusal> {
    let model = || {
        json!({
            "id": shared.served.name, "object": "model", "created": shared.started, "owned_by": "lathe",
            "max_model_len": shared.served.max_context,
        })
    };
    Ok(match path {
        "/v1/models" => json_of(200, &json!({"object": "list", "data": [model()]})),
        "/version" => json_of(200, &json!({"version": env!("CARGO_PKG_VERSION"), "plan": shared.served.digest})),
        "/metrics" => {
            text(&shared.metrics.print(&shared.served.name, &shared.served.digest, shared.policy.vllm_metrics))
        }
        "/tokenizer_info" => json_of(200, &tokenizer_info(shared)),
        _ => {
            known_model(path.strip_prefix("/v1/models/"), shared)?;
            json_of(200, &model())
        }
    })
}

fn tokenizer_info(shared: &Shared) -> Value {
    let tokenizer = &shared.reader.tokenizer;
    let text = |id: Option<u32>| id.map(|id| String::from_utf8_lossy(tokenizer.bytes(id)).into_owned());
    let tables = tokenizer.tables();
    json!({
        "bos_token": text(tables.bos),
        "eos_token": text(tables.eos.first().copied()),
        "vocab_size": tables.len(),
        "model_max_length": shared.served.max_context,
        "chat_template": shared.reader.template.as_ref().map(crate::chat::ChatTemplate::source),
    })
}

/// The tokens of a text, or of the prompt that a conversation makes.
fn tokenized(fields: &mut Fields, shared: &Shared) -> Result<Value, Refusal> {
    let tokens = match fields.text("prompt")? {
        Some(prompt) => shared.reader.text(&prompt, fields.flag("add_special_tokens")?.unwrap_or(true)),
        None if fields.has("messages") => shared.reader.conversation(fields)?,
        None => return Err(Refusal::field("prompt", "`prompt` is missing, and `messages` as well")),
    };
    Ok(json!({"count": tokens.len(), "max_model_len": shared.served.max_context, "tokens": tokens}))
}

fn detokenized(fields: &mut Fields, shared: &Shared) -> Result<Value, Refusal> {
    let tokens = fields.take("tokens").as_ref().and_then(ids_of);
    let tokens = tokens.ok_or_else(|| Refusal::field("tokens", "`tokens` must be a list of token ids"))?;
    let tokenizer = &shared.reader.tokenizer;
    if let Some(token) = tokens.iter().find(|token| **token as usize >= tokenizer.tables().len()) {
        return Err(Refusal::field("tokens", format!("token {token} is not in the vocabulary")));
    }
    Ok(json!({"prompt": String::from_utf8_lossy(&tokenizer.decode(&tokens))}))
}

fn known_model(name: Option<&str>, shared: &Shared) -> Result<(), Refusal> {
    match name {
        Some(name) if name != shared.served.name => {
            let message = format!("the model is called `{}`, and there is no other", shared.served.name);
            Err(Refusal { param: Some("model".to_owned()), ..Refusal::new(404, message).code("model_not_found") })
        }
        _ => Ok(()),
    }
}

/// The key of an authorization, whose scheme has the same name in any case (RFC 9110, section 11.1).
fn bearer_token(authorization: Option<&str>) -> Option<&str> {
    let (scheme, token) = authorization?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
}

/// The caller's key, which is one of those that are allowed where there are any.
fn key(headers: &HeaderMap, keys: &[String]) -> Result<String, Refusal> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = bearer_token(bearer).or_else(|| headers.get("x-api-key")?.to_str().ok());
    if keys.is_empty() {
        return Ok(given.unwrap_or_default().to_owned());
    }
    // Hashes compare in constant time, and all of them are compared.
    let hash = blake3::hash(given.unwrap_or_default().as_bytes());
    let found = keys.iter().fold(false, |found, key| found | (blake3::hash(key.as_bytes()) == hash));
    match given {
        Some(given) if found => Ok(given.to_owned()),
        _ => {
            Err(Refusal::new(401, "this server needs an API key, as `Authorization: Bearer KEY`")
                .code("invalid_api_key"))
        }
    }
}

/// The time that a client gives the whole answer, in milliseconds.
fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let Some(value) = headers.get("x-deadline-ms") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|ms| (1..=86_400_000).contains(ms));
    let wrong = || Refusal::new(400, "`x-deadline-ms` must be a whole number from 1 to 86400000");
    number.map(|ms| Some(Duration::from_millis(ms))).ok_or_else(wrong)
}

/// The body, within its limits of size and time, and its share of what all bodies together may hold.
async fn read(headers: &HeaderMap, body: Incoming, shared: &Shared) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::new(415, "bodies must not be compressed").code("encoding"));
    }
    let most = shared.policy.max_body;
    let too_large = || Refusal::new(413, format!("the body has more than {most} bytes"));
    let size = body.size_hint().upper().map_or(most, |size| usize::try_from(size).unwrap_or(usize::MAX));
    if size > most {
        return Err(too_large());
    }
    let units = u32::try_from(size.div_ceil(BODY_UNIT)).unwrap_or(u32::MAX);
    let share = Arc::clone(&shared.bodies).try_acquire_many_owned(units);
    let share = share
        .map_err(|_| Refusal::new(503, "too many bodies are being read; try again in a moment").code("overloaded"))?;
    match timeout(shared.policy.body_timeout, Limited::new(body, most).collect()).await {
        Err(_) => Err(Refusal::new(408, "the body took too long")),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Refusal::new(400, "the body could not be read")),
        Ok(Ok(body)) => Ok((body.to_bytes(), share)),
    }
}

/// Runs work that would hold up other connections on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Refusal::new(500, "reading the request failed")))
}

/// Counts fields that nobody knows, and refuses them where that is wanted; else a header names them.
fn unknown_fields(names: &[String], shared: &Shared) -> Result<Option<(HeaderName, HeaderValue)>, Refusal> {
    let Some(first) = names.first() else { return Ok(None) };
    shared.metrics.unknown_fields();
    if shared.policy.strict_fields {
        let all = names.join("`, `");
        return Err(Refusal::field(first, format!("`{all}` is not known; leave it out")));
    }
    Ok(unknown_header(names).map(|value| (HeaderName::from_static("x-unknown-fields"), value)))
}

/// Names of fields as a header: only letters that are harmless there.
fn unknown_header(names: &[String]) -> Option<HeaderValue> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.[]".contains(c);
    let names = names.iter().take(16).map(|name| name.chars().filter(|c| is_plain(*c)).take(64).collect::<String>());
    let list = names.collect::<Vec<_>>().join(", ");
    HeaderValue::from_str(&list).ok().filter(|value| !value.is_empty())
}

fn refuse(refusal: &Refusal, path: &str) -> Answer {
    let mut answer = json_of(refusal.status, &refusal.body());
    let headers = answer.headers_mut();
    if matches!(refusal.status, 429 | 503) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal.status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if matches!(refusal.status, 408 | 413) {
        // What is left of the body is not worth reading.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let method = method_of(path).filter(|_| refusal.status == 405);
    if let Some(method) = method.and_then(|method| HeaderValue::from_str(method.as_str()).ok()) {
        headers.insert(header::ALLOW, method);
    }
    answer
}

/// What everybody gets while there is no engine.
pub fn absent() -> Answer {
    let refusal = Refusal::new(503, "the engine is being started; try again in a moment").code("starting");
    let mut answer = refuse(&refusal, "");
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn json_of(status: u16, body: &Value) -> Answer {
    let mut answer = text(&body.to_string());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn text(body: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_owned())).boxed());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// The pieces of a stream as a body.
struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}
