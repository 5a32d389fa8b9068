//! A server as its own process, and a small HTTP client that sees every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::ngen3;

/// A running `ngen3 serve`.
pub struct Server {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    stderr: BufReader<std::process::ChildStderr>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The message of an error, which has this status.
    #[track_caller]
    pub fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        self.json()["error"]["message"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    /// The events of a stream, which ends with `[DONE]`.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.headers.contains("content-type: text/event-stream"), "{}", self.headers);
        let mut events: Vec<_> = self.body.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", self.body);
        let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON");
        events.into_iter().map(event).collect()
    }
}

impl Server {
    /// Starts `ngen3 serve ARGUMENTS` in a folder, on a free port.
    pub fn start(folder: &Path, arguments: &str) -> Self {
        let line = format!("serve --port 0 --threads 1 {arguments}");
        let mut command = ngen3(folder, line.trim_end());
        command.env_remove("NGEN3_API_KEY").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "{said}");
            if let Some(rest) = line.split(" at http://").nth(1) {
                break rest.split(' ').next().unwrap().to_owned();
            }
            said += &line;
        };
        Self { child, address, stderr }
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap().success());
    }

    /// Waits for the end; returns the exit code and what was said meanwhile.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }

    /// Sends a request and returns its open connection.
    pub fn send(&self, head: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let host =
            if head.to_lowercase().contains("\nhost:") { String::new() } else { format!("Host: {}\r\n", self.address) };
        let length =
            if head.starts_with("GET") { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        write!(stream, "{head}\r\n{host}{length}Connection: close\r\n\r\n").unwrap();
        // A server that refuses a body may close before all of it is sent.
        let _ = stream.write_all(body);
        stream
    }

    /// Sends a request, of which `head` is the first line and further headers, and returns the answer.
    pub fn request(&self, head: &str, body: &[u8]) -> Answer {
        let mut bytes = Vec::new();
        // The connection may be reset after the answer, if the body was not read.
        let _ = self.send(head, body).read_to_end(&mut bytes);
        parse(&bytes)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request(&format!("GET {path} HTTP/1.1"), b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(&format!("POST {path} HTTP/1.1"), body.to_string().as_bytes())
    }

    /// Returns a measurement.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Parses an answer, also one in chunks.
pub fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let headers = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
    let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
    let mut rest = &bytes[end + 4..];
    let mut body = Vec::new();
    if headers.contains("transfer-encoding: chunked") {
        while let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
            body.extend_from_slice(&rest[at + 2..at + 2 + length]);
            rest = &rest[at + 2 + length + 2..];
        }
    } else {
        body.extend_from_slice(rest);
    }
    Answer { status, headers, body: String::from_utf8(body).expect("UTF-8") }
}
