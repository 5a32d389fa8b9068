//! Ctrl-C, SIGTERM and a closed terminal: the first signal asks a command to stop cleanly; another one, at least a second
//! later, ends the process.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use ngen3_eval::Error;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::threads::spawn;

/// Error of a command that a signal stopped: exit code 130.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A signal this soon after the first counts as the same request: `timeout`, for one, signals a process and then its group.
const SAME: Duration = Duration::from_secs(1);

/// True while the command waits for input and has nothing to clean up.
static IDLE: AtomicBool = AtomicBool::new(false);

/// Sets whether the command waits for input and has nothing to clean up. While it does, any signal ends the process.
pub fn idle(idle: bool) {
    IDLE.store(idle, Ordering::Relaxed);
}

/// Returns whether a signal was ignored when the program started, from the text of Linux's `/proc/self/status`; `None` if it
/// has no valid mask.
fn is_ignored(status: &str, signal: i32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask >> (signal - 1) & 1 == 1)
}

/// Signals that ask a command to stop: SIGINT, SIGTERM, SIGHUP, and SIGUSR1, which `mpirun` passes on to its ranks without ending
/// them. SIGHUP is left out if it is ignored, as under `nohup`, or if that cannot be determined.
fn watched() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let hangup = (is_ignored(&status, SIGHUP) == Some(false)).then_some(SIGHUP);
    [SIGINT, SIGTERM, SIGUSR1].into_iter().chain(hangup).collect()
}

/// Returns a flag that the first of [`watched`] signals sets. A second SIGINT or SIGTERM ends the process with code 130; SIGHUP
/// and SIGUSR1 never do, and do not count as the first.
///
/// A command calls this once, checks the flag between units of work, cleans up, and returns [`Interrupted`]. A command that
/// never calls it is killed by the signal.
///
/// # Errors
/// If the signal handlers cannot be installed, or their thread cannot be started.
pub fn watch() -> anyhow::Result<Arc<AtomicBool>> {
    watch_for(&watched())
}

/// Like [`watch`], for these signals only; all others keep their default action.
pub fn watch_for(signals: &[i32]) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new(signals).context("cannot watch for Ctrl-C")?;
    let flag = Arc::clone(&stop);
    spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in &mut signals {
            let again = flag.swap(true, Ordering::Relaxed);
            match first {
                _ if IDLE.load(Ordering::Relaxed) => end_by(signal),
                _ if signal == SIGHUP || signal == SIGUSR1 => {}
                Some(first) if again && first.elapsed() >= SAME => exit(),
                Some(_) if again => {}
                _ => first = Some(Instant::now()),
            }
        }
    })?;
    Ok(stop)
}

/// Ends the process with the exit code of an interrupted command.
pub fn exit() -> ! {
    std::process::exit(130)
}

/// Ends the process while it waits for input. At a terminal it dies by the signal: the shell then restores the terminal's
/// settings, which a line editor has changed.
fn end_by(signal: i32) {
    if std::io::stdin().is_terminal() {
        let _ = emulate_default_handler(signal);
    }
    exit()
}

/// Converts a library's result to a command's; an interruption becomes [`Interrupted`].
pub fn interruptible<T>(result: Result<T, impl Into<Error>>) -> anyhow::Result<T> {
    result.map_err(|error| match error.into() {
        Error::Interrupted | Error::Data(ngen3_data::Error::Interrupted) => Interrupted.into(),
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_stands_in_the_mask() {
        let status = |mask: &str| format!("Name:\tngen3\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\nSigCgt:\t0\n");
        assert_eq!(is_ignored(&status("0000000000000001"), SIGHUP), Some(true));
        assert_eq!(is_ignored(&status("0000000000001000"), SIGHUP), Some(false));
        assert_eq!(is_ignored(&status("0000000000004002"), SIGTERM), Some(true));
        assert_eq!(is_ignored("", SIGHUP), None);
        assert_eq!(is_ignored(&status("none"), SIGHUP), None);
    }
}
