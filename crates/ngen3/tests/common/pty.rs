//! The program at a pseudo-terminal, by way of util-linux's `script`.
#![cfg(unix)]
#![allow(dead_code)]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for an output, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Turns on bracketed paste, as the line editor does when it begins to read.
const READING: &str = "\x1b[?2004h";

/// A program whose stdin, stdout and stderr are one terminal.
pub struct Pty {
    child: Child,
    keys: ChildStdin,
    output: Arc<Mutex<Vec<u8>>>,
    /// Bytes of the output that were waited for.
    seen: usize,
}

impl Pty {
    /// Starts `ngen3 LINE` in a folder, at a terminal of so many columns, with `folder/home` as the home directory. `None`
    /// where there is no `script` of util-linux: the test is then skipped, with a note.
    pub fn start(folder: &Path, columns: u16, line: &str, env: &[(&str, &str)]) -> Option<Self> {
        let version = Command::new("script").arg("--version").output();
        if !version.is_ok_and(|version| String::from_utf8_lossy(&version.stdout).contains("util-linux")) {
            eprintln!("skipped: needs the `script` of util-linux for a terminal");
            return None;
        }
        let program = env!("CARGO_BIN_EXE_ngen3");
        let mut command = Command::new("script");
        command.args(["-qefc", &format!("stty cols {columns} rows 24; exec '{program}' {line}"), "/dev/null"]);
        command.current_dir(folder).env("HOME", folder.join("home")).env("TERM", "xterm").env("SHELL", "/bin/sh");
        command.env_remove("NO_COLOR").env_remove("XDG_STATE_HOME").envs(env.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let output = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&output);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = screen.read(&mut bytes) {
                written.lock().unwrap().extend_from_slice(&bytes[..len]);
            }
        });
        Some(Self { child, keys, output, seen: 0 })
    }

    /// Types keys.
    pub fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until the line editor reads, then types keys.
    pub fn keys_when_ready(&mut self, keys: &str) {
        self.wait_for(READING);
        self.keys(keys);
    }

    /// Waits for an output after the last one that was waited for; returns the output between them.
    pub fn wait_for(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let output = self.output();
            let new = &output[self.seen..];
            if let Some(at) = new.find(text) {
                let end = at + text.len();
                self.seen += end;
                return new[..end].to_owned();
            }
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {new:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end of the program; returns its exit code and all output.
    pub fn end(mut self) -> (i32, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > PATIENCE {
                self.child.kill().unwrap();
                panic!("the program does not end: {:?}", self.output());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        // The reader of the output has a little way to go after the end.
        while Arc::strong_count(&self.output) > 1 {
            std::thread::sleep(Duration::from_millis(10));
        }
        (status.code().unwrap(), self.output())
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }
}
