//! A long run, in one process and in many.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::figures::{compare, scenario};
use crate::campaign::Campaign;
use crate::process::{Gauge, interrupt};
use crate::program::{read_text, wait};
use crate::report::Report;
use crate::tree::{Tree, log_lines};

/// Part of the steps after which the figures of the start are taken: by then all buffers are allocated.
const WARM: u64 = 10;

/// Runs both, and compares their files.
///
/// # Errors
/// If a command fails.
pub fn run(campaign: &Campaign, steps: u64, every: u64, report: &mut Report) -> Result<()> {
    let settings = format!(
        "--max_iters {steps} --log_interval {every} --save_interval {every} --eval_interval {every} --eval_iters 1 --dropout 0.1 \
         --out x.pt --threads 2"
    );
    let line = format!("train --config tiny.toml --data _data_d_ {settings}");
    let again = format!("scripts/campaign soak --seed {}{}", campaign.seed, campaign.arguments);
    let places = ["whole", "pieces"].map(|name| campaign.place(name, 0));
    for place in &places {
        campaign.base().write(&place.join("work"))?;
        crate::stage::prepare(place)?;
    }
    let scenario = scenario("train").context("no scenario of train")?;

    report.row("train, one process");
    let began = Instant::now();
    let mut child = campaign.program.spawn(&places[0], scenario, &line)?;
    let (mut start, mut last) = (None, None);
    while child.try_wait()?.is_none() {
        let step = step_of(&places[0]);
        // Fails once the process has ended.
        if let Ok(gauge) = Gauge::read(child.id()) {
            let is_warm = step >= (steps / WARM).max(every);
            start = start.or(is_warm.then_some(gauge));
            last = Some(gauge).filter(|gauge| gauge.threads > 0 && gauge.memory > 0).or(last);
        }
        report.progress(step as usize, steps as usize);
        sleep(Duration::from_millis(20));
    }
    let status = wait(&mut child)?;
    ensure!(status.success(), "ngen3 {line}: {status}: {}", read_text(&places[0].join("err")));
    report.add("units", steps);
    report.add("seconds", began.elapsed().as_secs());
    let (Some(start), Some(end)) = (start, last) else { bail!("the run was too short to be measured") };
    compare(report, start, end, &again);
    report.row_done();

    report.row("train, in pieces");
    let began = Instant::now();
    let mut pieces = 0;
    loop {
        let from = step_of(&places[1]);
        let state = places[1].join("work/x.state/state.safetensors");
        let resumed = format!("{line} --resume");
        let mut child = campaign.program.spawn(&places[1], scenario, if state.exists() { &resumed } else { &line })?;
        pieces += 1;
        // Interrupted as by Ctrl-C once it has done its part.
        while child.try_wait()?.is_none() && step_of(&places[1]) < from + every {
            sleep(Duration::from_millis(2));
        }
        // Fails once the process has ended.
        let _ = interrupt(child.id());
        let status = wait(&mut child)?;
        report.progress(step_of(&places[1]) as usize, steps as usize);
        match status.code() {
            Some(0) => break,
            Some(130) => {}
            _ => bail!("ngen3 {line} --resume: {status}: {}", read_text(&places[1].join("err"))),
        }
        ensure!(pieces < 10 * (1 + steps / every), "the run does not get to its end");
    }
    report.add("units", pieces);
    report.add("seconds", began.elapsed().as_secs());
    let [whole, in_pieces] = [Tree::read(&places[0].join("work"))?, Tree::read(&places[1].join("work"))?];
    let model = Path::new("x.pt");
    if whole.file(model) != in_pieces.file(model) {
        report.lose(&format!("the model of {pieces} pieces differs from that of one process"), &again);
    }
    let log = |tree: &Tree| log_lines(tree.file(Path::new("x.run/metrics.jsonl")).unwrap_or_default());
    if log(&whole)? != log(&in_pieces)? {
        report.lose(&format!("the log of {pieces} pieces differs from that of one process"), &again);
    }
    let names = |tree: &Tree| tree.without_times().0.into_keys().collect::<Vec<_>>();
    if names(&whole) != names(&in_pieces) {
        report.lose("the files differ", &again);
    }
    report.row_done();
    Ok(())
}

/// Returns the last step in the log of a run.
fn step_of(place: &Path) -> u64 {
    let text = fs::read(place.join("work/x.run/metrics.jsonl")).unwrap_or_default();
    let lines = log_lines(&text).unwrap_or_default();
    lines.last().and_then(|line| line["step"].as_u64()).unwrap_or(0)
}
