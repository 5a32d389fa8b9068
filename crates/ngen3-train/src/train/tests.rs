//! The training loop on the fake model, and the files it writes.

mod going_on;
mod judging;
mod starting;
mod together;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ngen3_cluster::{Single, World};
use ngen3_engine::Slot;
use ngen3_model::{Checkpoint, Config, TokenizerRef};
use tempfile::TempDir;

use super::*;
use crate::objective::{Evaluation, StepOutput, ValLoss};
use crate::run_files::metrics::MetricsLine;
use crate::run_files::state;
use crate::testing::{FakeDevice, FakeEngine, settings};
use crate::{
    InitialWeights, Overrides, ReduceDtype, RunKind, RunLock, RunSpec, Shape, StartFrom, TokenObjective, setup,
};

const FRESH: StartFrom = StartFrom::Scratch;

fn config() -> Config {
    Config::new(1, 1, 2, 4, 7)
}

/// A folder with a data.bin of 300 tokens below 7, of unequal frequency.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path(), 3);
    dir
}

fn write_data(dir: &Path, skew: u32) {
    let tokens = (0..300u32).map(|i| ((i * i * skew + i / 7) % 11).min(6) as u16);
    fs::write(dir.join("data.bin"), tokens.flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
}

fn request(dir: &Path, start: StartFrom, asked: Overrides) -> RunSpec {
    RunSpec {
        kind: RunKind::Train,
        variant: None,
        config_file: None,
        out: Some(dir.join("x.pt")),
        start,
        overwrite: false,
        settings: asked,
        shape: Shape::from(&config()),
        lora: None,
        world: Arc::new(Single),
    }
}

/// Sets up a run on the data.bin beside its model.
fn prepare(request: RunSpec) -> Result<(Job, TokenObjective, InitialWeights), Error> {
    let data = request.out.as_ref().unwrap().with_file_name("data.bin");
    setup::on_tokens(&FakeDevice, request, &data)
}

/// The fake model with the initial weights of a job.
fn trainer(job: &Job, weights: InitialWeights) -> FakeEngine {
    let mut engine = FakeEngine::new(job.config.clone(), 0);
    engine.write(Slot::Params, &weights.params).unwrap();
    let share = job.updated();
    engine.set_share(share.clone()).unwrap();
    if let Some(moments) = weights.moments {
        engine.write(Slot::ExpAvg, &moments.exp_avg[share.clone()]).unwrap();
        engine.write(Slot::ExpAvgSq, &moments.exp_avg_sq[share]).unwrap();
    }
    engine
}

/// Collects the reports of a run, and can stop it.
#[derive(Default)]
struct Watcher {
    stop_after: Option<u64>,
    stop: AtomicBool,
    steps: Vec<StepReport<'static>>,
    evaluations: Vec<(u64, ValLoss, bool)>,
}

struct Watching<'a>(&'a AtomicBool, Option<u64>, &'a mut Vec<StepReport<'static>>, &'a mut Vec<(u64, ValLoss, bool)>);

impl Progress for Watching<'_> {
    fn step(&mut self, report: &StepReport<'_>) {
        self.2.push(StepReport { parts: &[], ..*report });
        if self.1 == Some(report.step) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn evaluated(&mut self, step: u64, val: ValLoss, best: bool) {
        self.3.push((step, val, best));
    }
}

impl Watcher {
    fn run(&mut self, request: RunSpec, tweak: impl FnOnce(&mut FakeEngine)) -> Result<(Outcome, FakeEngine), Error> {
        let (job, mut corpus, weights) = prepare(request)?;
        let mut engine = trainer(&job, weights);
        tweak(&mut engine);
        let mut watching = Watching(&self.stop, self.stop_after, &mut self.steps, &mut self.evaluations);
        let outcome = train(&job, &mut corpus, &mut engine, &mut watching, &self.stop)?;
        Ok((outcome, engine))
    }
}

fn run(request: RunSpec) -> Result<Outcome, Error> {
    Watcher::default().run(request, |_| {}).map(|(outcome, _)| outcome)
}

/// Lines of metrics.jsonl without times and memory.
fn metrics(dir: &Path) -> Vec<MetricsLine> {
    let text = fs::read_to_string(dir.join("x.run/metrics.jsonl")).unwrap();
    let line = |text: &str| {
        let mut line: MetricsLine = serde_json::from_str(text).unwrap();
        (line.elapsed_s, line.memory_gib) = (0.0, None);
        if let Some(train) = &mut line.train {
            (train.ms_per_step, train.tokens_per_s) = (0.0, 0.0);
        }
        line
    };
    text.lines().map(line).collect()
}

fn error(request: RunSpec) -> String {
    run(request).unwrap_err().to_string()
}

#[test]
fn it_learns_and_says_so_at_the_intervals() {
    let dir = folder();
    let asked = Overrides { log_interval: Some(3), eval_interval: Some(4), ..settings(10).into() };
    let mut watcher = Watcher::default();
    watcher.run(request(dir.path(), FRESH, asked), |_| {}).unwrap();
    let lines = metrics(dir.path());
    assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [0, 1, 3, 4, 6, 8, 9, 10]);
    let evaluated: Vec<_> = lines.iter().filter(|line| line.val_loss.is_some()).map(|line| line.step).collect();
    assert_eq!(evaluated, [0, 4, 8, 10]);
    let said: Vec<_> = watcher.evaluations.iter().map(|&(step, ..)| step).collect();
    assert_eq!(said, [0, 4, 8, 10]);
    let losses: Vec<f32> = lines.iter().filter_map(|line| line.val_loss).collect();
    assert!(losses[3] < losses[0] - 0.1, "{losses:?}");
    assert!(watcher.evaluations[0].2, "the first evaluation is the best so far");
    assert_eq!(watcher.steps.len(), 10);
    let logged: Vec<_> = watcher.steps.iter().filter(|report| report.logged).map(|report| report.step).collect();
    assert_eq!(logged, [1, 3, 6, 9, 10]);
    for report in &watcher.steps {
        assert_eq!(report.lr, settings(10).lr_at(report.step - 1));
    }
    assert_eq!(watcher.steps[9].left, Duration::ZERO);
}

#[test]
fn micro_batches_weigh_alike_and_share_no_dropout_mask() {
    let dir = folder();
    let asked = Overrides { gradient_accumulation: Some(4), ..settings(3).into() };
    let (_, engine) = Watcher::default().run(request(dir.path(), FRESH, asked), |_| {}).unwrap();
    assert_eq!(engine.calls.len(), 12);
    assert!(engine.calls.iter().all(|&(weight, _)| weight == 0.25));
    let mut seeds: Vec<u64> = engine.calls.iter().map(|&(_, seed)| seed).collect();
    seeds.sort();
    seeds.dedup();
    assert_eq!(seeds.len(), 12);
}

#[test]
fn a_diverged_run_keeps_the_last_good_model() {
    // The weights become NaN at step 6: detected by the loss of step 7, the evaluation at 6, or the check before a save.
    for (eval_interval, save_interval, kept, seen) in [
        (100, 5, 5, "loss became NaN at step 7"),
        (3, 3, 3, "validation loss became NaN at step 6"),
        (100, 1, 5, "loss became NaN at step 6"),
    ] {
        let dir = folder();
        let asked =
            Overrides { eval_interval: Some(eval_interval), save_interval: Some(save_interval), ..settings(20).into() };
        let error = Watcher::default()
            .run(request(dir.path(), FRESH, asked), |engine| engine.breaks_at = Some(6))
            .map(|(outcome, _)| outcome)
            .unwrap_err()
            .to_string();
        assert!(error.contains(seen) && error.contains(&format!("keeps the model of step {kept}")), "{error}");
        let checkpoint = Checkpoint::load(&dir.path().join("x.pt")).unwrap();
        assert_eq!(checkpoint.meta.iter_num, kept);
        assert!(checkpoint.params.iter().all(|value| value.is_finite()));
        // A lower learning rate continues from there.
        let gentle = Overrides { learning_rate: Some(0.01), min_lr: Some(0.0), ..Overrides::default() };
        assert_eq!(run(request(dir.path(), StartFrom::Resume, gentle)).unwrap(), Outcome::Finished);
    }
}

#[test]
fn no_steps_initialise_and_save() {
    let dir = folder();
    assert_eq!(run(request(dir.path(), FRESH, settings(0).into())).unwrap(), Outcome::Finished);
    let checkpoint = Checkpoint::load(&dir.path().join("x.pt")).unwrap();
    assert_eq!(checkpoint.params, ngen3_model::ParamList::new(&config()).init(settings(0).seed));
    assert_eq!((checkpoint.meta.iter_num, checkpoint.meta.best_val_loss), (0, None));
    assert_eq!(checkpoint.meta.tokenizer, TokenizerRef::Unknown, "the tokenizer of a bare file is unknown");
    assert_eq!(checkpoint.meta.training["learning_rate"].to_string(), "0.1");
    // Resuming equals a run with steps from the start.
    run(request(dir.path(), StartFrom::Resume, Overrides { max_iters: Some(20), ..Overrides::default() })).unwrap();
    let whole = folder();
    run(request(whole.path(), FRESH, settings(20).into())).unwrap();
    assert_eq!(metrics(dir.path()), metrics(whole.path()));
}

#[test]
fn time_left_is_a_rule_of_three_that_never_overflows() {
    assert_eq!(remaining(Duration::from_secs(6), 3, 10), Duration::from_secs(20));
    assert_eq!(remaining(Duration::from_secs(9), 1, u64::MAX), Duration::MAX);
}

#[test]
fn dropout_seeds_differ_in_every_number() {
    let mut seeds: Vec<u64> = (0..3)
        .flat_map(|seed| (0..3).flat_map(move |step| (0..3).map(move |micro| dropout_seed(seed, step, micro))))
        .collect();
    seeds.sort();
    seeds.dedup();
    assert_eq!(seeds.len(), 27);
}
