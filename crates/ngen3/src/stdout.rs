//! Writes to stdout without panicking when its reader goes away.

use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::anyhow;

use crate::world;

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
    if world::is_quiet() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Closed.into(),
        _ => anyhow!("cannot write to stdout: {error}"),
    })
}

/// Returns `text` in a style of ANSI's (`1;32` is bold green), followed by the terminal's own; unchanged without colours.
pub fn styled(text: &str, style: &str) -> String {
    if has_colour() { format!("\x1b[{style}m{text}\x1b[0m") } else { text.into() }
}

/// Returns whether stdout is a terminal with colours and the user has not disabled them: see no-color.org.
fn has_colour() -> bool {
    let is = |name: &str, value: fn(&str) -> bool| std::env::var_os(name).is_some_and(|v| value(&v.to_string_lossy()));
    std::io::stdout().is_terminal() && !is("NO_COLOR", |value| !value.is_empty()) && !is("TERM", |term| term == "dumb")
}
