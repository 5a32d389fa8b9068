//! Start of a run: initial weights and rejected requests.

use super::*;

#[test]
fn a_model_that_is_there_is_replaced_only_when_asked() {
    let dir = folder();
    run(request(dir.path(), FRESH, settings(3).into())).unwrap();
    let before = fs::read(dir.path().join("x.pt")).unwrap();
    let message = error(request(dir.path(), FRESH, settings(2).into()));
    assert!(message.contains("x.pt already exists") && message.contains("--resume"), "{message}");
    assert_eq!(fs::read(dir.path().join("x.pt")).unwrap(), before);

    run(RunSpec { overwrite: true, ..request(dir.path(), FRESH, settings(2).into()) }).unwrap();
    assert_eq!(Checkpoint::load(&dir.path().join("x.pt")).unwrap().meta.iter_num, 2);
    assert_eq!(metrics(dir.path()).iter().map(|line| line.step).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn weights_come_from_a_checkpoint_of_the_shape_asked_for() {
    let dir = folder();
    run(request(dir.path(), FRESH, settings(4).into())).unwrap();
    let from = dir.path().join("x.pt");
    let params = Checkpoint::load(&from).unwrap().params;
    let start = || StartFrom::Checkpoint(from.clone());
    let to = |shape: Shape| {
        let request = request(dir.path(), start(), settings(0).into());
        prepare(RunSpec { out: Some(dir.path().join("y.pt")), shape, ..request })
    };

    let (job, _, weights) = to(Shape::default()).unwrap();
    assert_eq!((&job.config, job.progress.step), (&config(), 0));
    drop(job);
    assert_eq!(weights.params, params);
    assert!(weights.moments.is_none());

    // A shorter context length keeps the first positions and everything else.
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
        (RunSpec { shape: Shape { n_head: None, ..Shape::from(&config()) }, ..plain() }, "incomplete model shape"),
        (
            RunSpec { shape: Shape { n_head: Some(3), ..Shape::from(&config()) }, ..plain() },
            "not a multiple of n_head 3",
        ),
        (RunSpec { shape: Shape { vocab_size: Some(6), ..Shape::from(&config()) }, ..plain() }, "outside the model's"),
        (
            RunSpec { shape: Shape { block_size: Some(100), ..Shape::from(&config()) }, ..plain() },
            "but block_size 100 needs at least 101",
        ),
        (RunSpec { out: Some(dir.path().join("x.bin")), ..plain() }, ".pt or .safetensors"),
        (RunSpec { config_file: Some(dir.path().join("none.toml")), ..plain() }, "none.toml"),
    ];
    for (request, expected) in cases {
        let message = error(request);
        assert!(message.contains(expected) && !message.contains('\n'), "{expected}: {message}");
        assert_eq!(names(), before, "{expected}");
    }
    for (request, data, expected) in
        [(RunSpec { out: None, ..plain() }, "data.bin", "no model given"), (plain(), "none.bin", "none.bin")]
    {
        let message = setup::on_tokens(&FakeDevice, request, &dir.path().join(data)).unwrap_err().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{expected}: {message}");
        assert_eq!(names(), before, "{expected}");
    }
}
