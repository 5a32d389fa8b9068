//! Progress on stderr: a bar at a terminal, a line every ten seconds elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use ngen3_model::words::{file_size, grouped};

use crate::error_line::printable;
use crate::world;

/// Time between lines if stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Unit of the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Bytes,
    Items,
}

impl Unit {
    fn shown(self, n: f64) -> String {
        match self {
            Self::Bytes => file_size(n),
            Self::Items => grouped(n.round() as u64),
        }
    }
}

/// The progress of a task. The bar is removed when this is dropped.
pub struct Progress {
    label: &'static str,
    unit: Unit,
    bar: ProgressBar,
    started: Instant,
    /// Time of the last plain line; `None` at a terminal, which shows the bar.
    last_line: Option<Mutex<Instant>>,
}

impl Progress {
    /// Counts bytes, of an unknown total at first.
    pub fn bytes(label: &'static str) -> Self {
        Self::new(label, Unit::Bytes)
    }

    /// Counts items, of an unknown total at first.
    pub fn items(label: &'static str) -> Self {
        Self::new(label, Unit::Items)
    }

    fn new(label: &'static str, unit: Unit) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style(unit, false));
        bar.set_prefix(label);
        if terminal {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let started = Instant::now();
        Self { label, unit, bar, started, last_line: (!terminal).then(|| Mutex::new(started)) }
    }

    /// Sets the total; `None` if it is unknown.
    pub fn set_total(&self, total: Option<u64>) {
        if total == self.bar.length() {
            return;
        }
        match total {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.set_style(style(self.unit, total.is_some()));
    }

    /// Moves to `position`, with `message` at the end of the line.
    pub fn set(&self, position: u64, message: &str) {
        self.bar.set_position(position);
        let Some(last) = &self.last_line else {
            self.bar.set_message(message.to_owned());
            return;
        };
        let now = Instant::now();
        let mut last = last.lock().expect("nothing panics while it holds the lock");
        if now.duration_since(*last) >= LINE_EVERY {
            *last = now;
            write_line(&self.plain_line(position, now, message));
        }
    }

    /// Writes a permanent line above the bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| write_line(text));
    }

    /// Formats `tokenizing: 120.0 MB of 300.0 MB, 40.0 MB/s, 5s left, MESSAGE`.
    fn plain_line(&self, position: u64, now: Instant, message: &str) -> String {
        let mut line = format!("{}: {}", self.label, self.unit.shown(position as f64));
        let total = self.bar.length();
        if let Some(total) = total {
            let _ = write!(line, " of {}", self.unit.shown(total as f64));
        }
        let rate = position as f64 / now.duration_since(self.started).as_secs_f64().max(1e-9);
        let rate_shown = match self.unit {
            Unit::Items if rate < 10.0 => format!("{rate:.1}"),
            unit => unit.shown(rate),
        };
        let _ = write!(line, ", {rate_shown}/s");
        if let Some(left) = total.and_then(|total| total.checked_sub(position)).filter(|_| rate > 0.0) {
            let seconds = Duration::try_from_secs_f64(left as f64 / rate).unwrap_or(Duration::MAX);
            let _ = write!(line, ", {:#} left", HumanDuration(seconds));
        }
        if !message.is_empty() {
            let _ = write!(line, ", {message}");
        }
        line
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Writes a line to stderr, without control characters of files. Errors are ignored: a stderr that nobody reads is no reason to
/// stop the work.
pub fn write_line(text: &str) {
    if world::is_quiet() {
        return;
    }
    let _ = writeln!(std::io::stderr(), "{}", printable(text));
}

fn style(unit: Unit, total_known: bool) -> ProgressStyle {
    let template = match (unit, total_known) {
        (Unit::Bytes, true) => {
            "{prefix} {bar:30} {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {msg}"
        }
        (Unit::Bytes, false) => "{prefix} {spinner} {decimal_bytes}  {decimal_bytes_per_sec}  {msg}",
        (Unit::Items, true) => "{prefix} {bar:30} {human_pos} of {human_len}  {per_sec}  {eta} left  {msg}",
        (Unit::Items, false) => "{prefix} {spinner} {human_pos}  {per_sec}  {msg}",
    };
    ProgressStyle::with_template(template).expect("the templates are well formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(progress: &Progress, position: u64, seconds: u64, message: &str) -> String {
        progress.plain_line(position, progress.started + Duration::from_secs(seconds), message)
    }

    #[test]
    fn plain_lines_say_how_far_how_fast_and_how_long() {
        let progress = Progress::bytes("reading");
        assert_eq!(line(&progress, 120_000_000, 3, ""), "reading: 120.0 MB, 40.0 MB/s");
        progress.set_total(Some(1_300_000_000));
        assert_eq!(line(&progress, 100_000_000, 1, ""), "reading: 100.0 MB of 1.30 GB, 100.0 MB/s, 12s left");
        assert_eq!(line(&progress, 0, 1, "waiting"), "reading: 0.0 MB of 1.30 GB, 0.0 MB/s, waiting");
        progress.set_total(None);
        assert_eq!(line(&progress, 2_000_000, 1, ""), "reading: 2.0 MB, 2.0 MB/s");
        let progress = Progress::items("evaluating");
        progress.set_total(Some(1838));
        assert_eq!(line(&progress, 1_200, 4, "piqa"), "evaluating: 1,200 of 1,838, 300/s, 2s left, piqa");
        assert_eq!(line(&progress, 6, 4, ""), "evaluating: 6 of 1,838, 1.5/s, 20m left");
    }
}
