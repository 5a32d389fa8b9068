//! Libraries that panic on what comes from outside.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code of a library in which a malformed file or an unlucky text can panic; that is an error here, in words.
pub(crate) fn catch_panic<T>(library: &str, run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("the {library} library panicked: {}", message.unwrap_or("no message"))
    })
}
