//! Scripted validation losses: which model is kept, when a run stops, what is logged.

use super::*;

/// An objective with scripted validation losses, one per evaluation.
struct Scripted<'a> {
    corpus: TokenObjective,
    losses: std::slice::Iter<'a, f32>,
}

impl Objective for Scripted<'_> {
    fn training_step(&mut self, engine: &mut dyn Trainer, micro: &Micro) -> Result<StepOutput, Error> {
        let learned = self.corpus.training_step(engine, micro)?;
        let parts = vec![("half", learned.loss / 2.0), ("index", micro.index as f32)];
        Ok(StepOutput { parts, ..learned })
    }

    fn evaluate(&mut self, _: &mut dyn Trainer, _: &dyn World, _: &AtomicBool) -> Result<Evaluation, Error> {
        Ok(self.losses.next().map_or(Evaluation::NothingHeldOut, |&nats| {
            Evaluation::Loss(ValLoss { nats, bits_per_byte: Some(nats / 2.0) })
        }))
    }

    fn probe(&mut self, engine: &mut dyn Trainer) -> Result<f32, Error> {
        self.corpus.probe(engine)
    }
}

/// Runs in the folder with an evaluation after every step, with these losses.
fn scripted(dir: &Path, begin: StartFrom, asked: Overrides, losses: &[f32]) -> (Outcome, Job) {
    let asked = Overrides { eval_interval: Some(1), save_interval: Some(100), ..asked };
    let (mut job, corpus, weights) = prepare(request(dir, begin, asked)).unwrap();
    let mut engine = trainer(&job, weights);
    let mut objective = Scripted { corpus, losses: losses.iter() };
    let stop = AtomicBool::new(false);
    let mut watching = Watching(&stop, None, &mut Vec::new(), &mut Vec::new());
    let outcome = train(&job, &mut objective, &mut engine, &mut watching, &stop).unwrap();
    job.lock = RunLock::default();
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
    assert_eq!(outcome, Outcome::Stale(5), "an equal loss is no improvement");
    assert_eq!(meta(&dir), (2, Some(3.0)));
    let best = Checkpoint::load(&dir.path().join("x.pt")).unwrap().params;

    // A shorter run has the model of that step as its latest.
    let short = folder();
    let (outcome, _) = scripted(short.path(), FRESH, steps(2), &losses);
    assert_eq!((outcome, meta(&short)), (Outcome::Finished, (2, Some(3.0))));
    assert_eq!(Checkpoint::load(&short.path().join("x.pt")).unwrap().params, best);

    // It is finished until --patience is raised; it then continues from its last step, and remembers its best.
    let (job, ..) = prepare(request(dir.path(), StartFrom::Resume, Overrides::default())).unwrap();
    assert!(job.is_finished());
    job.complete(&FakeEngine::new(config(), 1)).unwrap();
    assert_eq!(meta(&dir), (2, Some(3.0)));
    drop(job);
    let more = Overrides { patience: Some(4), ..Overrides::default() };
    let (outcome, job) = scripted(dir.path(), StartFrom::Resume, more, &[9.0, 1.0]);
    assert_eq!((job.progress.step, job.progress.best_step, job.progress.evals_since_best), (5, 2, 3));
    assert_eq!((outcome, meta(&dir)), (Outcome::Stale(6), (2, Some(3.0))));

    // Without patience it runs to the end, and without keep_best the latest model is kept.
    let dir = folder();
    let asked = Overrides { keep_best: Some(true), ..steps(6) };
    assert_eq!(scripted(dir.path(), FRESH, asked, &losses).0, Outcome::Finished);
    assert_eq!(meta(&dir), (6, Some(2.0)));
    let dir = folder();
    let asked = Overrides { patience: Some(2), ..steps(6) };
    assert_eq!(scripted(dir.path(), FRESH, asked, &losses).0, Outcome::Stale(4));
    assert_eq!(meta(&dir), (4, Some(3.0)));

    // keep_best given on resume: the better model from before was overwritten, so the best is that of later evaluations.
    let dir = folder();
    assert_eq!(scripted(dir.path(), FRESH, steps(3), &losses).0, Outcome::Finished);
    let asked = Overrides { keep_best: Some(true), max_iters: Some(5), ..Overrides::default() };
    let (outcome, job) = scripted(dir.path(), StartFrom::Resume, asked, &[3.25, 3.4]);
    assert_eq!((outcome, meta(&dir)), (Outcome::Finished, (4, Some(3.25))));
    let note = "the best model so far, of step 2, was not kept; --keep_best applies from here on";
    assert!(job.notes.iter().any(|found| found == note), "{:?}", job.notes);

    // If the model file is missing, the best of later evaluations is kept, or the latest.
    fs::remove_file(dir.path().join("x.pt")).unwrap();
    let (job, ..) = prepare(request(dir.path(), StartFrom::Resume, Overrides::default())).unwrap();
    let note = "the best model so far, of step 4, is no longer in ";
    assert!(job.is_finished() && job.notes.iter().any(|found| found.starts_with(note)), "{:?}", job.notes);
    job.complete(&FakeEngine::new(config(), 1)).unwrap();
    assert_eq!(meta(&dir), (5, None));
    drop(job);
    fs::remove_file(dir.path().join("x.pt")).unwrap();
    let longer = Overrides { max_iters: Some(7), ..Overrides::default() };
    assert_eq!(scripted(dir.path(), StartFrom::Resume, longer, &[8.0, 9.0]).0, Outcome::Finished);
    assert_eq!(meta(&dir), (6, Some(8.0)));

    // Without held-out data there is no best: the latest is kept.
    let dir = folder();
    let asked = Overrides { keep_best: Some(true), patience: Some(1), ..steps(3) };
    assert_eq!(scripted(dir.path(), FRESH, asked, &[]).0, Outcome::Finished);
    assert_eq!(meta(&dir), (3, None));
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
