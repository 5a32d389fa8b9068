//! Faults of the world around a command: the clock jumps, a folder is deleted, and two runs use one name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;

use anyhow::{Context, Result, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::campaign::{Campaign, seed_of};
use crate::judge;
use crate::program::{Outcome, end, read_text, wait};
use crate::report::Report;
use crate::scenarios::Kind;
use crate::stage::Stage;
use crate::trace::End;
use crate::tree::Tree;

/// A library that moves the clock of the day at every call.
const CLOCK: &str = include_str!("clock.c");

/// Tries of each scenario for each fault, of a whole campaign.
const TRIES: u64 = 6;

/// Runs all three; at most `most` tries of each scenario and fault, unless it is 0.
///
/// # Errors
/// If a scenario cannot be prepared.
pub fn run(campaign: &Campaign, most: usize, report: &mut Report) -> Result<()> {
    let tries = if most == 0 { TRIES } else { TRIES.min(most as u64) };
    let clock = clock(campaign)?;
    let mut stages = Vec::new();
    for scenario in campaign.scenarios.iter().filter(|scenario| scenario.kind == Kind::Exact) {
        stages.extend(campaign.stage(scenario)?);
    }
    for (name, fault) in [("clock", 0), ("deleted-folder", 1), ("two-runs", 2)] {
        if fault == 0 && clock.is_none() {
            println!("SKIPPED: a clock that jumps (needs Linux and a C compiler)");
            continue;
        }
        report.row(name);
        for stage in &stages {
            for number in 0..tries {
                report.add("tries", 1);
                let place = campaign.place(stage.scenario.name, 100 * (fault + 1) + number);
                let tried = match (fault, &clock) {
                    (0, Some(clock)) => jump(campaign, stage, &place, clock, number),
                    (1, _) => delete(campaign, stage, &place, number),
                    _ => twice(campaign, stage, &place, number),
                };
                match tried {
                    Ok(outcome) => {
                        report.add(outcome, 1);
                        campaign.clean(&place);
                    }
                    Err(reason) => {
                        let again = campaign.again("faults", stage.scenario.name, None);
                        let reason = format!("{}: {reason} (kept in {})", stage.scenario.name, place.display());
                        report.lose(&reason, &again);
                    }
                }
            }
        }
        report.row_done();
    }
    Ok(())
}

/// Compiles the library.
fn clock(campaign: &Campaign) -> Result<Option<PathBuf>> {
    let place = campaign.place("clock", 0);
    fs::create_dir_all(&place)?;
    let (source, library) = (place.join("clock.c"), place.join("clock.so"));
    fs::write(&source, CLOCK)?;
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).output();
    let compiled = compiled.is_ok_and(|output| output.status.success());
    Ok((cfg!(target_os = "linux") && compiled).then_some(library))
}

/// Runs a command while the clock jumps, by a different number of seconds in each try. It must succeed with the same files.
fn jump(campaign: &Campaign, stage: &Stage, place: &Path, clock: &Path, number: u64) -> Result<&'static str, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let seconds = ["-1", "3600", "-86400", "100000000", "-1000000000", "-5000000000"];
    let run = || -> Result<Outcome> {
        stage.set_up(place)?;
        let scenario = stage.scenario;
        let mut command = campaign.program.command(place, scenario.line);
        command.env("LD_PRELOAD", clock).env("CAMPAIGN_JUMP", seconds[number as usize % seconds.len()]);
        command.stdin(match scenario.input {
            Some(name) => fs::File::open(place.join("work").join(name))?.into(),
            None => std::process::Stdio::null(),
        });
        command.stdout(fs::File::create(place.join("out"))?).stderr(fs::File::create(place.join("err"))?);
        let status = wait(&mut command.spawn().context("cannot start ngen3")?)?;
        ensure!(place.join("work").exists(), "the folder is gone");
        Ok(Outcome { end: end(status), stderr: read_text(&place.join("err")) })
    };
    let outcome = run().map_err(text)?;
    if outcome.end != End::Code(0) {
        return Err(format!("{:?}: {}", outcome.end, outcome.message()));
    }
    judge::finished(stage, place).map(|()| "succeeded")
}

/// Deletes folders at a random moment: those that the command writes into, or the working directory.
fn delete(campaign: &Campaign, stage: &Stage, place: &Path, number: u64) -> Result<&'static str, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let run = || -> Result<Outcome> {
        stage.set_up(place)?;
        let seed = seed_of(campaign.seed, stage.scenario.name, 1000 + number);
        let part = ChaCha8Rng::seed_from_u64(seed).random_range(0.0..1.0);
        let mut child = campaign.program.spawn(place, stage.scenario, stage.scenario.line)?;
        sleep(stage.time.mul_f64(part));
        let work = place.join("work");
        let written = |entry: &fs::DirEntry| {
            let name = PathBuf::from(entry.file_name());
            entry.path().is_dir() && !stage.old.0.contains_key(&name)
        };
        let folders: Vec<_> = fs::read_dir(&work)?.flatten().filter(written).map(|entry| entry.path()).collect();
        // Removing fails while the program writes into the folder; that is part of the fault.
        if folders.is_empty() || number.is_multiple_of(2) {
            let _ = fs::remove_dir_all(&work);
        } else {
            folders.iter().for_each(|folder| drop(fs::remove_dir_all(folder)));
        }
        let status = wait(&mut child)?;
        Ok(Outcome { end: end(status), stderr: read_text(&place.join("err")) })
    };
    let outcome = run().map_err(text)?;
    match (outcome.end, outcome.improper(stage.scenario.input.is_some())) {
        (_, Some(reason)) => Err(reason),
        (End::Code(0), _) => Ok("succeeded"),
        _ => Ok("refused"),
    }
}

/// Starts the command twice at nearly the same time. At least one must succeed, and the files are those of one.
fn twice(campaign: &Campaign, stage: &Stage, place: &Path, number: u64) -> Result<&'static str, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let run = || -> Result<[Outcome; 2]> {
        stage.set_up(place)?;
        let seed = seed_of(campaign.seed, stage.scenario.name, 2000 + number);
        let part = ChaCha8Rng::seed_from_u64(seed).random_range(0.0..0.6);
        let first = campaign.program.spawn(place, stage.scenario, stage.scenario.line)?;
        sleep(stage.time.mul_f64(part));
        let error = place.join("err");
        let other = place.join("err-first");
        fs::rename(&error, &other)?;
        let second = campaign.program.spawn(place, stage.scenario, stage.scenario.line)?;
        let mut ended = Vec::new();
        for (mut child, path) in [(first, other), (second, error)] {
            let status = wait(&mut child)?;
            ended.push(Outcome { end: end(status), stderr: read_text(&path) });
        }
        <[Outcome; 2]>::try_from(ended).map_err(|_| anyhow::anyhow!("two outcomes"))
    };
    let outcomes = run().map_err(text)?;
    for outcome in &outcomes {
        if let Some(reason) = outcome.improper(stage.scenario.input.is_some()) {
            return Err(reason);
        }
    }
    let succeeded = outcomes.iter().filter(|outcome| outcome.end == End::Code(0)).count();
    if succeeded == 0 {
        return Err(format!("neither succeeded: {} / {}", outcomes[0].message(), outcomes[1].message()));
    }
    let tree = Tree::read(&place.join("work")).map_err(text)?;
    // A chat that is saved twice is there twice.
    if stage.scenario.input.is_none() {
        judge::compare(stage, &tree, true)?;
        judge::finished(stage, place)?;
    }
    Ok(if succeeded == 2 { "succeeded" } else { "refused" })
}
