//! Writes to stdout without panicking when its reader goes away.

use std::io::{ErrorKind, Write};

use anyhow::anyhow;

/// Error when the reader has closed stdout (`ngen3 variants | head -1`); the program then ends quietly.
#[derive(Debug)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout was closed")
    }
}

impl std::error::Error for Closed {}

/// Writes `text` to stdout and flushes it.
///
/// # Errors
/// [`Closed`] if the reader is gone; a plain error for anything else, such as a full disk.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Closed.into(),
        _ => anyhow!("cannot write to stdout: {error}"),
    })
}
