//! `campaign soak`: eight hours in minutes.
//!
//! [`train`] makes a tiny model take 100,000 steps with saves and evaluations, once in one process and once in a process for each 500
//! steps; [`serve`] puts a server under load. Memory, open files and threads at the end are those of the start.

mod figures;
mod serve;
mod train;

use anyhow::Result;

use crate::campaign::Campaign;
use crate::report::Report;

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
