//! Runs the program on a hostile input, and keeps what it printed and what it cost.
//!
//! A [`Table`] has a folder for inputs and a row for each of them. A case fails if the program panics, is killed, runs longer than
//! [`LIMIT`], needs [`MEMORY`], prints more than one error, or leaves a file behind; all others run nevertheless. The seconds are
//! those of the processor, and no test asserts them: only a hang is caught.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use wait4::Wait4;

use crate::common::ngen3;

/// Time after which a command counts as hanging. It is longer than a busy machine may pause a process.
pub const LIMIT: Duration = Duration::from_secs(240);
/// Memory that no hostile input may make the program use, in bytes.
pub const MEMORY: u64 = 1_000_000_000;
/// Bytes kept of each output.
const KEPT: u64 = 1 << 20;
/// Characters shown of an error.
const SHOWN: usize = 150;
/// Longest error, in bytes: a file must not fill the terminal.
const MAX_ERROR: usize = 1_000;

/// Inputs of one kind, and what became of them.
pub struct Table {
    title: &'static str,
    folder: TempDir,
    rows: Vec<String>,
    /// Cases that failed.
    failures: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A command that ended.
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub seconds: f64,
    pub bytes: u64,
    /// True if it was killed after [`LIMIT`].
    pub hangs: bool,
}

/// Every path below a folder, with its length and its time.
type Listing = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

impl Table {
    pub fn new(title: &'static str) -> Self {
        Self {
            title,
            folder: tempfile::tempdir().unwrap(),
            rows: Vec::new(),
            failures: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Sets an environment variable of all commands that follow.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.into(), value.into()));
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes an input.
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes an input that is too large for memory.
    pub fn write(&self, name: &str, write: impl FnOnce(&mut dyn Write)) -> PathBuf {
        let path = self.put(name, b"");
        let mut file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
        write(&mut file);
        file.flush().unwrap();
        path
    }

    /// Runs a command that must refuse its input with one error that contains `reason`, and write nothing.
    pub fn refused(&mut self, input: &str, line: &str, reason: &str) {
        let before = self.listing();
        let ended = self.run(line, b"");
        let printed = match ended.error() {
            Ok(error) if ended.code != Some(1) => Err(format!("exit code {:?}; {error}", ended.code)),
            Ok(error) if !error.contains(reason) => Err(format!("expected {reason:?} in {error:?}")),
            Ok(error) if self.listing() != before => Err(format!("the command wrote files; {error}")),
            other => other,
        };
        self.judge(input, printed, &ended);
    }

    /// Runs a command that may refuse its input as [`Table::refused`] or read it: it is strange, but says nothing wrong. What it
    /// makes in `_data_x_` is removed.
    pub fn either(&mut self, input: &str, line: &str, reason: &str) -> Ended {
        let before = self.listing();
        let ended = self.run(line, b"");
        let printed = match ended.code {
            Some(0) => ended.check().map(|()| {
                let note = ended.err.lines().find(|line| line.starts_with("note: "));
                note.or_else(|| ended.out.lines().next()).unwrap_or_default().to_owned()
            }),
            _ => match ended.error() {
                Ok(error) if ended.code != Some(1) => Err(format!("exit code {:?}; {error}", ended.code)),
                Ok(error) if !error.contains(reason) => Err(format!("expected {reason:?} in {error:?}")),
                other => other,
            },
        };
        let _ = fs::remove_dir_all(self.path().join("_data_x_"));
        let printed = printed.and_then(|printed| match self.listing() == before {
            true => Ok(printed),
            false => Err(format!("the command wrote files; {printed}")),
        });
        self.judge(input, printed, &ended);
        ended
    }

    /// Adds a row for a case that passed, or keeps how it failed until [`Table::print`].
    pub fn judge(&mut self, input: &str, printed: Result<String, String>, ended: &Ended) {
        match printed {
            Ok(printed) => self.add_row(input, &printed, ended.seconds, ended.bytes),
            Err(failure) => self.failures.push(format!("{input}: {failure:.2000}")),
        }
    }

    /// Adds a row.
    pub fn add_row(&mut self, input: &str, printed: &str, seconds: f64, bytes: u64) {
        let mut shown: String = printed.chars().take(SHOWN).collect();
        if shown.len() < printed.len() {
            shown.push('…');
        }
        let megabytes = bytes.div_ceil(1_000_000);
        let shown = shown.replace('|', "\\|").replace('`', "'");
        self.rows.push(format!("| {input} | `{shown}` | {seconds:.2} | {megabytes} |"));
    }

    /// Prints the table, with `--nocapture`, and fails if a case did.
    pub fn print(self) {
        assert!(!self.rows.is_empty(), "a table without rows shows nothing");
        println!("\n{}\n\n| input | printed | CPU s | MB |\n|---|---|---|---|\n{}\n", self.title, self.rows.join("\n"));
        assert!(
            self.failures.is_empty(),
            "{}: {} failed\n{}",
            self.title,
            self.failures.len(),
            self.failures.join("\n")
        );
    }

    /// Runs a command in the folder with this input, until it ends or [`LIMIT`] passes.
    pub fn run(&self, line: &str, input: &[u8]) -> Ended {
        let mut command = ngen3(self.path(), line);
        for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_ENDPOINT", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.path().join("hf"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        measure(command, input)
    }

    pub fn listing(&self) -> Listing {
        let mut found = Listing::new();
        list(self.path(), &mut found);
        found
    }
}

fn list(folder: &Path, found: &mut Listing) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            list(&path, found);
            found.insert(path, (0, None));
        } else {
            found.insert(path, (metadata.len(), metadata.modified().ok()));
        }
    }
}

impl Ended {
    /// Checks what holds of every command, whatever its input.
    pub fn check(&self) -> Result<(), String> {
        let said = format!("{}{}", self.out, self.err);
        if self.hangs {
            return Err(format!("no end after {LIMIT:?}: {said:.300}"));
        }
        if said.contains("panicked at") {
            return Err(said);
        }
        if said.contains(['\u{1b}', '\0', '\u{7}']) {
            return Err(format!("control characters reach the terminal: {said:?}"));
        }
        let Self { bytes, .. } = self;
        if *bytes >= MEMORY { Err(format!("{bytes} bytes of memory; {said}")) } else { Ok(()) }
    }

    /// Asserts that the command succeeded.
    #[track_caller]
    pub fn succeeded(&self) {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
    }

    /// Returns the only error, without its prefix.
    pub fn error(&self) -> Result<String, String> {
        self.check()?;
        let lines: Vec<_> = self.err.lines().filter(|line| !line.starts_with("note: ")).collect();
        let [line] = lines[..] else {
            return Err(format!("expected one line, got exit code {:?} and {:?}", self.code, self.err));
        };
        let error = line.strip_prefix("error: ").ok_or_else(|| format!("expected an error, got {line:?}"))?;
        if error.len() > MAX_ERROR {
            return Err(format!("an error of {} bytes: {error:.200}", error.len()));
        }
        Ok(error.to_owned())
    }
}

/// Runs a command to its end, and measures the processor's time and the peak of its memory.
pub fn measure(mut command: Command, input: &[u8]) -> Ended {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (keep(child.stdout.take().unwrap()), keep(child.stderr.take().unwrap()));
    // The program may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    let id = child.id().to_string();
    let (ended, wait) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        let hangs = wait.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout);
        if hangs {
            // Not reaped yet, so the number is still this process's.
            Command::new("kill").args(["-KILL", &id]).status().unwrap();
        }
        hangs
    });
    let used = child.wait4().unwrap();
    drop(ended);
    let (out, err) = (out.join().unwrap(), err.join().unwrap());
    let hangs = watch.join().unwrap();
    let seconds = (used.rusage.utime + used.rusage.stime).as_secs_f64();
    Ended { code: used.status.code(), out, err, seconds, bytes: used.rusage.maxrss, hangs }
}

/// Reads an output to its end and keeps its beginning.
fn keep(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        from.by_ref().take(KEPT).read_to_end(&mut kept).unwrap();
        std::io::copy(&mut from, &mut std::io::sink()).unwrap();
        String::from_utf8(kept).expect("the program prints UTF-8")
    })
}
