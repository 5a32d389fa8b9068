//! Panics of libraries as errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs library code that may panic on malformed input; returns the message of a panic as an error.
pub(crate) fn catch_panic<T>(library: &str, run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("the {library} library panicked: {}", message.unwrap_or("no message"))
    })
}
