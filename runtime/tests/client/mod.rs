//! A client that speaks HTTP by hand, so that it can say anything.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

/// How often something is asked for before it is taken to be stuck.
pub const PATIENCE: usize = 20_000;

/// A server's address.
#[derive(Clone, Debug)]
pub struct Client(pub String);

/// What a server answers.
#[derive(Debug)]
pub struct Answer {
    /// The status; 0 where the connection closed without one.
    pub status: u16,
    /// The head in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Client {
    /// A connection.
    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.0).expect("the server accepts")
    }

    /// Sends bytes and reads until the server closes.
    pub fn raw(&self, request: &[u8]) -> Answer {
        let mut socket = self.connect();
        // A server that refuses early may close before it has read everything.
        let _ = socket.write_all(request);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        read(&answer)
    }

    /// Asks for a path.
    pub fn get(&self, path: &str) -> Answer {
        self.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
    }

    /// Posts a body.
    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.raw(&post(path, "", body))
    }

    /// A number of `/metrics`: the first whose line begins so, or zero where there is none yet.
    pub fn metric(&self, begin: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.starts_with(begin));
        let number = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse().ok());
        line.map_or(0.0, |line| number(line).unwrap_or_else(|| panic!("{line}")))
    }

    /// Waits until a number of `/metrics` is this.
    #[track_caller]
    pub fn wait_for(&self, begin: &str, wanted: f64) {
        let is_there = |_: usize| (self.metric(begin) - wanted).abs() < 1e-9;
        assert!((0..PATIENCE).any(is_there), "{begin} is {} and never {wanted}", self.metric(begin));
    }
}

/// A request with a body, and further lines in its head.
pub fn post(path: &str, head: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n{head}\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Takes an answer apart.
pub fn read(answer: &[u8]) -> Answer {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}
