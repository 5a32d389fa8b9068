//! `make`, and what it is made of: `--recipe fast` and `--minutes`.

mod common;

use std::fs;

use common::{fail, metrics, shakespeare, succeed};

#[test]
fn a_text_becomes_a_model_in_the_time_and_nothing_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("plays.txt"), &shakespeare()[..200_000]).unwrap();
    let (out, err) = succeed(root, "make --txt plays.txt --minutes 0.15 --out plays.pt --threads 2");
    for choice in ["vocabulary: ", "model:      7M, ", "run:        recipe fast, ", "held out:   20,000 bytes"] {
        assert!(err.contains(choice), "{choice}: {err}");
    }
    for line in [
        "$ ngen3 tokenizer train --txt plays.txt --vocab_size ",
        "$ ngen3 tokenize --dataset plays --txt plays.txt --tokenizer plays_tokenizer.json",
        "$ ngen3 train --variant 7M --data _data_plays_/data.bin --recipe fast --minutes ",
        "$ ngen3 sample --model_checkpoint plays.pt ",
        "$ ngen3 export --model_path plays.pt --output_dir exported_plays",
    ] {
        assert!(err.contains(line), "{line}: {err}");
    }
    assert!(out.contains("First Citizen:") && out.contains("plays.pt: made of 200,000 bytes in "), "{out}");
    for file in ["plays.pt", "plays_tokenizer.json", "_data_plays_/data.bin", "exported_plays/model.safetensors"] {
        assert!(root.join(file).is_file(), "{file}");
    }
    let card = fs::read_to_string(root.join("exported_plays/README.md")).unwrap();
    assert!(card.contains("muon"), "the card says how it was trained: {card}");

    let error = fail(root, "make --txt plays.txt --out plays.pt", 1);
    assert_eq!(error, "plays.pt: already exists; choose another --out, or remove it");
    fs::remove_file(root.join("plays.pt")).unwrap();
    let error = fail(root, "make --txt plays.txt --out plays.pt", 1);
    assert_eq!(error, "exported_plays: already exists; choose another --out, or remove it");
}

#[test]
fn what_a_killed_run_left_is_used_and_what_others_made_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    // So short a text has the smallest vocabulary, however fast the machine, and is used up long before the time.
    fs::write(root.join("plays.txt"), &shakespeare()[..10_000]).unwrap();
    let make = "make --txt plays.txt --minutes 5 --out plays.pt --threads 2";
    let refused = |file: &str| {
        let (_, err) = common::texts(&common::run(root, make), 1);
        let error = format!("error: {file}: already exists; choose another --out, or remove it\n");
        assert!(err.ends_with(&error), "{err}");
    };
    succeed(root, "tokenizer train --txt plays.txt --vocab_size 300 --out plays_tokenizer.json");
    let others = fs::read(root.join("plays_tokenizer.json")).unwrap();
    refused("plays_tokenizer.json");
    assert_eq!(fs::read(root.join("plays_tokenizer.json")).unwrap(), others);

    // As a kill leaves them.
    succeed(root, "tokenizer train --txt plays.txt --vocab_size 512 --out plays_tokenizer.json");
    fs::create_dir(root.join("_data_plays_")).unwrap();
    fs::write(root.join("_data_plays_/notes.txt"), "mine").unwrap();
    refused("_data_plays_");
    fs::remove_file(root.join("_data_plays_/notes.txt")).unwrap();
    fs::write(root.join("other.txt"), &shakespeare()[50_000..60_000]).unwrap();
    succeed(root, "tokenize --dataset plays --txt other.txt --tokenizer plays_tokenizer.json");
    refused("_data_plays_");
    succeed(root, "tokenize --dataset plays --txt plays.txt --tokenizer plays_tokenizer.json");
    let (_, err) = succeed(root, make);
    assert!(err.contains("note: plays_tokenizer.json is there already, as this run would make it"), "{err}");
    assert!(!err.contains("$ ngen3 tokenizer train") && err.contains("$ ngen3 export"), "{err}");
}

#[test]
fn requests_without_a_plan_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("short.txt"), "To be.").unwrap();
    let error = fail(root, "make --txt short.txt", 1);
    assert_eq!(error, "--txt: expected at least 10,000 bytes, got 6 bytes");
    assert!(fail(root, "make --txt -", 1).contains("expected files or URLs, which are read several times, got -"));
    assert!(fail(root, "make --txt none.txt", 1).contains("none.txt"));
    let (_, error) = common::texts(&common::run(root, "make --txt short.txt --minutes 0"), 2);
    assert!(error.contains("expected a number from 0.1 to 1e6"), "{error}");
    assert!(
        fail(root, "make --txt builtin:shakespeare --out m.txt", 1)
            .contains("m.txt: expected a file name ending in .pt")
    );
    assert!(
        fail(root, "make --txt builtin:shakespeare --out none/m.pt", 1)
            .starts_with("cannot write none/m.pt: there is no folder none")
    );
    assert_eq!(fs::read_dir(root).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_run_of_minutes_ends_with_them_and_goes_on_with_more() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("plays.txt"), &shakespeare()[..100_000]).unwrap();
    succeed(root, "tokenizer train --txt plays.txt --vocab_size 512 --out t.json");
    succeed(root, "tokenize --dataset d --txt plays.txt --tokenizer t.json");
    let train = "train --variant 7M --data _data_d_/data.bin --out m.pt --log_interval 1 --eval_iters 1 --batch_size 2";
    let error = fail(root, &format!("{train} --minutes 1 --max_iters 5"), 1);
    assert_eq!(error, "minutes and max_iters: expected one of them, got both");

    let (out, err) = succeed(root, &format!("{train} --recipe fast --minutes 0.05"));
    assert!(err.contains("run:   0.05 min of steps of 256 tokens"), "{err}");
    assert!(
        err.contains("recipe fast: optimizer muon, learning_rate 0.012, matrix_lr 0.006, beta1 0.65, beta2 0.999, "),
        "{err}"
    );
    let lines = metrics(root, "m.run");
    let (last, rates) = (lines.last().unwrap(), lines.iter().filter_map(|line| line["lr"].as_f64()));
    let steps = last["step"].as_u64().unwrap();
    assert!(steps > 1 && out.contains(&format!(": {} step", ngen3_model::words::grouped(steps))), "{steps}: {out}");
    assert!(last["val_loss"].is_number(), "the last step is evaluated");
    let peak = rates.fold(0.0, f64::max);
    assert!(last["lr"].as_f64().unwrap() < 0.3 * peak.max(0.006), "the schedule ended: {last}, peak {peak}");

    let (out, _) = succeed(root, &format!("{train} --resume"));
    assert!(out.contains("steps are done"), "{out}");
    succeed(root, &format!("{train} --resume --minutes 0.09"));
    let longer = metrics(root, "m.run").last().unwrap()["step"].as_u64().unwrap();
    assert!(longer > steps, "{longer} steps after {steps}");
    let error = fail(root, &format!("{train} --resume --optimizer adamw"), 1);
    assert!(error.starts_with("optimizer: expected muon, with which the run began, got adamw; "), "{error}");
    // A warm-up that the time cuts short.
    let short = train.replace("--out m.pt", "--out short.pt");
    succeed(root, &format!("{short} --minutes 0.02 --warmup_iters 2000"));
    succeed(root, &format!("{short} --resume"));
    succeed(root, &format!("{short} --resume --minutes 0.01"));
    // Counted in steps again.
    succeed(root, &format!("{train} --resume --max_iters {}", longer + 2));
    assert_eq!(metrics(root, "m.run").last().unwrap()["step"].as_u64(), Some(longer + 2));
}
