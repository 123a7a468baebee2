//! One request to a server of OpenAI's interface, with the time of each of its tokens.

use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::workload::Ask;

/// The most of an error's text that is shown.
const SHOWN: usize = 300;

/// A server under load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What it is called in tables.
    pub name: String,
    /// Host and port.
    pub address: String,
    /// The model to ask for.
    pub model: String,
    /// The key that it asks for.
    pub key: Option<String>,
}

/// What a server counts of a request.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
}

/// A piece of a stream.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    finish_reason: Option<String>,
}

impl Target {
    /// Reads `NAME=http://HOST:PORT` or an address alone.
    pub fn read(text: &str) -> anyhow::Result<Target> {
        let (name, url) = match text.split_once('=') {
            Some((name, url)) => (name, url),
            None => (text.trim_start_matches("http://"), text),
        };
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is no address"))?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("http"));
        let host = host.ok_or_else(|| anyhow!("expected an address such as http://127.0.0.1:8000, found `{url}`"))?;
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        Ok(Target { name: name.to_owned(), address, model: String::new(), key: None })
    }

    /// The name of the first model that the server has.
    pub async fn first_model(&self) -> anyhow::Result<String> {
        let body = self.send("GET", "/v1/models", String::new()).await?.collect().await?.to_bytes();
        let list: Value = serde_json::from_slice(&body).context("/v1/models gave no JSON")?;
        let id = list["data"][0]["id"].as_str().map(str::to_owned);
        id.ok_or_else(|| anyhow!("{} lists no model; name one with --model", self.name))
    }

    /// Asks for a completion, tells when each piece with a token came, and gives back what the server counted.
    pub async fn complete(&self, ask: &Ask, mut on_token: impl FnMut(Instant)) -> anyhow::Result<Usage> {
        let body = json!({
            "model": self.model, "prompt": ask.prompt, "max_tokens": ask.generate, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
        });
        let mut answer = self.send("POST", "/v1/completions", body.to_string()).await?.into_body();
        let (mut lines, mut usage, mut pieces) = (Lines::default(), None, 0);
        while let Some(frame) = answer.frame().await {
            let Ok(data) = frame.context("the stream broke off")?.into_data() else { continue };
            let now = Instant::now();
            for event in lines.take(&data) {
                let chunk: Chunk =
                    serde_json::from_str(&event).with_context(|| format!("no chunk: {}", cut(&event)))?;
                if let Some(error) = chunk.error {
                    bail!("the server broke off: {}", cut(&error.to_string()));
                }
                // The piece that only ends a choice is no token.
                if chunk.choices.iter().any(|choice| choice.finish_reason.is_none() || !choice.text.is_empty()) {
                    on_token(now);
                    pieces += 1;
                }
                usage = chunk.usage.or(usage);
            }
        }
        match usage {
            _ if pieces == 0 && ask.generate > 0 => bail!("the answer had no token"),
            Some(usage) => Ok(usage),
            None => Ok(Usage { prompt_tokens: ask.prompt.len(), completion_tokens: pieces }),
        }
    }

    async fn send(&self, method: &str, path: &str, body: String) -> anyhow::Result<Response<Incoming>> {
        let place = || format!("{} at {}", self.name, self.address);
        let stream =
            TcpStream::connect(&self.address).await.with_context(|| format!("no connection to {}", place()))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with its answer, or with whoever reads that; an error shows there.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.address);
        request = request.header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let answer = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await;
        let answer = answer.with_context(|| format!("no answer from {}", place()))?;
        if answer.status() != StatusCode::OK {
            let status = answer.status();
            let text = answer.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
            bail!("{path} gave {status}: {}", cut(&String::from_utf8_lossy(&text)));
        }
        Ok(answer)
    }
}

/// The data lines of a stream of server-sent events, which may come in pieces of any size.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// Takes bytes in and gives the data of each line that is complete; the mark of the end is left out.
    fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let whole: Vec<u8> = self.0.drain(..=end).collect();
        let text = String::from_utf8_lossy(&whole);
        let data = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
        data.filter(|data| *data != "[DONE]").map(str::to_owned).collect()
    }
}

/// The beginning of a text.
fn cut(text: &str) -> &str {
    text.char_indices().nth(SHOWN).map_or(text, |(at, _)| &text[..at]).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in ["data: {\"a\"", ": 1}\n\nda", "ta:{}\r\n: comment\n\ndata: [DO", "NE]\n\n"] {
            found.extend(lines.take(piece.as_bytes()));
        }
        assert_eq!(found, ["{\"a\": 1}", "{}"]);
    }

    #[test]
    fn addresses_have_names() {
        let check = |text, expected: Option<(&str, &str)>| {
            let found = Target::read(text).ok().map(|target| (target.name, target.address));
            assert_eq!(found, expected.map(|(name, address)| (name.to_owned(), address.to_owned())), "{text}");
        };
        check("http://127.0.0.1:8000", Some(("127.0.0.1:8000", "127.0.0.1:8000")));
        check("peer=http://box:81/v1", Some(("peer", "box:81")));
        check("http://box", Some(("box", "box:80")));
        check("https://box", None);
        check("box:80", None);
        check("", None);
    }
}
