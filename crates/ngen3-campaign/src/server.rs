//! A running `ngen3 serve`, and requests to it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::program::{Program, read_text, wait};
use crate::scenarios::Scenario;
use crate::trace::PATIENCE;

/// A server on a port of its own.
#[derive(Debug)]
pub struct Server {
    /// Its process.
    pub child: Child,
    port: u16,
}

impl Server {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// If it ends or does not listen.
    pub fn start(program: &Program, place: &Path, scenario: &Scenario) -> Result<Self> {
        let mut child = program.spawn(place, scenario, scenario.line)?;
        let start = Instant::now();
        loop {
            let text = read_text(&place.join("out")) + &read_text(&place.join("err"));
            if let Some(port) = port(&text) {
                return Ok(Self { child, port });
            }
            if let Some(status) = child.try_wait()? {
                bail!("the server ended before it listened: {status}: {text}");
            }
            ensure!(start.elapsed() < PATIENCE, "the server does not listen: {text}");
            sleep(Duration::from_millis(2));
        }
    }

    /// Sends a request for `tokens` tokens, whose answer is not read yet.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn send(&self, tokens: u32, stream: bool) -> Result<TcpStream> {
        let body = format!(
            "{{\"model\":\"base\",\"prompt\":\"the\",\"max_tokens\":{tokens},\"temperature\":0,\"stream\":{stream}}}"
        );
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).context("cannot reach the server")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let head =
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json";
        write!(socket, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        Ok(socket)
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// If the answer is not one of a request that succeeded.
    pub fn ask(&self, tokens: u32, stream: bool) -> Result<()> {
        let mut answer = Vec::new();
        self.send(tokens, stream)?.read_to_end(&mut answer).context("no answer")?;
        let text = String::from_utf8_lossy(&answer);
        ensure!(text.starts_with("HTTP/1.1 200 "), "expected status 200, got {}", text.lines().next().unwrap_or(""));
        Ok(())
    }

    /// Stops it as Ctrl-C does, and waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(mut self) -> Result<()> {
        crate::process::interrupt(self.child.id())?;
        let status = wait(&mut self.child)?;
        ensure!(matches!(status.code(), Some(0 | 130)), "the server ended with {status}");
        Ok(())
    }
}

/// Finds the port in the server's first lines.
fn port(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("http://127.0.0.1:")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map(|end| &rest[..end])?;
    digits.parse().ok()
}
