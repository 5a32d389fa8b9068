//! Panics of libraries as errors.
//!
//! A caught panic prints nothing: its message becomes the error. Panics of our own code are printed as ever, and so are those of
//! libraries elsewhere.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// True while this thread runs library code whose panics are caught.
    static CATCHES: Cell<bool> = const { Cell::new(false) };
}

/// Runs library code that may panic on malformed input; returns the message of a panic as an error.
pub(crate) fn catch_panic<T>(library: &str, run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let other = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_library = info.location().is_some_and(|place| place.file().contains("registry"));
            if !(is_library && CATCHES.get()) {
                other(info);
            }
        }));
    });
    // Library code may call ours, which calls a library.
    let outer = CATCHES.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    CATCHES.set(outer);
    result.map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("the {library} library panicked: {}", message.unwrap_or("no message"))
    })
}
