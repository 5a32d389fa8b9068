//! Runs of the fake model: what the loop does, and what it leaves on the disk.

use std::fs;
use std::path::Path;

use ngen3_engine::Slot;
use ngen3_model::{Checkpoint, Config, TokenizerRef};
use tempfile::TempDir;

use super::*;
use crate::lesson::Learned;
use crate::testing::{FakeEngine, settings};
use crate::{Begin, Corpus, Held, Init, Kind, Overrides, Request, Shape, Weights};

const FRESH: Begin = Begin::Fresh { init: Init::Random, overwrite: false };

fn config() -> Config {
    Config::new(1, 1, 2, 4, 7)
}

/// A folder with 300 tokens below 7, the later ones oftener.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path(), 3);
    dir
}

fn write_data(dir: &Path, skew: u32) {
    let tokens = (0..300u32).map(|i| ((i * i * skew + i / 7) % 11).min(6) as u16);
    fs::write(dir.join("data.bin"), tokens.flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
}

fn request(dir: &Path, begin: Begin, asked: Overrides) -> Request {
    Request {
        kind: Kind::Train,
        variant: None,
        config_file: None,
        out: Some(dir.join("x.pt")),
        begin,
        settings: asked,
        shape: Shape::from(&config()),
        lora: None,
    }
}

/// Settles a run on the data.bin beside its model.
fn prepare(request: Request) -> Result<(Job, Corpus, Weights), Error> {
    let data = request.out.as_ref().unwrap().with_file_name("data.bin");
    Corpus::prepare(request, &data)
}

/// What was said about a run, which it can stop.
#[derive(Default)]
struct Watcher {
    stop_after: Option<u64>,
    stop: AtomicBool,
    steps: Vec<StepReport<'static>>,
    evaluations: Vec<(u64, f32, bool)>,
}

struct Watching<'a>(&'a AtomicBool, Option<u64>, &'a mut Vec<StepReport<'static>>, &'a mut Vec<(u64, f32, bool)>);

impl Progress for Watching<'_> {
    fn step(&mut self, report: &StepReport<'_>) {
        self.2.push(StepReport { parts: &[], ..*report });
        if self.1 == Some(report.step) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn evaluated(&mut self, step: u64, val_loss: f32, best: bool) {
        self.3.push((step, val_loss, best));
    }
}

impl Watcher {
    fn run(&mut self, request: Request, tweak: impl FnOnce(&mut FakeEngine)) -> Result<(Outcome, FakeEngine), Error> {
        let (job, mut corpus, weights) = prepare(request)?;
        let mut engine = FakeEngine::new(job.config.clone(), 0);
        engine.write(Slot::Params, &weights.params).unwrap();
        if let Some(moments) = weights.moments {
            moments.restore(&mut engine).unwrap();
        }
        tweak(&mut engine);
        let mut watching = Watching(&self.stop, self.stop_after, &mut self.steps, &mut self.evaluations);
        let outcome = train(&job, &mut corpus, &mut engine, &mut watching, &self.stop)?;
        Ok((outcome, engine))
    }
}

fn run(request: Request) -> Result<Outcome, Error> {
    Watcher::default().run(request, |_| {}).map(|(outcome, _)| outcome)
}

/// metrics.jsonl without its times.
fn metrics(dir: &Path) -> Vec<Line> {
    let text = fs::read_to_string(dir.join("x.run/metrics.jsonl")).unwrap();
    let line = |text: &str| {
        let mut line: Line = serde_json::from_str(text).unwrap();
        line.elapsed_s = 0.0;
        if let Some(train) = &mut line.train {
            (train.ms_per_step, train.tokens_per_s) = (0.0, 0.0);
        }
        line
    };
    text.lines().map(line).collect()
}

fn error(request: Request) -> String {
    run(request).unwrap_err().to_string()
}

#[test]
fn a_run_that_stops_and_goes_on_is_the_run_that_never_stopped() {
    let asked = Overrides { gradient_accumulation: Some(2), ..settings(14).into() };
    let whole = folder();
    assert_eq!(run(request(whole.path(), FRESH, asked.clone())).unwrap(), Outcome::Finished);

    let parts = folder();
    let mut watcher = Watcher { stop_after: Some(5), ..Watcher::default() };
    let (outcome, _) = watcher.run(request(parts.path(), FRESH, asked.clone()), |_| {}).unwrap();
    assert_eq!(outcome, Outcome::Interrupted(5));
    let (saved, best) =
        (Checkpoint::load(&parts.path().join("x.pt")).unwrap().meta, watcher.evaluations.last().unwrap());
    assert_eq!((saved.iter_num, saved.best_val_loss), (5, Some(f64::from(best.1))));
    // A killed run may have logged more than its state knows.
    let metrics_path = parts.path().join("x.run/metrics.jsonl");
    let more = fs::read_to_string(&metrics_path).unwrap() + "{\"step\":6,\"elapsed_s\":1}\n{\"st";
    fs::write(&metrics_path, more).unwrap();

    // Settings need not be said again.
    let mut watcher = Watcher { stop_after: Some(9), ..Watcher::default() };
    let (outcome, _) = watcher.run(request(parts.path(), Begin::Resume, Overrides::default()), |_| {}).unwrap();
    assert_eq!(outcome, Outcome::Interrupted(9));
    assert_eq!(run(request(parts.path(), Begin::Resume, asked)).unwrap(), Outcome::Finished);

    assert_eq!(metrics(parts.path()), metrics(whole.path()));
    let bytes = |dir: &TempDir| fs::read(dir.path().join("x.pt")).unwrap();
    assert_eq!(bytes(&parts), bytes(&whole));
    let state = |dir: &TempDir| {
        let state = state::load(&dir.path().join("x.state/state.safetensors")).unwrap().unwrap();
        (state.header.reached.step, state.params, state.exp_avg, state.exp_avg_sq)
    };
    assert_eq!(state(&parts), state(&whole));
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
    // At step 6 the weights break: seen by the loss of step 7, by the evaluation at 6, or by the check before a save.
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
        // A gentler rate goes on from there.
        let gentle = Overrides { learning_rate: Some(0.01), min_lr: Some(0.0), ..Overrides::default() };
        assert_eq!(run(request(dir.path(), Begin::Resume, gentle)).unwrap(), Outcome::Finished);
    }
}

#[test]
fn no_steps_initialise_and_save() {
    let dir = folder();
    assert_eq!(run(request(dir.path(), FRESH, settings(0).into())).unwrap(), Outcome::Finished);
    let checkpoint = Checkpoint::load(&dir.path().join("x.pt")).unwrap();
    assert_eq!(checkpoint.params, ngen3_model::ParamList::new(&config()).init(settings(0).seed));
    assert_eq!((checkpoint.meta.iter_num, checkpoint.meta.best_val_loss), (0, None));
    assert_eq!(checkpoint.meta.tokenizer, TokenizerRef::Unknown, "nothing says what made these ids");
    assert_eq!(checkpoint.meta.training["learning_rate"].to_string(), "0.1");
    // It can go on from there as if it had been asked for steps at once.
    run(request(dir.path(), Begin::Resume, Overrides { max_iters: Some(20), ..Overrides::default() })).unwrap();
    let whole = folder();
    run(request(whole.path(), FRESH, settings(20).into())).unwrap();
    assert_eq!(metrics(dir.path()), metrics(whole.path()));
}

#[test]
fn a_model_that_is_there_is_replaced_only_when_asked() {
    let dir = folder();
    run(request(dir.path(), FRESH, settings(3).into())).unwrap();
    let before = fs::read(dir.path().join("x.pt")).unwrap();
    let message = error(request(dir.path(), FRESH, settings(2).into()));
    assert!(message.contains("x.pt is there already") && message.contains("--resume"), "{message}");
    assert_eq!(fs::read(dir.path().join("x.pt")).unwrap(), before);

    let overwrite = Begin::Fresh { init: Init::Random, overwrite: true };
    run(request(dir.path(), overwrite, settings(2).into())).unwrap();
    assert_eq!(Checkpoint::load(&dir.path().join("x.pt")).unwrap().meta.iter_num, 2);
    assert_eq!(metrics(dir.path()).iter().map(|line| line.step).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_finished_run_can_be_made_longer() {
    let dir = folder();
    run(request(dir.path(), FRESH, settings(4).into())).unwrap();
    let (job, ..) = prepare(request(dir.path(), Begin::Resume, Overrides::default())).unwrap();
    assert!(job.is_finished() && job.notes.is_empty());

    // What was measured on the model since stays; a model that is missing is written again.
    let path = dir.path().join("x.pt");
    let mut model = Checkpoint::load(&path).unwrap();
    model.meta.evaluations.insert("piqa".into(), serde_json::json!({ "acc": 0.5 }));
    ngen3_model::checkpoint::save(&path, &model.config, &model.params, &model.meta).unwrap();
    job.complete(&FakeEngine::new(config(), 1)).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), model);
    fs::remove_file(&path).unwrap();
    job.complete(&FakeEngine::new(config(), 1)).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap().meta.iter_num, 4);
    drop(job);

    let longer = Overrides { max_iters: Some(8), ..Overrides::default() };
    let (job, ..) = prepare(request(dir.path(), Begin::Resume, longer.clone())).unwrap();
    assert!(!job.is_finished());
    assert_eq!(job.notes[0], "changed since the run stopped: max_iters 4 → 8");
    assert!(job.notes[1].contains("the learning rate goes on at"), "{:?}", job.notes);
    drop(job);
    assert_eq!(run(request(dir.path(), Begin::Resume, longer)).unwrap(), Outcome::Finished);
    assert_eq!(metrics(dir.path()).iter().map(|line| line.step).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);

    let message = error(request(dir.path(), Begin::Resume, Overrides { max_iters: Some(5), ..Overrides::default() }));
    assert_eq!(message, "max_iters is 5, and the run has done 8 steps already");
}

#[test]
fn a_run_does_not_go_on_as_another() {
    let dir = folder();
    let message = error(request(dir.path(), Begin::Resume, Overrides::default()));
    assert!(message.contains("there is nothing to resume: no ") && message.contains("state.safetensors"), "{message}");
    run(request(dir.path(), FRESH, settings(4).into())).unwrap();

    let mut other = request(dir.path(), Begin::Resume, Overrides::default());
    other.shape = Shape { n_layer: Some(3), block_size: Some(2), ..Shape::default() };
    assert!(error(other).ends_with("holds another model: n_layer is 1, not 3; block_size is 4, not 2"));
    let variant = Some(ngen3_model::Variant::by_name("7M").unwrap());
    let other = Request { variant, ..request(dir.path(), Begin::Resume, Overrides::default()) };
    let message = error(Request { shape: Shape::default(), ..other });
    assert!(message.ends_with("n_layer is 1, not 4; n_head is 1, not 4; n_embd is 2, not 128"), "{message}");

    let message =
        error(request(dir.path(), Begin::Resume, Overrides { val_fraction: Some(0.5), ..Overrides::default() }));
    assert!(message.contains("trained on 240 tokens and validated on 60") && message.contains("--val_fraction"));

    write_data(dir.path(), 5);
    let message = error(request(dir.path(), Begin::Resume, Overrides::default()));
    assert!(message.contains("is not the data that the run was trained on"), "{message}");

    let state = dir.path().join("x.state/state.safetensors");
    let bytes = fs::read(&state).unwrap();
    fs::write(&state, &bytes[..bytes.len() - 1]).unwrap();
    let message = error(request(dir.path(), Begin::Resume, Overrides::default()));
    assert!(message.contains("state.safetensors: not a training state: it is"), "{message}");
}

#[test]
fn weights_come_from_a_checkpoint_of_the_shape_asked_for() {
    let dir = folder();
    run(request(dir.path(), FRESH, settings(4).into())).unwrap();
    let from = dir.path().join("x.pt");
    let params = Checkpoint::load(&from).unwrap().params;
    let begin = || Begin::Fresh { init: Init::From(from.clone()), overwrite: false };
    let to = |shape: Shape| {
        let request = request(dir.path(), begin(), settings(0).into());
        prepare(Request { out: Some(dir.path().join("y.pt")), shape, ..request })
    };

    let (job, _, weights) = to(Shape::default()).unwrap();
    assert_eq!((&job.config, job.reached.step), (&config(), 0));
    drop(job);
    assert_eq!(weights.params, params);
    assert!(weights.moments.is_none());

    // A shorter block keeps the first positions and everything else.
    let (job, _, weights) = to(Shape { block_size: Some(3), ..Shape::default() }).unwrap();
    let (whole, cut) = (ngen3_model::ParamList::new(&config()), ngen3_model::ParamList::new(&job.config));
    assert_eq!(job.config.block_size, 3);
    drop(job);
    assert_eq!(weights.params[cut.wte.clone()], params[whole.wte.clone()]);
    assert_eq!(weights.params[cut.wpe.clone()], params[whole.wpe.start..whole.wpe.end - 2]);
    assert_eq!(weights.params[cut.wpe.end..], params[whole.wpe.end..]);

    for (shape, expected) in [
        (Shape { block_size: Some(5), ..Shape::default() }, "block_size is 4, not 5"),
        (Shape { n_embd: Some(4), n_head: Some(2), ..Shape::default() }, "n_head is 1, not 2; n_embd is 2, not 4"),
        (Shape { vocab_size: Some(9), ..Shape::default() }, "vocab_size is 7, not 9"),
        (
            Shape { activation: Some(ngen3_model::Activation::Gelu), ..Shape::default() },
            "activation is GeluNew, not Gelu",
        ),
    ] {
        let message = to(shape).unwrap_err().to_string();
        assert!(message.contains("x.pt holds another model") && message.ends_with(expected), "{message}");
    }
}

#[test]
fn what_cannot_be_trained_is_refused_before_anything_is_written() {
    let dir = folder();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let plain = || request(dir.path(), FRESH, settings(4).into());
    let before = names();
    let cases = [
        (Request { shape: Shape { n_head: None, ..Shape::from(&config()) }, ..plain() }, "shape is not complete"),
        (
            Request { shape: Shape { n_head: Some(3), ..Shape::from(&config()) }, ..plain() },
            "not a multiple of n_head 3",
        ),
        (Request { shape: Shape { vocab_size: Some(6), ..Shape::from(&config()) }, ..plain() }, "outside the model's"),
        (
            Request { shape: Shape { block_size: Some(100), ..Shape::from(&config()) }, ..plain() },
            "too few for a block",
        ),
        (Request { out: Some(dir.path().join("x.bin")), ..plain() }, ".pt or .safetensors"),
        (Request { config_file: Some(dir.path().join("none.toml")), ..plain() }, "none.toml"),
    ];
    for (request, expected) in cases {
        let message = error(request);
        assert!(message.contains(expected) && !message.contains('\n'), "{expected}: {message}");
        assert_eq!(names(), before, "{expected}");
    }
    for (request, data, expected) in
        [(Request { out: None, ..plain() }, "data.bin", "which model?"), (plain(), "none.bin", "none.bin")]
    {
        let message = Corpus::prepare(request, &dir.path().join(data)).unwrap_err().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{expected}: {message}");
        assert_eq!(names(), before, "{expected}");
    }
}

/// The corpus, but that the run is asked to stop within the evaluation after so many others.
struct StoppedWithin<'a> {
    corpus: Corpus,
    evaluations: usize,
    stop: &'a AtomicBool,
}

impl Lesson for StoppedWithin<'_> {
    fn learn(&mut self, engine: &mut dyn Engine, micro: &Micro) -> Result<Learned, Error> {
        self.corpus.learn(engine, micro)
    }

    fn evaluate(&mut self, engine: &mut dyn Engine, stop: &AtomicBool) -> Result<Evaluation, Error> {
        match self.evaluations.checked_sub(1) {
            Some(left) => self.evaluations = left,
            None => self.stop.store(true, Ordering::Relaxed),
        }
        self.corpus.evaluate(engine, stop)
    }

    fn probe(&mut self, engine: &mut dyn Engine) -> Result<f32, Error> {
        self.corpus.probe(engine)
    }
}

#[test]
fn a_run_stopped_within_an_evaluation_makes_it_when_it_goes_on() {
    // Evaluated at steps 0, 4, 8, 10 and saved, of itself, at the last alone.
    let asked = Overrides {
        keep_best: Some(true),
        patience: Some(3),
        log_interval: Some(3),
        save_interval: Some(100),
        ..settings(10).into()
    };
    let whole = folder();
    run(request(whole.path(), FRESH, asked.clone())).unwrap();
    let bytes = |dir: &TempDir| fs::read(dir.path().join("x.pt")).unwrap();
    let state = |dir: &TempDir| state::load(&dir.path().join("x.state/state.safetensors")).unwrap().unwrap();
    for (evaluations, step) in [(0, 0), (1, 4), (2, 8), (3, 10)] {
        let parts = folder();
        let stopped_within = |begin, evaluations| {
            let asked = if begin == FRESH { asked.clone() } else { Overrides::default() };
            let (job, corpus, weights) = prepare(request(parts.path(), begin, asked)).unwrap();
            assert!(!job.is_finished());
            let mut engine = FakeEngine::new(job.config.clone(), 0);
            engine.write(Slot::Params, &weights.params).unwrap();
            if let Some(moments) = weights.moments {
                moments.restore(&mut engine).unwrap();
            }
            let stop = AtomicBool::new(false);
            let mut lesson = StoppedWithin { corpus, evaluations, stop: &stop };
            let (mut steps, mut evaluated) = (Vec::new(), Vec::new());
            let mut watching = Watching(&stop, None, &mut steps, &mut evaluated);
            let outcome = train(&job, &mut lesson, &mut engine, &mut watching, &stop).unwrap();
            assert_eq!((outcome, evaluated.len()), (Outcome::Interrupted(step), evaluations));
        };
        stopped_within(FRESH, evaluations);
        let (before, lines) = (state(&parts), metrics(parts.path()));
        assert_eq!(before.header.reached.unevaluated.is_some(), step > 0);
        assert!(lines.iter().all(|line| line.step < step), "the step has no line yet: {lines:?}");
        // Stopped there again it is where it was.
        stopped_within(Begin::Resume, 0);
        let mut again = state(&parts);
        again.header.reached.elapsed_s = before.header.reached.elapsed_s;
        assert_eq!((again, metrics(parts.path())), (before, lines));

        assert_eq!(run(request(parts.path(), Begin::Resume, Overrides::default())).unwrap(), Outcome::Finished);
        assert_eq!(metrics(parts.path()), metrics(whole.path()));
        assert!(bytes(&parts) == bytes(&whole), "the models differ");
        let (mut found, expected) = (state(&parts), state(&whole));
        found.header.reached.elapsed_s = expected.header.reached.elapsed_s;
        assert_eq!(found, expected);
    }
}

/// A lesson whose validation losses are written down beforehand, one for each evaluation.
struct Scripted<'a> {
    corpus: Corpus,
    losses: std::slice::Iter<'a, f32>,
}

impl Lesson for Scripted<'_> {
    fn learn(&mut self, engine: &mut dyn Engine, micro: &Micro) -> Result<Learned, Error> {
        let learned = self.corpus.learn(engine, micro)?;
        let parts = vec![("half", learned.loss / 2.0), ("index", micro.index as f32)];
        Ok(Learned { parts, ..learned })
    }

    fn evaluate(&mut self, _: &mut dyn Engine, _: &AtomicBool) -> Result<Evaluation, Error> {
        Ok(self.losses.next().map_or(Evaluation::NothingHeldOut, |&loss| Evaluation::Loss(loss)))
    }

    fn probe(&mut self, engine: &mut dyn Engine) -> Result<f32, Error> {
        self.corpus.probe(engine)
    }
}

/// A run in the folder that is evaluated after every step, with these losses.
fn scripted(dir: &Path, begin: Begin, asked: Overrides, losses: &[f32]) -> (Outcome, Job) {
    let asked = Overrides { eval_interval: Some(1), save_interval: Some(100), ..asked };
    let (mut job, corpus, weights) = prepare(request(dir, begin, asked)).unwrap();
    let mut engine = FakeEngine::new(job.config.clone(), 0);
    engine.write(Slot::Params, &weights.params).unwrap();
    if let Some(moments) = weights.moments {
        moments.restore(&mut engine).unwrap();
    }
    let mut lesson = Scripted { corpus, losses: losses.iter() };
    let stop = AtomicBool::new(false);
    let mut watching = Watching(&stop, None, &mut Vec::new(), &mut Vec::new());
    let outcome = train(&job, &mut lesson, &mut engine, &mut watching, &stop).unwrap();
    job.held = Held::default();
    (outcome, job)
}

#[test]
fn the_best_model_stays_and_patience_ends_a_run() {
    let steps = |n| Overrides { max_iters: Some(n), ..settings(10).into() };
    let meta = |dir: &TempDir| {
        let meta = Checkpoint::load(&dir.path().join("x.pt")).unwrap().meta;
        (meta.iter_num, meta.best_val_loss)
    };
    let losses = [5.0, 4.0, 3.0, 3.5, 3.25, 3.0, 2.0];

    let dir = folder();
    let asked = Overrides { keep_best: Some(true), patience: Some(3), ..steps(10) };
    let (outcome, _) = scripted(dir.path(), FRESH, asked.clone(), &losses);
    assert_eq!(outcome, Outcome::Stale(5), "3.0 again is not better");
    assert_eq!(meta(&dir), (2, Some(3.0)));
    let best = Checkpoint::load(&dir.path().join("x.pt")).unwrap().params;

    // The same run cut short holds the model of that step as its latest.
    let short = folder();
    let (outcome, _) = scripted(short.path(), FRESH, steps(2), &losses);
    assert_eq!((outcome, meta(&short)), (Outcome::Finished, (2, Some(3.0))));
    assert_eq!(Checkpoint::load(&short.path().join("x.pt")).unwrap().params, best);

    // It is finished until somebody has more patience; it then goes on from its last step, and remembers its best.
    let (job, ..) = prepare(request(dir.path(), Begin::Resume, Overrides::default())).unwrap();
    assert!(job.is_finished());
    job.complete(&FakeEngine::new(config(), 1)).unwrap();
    assert_eq!(meta(&dir), (2, Some(3.0)));
    drop(job);
    let more = Overrides { patience: Some(4), ..Overrides::default() };
    let (outcome, job) = scripted(dir.path(), Begin::Resume, more, &[9.0, 1.0]);
    assert_eq!((job.reached.step, job.reached.best_step, job.reached.evals_since_best), (5, 2, 3));
    assert_eq!((outcome, meta(&dir)), (Outcome::Stale(6), (2, Some(3.0))));

    // Without patience it goes through to the end, and without keep_best the latest stays.
    let dir = folder();
    let asked = Overrides { keep_best: Some(true), ..steps(6) };
    assert_eq!(scripted(dir.path(), FRESH, asked, &losses).0, Outcome::Finished);
    assert_eq!(meta(&dir), (6, Some(2.0)));
    let dir = folder();
    let asked = Overrides { patience: Some(2), ..steps(6) };
    assert_eq!(scripted(dir.path(), FRESH, asked, &losses).0, Outcome::Stale(4));
    assert_eq!(meta(&dir), (4, Some(3.0)));

    // Asked for later, the best is that of what came after: the better model of before is no longer there.
    let dir = folder();
    assert_eq!(scripted(dir.path(), FRESH, steps(3), &losses).0, Outcome::Finished);
    let asked = Overrides { keep_best: Some(true), max_iters: Some(5), ..Overrides::default() };
    let (outcome, job) = scripted(dir.path(), Begin::Resume, asked, &[3.25, 3.4]);
    assert_eq!((outcome, meta(&dir)), (Outcome::Finished, (4, Some(3.25))));
    let note = "the model of step 2 was not kept: the best is looked for from here on";
    assert!(job.notes.iter().any(|found| found == note), "{:?}", job.notes);

    // With nothing held out there is no best: the latest has to do.
    let dir = folder();
    let asked = Overrides { keep_best: Some(true), patience: Some(1), ..steps(3) };
    assert_eq!(scripted(dir.path(), FRESH, asked, &[]).0, Outcome::Finished);
    assert_eq!(meta(&dir), (3, None));
}

#[test]
fn a_run_stopped_before_its_first_step_begins_anew() {
    let dir = folder();
    let asked = Overrides { patience: Some(1), ..settings(1).into() };
    let mut watcher = Watcher::default();
    watcher.stop.store(true, Ordering::Relaxed);
    let (outcome, _) = watcher.run(request(dir.path(), FRESH, asked), |_| {}).unwrap();
    assert_eq!(outcome, Outcome::Interrupted(0));
    assert_eq!(run(request(dir.path(), Begin::Resume, Overrides::default())).unwrap(), Outcome::Finished);
    let whole = folder();
    run(request(whole.path(), FRESH, Overrides { patience: Some(1), ..settings(1).into() })).unwrap();
    assert_eq!(metrics(dir.path()), metrics(whole.path()));
}

#[test]
fn the_parts_of_a_loss_are_logged_as_means_over_the_micro_batches() {
    let dir = folder();
    let asked = Overrides { gradient_accumulation: Some(3), max_iters: Some(2), ..settings(2).into() };
    scripted(dir.path(), FRESH, asked, &[1.0, 1.0, 1.0]);
    for line in &metrics(dir.path())[1..] {
        let train = line.train.as_ref().unwrap();
        assert!((train.parts["half"] - train.train_loss / 2.0).abs() < 1e-6);
        assert!((train.parts["index"] - 1.0).abs() < 1e-6);
    }
}

#[test]
fn a_run_goes_on_only_as_what_it_was() {
    let dir = folder();
    let distill = |begin| Request { kind: Kind::Distill, ..request(dir.path(), begin, settings(2).into()) };
    let lesson = |temperature: f32| [("temperature".to_owned(), temperature.into())].into_iter().collect();
    let with = |begin, temperature| {
        let start = distill(begin).start(|| Ok(7))?;
        let corpus = Corpus::open(&dir.path().join("data.bin"), &start.config, &start.settings)?;
        let data = corpus.describe(&start.config)?;
        let (job, weights) = start.with(data, lesson(temperature), None)?;
        let mut engine = FakeEngine::new(job.config.clone(), 0);
        engine.write(Slot::Params, &weights.params)?;
        let mut watching = Watching(&AtomicBool::new(false), None, &mut Vec::new(), &mut Vec::new());
        train(&job, &mut { corpus }, &mut engine, &mut watching, &AtomicBool::new(false))
    };
    with(FRESH, 2.0).unwrap();
    let training = Checkpoint::load(&dir.path().join("x.pt")).unwrap().meta.training;
    assert_eq!(training["distill"]["temperature"], 2.0);

    let message = with(Begin::Resume, 4.0).unwrap_err().to_string();
    assert!(message.contains("temperature is 2.0 there, not 4.0"), "{message}");
    let message = error(request(dir.path(), Begin::Resume, Overrides::default()));
    assert!(message.contains("is of a run of ngen3 distill, which goes on with that command"), "{message}");
    assert_eq!(with(Begin::Resume, 2.0).unwrap(), Outcome::Finished);
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
