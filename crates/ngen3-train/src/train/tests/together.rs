//! Several ranks train one model, as threads.

use ngen3_cluster::Threads;

use super::*;

/// Steps of micro-batches that several ranks can share.
fn asked(max_iters: u64, accumulation: u64) -> Overrides {
    Overrides { gradient_accumulation: Some(accumulation), ..settings(max_iters).into() }
}

/// Runs a request on ranks, and stops them after a step, if given; returns the outcome of each, and its parameters.
fn run_on(size: usize, stop_after: Option<u64>, request: impl Fn() -> RunSpec + Sync) -> Vec<(Outcome, Vec<f32>)> {
    Threads::run(size, |world| {
        let mut watcher = Watcher { stop_after, ..Watcher::default() };
        let (outcome, engine) = watcher.run(RunSpec { world, ..request() }, |_| {}).expect("a run");
        (outcome, engine.read(Slot::Params).into_owned())
    })
}

fn near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-5, "expected {expected}, got {found}");
    }
}

#[test]
fn any_number_of_ranks_trains_the_same_model_and_goes_on_with_it() {
    let alone = folder();
    let (_, engine) =
        Watcher::default().run(request(alone.path(), FRESH, asked(9, 6)), |_| {}).expect("a run of one process");
    let expected = engine.read(Slot::Params).into_owned();
    let losses = |dir: &Path| -> Vec<f32> {
        let of = |line: &MetricsLine| [line.train.as_ref().map(|train| train.train_loss), line.val_loss];
        metrics(dir).iter().flat_map(of).flatten().collect()
    };
    for (first, second) in [(2, 3), (3, 1), (1, 4), (6, 2)] {
        let dir = folder();
        run_on(first, Some(5), || request(dir.path(), FRESH, asked(9, 6)));
        for (outcome, params) in run_on(second, None, || request(dir.path(), StartFrom::Resume, Overrides::default())) {
            assert_eq!(outcome, Outcome::Finished);
            near(&params, &expected);
        }
        near(&Checkpoint::load(&dir.path().join("x.pt")).unwrap().params, &expected);
        near(&losses(dir.path()), &losses(alone.path()));
    }
}

#[test]
fn the_sequences_of_a_step_are_divided_or_an_error_says_how() {
    let dir = folder();
    let batch = |size: usize, batch_size, accumulation| {
        let jobs = Threads::run(size, |world| {
            let settings = Overrides { batch_size: Some(batch_size), ..asked(1, accumulation) };
            prepare(RunSpec { world, overwrite: true, ..request(dir.path(), FRESH, settings) })
                .map(|(job, ..)| (job.settings.batch_size, job.settings.gradient_accumulation, job.notes))
                .map_err(|error| error.to_string())
        });
        assert!(jobs.iter().all(|job| *job == jobs[0]), "all ranks agree: {jobs:?}");
        jobs.into_iter().next().unwrap()
    };
    let (batch_size, accumulation, notes) = batch(4, 8, 1).unwrap();
    assert_eq!((batch_size, accumulation), (2, 4));
    assert!(notes[0].contains("the 8 sequences of a step are divided"), "{notes:?}");
    let (batch_size, accumulation, notes) = batch(2, 4, 3).unwrap();
    assert_eq!((batch_size, accumulation), (4, 3), "as asked for");
    assert!(!notes.iter().any(|note| note.contains("divided")), "{notes:?}");
    let error = batch(4, 3, 1).unwrap_err();
    assert!(error.contains("expected at least 4") && error.contains("--batch_size 1"), "{error}");
}

#[test]
fn what_stops_one_rank_stops_all() {
    let dir = folder();
    let outcomes = Threads::run(3, |world| {
        let mut watcher = Watcher { stop_after: (world.rank() == 1).then_some(2), ..Watcher::default() };
        watcher.run(RunSpec { world, ..request(dir.path(), FRESH, asked(9, 3)) }, |_| {}).unwrap().0
    });
    assert_eq!(outcomes, [Outcome::Interrupted(2); 3]);
    assert_eq!(state::load(&dir.path().join("x.state/state.safetensors")).unwrap().unwrap().record.progress.step, 2);
}

#[test]
fn a_rank_with_other_data_is_refused_by_name() {
    let (dir, other) = (folder(), folder());
    write_data(other.path(), 5);
    let errors = Threads::run(3, |world| {
        let data = if world.rank() == 1 { other.path() } else { dir.path() };
        let request = RunSpec { world, ..request(dir.path(), FRESH, asked(1, 3)) };
        setup::on_tokens(&FakeDevice, request, &data.join("data.bin")).err().map(|error| error.to_string())
    });
    for error in errors {
        let error = error.unwrap();
        assert!(error.starts_with("rank 1 differs from rank 0 in its data: "), "{error}");
    }
    assert!(!dir.path().join("x.run").exists(), "nothing was written");
}

/// Rounds of three steps; an evaluation every four ends one too.
fn rounds(max_iters: u64, outer_lr: f32, outer_momentum: f32) -> Overrides {
    let (outer_lr, outer_momentum) = (Some(outer_lr), Some(outer_momentum));
    Overrides { sync_every: Some(3), outer_lr, outer_momentum, ..asked(max_iters, 6) }
}

#[test]
fn a_rank_that_takes_over_what_it_learned_trains_as_without_rounds() {
    let plain = folder();
    let (_, engine) = Watcher::default().run(request(plain.path(), FRESH, asked(9, 6)), |_| {}).unwrap();
    let dir = folder();
    let found = run_on(1, None, || request(dir.path(), FRESH, rounds(9, 1.0, 0.0)));
    near(&found[0].1, &engine.read(Slot::Params));
    // Alone, nothing travels, and nothing is rounded.
    let rounded = folder();
    let asked = || Overrides { reduce_dtype: Some(ReduceDtype::Int8), ..rounds(9, 1.0, 0.0) };
    assert_eq!(run_on(1, None, || request(rounded.path(), FRESH, asked())), found);
    near(&Checkpoint::load(&dir.path().join("x.pt")).unwrap().params, &engine.read(Slot::Params));
}

#[test]
fn ranks_agree_after_each_round_and_learn_what_all_saw() {
    let alone = folder();
    run(request(alone.path(), FRESH, asked(24, 6))).unwrap();
    let loss = |dir: &Path| metrics(dir).last().unwrap().val_loss.unwrap();
    for reduce_dtype in [ReduceDtype::F32, ReduceDtype::Bf16, ReduceDtype::Int8] {
        let dir = folder();
        let asked = || Overrides { reduce_dtype: Some(reduce_dtype), ..rounds(24, 1.0, 0.0) };
        let found = run_on(3, None, || request(dir.path(), FRESH, asked()));
        assert!(found.iter().all(|rank| *rank == found[0]), "all ranks have the same model");
        let (found, expected) = (loss(dir.path()), loss(alone.path()));
        assert!((found - expected).abs() < 0.05 * expected, "{reduce_dtype}: {found}, one process {expected}");
        // Gradients of every step, rounded on their way, lead to nearly the same model.
        let dir = folder();
        let asked = || Overrides { reduce_dtype: Some(reduce_dtype), ..super::together::asked(24, 6) };
        run_on(3, None, || request(dir.path(), FRESH, asked()));
        let found = loss(dir.path());
        assert!((found - expected).abs() < 2e-3 * expected, "{reduce_dtype}: {found}, one process {expected}");
    }
}

#[test]
fn a_run_of_rounds_stops_after_one_and_goes_on_with_its_momentum() {
    let whole = folder();
    let expected = run_on(1, None, || request(whole.path(), FRESH, rounds(17, 0.7, 0.9)));
    let dir = folder();
    let found = run_on(1, Some(10), || request(dir.path(), FRESH, rounds(17, 0.7, 0.9)));
    assert_eq!(found[0].0, Outcome::Interrupted(12), "the round ends first");
    let found = run_on(1, None, || request(dir.path(), StartFrom::Resume, Overrides::default()));
    assert_eq!(found, expected);
    // With another number of ranks, and without rounds.
    for (first, second, sync_every) in [(2, 3, 3), (3, 2, 5), (2, 3, 1), (1, 2, 1)] {
        let dir = folder();
        run_on(first, Some(4), || request(dir.path(), FRESH, rounds(17, 0.7, 0.9)));
        let asked = || Overrides { sync_every: Some(sync_every), ..Overrides::default() };
        let found = run_on(second, None, || request(dir.path(), StartFrom::Resume, asked()));
        assert!(found.iter().all(|rank| *rank == found[0]), "{first} {second} {sync_every}");
        assert_eq!(found[0].0, Outcome::Finished);
    }
}
