//! A server of SmolLM2 for tests, and the few lines of HTTP that talk to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::{Scratch, lathe, lathe_compile, smollm2};

/// The plan of SmolLM2, made once for a test program.
///
/// # Panics
/// When it does not compile.
pub fn plan() -> PathBuf {
    static PLAN: OnceLock<(Scratch, PathBuf)> = OnceLock::new();
    let make = || {
        let scratch = Scratch::new();
        let path = scratch.file("smollm2.plan");
        let output = Command::new(lathe_compile()).arg(smollm2()).arg("-o").arg(&path).output();
        let output = output.expect("the compiler starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (scratch, path)
    };
    PLAN.get_or_init(make).1.clone()
}

/// A server on a port of its own; killed when dropped.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub process: Child,
    /// Host and port on which it listens.
    pub address: String,
}

impl Server {
    /// Starts `lathe serve` on SmolLM2, which is called `smol`, with more flags.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(flags: &[&str]) -> Server {
        let mut command = Command::new(lathe());
        command.arg("serve").arg(plan()).args(["--port", "0", "--name", "smol"]).args(flags);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the server starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the server says where it listens");
        let address = line.trim().strip_prefix("http://").expect("an address").to_owned();
        Server { process, address }
    }

    /// A connection.
    ///
    /// # Panics
    /// When it is not accepted.
    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).expect("the server accepts")
    }

    /// Sends bytes and gives back status, head and body of the answer.
    ///
    /// # Panics
    /// When there is no connection.
    pub fn raw(&self, request: &[u8]) -> (u16, String, String) {
        let mut socket = self.connect();
        // A server that refuses early may close before it has read everything.
        let _ = socket.write_all(request);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    /// Status and body of what a path gives.
    pub fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) =
            self.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes());
        (status, body)
    }

    /// Status and body of the answer to a JSON body.
    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        let (status, _, body) = self.raw(&post(path, body));
        (status, body)
    }

    /// A metric that counts.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {text}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }

    /// Sends the process a signal.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name]).arg(self.process.id().to_string()).status();
        assert!(status.expect("kill runs").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The bytes of a request with a JSON body, after whose answer the connection closes.
pub fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}
