//! The observer of a traced program: what it is told, and what it decides.

use std::time::Duration;

use super::call::Call;

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
