//! Signals to processes that a campaign started, and figures of them.

use std::fs;

use anyhow::{Context, Result};

/// Interrupts a process as Ctrl-C does.
///
/// # Errors
/// If there is none.
pub fn interrupt(pid: u32) -> Result<()> {
    signal(pid, "INT")
}

/// Kills a process and all that descend from it.
pub fn kill_all(pid: u32) {
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(&parent) = family.get(at) {
        family.extend(children(parent));
        at += 1;
    }
    // One may have ended just now.
    family.into_iter().for_each(|pid| drop(signal(pid, "KILL")));
}

/// Sends a signal.
///
/// # Errors
/// If there is no such process.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let output = std::process::Command::new("kill").args([format!("-{name}"), pid.to_string()]).output()?;
    anyhow::ensure!(output.status.success(), "cannot signal process {pid}");
    Ok(())
}

/// Returns the children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&child| parent(child) == Some(pid)).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces.
    text[text.rfind(')')? + 1..].split_whitespace().nth(1)?.parse().ok()
}

/// Figures of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauge {
    /// Memory in KiB.
    pub memory: u64,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

impl Gauge {
    /// Reads the figures of a process that runs.
    ///
    /// # Errors
    /// If it ended.
    pub fn read(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let memory = line.trim().trim_end_matches(" kB").parse()?;
        let count = |name: &str| -> Result<usize> { Ok(fs::read_dir(format!("/proc/{pid}/{name}"))?.count()) };
        Ok(Self { memory, files: count("fd")?, threads: count("task")? })
    }
}
