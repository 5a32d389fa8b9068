//! Ctrl-C and SIGTERM: the first asks a command to stop cleanly, the second stops it at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use ngen3_eval::Error;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What a command returns when it stopped because it was asked to: exit code 130.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Returns a flag that the first SIGINT or SIGTERM sets; a second signal ends the process with code 130.
///
/// A command calls this once, looks at the flag between pieces of work, and returns [`Interrupted`] when it has tidied
/// up. A command that never calls it is simply killed by the signal. While a command has nothing to tidy up it may set the
/// flag itself: the first signal then ends the process.
pub fn watch() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Order matters: the shutdown must see the flag as it was before this signal set it.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .context("cannot watch for Ctrl-C")?;
    }
    Ok(stop)
}

/// A library's result as a command's: its way of saying that it was stopped becomes [`Interrupted`].
pub fn interruptible<T>(result: Result<T, impl Into<Error>>) -> anyhow::Result<T> {
    result.map_err(|error| match error.into() {
        Error::Interrupted | Error::Data(ngen3_data::Error::Interrupted) => Interrupted.into(),
        error => error.into(),
    })
}
