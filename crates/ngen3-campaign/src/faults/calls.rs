//! Fails the n-th system call of a command, for every n.
//!
//! A command whose call is interrupted or transfers fewer bytes must succeed with the same files. Any other fault must be answered by
//! success with the same files, or by exit code 1 and one line; the files are then the old ones or those of a run that was stopped,
//! nothing temporary is left, and the command succeeds once the fault is gone.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::Result;

use crate::campaign::Campaign;
use crate::judge;
use crate::report::Report;
use crate::scenarios;
use crate::stage::Stage;
use crate::trace::{self, Action, Call, End, Kind, Watch};
use crate::tree::{Tree, is_temporary};

/// Least bytes of an allocation that is failed.
const LARGE: u64 = 1 << 17;

/// A fault.
struct Fault {
    name: &'static str,
    action: Action,
    /// It stays from the n-th call on.
    stays: bool,
    /// It can happen to a call.
    fits: fn(&Call) -> bool,
    /// The command must succeed nevertheless.
    harmless: bool,
}

fn grows(call: &Call) -> bool {
    let makes = matches!(call.kind, Kind::Open { make: true, .. });
    makes || matches!(call.kind, Kind::Write { .. } | Kind::MakeFolder | Kind::Rename { .. } | Kind::Sync)
}

fn takes_space(call: &Call) -> bool {
    let makes = matches!(call.kind, Kind::Open { make: true, .. });
    makes || matches!(call.kind, Kind::Write { .. } | Kind::MakeFolder)
}

fn is_file(call: &Call) -> bool {
    !matches!(call.kind, Kind::Memory { .. })
}

/// Calls that a signal interrupts. Local file systems open folders without a wait.
fn waits(call: &Call) -> bool {
    matches!(call.kind, Kind::Open { folder: false, .. } | Kind::Read { .. } | Kind::Write { .. } | Kind::Sync)
}

fn transfers(call: &Call) -> bool {
    match &call.kind {
        Kind::Read { len } => *len > 1,
        Kind::Write { data, .. } => data.len() > 1,
        _ => false,
    }
}

fn is_large(call: &Call) -> bool {
    matches!(call.kind, Kind::Memory { len } if len >= LARGE)
}

const FAULTS: &[Fault] = &[
    Fault { name: "ENOSPC", action: Action::Fail(28), stays: false, fits: grows, harmless: false },
    Fault { name: "full", action: Action::Fail(28), stays: true, fits: takes_space, harmless: false },
    Fault { name: "EDQUOT", action: Action::Fail(122), stays: false, fits: takes_space, harmless: false },
    Fault { name: "EIO", action: Action::Fail(5), stays: false, fits: is_file, harmless: false },
    Fault { name: "EINTR", action: Action::Fail(4), stays: false, fits: waits, harmless: true },
    Fault { name: "short", action: Action::Shorten(1), stays: false, fits: transfers, harmless: true },
    Fault { name: "memory", action: Action::Fail(12), stays: false, fits: is_large, harmless: false },
    Fault { name: "no-memory", action: Action::Fail(12), stays: true, fits: is_large, harmless: false },
];

/// Fails calls of all scenarios of one process.
///
/// # Errors
/// If a scenario cannot be prepared.
pub fn run(campaign: &Campaign, most: usize, report: &mut Report) -> Result<()> {
    if !trace::is_available() {
        println!("SKIPPED: failing system calls (needs Linux on x86_64)");
        return Ok(());
    }
    for scenario in &campaign.scenarios {
        if scenario.kind != scenarios::Kind::Exact {
            continue;
        }
        let Some(stage) = campaign.stage(scenario)? else { continue };
        report.row(scenario.name);
        let mut judged = HashSet::new();
        for (kind, fault) in FAULTS.iter().enumerate() {
            let calls = count(campaign, &stage, fault)?;
            let step = if most == 0 { 1 } else { calls.div_ceil(most as u64).max(1) };
            // A try's number holds the fault and the call.
            let numbers = (1..=calls).step_by(step as usize).map(|call| kind as u64 * 1_000_000 + call);
            let wanted = |number: &u64| campaign.only_try.is_none_or(|only| only == *number);
            for number in numbers.filter(wanted) {
                report.progress((number % 1_000_000) as usize, calls as usize);
                report.add("tries", 1);
                let place = campaign.place(scenario.name, number);
                let mut breaker = Breaker { fault, at: number % 1_000_000, seen: 0, failed: Vec::new() };
                match attempt(campaign, &stage, &place, &mut breaker, &mut judged) {
                    Ok(outcome) => {
                        report.add(outcome, 1);
                        campaign.clean(&place);
                    }
                    Err(reason) => {
                        let call = breaker.failed.first().map_or("no call", String::as_str);
                        let again = campaign.again("faults", scenario.name, Some(number));
                        let reason = format!("{} at {call}: {reason} (kept in {})", fault.name, place.display());
                        report.lose(&reason, &again);
                    }
                }
            }
        }
        report.row_done();
    }
    Ok(())
}

/// Returns the number of calls that a fault can happen to.
fn count(campaign: &Campaign, stage: &Stage, fault: &Fault) -> Result<u64> {
    let place = campaign.place(stage.scenario.name, u64::MAX);
    stage.set_up(&place)?;
    let mut breaker = Breaker { fault, at: u64::MAX, seen: 0, failed: Vec::new() };
    campaign.program.traced(&place, stage.scenario, stage.scenario.line, &mut breaker)?;
    campaign.clean(&place);
    Ok(breaker.seen)
}

/// Runs the command with a fault; returns the column of its outcome.
fn attempt(
    campaign: &Campaign,
    stage: &Stage,
    place: &Path,
    breaker: &mut Breaker,
    judged: &mut HashSet<u64>,
) -> Result<&'static str, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    stage.set_up(place).map_err(text)?;
    let scenario = stage.scenario;
    let outcome = campaign.program.traced(place, scenario, scenario.line, breaker).map_err(text)?;
    let column = match outcome.end {
        End::Code(0) => "succeeded",
        // Rust ends a program that cannot allocate.
        End::Signal(6) if outcome.stderr.contains("memory allocation of ") => "aborted",
        _ => match outcome.improper(scenario.input.is_some()) {
            Some(reason) => return Err(reason),
            None => "refused",
        },
    };
    if breaker.fault.harmless && column != "succeeded" {
        return Err(format!("expected success, got {}", outcome.message()));
    }
    let removes = breaker.failed.iter().any(|call| call.starts_with("unlink") || call.starts_with("rmdir"));
    if column == "succeeded" && !removes {
        return judge::finished(stage, place).map(|()| column).map_err(|reason| format!("success, but {reason}"));
    }
    let tree = Tree::read(&place.join("work")).map_err(text)?;
    if column == "succeeded" {
        // What could not be removed is removed by the next run.
        return judge::durable(stage, &tree).map(|()| column);
    }
    judge::compare(stage, &tree, true)?;
    // An old folder whose replacement cannot be made durable is kept until the next run.
    let keeps = breaker.failed.iter().any(|call| call.ends_with(" work"));
    let left = tree.0.keys().find(|name| is_temporary(name));
    if let Some(name) = left.filter(|_| !removes && !keeps && column != "aborted") {
        return Err(format!("{} is left ({})", name.display(), outcome.message()));
    }
    // What was judged before, or is as before the command, is known to be good.
    let mut hasher = DefaultHasher::new();
    tree.0.hash(&mut hasher);
    if tree != stage.old && judged.insert(hasher.finish()) {
        judge::open(&campaign.program, stage, place)?;
        let done = judge::finished(stage, place).is_ok();
        if !done {
            judge::finish(&campaign.program, stage, place)
                .map_err(|reason| format!("after {:?}: {reason}", outcome.message()))?;
        }
    }
    Ok(column)
}

/// Fails a call.
struct Breaker<'a> {
    fault: &'a Fault,
    at: u64,
    seen: u64,
    failed: Vec<String>,
}

impl Watch for Breaker<'_> {
    fn before(&mut self, call: &Call) -> Action {
        if !(self.fault.fits)(call) {
            return Action::Pass;
        }
        self.seen += 1;
        if self.seen == self.at || self.fault.stays && self.seen > self.at {
            self.failed.push(call.to_string());
            return self.fault.action;
        }
        Action::Pass
    }
}
