//! `campaign kills`: each command is killed by SIGKILL at random moments, and its files are judged.
//!
//! A try is decided by the seed, the scenario and its number. Half of the kills strike at a system call that changes files
//! (before it, after it, or after half of a write), which repeats exactly; the others strike by the clock. A third of the
//! commands that finish the work are killed in their turn.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::campaign::{Campaign, seed_of};
use crate::judge::{self, Found};
use crate::process;
use crate::program::{read_text, wait};
use crate::report::Report;
use crate::scenarios::Kind;
use crate::server::Server;
use crate::stage::Stage;
use crate::trace::{self, Action, Call, End, Watch};
use crate::tree::Tree;

/// Most kills in a row.
const MOST: u64 = 4;

/// Runs the campaign.
///
/// # Errors
/// If a scenario cannot be prepared.
pub fn run(campaign: &Campaign, count: usize) -> Result<Report> {
    let mut report = Report::new(&["tries", "kills", "old", "new", "between", "refused", "resumed"]);
    if !trace::is_available() {
        println!("SKIPPED: kills at system calls (need Linux on x86_64); all kills are by the clock");
    }
    let weights: usize = campaign.scenarios.iter().map(|scenario| scenario.weight).sum();
    for scenario in &campaign.scenarios {
        let Some(stage) = campaign.stage(scenario)? else { continue };
        report.row(scenario.name);
        let calls = count_calls(campaign, &stage)?;
        let tries = (count * scenario.weight).div_ceil(weights);
        let numbers = campaign.only_try.map_or(0..tries as u64, |number| number..number + 1);
        let of = tries;
        for number in numbers {
            report.progress(number as usize, of);
            report.add("tries", 1);
            let place = campaign.place(scenario.name, number);
            let mut rng = ChaCha8Rng::seed_from_u64(seed_of(campaign.seed, scenario.name, number));
            match attempt(campaign, &stage, &place, &mut rng, calls, &mut report) {
                Ok(()) => campaign.clean(&place),
                Err(reason) => {
                    let again = campaign.again("kills", scenario.name, Some(number));
                    report.lose(&format!("{reason} (kept in {})", place.display()), &again);
                }
            }
        }
        report.row_done();
    }
    Ok(report)
}

/// Returns the number of calls that change files in a whole run; 0 if it cannot be traced.
fn count_calls(campaign: &Campaign, stage: &Stage) -> Result<u64> {
    if !trace::is_available() || stage.scenario.kind != Kind::Exact {
        return Ok(0);
    }
    let place = campaign.place(stage.scenario.name, u64::MAX);
    stage.set_up(&place)?;
    let mut killer = Killer { at: u64::MAX, seen: 0, how: Action::Pass };
    campaign.program.traced(&place, stage.scenario, stage.scenario.line, &mut killer)?;
    campaign.clean(&place);
    Ok(killer.seen)
}

/// One try: kills, judges, kills again maybe, finishes.
fn attempt(
    campaign: &Campaign,
    stage: &Stage,
    place: &Path,
    rng: &mut ChaCha8Rng,
    calls: u64,
    report: &mut Report,
) -> Result<(), String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    stage.set_up(place).map_err(text)?;
    let mut kills = 0;
    while kills < MOST && (kills == 0 || rng.random_bool(0.33)) {
        if !kill_once(campaign, stage, place, rng, calls, kills == 0).map_err(text)? {
            // It ended before; the next moment is another.
            judge::finished(stage, place)?;
            if kills > 0 {
                break;
            }
            campaign.clean(place);
            stage.set_up(place).map_err(text)?;
            continue;
        }
        kills += 1;
        report.add("kills", 1);
        let tree = Tree::read(&place.join("work")).map_err(text)?;
        let found = judge::compare(stage, &tree, true)?;
        if kills == 1 {
            report.add(
                match found {
                    Found::Old => "old",
                    Found::New => "new",
                    Found::Between => "between",
                },
                1,
            );
        }
        if !judge::open(&campaign.program, stage, place)? {
            report.add("refused", 1);
        }
    }
    finish(campaign, stage, place)?;
    report.add("resumed", 1);
    Ok(())
}

/// Finishes the work, unless all is done and a second run would refuse to replace it.
fn finish(campaign: &Campaign, stage: &Stage, place: &Path) -> Result<(), String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    if stage.scenario.kind == Kind::Server {
        let server = Server::start(&campaign.program, place, stage.scenario).map_err(text)?;
        server.ask(2, false).map_err(text)?;
        server.stop().map_err(text)?;
        return judge::finished(stage, place);
    }
    let tree = Tree::read(&place.join("work")).map_err(text)?;
    if judge::compare(stage, &tree, true)? == Found::New && judge::finished(stage, place).is_ok() {
        return Ok(());
    }
    judge::finish(&campaign.program, stage, place)
}

/// Runs the command, or the one that finishes it, and kills it. Returns false if it ended before.
fn kill_once(
    campaign: &Campaign,
    stage: &Stage,
    place: &Path,
    rng: &mut ChaCha8Rng,
    calls: u64,
    first: bool,
) -> Result<bool> {
    let scenario = stage.scenario;
    let line = judge::next_line(stage, place);
    if calls > 0 && rng.random_bool(0.5) {
        let how = [Action::KillBefore, Action::KillAfter, Action::KillWithin][rng.random_range(0..3)];
        let mut killer = Killer { at: rng.random_range(1..=calls), seen: 0, how };
        let outcome = campaign.program.traced(place, scenario, line, &mut killer)?;
        return match outcome.end {
            End::Signal(9) => Ok(true),
            End::Code(0) => Ok(false),
            end => bail!("ngen3 {line}: {end:?}: {}", outcome.message()),
        };
    }
    let part = rng.random_range(0.0..if first { 1.0 } else { 0.6 });
    if scenario.kind == Kind::Server {
        let mut server = Server::start(&campaign.program, place, scenario)?;
        let _socket = server.send(50, true)?;
        sleep(Duration::from_millis(20).mul_f64(part));
        server.child.kill()?;
        return Ok(server.child.wait()?.code().is_none());
    }
    let mut child = campaign.program.spawn(place, scenario, line)?;
    sleep(stage.time.mul_f64(part));
    if scenario.kind == Kind::Ranks {
        let ranks = process::children(child.id());
        // The launcher with its ranks, or one rank, after which the launcher ends the others.
        if rng.random_bool(0.5) || ranks.is_empty() {
            process::kill_all(child.id());
        } else {
            let _ = process::signal(ranks[rng.random_range(0..ranks.len())], "KILL");
        }
        let status = wait(&mut child)?;
        return Ok(!status.success());
    }
    child.kill()?;
    let status = child.wait()?;
    let message = || read_text(&place.join("err")).lines().last().unwrap_or_default().to_owned();
    ensure!(status.code().is_none_or(|code| code == 0), "ngen3 {line}: {status}: {}", message());
    Ok(status.code().is_none())
}

/// Kills at a call.
struct Killer {
    at: u64,
    seen: u64,
    how: Action,
}

impl Watch for Killer {
    fn before(&mut self, call: &Call) -> Action {
        if !call.changes() {
            return Action::Pass;
        }
        self.seen += 1;
        if self.seen == self.at { self.how } else { Action::Pass }
    }
}
