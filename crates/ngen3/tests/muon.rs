//! `--optimizer muon` and `--schedule` from the command line.
#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{contents, fail, interrupt_at, ngen3, run, succeed, texts};
use ngen3_model::{Checkpoint, CheckpointMeta, Config, ParamList, checkpoint};
use serde_json::Value;
use tempfile::TempDir;

/// A model of 5,000 parameters, in whose layers matrices are square, tall and wide.
const TINY: &str = "\
n_layer = 2
n_head = 3
n_embd = 12
block_size = 8
vocab_size = 97
batch_size = 4
learning_rate = 0.01
eval_iters = 2
log_interval = 1
";

const TRAIN: &str = "train --config tiny.toml --data data.bin --out m.pt";

/// A folder with a tiny model's settings, and tokens with a pattern to learn.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    let tokens = (0..4_000u32).flat_map(|i| ((i * i % 97) as u16).to_le_bytes());
    fs::write(folder.path().join("data.bin"), tokens.collect::<Vec<_>>()).unwrap();
    folder
}

/// Trains in a new folder with these flags; returns the folder.
fn trained(flags: &str) -> TempDir {
    let folder = folder();
    succeed(folder.path(), &format!("{TRAIN} {flags}"));
    folder
}

fn model(folder: &TempDir) -> Vec<u8> {
    fs::read(folder.path().join("m.pt")).unwrap()
}

fn params(folder: &TempDir) -> Vec<f32> {
    Checkpoint::load(&folder.path().join("m.pt")).unwrap().params
}

/// The lines of metrics.jsonl, without timings.
fn metrics(folder: &TempDir) -> Vec<Value> {
    common::metrics(folder.path(), "m.run")
}

#[test]
fn it_learns_and_differs_from_adamw_in_every_matrix_of_the_blocks() {
    let [muon, adamw] =
        ["muon", "adamw"].map(|name| trained(&format!("--optimizer {name} --max_iters 60 --dtype f32")));
    for run in [&muon, &adamw] {
        let losses: Vec<f64> = metrics(run).iter().filter_map(|line| line["val_loss"].as_f64()).collect();
        assert!(losses[losses.len() - 1] < losses[0] - 0.5, "{losses:?}");
    }
    let checkpoint = Checkpoint::load(&muon.path().join("m.pt")).unwrap();
    assert_eq!(checkpoint.meta.training["optimizer"], "muon");
    // AdamW is the default.
    assert!(params(&adamw) == params(&trained("--max_iters 60 --dtype f32")));

    // After one step, with the same gradients, only the matrices of the blocks differ.
    let [muon, adamw] = ["muon", "adamw"].map(|name| trained(&format!("--optimizer {name} --max_iters 1 --dtype f32")));
    let [muon, adamw] = [params(&muon), params(&adamw)];
    for param in &ParamList::new(&checkpoint.config) {
        let (name, range) = (param.name(), param.range());
        let of_block = param.shape.len() == 2 && name.contains(".h.");
        assert_eq!(muon[range.clone()] != adamw[range], of_block, "{name}");
    }
}

#[test]
fn matrices_have_a_rate_of_their_own_if_asked_for() {
    let run = |flags: &str| params(&trained(&format!("--optimizer muon --dtype f32 --weight_decay 0 {flags}")));
    let [start, same] = ["--max_iters 0", "--max_iters 1"].map(run);
    assert!(same == run("--max_iters 1 --matrix_lr 0.01"), "the default is the learning rate of the others");
    assert!(same == run("--max_iters 1 --momentum 0.95"), "the default");
    let twice = run("--max_iters 1 --matrix_lr 0.02");
    for param in &ParamList::new(&Config::new(2, 3, 12, 8, 97)) {
        let times = if param.shape.len() == 2 && param.name().contains(".h.") { 2.0 } else { 1.0 };
        for i in param.range() {
            let [expected, found] = [times * (same[i] - start[i]), twice[i] - start[i]];
            assert!((found - expected).abs() < 1e-6, "{}: expected {expected}, got {found}", param.name());
        }
    }
    assert!(run("--max_iters 3") != run("--max_iters 3 --momentum 0.9"));
}

#[test]
fn an_interrupted_run_goes_on_bit_for_bit() {
    let flags = "--optimizer muon --matrix_lr 0.005 --max_iters 2000 --eval_interval 1000 --dropout 0.1 \
                 --gradient_accumulation 2";
    let whole = trained(flags);
    let parts = folder();
    let text = interrupt_at(ngen3(parts.path(), &format!("{TRAIN} {flags}")), "step 20/");
    let saved = text.lines().find(|line| line.contains(": saved after step")).unwrap();
    let (_, command) = saved.split_once("; resume with: ").unwrap();
    let resumed = Command::new("sh").args(["-c", command]).current_dir(parts.path()).output().unwrap();
    texts(&resumed, 0);
    assert_eq!(metrics(&parts), metrics(&whole));
    assert!(model(&parts) == model(&whole), "the models differ");
}

#[test]
fn a_run_that_is_made_longer_equals_one_of_that_length_from_the_start() {
    // The same learning rate in all steps, whatever their number.
    let flat = "--optimizer muon --warmup_iters 0 --eval_interval 3 --dropout 0.1";
    for flat in [format!("{flat} --schedule wsd --decay_fraction 0"), format!("{flat} --min_lr 0.01")] {
        for dtype in ["auto", "f32"] {
            let flags = format!("{flat} --dtype {dtype}");
            let whole = trained(&format!("{flags} --max_iters 6"));
            let parts = trained(&format!("{flags} --max_iters 3"));
            succeed(parts.path(), &format!("{TRAIN} --max_iters 6 --resume"));
            assert_eq!(metrics(&parts), metrics(&whole), "{flags}");
            assert!(params(&parts) == params(&whole), "{flags}");
            let [state, expected] =
                [&parts, &whole].map(|folder| fs::read(folder.path().join("m.state/state.safetensors")));
            assert!(tensors(&state.unwrap()).1 == tensors(&expected.unwrap()).1, "{flags}: the optimizer's state");
        }
    }
}

/// Splits a safetensors file into the list of its tensors and their values.
fn tensors(file: &[u8]) -> (Value, Vec<u8>) {
    let (size, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, values) = rest.split_at(u64::from_le_bytes(*size) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    header.as_object_mut().unwrap().remove("__metadata__");
    (header, values.to_vec())
}

#[test]
fn the_same_file_on_any_number_of_threads() {
    for dtype in ["auto", "f32"] {
        let line = format!("--optimizer muon --max_iters 6 --dropout 0.1 --dtype {dtype}");
        let [one, two] = [1, 2].map(|threads| trained(&format!("{line} --threads {threads}")));
        assert!(params(&one) == params(&two), "{dtype}");
        // All but the number of threads, which the file records.
        let loss = |folder| metrics(folder).last().unwrap()["val_loss"].clone();
        assert_eq!(loss(&one), loss(&two));
    }
}

#[test]
fn its_export_is_an_ordinary_gpt2() {
    let export = |optimizer: &str| {
        let folder = trained(&format!("--optimizer {optimizer} --max_iters 2"));
        succeed(folder.path(), "export --model_path m.pt --output_dir hf");
        folder
    };
    let [muon, adamw] = ["muon", "adamw"].map(export);
    let names = |folder: &Path| -> Vec<String> {
        contents(&folder.join("hf"))
            .into_iter()
            .map(|(name, _)| name[folder.to_str().unwrap().len()..].into())
            .collect()
    };
    assert_eq!(names(muon.path()), names(adamw.path()));
    let read = |folder: &TempDir, name: &str| fs::read(folder.path().join("hf").join(name)).unwrap();
    assert!(read(&muon, "config.json") == read(&adamw, "config.json"));
    let [(header, values), (expected, other)] =
        [&muon, &adamw].map(|folder| tensors(&read(folder, "model.safetensors")));
    assert_eq!(header, expected);
    assert_eq!(header["transformer.h.0.attn.c_attn.weight"]["shape"], serde_json::json!([12, 36]));
    assert!(values != other);
    // It is read back as it was.
    assert!(Checkpoint::load(&muon.path().join("hf")).unwrap().params == params(&muon));
}

/// The learning rates in metrics.jsonl after these flags, and those expected, by step.
#[track_caller]
fn assert_rates(flags: &str, expected: &[(u64, f64)]) {
    let lines = metrics(&trained(&format!("--max_iters 10 --warmup_iters 2 {flags}")));
    for &(step, lr) in expected {
        let line = lines.iter().find(|line| line["step"] == step).unwrap();
        let found = line["lr"].as_f64().unwrap();
        assert!((found / lr - 1.0).abs() < 1e-6, "{flags}, step {step}: expected {lr}, got {found}");
    }
}

#[test]
fn schedules_are_those_of_their_formulas() {
    // Ten steps, of which two lead up to 0.01 by thirds.
    let up = [(1, 0.01 / 3.0), (2, 0.02 / 3.0), (3, 0.01)];
    let then = |steps: &[(u64, f64)]| [&up, steps].concat();
    // Eighths of the peak, to 0 after the last.
    assert_rates("--schedule linear", &then(&[(4, 0.00875), (7, 0.005), (10, 0.00125)]));
    assert_rates("--schedule linear --min_lr 0.002", &then(&[(4, 0.009), (7, 0.006), (10, 0.003)]));
    // Fifths of the peak in the last five steps.
    let wsd = "--schedule wsd --decay_fraction 0.5";
    assert_rates(wsd, &then(&[(5, 0.01), (6, 0.01), (7, 0.008), (8, 0.006), (10, 0.002)]));
    assert_rates(&format!("{wsd} --min_lr 0.005"), &then(&[(6, 0.01), (7, 0.009), (10, 0.006)]));
    // By default in the last seven tenths.
    assert_rates("--schedule wsd --optimizer muon", &then(&[(4, 0.01), (5, 0.06 / 7.0), (10, 0.01 / 7.0)]));
    // As without the flag; min_lr is a tenth.
    assert_rates("--schedule cosine", &then(&[(7, 0.0055)]));
    assert_rates("--optimizer muon", &then(&[(7, 0.0055)]));
}

#[test]
fn names_that_do_not_exist_are_refused_with_those_that_do() {
    let folder = folder();
    let before = contents(folder.path());
    for (flags, expected) in [
        ("--optimizer sgd", "error: invalid value 'sgd' for '--optimizer <NAME>': expected adamw or muon\n"),
        ("--schedule cos", "error: invalid value 'cos' for '--schedule <NAME>': expected cosine, linear or wsd\n"),
    ] {
        let (out, err) = texts(&run(folder.path(), &format!("{TRAIN} {flags}")), 2);
        assert!(out.is_empty() && err.starts_with(expected), "{flags}: {err}");
    }
    for (flags, expected) in [
        ("--momentum 1", "momentum: expected at least 0 and below 1, got 1"),
        ("--decay_fraction 1.5", "decay_fraction: expected between 0 and 1, got 1.5"),
        ("--matrix_lr=-1", "matrix_lr: expected a non-negative number, got -1"),
    ] {
        assert_eq!(fail(folder.path(), &format!("{TRAIN} {flags}"), 1), expected);
    }
    for (line, expected) in [("optimizer = \"sgd\"", "adamw or muon"), ("schedule = \"cos\"", "cosine, linear or wsd")]
    {
        fs::write(folder.path().join("tiny.toml"), format!("{TINY}{line}\n")).unwrap();
        let error = fail(folder.path(), TRAIN, 1);
        assert!(error.starts_with("tiny.toml: line 10: ") && error.contains(expected), "{line}: {error}");
    }
    fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    assert_eq!(contents(folder.path()), before);
}

#[test]
fn adapters_are_fine_tuned_by_adamw_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let config = Config::new(1, 2, 8, 48, 50_257);
    let path = folder.join("tiny.pt");
    checkpoint::save(&path, &config, &ParamList::new(&config).init(3), &CheckpointMeta::default()).unwrap();
    fs::write(folder.join("chats.jsonl"), "[\"Hello\", \"Hi\"]\n[\"Who?\", \"Me\"]\n[\"Why?\", \"So\"]\n").unwrap();
    fs::write(folder.join("text.txt"), "Some words to read, and some more of them.").unwrap();
    let run = |flags: &str, out: &str| {
        let line = "finetune --model_checkpoint tiny.pt --data chats.jsonl --finetune_iters 2 --batch_size 1 \
                    --reference_text text.txt";
        succeed(folder, &format!("{line} --out {out}.pt{flags}"));
        Checkpoint::load(&folder.join(format!("{out}.pt"))).unwrap().params
    };
    assert!(run(" --lora_rank 2 --optimizer muon", "a") == run(" --lora_rank 2", "b"));
    // Without adapters it makes a difference.
    assert!(run(" --optimizer muon", "c") != run("", "d"));
}
