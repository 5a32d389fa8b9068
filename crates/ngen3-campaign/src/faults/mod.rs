//! `campaign faults`: the system fails the program, one call at a time, and everything else that a machine does to it.
//!
//! [`calls`] fails the n-th system call, for every n; [`world`] moves the clock, deletes folders, and starts two runs of one name.

mod calls;
mod world;

use anyhow::Result;

use crate::campaign::Campaign;
use crate::report::Report;

/// Runs the campaign. At most `most` calls of each scenario and fault are failed, evenly spread; 0 fails every one.
///
/// # Errors
/// If a scenario cannot be prepared.
pub fn run(campaign: &Campaign, most: usize) -> Result<Report> {
    let mut report = Report::new(&["tries", "succeeded", "refused", "aborted"]);
    calls::run(campaign, most, &mut report)?;
    if campaign.only_try.is_none() {
        world::run(campaign, most, &mut report)?;
    }
    Ok(report)
}
