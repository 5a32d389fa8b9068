//! Ctrl-C, SIGTERM and the end of the terminal: the first asks a command to stop cleanly, a second, a second later or more,
//! stops it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use ngen3_eval::Error;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What a command returns when it stopped because it was asked to: exit code 130.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A signal so soon after the first is the same request: `timeout`, for one, signals a process and then its group.
const SAME: Duration = Duration::from_secs(1);

/// True if the command waits for somebody, and has nothing to tidy up.
static IDLE: AtomicBool = AtomicBool::new(false);

/// Says whether the command waits for somebody and has nothing to tidy up: the first signal then ends the process.
pub fn idle(idle: bool) {
    IDLE.store(idle, Ordering::Relaxed);
}

/// True if a signal was ignored when the program started, by what Linux says of it in `/proc/self/status`; `None` where nothing
/// says it.
fn is_ignored(status: &str, signal: i32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask >> (signal - 1) & 1 == 1)
}

/// The signals that ask to stop. A terminal that is closed does, but not under `nohup`, whose programs are to outlive it; where
/// nobody can tell, what SIGHUP does is left as it was.
fn watched() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let hangup = (is_ignored(&status, SIGHUP) == Some(false)).then_some(SIGHUP);
    [SIGINT, SIGTERM].into_iter().chain(hangup).collect()
}

/// Returns a flag that the first SIGINT, SIGTERM or SIGHUP sets; a SIGINT or SIGTERM after another of these two ends the process with
/// code 130. A terminal that goes does not insist, nor does who signals first after it.
///
/// A command calls this once, looks at the flag between pieces of work, and returns [`Interrupted`] when it has tidied
/// up. A command that never calls it is simply killed by the signal.
pub fn watch() -> anyhow::Result<Arc<AtomicBool>> {
    watch_for(&watched())
}

/// [`watch`] for these signals alone; the others do what they do to any program.
pub fn watch_for(signals: &[i32]) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new(signals).context("cannot watch for Ctrl-C")?;
    let flag = Arc::clone(&stop);
    std::thread::spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in &mut signals {
            let again = flag.swap(true, Ordering::Relaxed);
            match first {
                _ if IDLE.load(Ordering::Relaxed) => std::process::exit(130),
                _ if signal == SIGHUP => {}
                Some(first) if again && first.elapsed() >= SAME => std::process::exit(130),
                Some(_) if again => {}
                _ => first = Some(Instant::now()),
            }
        }
    });
    Ok(stop)
}

/// A library's result as a command's: its way of saying that it was stopped becomes [`Interrupted`].
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
