//! Records the calls of a command that change files, with their data.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::campaign::Campaign;
use crate::stage::Stage;
use crate::trace::{Action, Call, End, Kind, Watch};

/// Runs a scenario's command in a place; returns the calls that succeeded.
///
/// # Errors
/// If the command fails, or makes a call that has no model.
pub fn run(campaign: &Campaign, stage: &Stage, place: &Path) -> Result<Vec<Call>> {
    let mut recorder = Recorder::default();
    let scenario = stage.scenario;
    let outcome = campaign.program.traced(place, scenario, scenario.line, &mut recorder)?;
    ensure!(outcome.end == End::Code(0), "{}: {:?}: {}", scenario.name, outcome.end, outcome.message());
    ensure!(recorder.unknown.is_empty(), "{}: no model of {}", scenario.name, recorder.unknown.join(", "));
    ensure!(!recorder.calls.is_empty(), "{}: no calls were recorded", scenario.name);
    Ok(recorder.calls)
}

#[derive(Default)]
struct Recorder {
    calls: Vec<Call>,
    unknown: Vec<&'static str>,
}

impl Recorder {
    /// Adds a call. Writes that follow each other in one file are one: a disk may tear them anywhere.
    fn add(&mut self, call: Call) {
        if let (Some(last), Kind::Write { at, data }) = (self.calls.last_mut(), &call.kind)
            && let Kind::Write { at: start, data: before } = &mut last.kind
            && last.path == call.path
            && *start + before.len() as u64 == *at
        {
            before.extend_from_slice(data);
            return;
        }
        self.calls.push(call);
    }
}

impl Watch for Recorder {
    fn before(&mut self, _: &Call) -> Action {
        Action::Pass
    }

    fn after(&mut self, call: &Call, result: i64) {
        if result < 0 || !call.changes() {
            return;
        }
        let mut call = call.clone();
        match &mut call.kind {
            Kind::Unknown { name } => self.unknown.push(name),
            Kind::Write { data, .. } => data.truncate(usize::try_from(result).unwrap_or(0)),
            _ => {}
        }
        self.add(call);
    }
}
