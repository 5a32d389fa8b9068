//! `ngen3 train` from the command line.

#[path = "../common/mod.rs"]
mod common;
mod stopping;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{contents, fail, metrics, ngen3, run, succeed, texts};
use ngen3_model::{Checkpoint, TokenizerRef};
use serde_json::Value;
use tempfile::TempDir;

/// A model of 5,000 parameters.
const TINY: &str = "\
layers = 2
heads = 3
width = 12
block = 8
vocabulary = 97
batch_size = 4
learning_rate = 0.01
eval_iters = 2
";

/// A folder with a tiny model's settings, and tokens with a pattern to learn.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    write_tokens(folder.path(), "data.bin", (0..4_000u32).map(|i| ((i * i) % 97) as u16));
    folder
}

fn write_tokens(folder: &Path, name: &str, tokens: impl Iterator<Item = u16>) {
    fs::write(folder.join(name), tokens.flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
}

fn load(folder: &Path, name: &str) -> Checkpoint {
    Checkpoint::load(&folder.join(name)).unwrap()
}

/// Runs a command that must fail after its header; returns the error line at the end.
fn fail_late(command: &mut Command, code: i32) -> String {
    let (out, err) = texts(&command.output().unwrap(), code);
    assert!(out.is_empty(), "{out}");
    assert_eq!(err.matches("error: ").count(), 1, "{err}");
    err.lines().last().unwrap().strip_prefix("error: ").unwrap_or_else(|| panic!("{err}")).to_owned()
}

#[test]
fn a_model_learns_and_the_run_is_on_record() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("tiny.toml"), format!("{TINY}max_iters = 7\nseed = 3\n")).unwrap();
    let line = "train --config tiny.toml --data data.bin --max-iters 60 --eval_interval 25 --warmup-iters=2";
    let (out, err) = succeed(folder, line);
    assert!(out.starts_with("tiny_model.pt: 60 steps in ") && out.contains("validation loss "), "{out}");
    for expected in [
        "model: 5,052 parameters, 2 layers, 3 heads, width 12, context 8, vocabulary 97\n",
        "3,600 tokens for training, 400 for validation",
        "60 steps of 32 tokens (4 sequences of 8)",
        "step 0: validation loss 4.",
        "step 60/60: loss ",
        "lr 1.",
        "norm ",
        " tokens/s, 0 s left",
    ] {
        assert!(err.contains(expected), "{expected}: {err}");
    }

    let lines = metrics(folder, "tiny_model.run");
    assert_eq!(
        lines.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 10, 20, 25, 30, 40, 50, 60]
    );
    let losses: Vec<f64> = lines.iter().filter_map(|line| line["val_loss"].as_f64()).collect();
    assert_eq!(losses.len(), 4);
    assert!(losses[3] < losses[0] - 0.5, "{losses:?}");
    let text = fs::read_to_string(folder.join("tiny_model.run/metrics.jsonl")).unwrap();
    for field in ["step", "train_loss", "lr", "grad_norm", "ms_per_step", "tokens_per_s", "elapsed_s", "val_loss"] {
        assert!(text.lines().last().unwrap().contains(&format!("\"{field}\":")), "{field}: {text}");
    }
    assert!(fs::read_to_string(folder.join("tiny_model.run/loss.svg")).unwrap().contains("Loss of tiny_model"));
    let names: Vec<_> = contents(&folder.join("tiny_model.run")).into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|name| name.contains("events.out.tfevents.")), "{names:?}");

    let checkpoint = load(folder, "tiny_model.pt");
    assert_eq!(checkpoint.meta.iter_num, 60);
    assert_eq!(checkpoint.meta.training["seed"], 3, "from the file");
    assert_eq!(checkpoint.meta.training["max_iters"], 60, "the command line comes before the file");
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!((checkpoint.meta.best_val_loss.unwrap() - best).abs() < 1e-6);
}

#[test]
fn a_tokenizer_travels_with_the_model_and_sets_its_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // The file has the name of the built-in tokenizer.
    succeed(folder, "tokenizer train --txt builtin:shakespeare --vocab_size 300 --out gpt2");
    succeed(folder, "tokenize --dataset plays --txt builtin:shakespeare --tokenizer gpt2");
    fs::write(folder.join("small.toml"), "n_layer = 1\nn_head = 1\nn_embd = 8\nblock_size = 16\n").unwrap();
    let line =
        "train --config small.toml --data _data_plays_/data.bin --max_iters 1 --eval_iters 1 --out m.safetensors";
    succeed(folder, line);
    let checkpoint = load(folder, "m.safetensors");
    assert_eq!(checkpoint.config.vocab_size, 300);
    let own = fs::read_to_string(folder.join("_data_plays_/tokenizer.json")).unwrap();
    assert_eq!(checkpoint.meta.tokenizer, TokenizerRef::Json(own));

    succeed(folder, "tokenize --dataset gpt2 --txt builtin:shakespeare");
    let line = "train --config small.toml --data _data_gpt2_/data.bin --init_from m.safetensors --out n.pt";
    let complaint = fail(folder, line, 1);
    assert!(complaint.contains("is outside the model's vocabulary of 300"), "{complaint}");

    // Another tokenizer whose ids fit the model's vocabulary.
    succeed(folder, "tokenizer train --txt builtin:shakespeare --vocab_size 290 --out other.json");
    succeed(folder, "tokenize --dataset other --txt builtin:shakespeare --tokenizer other.json");
    for line in [
        "train --config small.toml --data _data_other_/data.bin --init_from m.safetensors --out n.pt",
        "trace --model_checkpoint m.safetensors --data _data_other_/data.bin",
    ] {
        let complaint = fail(folder, line, 1);
        assert!(
            complaint.contains("m.safetensors was trained with another tokenizer than the one that made"),
            "{complaint}"
        );
    }
    assert!(!folder.join("trace.json").exists());
    succeed(folder, "trace --model_checkpoint m.safetensors --data _data_plays_/data.bin");
}

#[test]
fn a_resumed_run_goes_on_with_its_samples() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(folder, "tokenizer train --txt builtin:shakespeare --vocab_size 300 --out own.json");
    succeed(folder, "tokenize --dataset plays --txt builtin:shakespeare --tokenizer own.json");
    fs::write(folder.join("small.toml"), "n_layer = 1\nn_head = 1\nn_embd = 8\nblock_size = 16\n").unwrap();
    let line = "train --config small.toml --data _data_plays_/data.bin --eval_interval 2 --eval_iters 1 --eval_sample 9 --out m.pt";
    succeed(folder, &format!("{line} --max_iters 4"));
    let path = folder.join("m.run/samples.jsonl");
    let before = fs::read_to_string(&path).unwrap();
    // A killed run can leave half a character.
    fs::write(&path, [before.as_bytes(), b"{\"step\":6,\"text\":\"\xC3"].concat()).unwrap();
    succeed(folder, &format!("{line} --max_iters 6 --resume"));
    let samples = fs::read_to_string(&path).unwrap();
    assert!(samples.starts_with(&before), "{before}{samples}");
    let samples: Vec<Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<_> = samples.iter().map(|sample| sample["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 4, 6], "none at step 0");
    assert!(samples.iter().all(|sample| sample["text"].is_string()));

    let line = "--model_checkpoint m.pt --data _data_plays_/data.bin --lora_rank 2 --finetune_iters 2 --eval_sample 9 --out f.pt";
    let (_, err) = succeed(folder, &format!("finetune {line}"));
    let note = "note: --eval_sample has no effect with --lora_rank: adapters are merged after training\n";
    assert_eq!(err.matches(note).count(), 1, "{err}");
    assert!(!folder.join("f.run/samples.jsonl").exists());
}

#[test]
fn a_model_of_another_shape_than_the_variant_is_named_after_its_file() {
    let folder = folder();
    let folder = folder.path();
    let line = "train --variant 7M --data data.bin --max_iters 0";
    fs::write(folder.join("short.toml"), "block_size = 8\nvocab_size = 97\nn_layer = 4\n").unwrap();
    succeed(folder, &format!("{line} --config short.toml"));
    let variant = load(folder, "7M_model.pt").config;
    assert_eq!((variant.n_layer, variant.n_embd, variant.block_size), (4, 128, 8));
    fs::write(folder.join("flat.toml"), "block_size = 8\nvocab_size = 97\nn_layer = 1\n").unwrap();
    succeed(folder, &format!("{line} --config flat.toml"));
    let other = load(folder, "flat_model.pt").config;
    assert_eq!((other.n_layer, other.n_embd), (1, 128));
    assert_eq!(load(folder, "7M_model.pt").config, variant);
    // The flags that created it also resume it.
    succeed(folder, &format!("{line} --config flat.toml --resume").replace("max_iters 0", "max_iters 1"));
    assert_eq!(load(folder, "flat_model.pt").meta.iter_num, 1);
}

#[test]
fn recomputing_what_is_not_kept_gives_the_same_model() {
    let folder = folder();
    let folder = folder.path();
    let run = |name: &str, line: &str| {
        succeed(folder, &format!("train --data data.bin --max_iters 6 --dropout 0.2 --out {name}.pt {line}"));
        load(folder, &format!("{name}.pt"))
    };
    let deep = TINY.replace("layers = 2", "layers = 4");
    fs::write(folder.join("deep.toml"), &deep).unwrap();
    fs::write(folder.join("less.toml"), deep + "recompute = true\n").unwrap();
    let kept = run("kept", "--config deep.toml");
    assert_eq!(kept.meta.training["recompute"], false);
    for (name, line) in [("flag", "--config deep.toml --recompute"), ("file", "--config less.toml")] {
        let found = run(name, line);
        assert_eq!(found.meta.training["recompute"], true);
        assert!(found.params == kept.params, "{name}");
        assert_eq!(metrics(folder, &format!("{name}.run")), metrics(folder, "kept.run"));
    }
}

#[test]
fn no_steps_initialise_and_a_model_is_not_replaced_unasked() {
    let folder = folder();
    let folder = folder.path();
    let line = "train --config tiny.toml --data data.bin --out m.pt --max_iters 0";
    succeed(folder, line);
    let first = load(folder, "m.pt");
    assert_eq!(first.meta.iter_num, 0);

    let before = contents(folder);
    let complaint = fail(folder, line, 1);
    assert!(complaint.contains("m.pt already exists") && complaint.contains("--overwrite"), "{complaint}");
    assert_eq!(contents(folder), before);

    succeed(folder, &format!("{line} --overwrite --seed 2"));
    assert_ne!(load(folder, "m.pt").params, first.params);
    succeed(folder, "train --config tiny.toml --data data.bin --out m.pt --resume --max_iters 3");
    assert_eq!(load(folder, "m.pt").meta.iter_num, 3);
    let (out, _) = succeed(folder, "train --config tiny.toml --data data.bin --out m.pt --resume");
    assert_eq!(out, "m.pt: all 3 steps are done; increase --max_iters to train further\n");
}

#[test]
fn a_model_that_is_read_only_is_not_replaced() {
    let folder = folder();
    let folder = folder.path();
    let line = "train --config tiny.toml --data data.bin --out m.pt --max_iters 0 --overwrite";
    succeed(folder, line);
    common::protect(&folder.join("m.pt"));
    let before = contents(folder);
    assert_eq!(fail(folder, line, 1), "cannot write m.pt: it is read-only");
    assert_eq!(contents(folder), before);
}

#[test]
fn a_run_that_goes_on_at_another_learning_rate_ends_at_a_tenth_of_it() {
    let folder = folder();
    let folder = folder.path();
    let line = "train --config tiny.toml --data data.bin --out m.pt";
    succeed(folder, &format!("{line} --max_iters 4"));
    let complaint = fail(folder, &format!("{line} --resume --max_iters 3"), 1);
    assert!(complaint.contains("max_iters: expected at least the 4 steps already done, got 3"), "{complaint}");
    succeed(folder, &format!("{line} --resume --max_iters 8 --learning_rate 0.00002"));
    let training = load(folder, "m.pt").meta.training;
    assert_eq!((training["learning_rate"].as_f64(), training["min_lr"].as_f64()), (Some(2e-5), Some(2e-6)));
    // A given min_lr is kept.
    succeed(folder, &format!("{line} --resume --max_iters 9 --min_lr 0.00001"));
    succeed(folder, &format!("{line} --resume --max_iters 10 --learning_rate 0.00003"));
    assert_eq!(load(folder, "m.pt").meta.training["min_lr"].as_f64(), Some(1e-5));
}

#[test]
fn bench_says_how_much_it_decodes() {
    let folder = tempfile::tempdir().unwrap();
    let line = "bench --variant 7M --steps 1 --batch_size 1 --threads 1";
    let (out, err) = succeed(folder.path(), &format!("{line} --tokens 125"));
    assert_eq!(err, "note: decoding 124 tokens, the most that fit in the context\n");
    assert!(
        out.starts_with("7M (7,242,624 parameters), 1 sequence of 128, 1 thread, ") && out.contains("\ndecoding "),
        "{out}"
    );
}

#[test]
fn a_text_is_not_taken_for_tokens() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("plain.txt"), "To be, or not to be, that is the question:\n".repeat(20)).unwrap();
    let complaint = fail(folder, "train --config tiny.toml --data plain.txt --out x.pt", 1);
    assert!(
        complaint.contains("plain.txt: expected token ids, got text") && complaint.contains("ngen3 tokenize"),
        "{complaint}"
    );
}

#[test]
fn a_run_that_diverges_stops_and_keeps_the_last_good_model() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, "train --config tiny.toml --data data.bin --max_iters 5");
    let good = fs::read(folder.join("tiny_model.pt")).unwrap();
    let line = "train --config tiny.toml --data data.bin --resume --max_iters 50 --learning_rate 1e30 --weight_decay 0 --save_interval 1";
    let complaint = fail_late(&mut ngen3(folder, line), 1);
    for expected in [" at step 6 (learning rate ", "tiny_model.pt keeps the model of step 5", "a lower --learning_rate"]
    {
        assert!(complaint.contains(expected), "{complaint}");
    }
    assert_eq!(fs::read(folder.join("tiny_model.pt")).unwrap(), good);
    succeed(folder, "train --config tiny.toml --data data.bin --resume --max_iters 10");
    assert_eq!(load(folder, "tiny_model.pt").meta.iter_num, 10);
}

#[test]
fn a_run_starts_from_the_weights_of_a_checkpoint() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, "train --config tiny.toml --data data.bin --max_iters 5 --out a.pt");
    let a = load(folder, "a.pt");
    succeed(folder, "train --data data.bin --init_from a.pt --out b.safetensors --max_iters 0");
    let b = load(folder, "b.safetensors");
    assert_eq!((b.config, b.params, b.meta.iter_num), (a.config, a.params, 0));
    succeed(folder, "train --data data.bin --init_from a.pt --out c.pt --max_iters 2 --block_size 4");
    assert_eq!(load(folder, "c.pt").config.block_size, 4);
}

#[test]
fn bad_input_is_one_clear_line_and_changes_nothing() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, "train --config tiny.toml --data data.bin --max_iters 2 --out good.pt");
    fs::write(folder.join("empty.bin"), "").unwrap();
    fs::write(folder.join("odd.bin"), [1, 0, 2]).unwrap();
    write_tokens(folder, "short.bin", [1, 2, 3].into_iter());
    write_tokens(folder, "foreign.bin", (0..400).map(|i| if i == 81 { 97 } else { 5 }));
    let good = fs::read(folder.join("good.pt")).unwrap();
    fs::write(folder.join("cut.pt"), &good[..good.len() / 2]).unwrap();
    let state = fs::read(folder.join("good.state/state.safetensors")).unwrap();
    fs::create_dir(folder.join("cut.state")).unwrap();
    fs::write(folder.join("cut.state/state.safetensors"), &state[..state.len() / 2]).unwrap();
    fs::write(folder.join("typo.toml"), "learnin_rate = 1\n").unwrap();
    fs::write(folder.join("wrong.toml"), "layers = 'two'\n").unwrap();
    fs::create_dir(folder.join("dir.pt")).unwrap();
    write_tokens(folder, "other.bin", (0..4_000).map(|i| i % 90));
    let before = contents(folder);

    let cases = [
        ("--config tiny.toml --data none.bin", 1, "none.bin: no such file"),
        ("--config tiny.toml --data empty.bin", 1, "empty.bin: the file is empty"),
        ("--config tiny.toml --data odd.bin", 1, "odd.bin: expected a multiple of 2 bytes"),
        ("--config tiny.toml --data short.bin", 1, "but block_size 8 needs at least 9"),
        ("--config tiny.toml --data foreign.bin", 1, "foreign.bin: token 97 at position 81 is outside"),
        ("--config tiny.toml --data data.bin --init_from cut.pt --out x.pt", 1, "cut.pt"),
        ("--config tiny.toml --data data.bin --init_from data.bin --out x.pt", 1, "not a checkpoint"),
        ("--variant 7M --data data.bin --init_from good.pt", 1, "good.pt holds another model: n_layer is 2, not 4"),
        ("--variant 7M --data data.bin --out good.pt --resume", 1, "n_layer is 2, not 4"),
        ("--config tiny.toml --data data.bin --out cut.pt --resume", 1, "not a training state"),
        ("--config tiny.toml --data data.bin --out no.pt --resume", 1, "nothing to resume: "),
        ("--config tiny.toml --data other.bin --out good.pt --resume", 1, "expected the data of the resumed run"),
        ("--config tiny.toml --data data.bin --out data.bin/x.pt", 1, "cannot create the folder data.bin"),
        ("--config tiny.toml --data data.bin --out /proc/x.pt", 1, "the folder /proc"),
        ("--config tiny.toml --data data.bin --out dir.pt", 1, "dir.pt"),
        ("--config tiny.toml --data data.bin --out x.onnx", 1, "ending in .pt or .safetensors"),
        ("--config typo.toml --data data.bin", 1, "\"learnin_rate\"; did you mean learning_rate?"),
        (
            "--config wrong.toml --data data.bin",
            1,
            "wrong.toml: line 1: layers: expected a non-negative integer, got \"two\"",
        ),
        ("--config none.toml --data data.bin", 1, "none.toml"),
        ("--data data.bin", 1, "no model given"),
        ("--config tiny.toml --data data.bin --batch_size 0", 1, "batch_size: expected at least 1, got 0"),
        ("--config tiny.toml --data data.bin --batch_size 9999999999", 1, "memory, but this machine has"),
        (
            "--config tiny.toml --data data.bin --learning_rate -1",
            1,
            "learning_rate: expected a positive number, got -1",
        ),
        ("--config tiny.toml --data data.bin --dropout 1", 1, "dropout: expected at least 0 and below 1, got 1"),
        (
            "--config tiny.toml --data data.bin --warmup_iters 50 --max_iters 10",
            1,
            "warmup_iters: expected at most the max_iters of 10, got 50",
        ),
    ];
    for (flags, code, expected) in cases {
        let complaint = fail(folder, &format!("train {flags}"), code);
        assert!(complaint.contains(expected), "{flags}: {complaint}");
        assert_eq!(contents(folder), before, "{flags}");
    }
    for flags in ["--config tiny.toml", "--variant 8M --data data.bin", "--data data.bin --resume --overwrite"] {
        let (_, err) = texts(&run(folder, &format!("train {flags}")), 2);
        assert!(err.starts_with("error: "), "{flags}: {err}");
        assert_eq!(contents(folder), before, "{flags}");
    }
}

/// Runs a command that cannot write files larger than `blocks` of 512 bytes.
fn with_little_disk(folder: &Path, blocks: u32, line: &str) -> Command {
    let program = env!("CARGO_BIN_EXE_ngen3");
    let mut command = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec '{program}' {line}");
    command.args(["-c", &script]).current_dir(folder);
    command
}

#[test]
fn a_full_disk_is_an_error_at_the_start_and_harms_no_old_file() {
    let folder = folder();
    let folder = folder.path();
    let line = "train --config tiny.toml --data data.bin --save_interval 2 --max_iters";
    let complaint = fail_late(&mut with_little_disk(folder, 60, &format!("{line} 4")), 1);
    assert!(complaint.contains("cannot write tiny_model.state/state.safetensors"), "{complaint}");

    // The model of before the first step was saved; without a state beside it, it is no obstacle.
    succeed(folder, &format!("{line} 4"));
    let saved =
        || ["tiny_model.pt", "tiny_model.state/state.safetensors"].map(|name| fs::read(folder.join(name)).unwrap());
    let before = saved();
    let complaint = fail_late(&mut with_little_disk(folder, 60, &format!("{line} 8 --resume")), 1);
    assert!(complaint.contains("cannot write tiny_model.state/state.safetensors: "), "{complaint}");
    assert!(complaint.ends_with("the checkpoint of step 4 is intact: continue from it with --resume"), "{complaint}");
    assert!(saved() == before, "the old files are whole");
    let leftovers: Vec<_> =
        contents(folder).into_iter().map(|(name, _)| name).filter(|name| name.ends_with(".tmp")).collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
    succeed(folder, &format!("{line} 8 --resume"));
}
