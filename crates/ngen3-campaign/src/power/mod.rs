//! `campaign power`: the power fails after every system call that changes files, and the disk keeps what a file system may keep.
//!
//! The calls of one run are recorded with their data ([`record`]). For each prefix of them, [`disk`] lists the states that a disk may
//! then be in: changes that no `fsync` made durable are dropped, torn or reordered (Pillai et al. 2014, "All file systems are not
//! created equal"). Each different state is written into a folder, which ngen3 must open and finish.

mod disk;
mod record;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::Result;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::campaign::{Campaign, seed_of};
use crate::judge::{self, Found};
use crate::report::Report;
use crate::scenarios::Kind;
use crate::stage::Stage;
use crate::trace;
use crate::tree::Tree;
use disk::{History, Variant};

/// A state of the disk: after so many calls, and what was kept.
type Crash = (usize, Variant);

/// Runs the campaign. At most `most` states of each scenario are tried, drawn at random; 0 tries all.
///
/// # Errors
/// If a scenario cannot be prepared or recorded.
pub fn run(campaign: &Campaign, most: usize) -> Result<Report> {
    let mut report = Report::new(&["calls", "states", "tries", "old", "new", "between", "refused", "resumed"]);
    if !trace::is_available() {
        println!("SKIPPED: recording system calls (needs Linux on x86_64)");
        return Ok(report);
    }
    for scenario in campaign.scenarios.iter().filter(|scenario| scenario.kind == Kind::Exact) {
        let Some(stage) = campaign.stage(scenario)? else { continue };
        report.row(scenario.name);
        let place = campaign.place(scenario.name, u64::MAX);
        stage.set_up(&place)?;
        let calls = record::run(campaign, &stage, &place)?;
        campaign.clean(&place);
        let history = History::new(&stage.old, &place.join("work"), &calls)?;
        let crashes = different(&history);
        report.add("calls", calls.len() as u64);
        report.add("states", crashes.len() as u64);
        let chosen = choose(campaign, scenario.name, crashes.len(), most);
        for (at, &number) in chosen.iter().enumerate() {
            report.progress(at, chosen.len());
            report.add("tries", 1);
            let (calls_done, variant) = &crashes[number];
            let place = campaign.place(scenario.name, number as u64);
            let is_last = *calls_done == calls.len() && *variant == Variant::Synced;
            let tree = history.state(*calls_done, variant);
            match attempt(campaign, &stage, &place, &tree, is_last, &mut report) {
                Ok(()) => campaign.clean(&place),
                Err(reason) => {
                    let last = calls_done.checked_sub(1).map_or_else(|| "start".into(), |last| calls[last].to_string());
                    let again = campaign.again("power", scenario.name, Some(number as u64));
                    let shown = place.display();
                    report.lose(&format!("after {last}, {variant}: {reason} (kept in {shown})"), &again);
                }
            }
        }
        report.row_done();
    }
    Ok(report)
}

/// Lists the states that differ from each other, over all prefixes.
fn different(history: &History) -> Vec<Crash> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for calls in 0..=history.len() {
        for variant in history.variants(calls) {
            let mut hasher = DefaultHasher::new();
            history.state(calls, &variant).0.hash(&mut hasher);
            // At the end, all that was reported must be durable.
            let is_end = calls == history.len() && variant == Variant::Synced;
            if seen.insert(hasher.finish()) || is_end {
                found.push((calls, variant));
            }
        }
    }
    found
}

/// Returns the numbers of the states to try. The last one is always among them.
fn choose(campaign: &Campaign, scenario: &str, states: usize, most: usize) -> Vec<usize> {
    if let Some(number) = campaign.only_try {
        return (0..states).filter(|state| *state as u64 == number).collect();
    }
    let mut numbers: Vec<_> = (0..states).collect();
    if most > 0 && most < states {
        numbers[..states - 1].shuffle(&mut ChaCha8Rng::seed_from_u64(seed_of(campaign.seed, scenario, 0)));
        numbers.drain(most - 1..states - 1);
        numbers.sort_unstable();
    }
    numbers
}

fn attempt(
    campaign: &Campaign,
    stage: &Stage,
    place: &Path,
    tree: &Tree,
    is_last: bool,
    report: &mut Report,
) -> Result<(), String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    tree.write(&place.join("work")).map_err(text)?;
    crate::stage::prepare(place).map_err(text)?;
    if is_last {
        judge::durable(stage, tree)?;
    }
    let found = judge::compare(stage, tree, false)?;
    report.add(
        match found {
            Found::Old => "old",
            Found::New => "new",
            Found::Between => "between",
        },
        1,
    );
    // As before the command, or as after it.
    if *tree != stage.old && !(found == Found::New && judge::finished(stage, place).is_ok()) {
        if !judge::open(&campaign.program, stage, place)? {
            report.add("refused", 1);
        }
        judge::finish(&campaign.program, stage, place)?;
        report.add("resumed", 1);
    }
    Ok(())
}
