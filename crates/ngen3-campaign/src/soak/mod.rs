//! `campaign soak`: eight hours in minutes.
//!
//! [`train`] makes a tiny model take 100,000 steps with saves and evaluations, once in one process and once in a process for each 500
//! steps; [`serve`] puts a server under load. Memory, open files and threads at the end are those of the start.

mod serve;
mod train;

use anyhow::Result;

use crate::campaign::Campaign;
use crate::process::Gauge;
use crate::report::Report;
use crate::scenarios::Scenario;

/// Growth of the memory that is allowed, in KiB: what an allocator keeps, not a leak of each step.
const GROWTH: u64 = 4096;

/// Runs both.
///
/// # Errors
/// If a command fails.
pub fn run(campaign: &Campaign, steps: u64, every: u64, requests: u64) -> Result<Report> {
    let mut report =
        Report::new(&["units", "seconds", "KiB-start", "KiB-end", "files-start", "files-end", "thr-start", "thr-end"])
            .without_sums();
    train::run(campaign, steps, every, &mut report)?;
    serve::run(campaign, requests, &mut report)?;
    Ok(report)
}

/// Finds a scenario.
fn scenario(name: &str) -> Option<&'static Scenario> {
    crate::scenarios::ALL.iter().find(|scenario| scenario.name == name)
}

/// Adds the figures of a process to the last row, and judges them.
fn compare(report: &mut Report, start: Gauge, end: Gauge, again: &str) {
    report.add("KiB-start", start.memory);
    report.add("KiB-end", end.memory);
    report.add("files-start", start.files as u64);
    report.add("files-end", end.files as u64);
    report.add("thr-start", start.threads as u64);
    report.add("thr-end", end.threads as u64);
    let mut grown = Vec::new();
    if end.memory > start.memory + GROWTH {
        grown.push(format!("memory grew from {} to {} KiB", start.memory, end.memory));
    }
    if end.files > start.files {
        grown.push(format!("open files grew from {} to {}", start.files, end.files));
    }
    if end.threads > start.threads {
        grown.push(format!("threads grew from {} to {}", start.threads, end.threads));
    }
    if !grown.is_empty() {
        report.lose(&grown.join("; "), again);
    }
}
