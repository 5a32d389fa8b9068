//! Resumed runs equal uninterrupted ones.

use ngen3_data::TokenFile;

use super::*;
use crate::ObjectiveRecord;
use crate::objectives::distill::DistillRequest;

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
    assert_eq!((saved.iter_num, saved.best_val_loss), (5, Some(f64::from(best.1.nats))));
    // A killed run may have logged steps after its state.
    let metrics_path = parts.path().join("x.run/metrics.jsonl");
    let more = fs::read_to_string(&metrics_path).unwrap() + "{\"step\":6,\"elapsed_s\":1}\n{\"st";
    fs::write(&metrics_path, more).unwrap();

    // Settings need not be given again.
    let mut watcher = Watcher { stop_after: Some(9), ..Watcher::default() };
    let (outcome, _) = watcher.run(request(parts.path(), StartFrom::Resume, Overrides::default()), |_| {}).unwrap();
    assert_eq!(outcome, Outcome::Interrupted(9));
    assert_eq!(run(request(parts.path(), StartFrom::Resume, asked)).unwrap(), Outcome::Finished);

    assert_eq!(metrics(parts.path()), metrics(whole.path()));
    let bytes = |dir: &TempDir| fs::read(dir.path().join("x.pt")).unwrap();
    assert_eq!(bytes(&parts), bytes(&whole));
    let state = |dir: &TempDir| {
        let state = state::load(&dir.path().join("x.state/state.safetensors")).unwrap().unwrap();
        (state.record.progress.step, state.params, state.exp_avg, state.exp_avg_sq)
    };
    assert_eq!(state(&parts), state(&whole));
}

#[test]
fn a_finished_run_can_be_made_longer() {
    let dir = folder();
    run(request(dir.path(), FRESH, settings(4).into())).unwrap();
    let (job, ..) = prepare(request(dir.path(), StartFrom::Resume, Overrides::default())).unwrap();
    assert!(job.is_finished() && job.notes.iter().all(|note| note.contains("its tokenizer is unknown")));

    // Evaluations recorded in the model since are kept; a missing model is rewritten.
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
    let (job, ..) = prepare(request(dir.path(), StartFrom::Resume, longer.clone())).unwrap();
    assert!(!job.is_finished());
    assert_eq!(job.notes[0], "settings changed: max_iters 4 → 8");
    assert!(job.notes[1].contains("the learning rate continues at"), "{:?}", job.notes);
    drop(job);
    assert_eq!(run(request(dir.path(), StartFrom::Resume, longer)).unwrap(), Outcome::Finished);
    assert_eq!(metrics(dir.path()).iter().map(|line| line.step).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);

    let message =
        error(request(dir.path(), StartFrom::Resume, Overrides { max_iters: Some(5), ..Overrides::default() }));
    assert_eq!(message, "max_iters: expected at least the 8 steps already done, got 5");
}

#[test]
fn a_run_does_not_go_on_as_another() {
    let dir = folder();
    let message = error(request(dir.path(), StartFrom::Resume, Overrides::default()));
    assert!(
        message.contains("nothing to resume: ") && message.contains("state.safetensors does not exist"),
        "{message}"
    );
    run(request(dir.path(), FRESH, settings(4).into())).unwrap();

    let mut other = request(dir.path(), StartFrom::Resume, Overrides::default());
    other.shape = Shape { n_layer: Some(3), block_size: Some(2), ..Shape::default() };
    assert!(error(other).ends_with("holds another model: n_layer is 1, not 3; block_size is 4, not 2"));
    let variant = Some(ngen3_model::Variant::by_name("7M").unwrap());
    let other = RunSpec { variant, ..request(dir.path(), StartFrom::Resume, Overrides::default()) };
    let message = error(RunSpec { shape: Shape::default(), ..other });
    assert!(message.ends_with("n_layer is 1, not 4; n_head is 1, not 4; n_embd is 2, not 128"), "{message}");

    let message =
        error(request(dir.path(), StartFrom::Resume, Overrides { val_fraction: Some(0.5), ..Overrides::default() }));
    assert!(message.contains("expected 240 training and 60 validation tokens") && message.contains("--val_fraction"));

    write_data(dir.path(), 5);
    let message = error(request(dir.path(), StartFrom::Resume, Overrides::default()));
    assert!(message.contains("data.bin: expected the data of the resumed run"), "{message}");

    let state = dir.path().join("x.state/state.safetensors");
    let bytes = fs::read(&state).unwrap();
    fs::write(&state, &bytes[..bytes.len() - 1]).unwrap();
    let message = error(request(dir.path(), StartFrom::Resume, Overrides::default()));
    assert!(
        message.contains("state.safetensors: not a training state: ") && message.contains("truncated"),
        "{message}"
    );
}

/// A token objective that sets `stop` during an evaluation, after `evaluations` complete ones.
struct StoppedWithin<'a> {
    corpus: TokenObjective,
    evaluations: usize,
    stop: &'a AtomicBool,
}

impl Objective for StoppedWithin<'_> {
    fn training_step(&mut self, engine: &mut dyn Trainer, micro: &Micro) -> Result<StepOutput, Error> {
        self.corpus.training_step(engine, micro)
    }

    fn evaluate(
        &mut self,
        engine: &mut dyn Trainer,
        world: &dyn World,
        stop: &AtomicBool,
    ) -> Result<Evaluation, Error> {
        match self.evaluations.checked_sub(1) {
            Some(left) => self.evaluations = left,
            None => self.stop.store(true, Ordering::Relaxed),
        }
        self.corpus.evaluate(engine, world, stop)
    }

    fn probe(&mut self, engine: &mut dyn Trainer) -> Result<f32, Error> {
        self.corpus.probe(engine)
    }
}

#[test]
fn a_run_stopped_within_an_evaluation_makes_it_when_it_goes_on() {
    // Evaluates at steps 0, 4, 8 and 10; saves, unless interrupted, only at the last.
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
            let mut engine = trainer(&job, weights);
            let stop = AtomicBool::new(false);
            let mut objective = StoppedWithin { corpus, evaluations, stop: &stop };
            let (mut steps, mut evaluated) = (Vec::new(), Vec::new());
            let mut watching = Watching(&stop, None, &mut steps, &mut evaluated);
            let outcome = train(&job, &mut objective, &mut engine, &mut watching, &stop).unwrap();
            assert_eq!((outcome, evaluated.len()), (Outcome::Interrupted(step), evaluations));
        };
        stopped_within(FRESH, evaluations);
        let (before, lines) = (state(&parts), metrics(parts.path()));
        assert_eq!(before.record.progress.unevaluated.is_some(), step > 0);
        assert!(lines.iter().all(|line| line.step < step), "the step has no line yet: {lines:?}");
        // Interrupted there again, nothing changes.
        stopped_within(StartFrom::Resume, 0);
        let mut again = state(&parts);
        again.record.progress.elapsed_s = before.record.progress.elapsed_s;
        assert_eq!((again, metrics(parts.path())), (before, lines));

        // A killed run may have logged an evaluation after its state.
        let log = |dir: &TempDir| fs::read_to_string(dir.path().join("x.run/metrics.jsonl")).unwrap();
        let start = format!("{{\"step\":{step},");
        let line = log(&whole).lines().find(|line| line.starts_with(&start)).unwrap().to_owned();
        fs::write(parts.path().join("x.run/metrics.jsonl"), format!("{}{line}\n", log(&parts))).unwrap();
        assert_eq!(run(request(parts.path(), StartFrom::Resume, Overrides::default())).unwrap(), Outcome::Finished);
        assert_eq!(metrics(parts.path()), metrics(whole.path()));
        assert!(bytes(&parts) == bytes(&whole), "the models differ");
        let (mut found, expected) = (state(&parts), state(&whole));
        found.record.progress.elapsed_s = expected.record.progress.elapsed_s;
        assert_eq!(found, expected);
    }
}

#[test]
fn a_run_stopped_before_its_first_step_begins_anew() {
    let dir = folder();
    let asked = Overrides { patience: Some(1), ..settings(1).into() };
    let mut watcher = Watcher::default();
    watcher.stop.store(true, Ordering::Relaxed);
    let (outcome, _) = watcher.run(request(dir.path(), FRESH, asked), |_| {}).unwrap();
    assert_eq!(outcome, Outcome::Interrupted(0));
    assert_eq!(run(request(dir.path(), StartFrom::Resume, Overrides::default())).unwrap(), Outcome::Finished);
    let whole = folder();
    run(request(whole.path(), FRESH, Overrides { patience: Some(1), ..settings(1).into() })).unwrap();
    assert_eq!(metrics(dir.path()), metrics(whole.path()));
}

#[test]
fn a_run_goes_on_only_as_what_it_was() {
    let dir = folder();
    let with = |start, temperature| {
        let spec = RunSpec { kind: RunKind::Distill, ..request(dir.path(), start, settings(2).into()) };
        let run = spec.resolve(|| Ok(7))?;
        let data = TokenFile::open(&dir.path().join("data.bin"))?;
        let mut tokens = TokenObjective::new(data, &run.config, &run.settings)?;
        let info = tokens.describe()?;
        let record = DistillRequest { temperature: Some(temperature), ..DistillRequest::default() };
        let record = ObjectiveRecord::Distill(record.settle(None, "t".into())?);
        let (job, weights) = run.into_job(&FakeDevice, info, record, None)?;
        let mut engine = trainer(&job, weights);
        let mut watching = Watching(&AtomicBool::new(false), None, &mut Vec::new(), &mut Vec::new());
        train(&job, &mut tokens, &mut engine, &mut watching, &AtomicBool::new(false))
    };
    with(FRESH, 2.0).unwrap();
    let training = Checkpoint::load(&dir.path().join("x.pt")).unwrap().meta.training;
    assert_eq!(training["distill"]["temperature"], 2.0);

    let message = with(StartFrom::Resume, 4.0).unwrap_err().to_string();
    assert!(message.contains("temperature was 2.0, now 4.0"), "{message}");
    let message = error(request(dir.path(), StartFrom::Resume, Overrides::default()));
    assert!(message.contains("belongs to a run of ngen3 distill; resume it with that command"), "{message}");
    assert_eq!(with(StartFrom::Resume, 2.0).unwrap(), Outcome::Finished);
}
