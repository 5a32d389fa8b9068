//! Runs a program and sees each of its system calls on the files of one folder, by `ptrace`.
//!
//! [`run`] stops the program before and after each such call ([`Call`]) and asks a [`Watch`] what shall happen: let it pass, fail
//! it with an error number, make it transfer fewer bytes, or kill the program there. Calls are counted over all threads, so
//! that "the 17th call" is the same one in every run of a program with one writing thread.
//!
//! `strace --inject` cannot do this: its `when=` counts each thread for itself, and its `retval=` returns a short count without
//! transferring those bytes. A preloaded library misses calls that do not go through the C library. This tracer needs Linux on
//! x86_64; elsewhere the campaigns that need it are skipped aloud.

mod call;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod linux;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

pub use call::{Call, Kind};

/// Longest time that a program may take, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Decision about a call that is about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes the call.
    Pass,
    /// Returns this error number without making it.
    Fail(i32),
    /// Makes it with at most this many bytes.
    Shorten(u64),
    /// Kills the program without making it.
    KillBefore,
    /// Makes it, then kills the program.
    KillAfter,
    /// Makes half of a write, then kills the program.
    KillWithin,
}

/// Observer of a run.
pub trait Watch {
    /// Decides about a call.
    fn before(&mut self, call: &Call) -> Action;
    /// Sees the result of a call that was made: a count or a descriptor, or a negative error number.
    fn after(&mut self, _call: &Call, _result: i64) {}
}

/// End of a traced program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ended with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

/// Returns true where programs can be traced.
pub const fn is_available() -> bool {
    cfg!(all(target_os = "linux", target_arch = "x86_64"))
}

/// Runs a command, whose standard streams are files or null, and reports the calls on files below `folder`.
///
/// # Errors
/// If the program cannot be started or traced.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub fn run(command: Command, folder: &Path, watch: &mut dyn Watch) -> Result<End> {
    linux::run(command, folder, watch)
}

/// As above, where it cannot be done.
///
/// # Errors
/// Always.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub fn run(_: Command, _: &Path, _: &mut dyn Watch) -> Result<End> {
    anyhow::bail!("programs can be traced on Linux on x86_64 only")
}
