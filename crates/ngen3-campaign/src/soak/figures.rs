//! Figures of a process at the start and at the end of a soak.

use crate::process::Gauge;
use crate::report::Report;
use crate::scenarios::Scenario;

/// Growth of the memory that is allowed, in KiB: what an allocator keeps, not a leak of each step.
const GROWTH: u64 = 4096;

/// Finds a scenario.
pub fn scenario(name: &str) -> Option<&'static Scenario> {
    crate::scenarios::ALL.iter().find(|scenario| scenario.name == name)
}

/// Adds the figures of a process to the last row, and judges them.
pub fn compare(report: &mut Report, start: Gauge, end: Gauge, again: &str) {
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
