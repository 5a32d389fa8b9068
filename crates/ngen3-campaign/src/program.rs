//! The program under test: runs a line of it in a folder, and keeps what it prints.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::scenarios::{Kind, Scenario};
use crate::trace::{self, End, PATIENCE, Watch};

/// The binary.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
}

/// Result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Returns the line of an error, or the end of stderr.
    pub fn message(&self) -> String {
        let error = self.stderr.lines().find(|line| line.starts_with("error: "));
        let line = error.or_else(|| self.stderr.lines().last()).unwrap_or("(no message)");
        line.chars().take(300).collect()
    }

    /// Returns the reason why this is not how a program fails: with one line of an error and exit code 1 or 2. A chat
    /// has a line for each of its own that failed.
    pub fn improper(&self, is_chat: bool) -> Option<String> {
        let errors = self.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        if self.stderr.contains("panicked at") {
            return Some(format!(
                "a panic: {}",
                self.stderr.lines().find(|line| line.contains("panicked")).unwrap_or("")
            ));
        }
        match self.end {
            End::Code(0) => None,
            End::Code(1 | 2) if errors == 1 || is_chat && errors > 0 => None,
            End::Code(code) => Some(format!("exit code {code} with {errors} lines of errors: {}", self.message())),
            End::Signal(signal) => Some(format!("signal {signal}: {}", self.message())),
        }
    }
}

impl Program {
    /// Checks that the binary runs.
    ///
    /// # Errors
    /// If it does not.
    pub fn new(path: &Path) -> Result<Self> {
        let path = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
        let output = Command::new(&path).arg("--version").output();
        let output = output.with_context(|| format!("cannot run {}", path.display()))?;
        ensure!(output.status.success(), "{} --version: {}", path.display(), output.status);
        println!("program: {} ({})", path.display(), String::from_utf8_lossy(&output.stdout).trim());
        Ok(Self { path })
    }

    /// Returns true if ranks can be started.
    pub fn has_ranks(&self) -> bool {
        // Without the feature, it is not linked to MPI.
        let linked = fs::read(&self.path).is_ok_and(|bytes| bytes.windows(8).any(|window| window == b"MPI_Init"));
        linked && Command::new("mpirun").arg("--version").output().is_ok_and(|output| output.status.success())
    }

    /// Returns a line as a command in the folder `work` of a try; `home` and `tmp` are beside it.
    pub fn command(&self, place: &Path, line: &str) -> Command {
        self.prepared(Command::new(&self.path), place, line)
    }

    fn prepared(&self, mut command: Command, place: &Path, line: &str) -> Command {
        command.args(line.split_whitespace()).current_dir(place.join("work"));
        command.env("HOME", place.join("home")).env("TMPDIR", place.join("tmp")).env("HF_HUB_OFFLINE", "1");
        for name in ["XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts a scenario's command; its streams are the files `out` and `err` beside the folder.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, place: &Path, scenario: &Scenario, line: &str) -> Result<Child> {
        let mut command = match scenario.kind {
            Kind::Ranks => {
                let mut command = Command::new("mpirun");
                command.args(["--oversubscribe", "-n", "2"]).arg(&self.path);
                command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
                self.prepared(command, place, line)
            }
            _ => self.command(place, line),
        };
        command.stdin(match scenario.input {
            Some(name) => Stdio::from(File::open(place.join("work").join(name))?),
            None => Stdio::null(),
        });
        command.stdout(File::create(place.join("out"))?).stderr(File::create(place.join("err"))?);
        command.spawn().with_context(|| format!("cannot start {line}"))
    }

    /// Runs a scenario's command to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn finish(&self, place: &Path, scenario: &Scenario, line: &str) -> Result<Outcome> {
        let mut child = self.spawn(place, scenario, line)?;
        let status = wait(&mut child)?;
        Ok(Outcome { end: end(status), stderr: read_text(&place.join("err")) })
    }

    /// Runs a line with nothing on its standard input.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(&self, place: &Path, line: &str) -> Result<Outcome> {
        let mut command = self.command(place, line);
        command.stdin(Stdio::null());
        command.stdout(File::create(place.join("out"))?).stderr(File::create(place.join("err"))?);
        let mut child = command.spawn().with_context(|| format!("cannot start {line}"))?;
        let status = wait(&mut child)?;
        Ok(Outcome { end: end(status), stderr: read_text(&place.join("err")) })
    }

    /// Runs a line that must succeed.
    ///
    /// # Errors
    /// If it fails, with its message.
    pub fn succeed(&self, place: &Path, line: &str) -> Result<()> {
        let outcome = self.run(place, line)?;
        ensure!(outcome.end == End::Code(0), "ngen3 {line}: {:?}: {}", outcome.end, outcome.message());
        Ok(())
    }

    /// Runs a scenario's command under the tracer.
    ///
    /// # Errors
    /// If it cannot be traced.
    pub fn traced(&self, place: &Path, scenario: &Scenario, line: &str, watch: &mut dyn Watch) -> Result<Outcome> {
        let mut command = self.command(place, line);
        let input = scenario.input.map_or_else(|| "/dev/null".into(), |name| place.join("work").join(name));
        command.env("CAMPAIGN_IN", input);
        command.env("CAMPAIGN_OUT", place.join("out")).env("CAMPAIGN_ERR", place.join("err"));
        let end = trace::run(command, &place.join("work"), watch)?;
        Ok(Outcome { end, stderr: read_text(&place.join("err")) })
    }
}

/// Reads a text; what is no UTF-8 is replaced.
pub fn read_text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Waits for the end of a child.
///
/// # Errors
/// If it hangs: it is killed.
pub fn wait(child: &mut Child) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            bail!("it did not end within {} s", PATIENCE.as_secs());
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Returns how a program ended.
pub fn end(status: ExitStatus) -> End {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return End::Signal(signal);
    }
    End::Code(status.code().unwrap_or(-1))
}
