//! Several ranks on this machine, started by `mpirun`. For builds with the feature `mpi`.
#![cfg(feature = "mpi")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::{metrics, signal_at, succeed, texts};
use ngen3_model::Checkpoint;
use serde_json::Value;
use tempfile::TempDir;

/// Six micro-batches a step, which 2, 3, 4 and 6 ranks can share.
const LINE: &str = "train --config tiny.toml --data data.bin --log_interval 1 --eval_interval 5 --eval_iters 7 \
                    --gradient_accumulation 6 --dtype f32 --dropout 0.1";

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tiny = "layers = 2\nheads = 3\nwidth = 12\nblock = 8\nvocabulary = 97\nbatch_size = 2\nlearning_rate = 0.01\n";
    fs::write(folder.path().join("tiny.toml"), tiny).unwrap();
    write_data(&folder.path().join("data.bin"), 97);
    folder
}

fn write_data(path: &Path, vocabulary: u32) {
    let tokens = (0..4_000u32).map(|i| ((i * i) % vocabulary) as u16);
    fs::write(path, tokens.flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
}

/// `mpirun` with these ranks in a folder; the program follows.
fn launch(folder: &Path, ranks: usize) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "-n", &ranks.to_string()]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1").current_dir(folder);
    command
}

/// `ngen3 LINE` on these ranks.
fn mpirun(folder: &Path, ranks: usize, line: &str) -> Command {
    let mut command = launch(folder, ranks);
    command.arg(env!("CARGO_BIN_EXE_ngen3")).args(line.split(' '));
    command
}

fn run_on(folder: &Path, ranks: usize, line: &str) -> Output {
    mpirun(folder, ranks, line).output().expect("mpirun is installed where the feature mpi can be built")
}

/// Losses and norms of a run, of each logged step.
fn losses(folder: &Path, name: &str) -> Vec<f64> {
    let of = |line: Value| ["train_loss", "val_loss", "grad_norm"].map(|key| line[key].as_f64().unwrap_or_default());
    metrics(folder, name).into_iter().flat_map(of).collect()
}

fn near(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 2e-6 * expected.abs(), "{what}: expected {expected}, got {found}");
    }
}

#[test]
fn any_number_of_ranks_trains_the_model_of_one_process() {
    let folder = folder();
    let folder = folder.path();
    for (flags, name) in [("", "adamw"), (" --recipe fast", "fast")] {
        let line = |ranks: usize| format!("{LINE}{flags} --max_iters 20 --out {name}{ranks}.pt");
        let (_, said) = succeed(folder, &line(1));
        assert!(!said.contains("rank"), "one process has no ranks: {said}");
        for ranks in [2, 3, 4] {
            let (out, said) = texts(&run_on(folder, ranks, &line(ranks)), 0);
            assert!(said.contains(&format!("{ranks} ranks of 1 thread")), "{said}");
            assert_eq!(out.matches("20 steps in").count(), 1, "rank 0 alone prints: {out}");
            near(
                &losses(folder, &format!("{name}{ranks}.run")),
                &losses(folder, &format!("{name}1.run")),
                &format!("{ranks} ranks{flags}"),
            );
        }
    }
}

#[test]
fn with_a_batch_for_each_rank_the_bits_are_those_of_one_process() {
    let folder = folder();
    let folder = folder.path();
    let params = |name: &str| Checkpoint::load(&folder.join(format!("{name}.pt"))).unwrap().params;
    for (ranks, flags) in [(2, ""), (3, " --recipe fast"), (4, " --grad_clip 0.05")] {
        let flags = format!("{flags} --gradient_accumulation {ranks} --max_iters 30 --overwrite");
        let line = LINE.replace(" --gradient_accumulation 6 --dtype f32", &flags);
        succeed(folder, &format!("{line} --out one.pt"));
        texts(&run_on(folder, ranks, &format!("{line} --out many.pt")), 0);
        assert_eq!(losses(folder, "many.run"), losses(folder, "one.run"), "{ranks} ranks{flags}");
        assert_eq!(params("many"), params("one"), "{ranks} ranks{flags}");
    }
}

#[test]
fn ranks_exchange_every_few_steps_or_rounded_numbers_and_go_on() {
    let folder = folder();
    let folder = folder.path();
    let line = format!("{LINE} --max_iters 40 --learning_rate 0.02");
    let last = |name: &str| metrics(folder, &format!("{name}.run")).last().unwrap()["val_loss"].as_f64().unwrap();
    succeed(folder, &format!("{line} --out one.pt"));
    for (name, flags) in
        [("rounds", "--sync_every 4"), ("int8", "--sync_every 4 --reduce_dtype int8"), ("bf16", "--reduce_dtype bf16")]
    {
        let (out, _) = texts(&run_on(folder, 3, &format!("{line} {flags} --out {name}.pt")), 0);
        assert!(out.contains("40 steps in"), "{out}");
        let (found, start) = (last(name), metrics(folder, "one.run")[0]["val_loss"].as_f64().unwrap());
        assert!(found < last("one") + 0.1 * (start - last("one")), "{name}: {found}, one process {}", last("one"));
    }
    // Stopped within a round, it ends the round; another number of ranks goes on.
    let command = mpirun(folder, 3, &format!("{LINE} --max_iters 400 --sync_every 4 --out part.pt"));
    let said = signal_at(command, "step 6/400", "USR1", None);
    assert!(said.contains("part.pt: saved after step "), "{said}");
    let step = Checkpoint::load(&folder.join("part.pt")).unwrap().meta.iter_num;
    assert!([4, 5].iter().any(|of: &u64| step.is_multiple_of(*of)), "a round or an evaluation ends at step {step}");
    let (_, said) = texts(&run_on(folder, 2, "train --data data.bin --out part.pt --resume --max_iters 40"), 0);
    assert!(said.contains("note: every rank goes on with rank 0's averages of gradients"), "{said}");
    assert_eq!(Checkpoint::load(&folder.join("part.pt")).unwrap().meta.iter_num, 40);
}

#[test]
fn adapters_and_a_student_are_trained_as_in_one_process() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, &format!("{LINE} --max_iters 5 --out base.pt"));
    let settings =
        "--log_interval 1 --eval_interval 4 --eval_iters 3 --gradient_accumulation 3 --batch_size 2 --dtype f32";
    let finetune = format!(
        "finetune --model_checkpoint base.pt --data data.bin --lora_rank 2 --finetune_iters 8 --learning_rate 0.01 {settings}"
    );
    let distill =
        format!("distill --teacher_model_path base.pt --config tiny.toml --data data.bin --max_iters 8 {settings}");
    let cached = format!("{distill} --teacher_cache cache");
    for (name, line) in [("tuned", finetune), ("student", distill.clone()), ("cached", cached)] {
        succeed(folder, &format!("{line} --out {name}1.pt"));
        texts(&run_on(folder, 3, &format!("{line} --out {name}3.pt")), 0);
        near(&losses(folder, &format!("{name}3.run")), &losses(folder, &format!("{name}1.run")), name);
    }
    // Rank 0 fills a cache; the others read it.
    fs::remove_dir_all(folder.join("cache")).unwrap();
    let again = format!("{distill} --teacher_cache cache --out again.pt");
    let (_, said) = texts(&run_on(folder, 3, &again), 0);
    assert_eq!(said.matches("cache: cache: ").count(), 1, "{said}");
    near(&losses(folder, "again.run"), &losses(folder, "cached1.run"), "a cache that ranks filled");
}

#[test]
fn a_teacher_writes_for_all_ranks() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, "tokenizer train --txt builtin:shakespeare --vocab_size 300 --out t.json");
    succeed(folder, "tokenize --dataset plays --txt builtin:shakespeare --tokenizer t.json");
    let shape = "layers = 1\nheads = 2\nwidth = 16\nblock = 16\nbatch_size = 2\n";
    fs::write(folder.join("s.toml"), shape).unwrap();
    succeed(folder, "train --config s.toml --data _data_plays_ --max_iters 3 --out teacher.pt");
    let line = "distill --teacher_model_path teacher.pt --config s.toml --data _data_plays_ --teacher_writes 40 \
                --teacher_length 20 --max_iters 4 --gradient_accumulation 2 --log_interval 1 --dtype f32";
    let (_, said) = texts(&run_on(folder, 2, &format!("{line} --teacher_texts two --out two.pt")), 0);
    assert_eq!(said.matches("texts: two: 40 texts").count(), 1, "{said}");
    succeed(folder, &format!("{line} --teacher_texts one --out one.pt"));
    near(&losses(folder, "two.run"), &losses(folder, "one.run"), "texts of a teacher");
}

#[test]
fn an_evaluation_is_shared_among_ranks() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, "tokenizer train --txt builtin:shakespeare --vocab_size 300 --out t.json");
    succeed(folder, "tokenize --dataset plays --txt builtin:shakespeare --tokenizer t.json");
    succeed(folder, "train --variant 7M --data _data_plays_ --max_iters 2 --batch_size 2 --out m.pt");
    let line = "eval --model_checkpoint m.pt --tasks perplexity --text _data_plays_/data.bin --limit 100 --dtype f32 --no_merge";
    let read = |name: &str| -> f64 {
        let json: Value = serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap();
        let found = json["results"]["perplexity"].as_object().unwrap();
        found.iter().find(|(key, _)| key.starts_with("perplexity")).unwrap().1.as_f64().unwrap()
    };
    succeed(folder, &format!("{line} --out one.json"));
    let (out, _) = texts(&run_on(folder, 3, &format!("{line} --out three.json")), 0);
    assert_eq!(out.matches("bits_per_byte").count(), 1, "rank 0 alone prints: {out}");
    near(&[read("three.json")], &[read("one.json")], "perplexity");
}

#[test]
fn an_interrupted_run_goes_on_with_another_number_of_ranks() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, &format!("{LINE} --max_iters 400 --out whole.pt"));
    // After SIGINT, mpirun ends a rank that needs more than a second or two; SIGUSR1 is only passed on.
    let command = mpirun(folder, 3, &format!("{LINE} --max_iters 400 --out part.pt"));
    let said = signal_at(command, "step 5/400", "USR1", None);
    assert!(said.contains("part.pt: saved after step "), "{said}");
    texts(&run_on(folder, 2, "train --data data.bin --out part.pt --resume"), 0);
    near(&losses(folder, "part.run")[..300], &losses(folder, "whole.run")[..300], "resumed");
    assert_eq!(Checkpoint::load(&folder.join("part.pt")).unwrap().meta.iter_num, 400);
}

#[test]
fn ranks_that_cannot_train_together_say_so() {
    let folder = folder();
    let folder = folder.path();
    write_data(&folder.join("other.bin"), 89);
    // Each rank its own data, through the shell.
    let line = "train --config tiny.toml --max_iters 2 --gradient_accumulation 2 --out x.pt --data";
    let program = env!("CARGO_BIN_EXE_ngen3");
    let script = format!(
        "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then exec {program} {line} other.bin; fi; exec {program} {line} data.bin"
    );
    let output = launch(folder, 2).args(["sh", "-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("error: rank 1 differs from rank 0 in its data: "), "{said}");
    assert!(!folder.join("x.pt").exists());

    // Another processor's bits, unless the ranks exchange only what they learned.
    let line = format!("{LINE} --max_iters 3 --out simd.pt");
    let with = |flags: &str| {
        let script = format!(
            "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then export NGEN3_SIMD=scalar; fi; exec {program} {line} {flags}"
        );
        launch(folder, 2).args(["sh", "-c", &script]).output().unwrap()
    };
    if std::env::var_os("NGEN3_SIMD").is_none() {
        let said = String::from_utf8_lossy(&with("").stderr).into_owned();
        assert!(said.contains("error: rank 1 differs from rank 0 in its processor: expected "), "{said}");
        assert!(said.contains(", got scalar"), "{said}");
        assert!(with("--sync_every 2 --overwrite").status.success());
    }

    let said = |line: &str| String::from_utf8_lossy(&run_on(folder, 2, line).stderr).into_owned();
    let text = said("variants");
    assert!(text.contains("error: this command is for one process: start it without mpirun"), "{text}");
    let text = said("train --config tiny.toml --data data.bin --out x.pt --batch_size 3");
    assert!(text.contains("error: gradient_accumulation: expected at least 2"), "{text}");
    let text = said("train --no_such_flag");
    assert_eq!(text.matches("unexpected argument").count(), 1, "{text}");
}

/// A rank that is killed ends the job; what was saved is whole.
#[test]
fn a_killed_rank_ends_the_job_and_loses_only_what_was_not_saved() {
    let folder = folder();
    let folder = folder.path();
    let line = format!("{LINE} --max_iters 100000 --save_interval 3 --out x.pt");
    for resumed in ["", " --resume"] {
        let mut child =
            mpirun(folder, 2, &(line.clone() + resumed)).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(1500));
        let ranks = Command::new("pgrep").args(["-P", &child.id().to_string()]).output().unwrap();
        let ranks = String::from_utf8(ranks.stdout).unwrap();
        let last = ranks.lines().last().expect("a rank runs");
        assert!(Command::new("kill").args(["-9", last]).status().unwrap().success());
        assert!(!child.wait().unwrap().success());
    }
    let step = Checkpoint::load(&folder.join("x.pt")).unwrap().meta.iter_num;
    assert!(step > 0 && step.is_multiple_of(3), "saved after step {step}");
}
