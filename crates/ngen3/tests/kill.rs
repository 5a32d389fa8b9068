//! `ngen3 train` killed with SIGKILL, again and again: the checkpoint is always valid, and the resumed run ends exactly like
//! one that was never killed.

mod common;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Instant;

use common::{contents, fail, ngen3, succeed};
use ngen3_model::Checkpoint;
use serde_json::Value;
use tempfile::TempDir;

const KILLS: usize = 20;
const STEPS: u32 = 100;
const LINE: &str = "train --config tiny.toml --data data.bin --max_iters 100 --log_interval 1 --save_interval 1 \
                    --eval_interval 10 --eval_iters 1 --dropout 0.1";

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tiny = "layers = 2\nheads = 3\nwidth = 12\nblock = 8\nvocabulary = 97\nbatch_size = 4\nlearning_rate = 0.01\n";
    fs::write(folder.path().join("tiny.toml"), tiny).unwrap();
    let tokens = (0..4_000u32).map(|i| ((i * i) % 97) as u16);
    fs::write(folder.path().join("data.bin"), tokens.flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
    folder
}

/// Step, losses and gradient norm of each line of metrics.jsonl.
fn losses(folder: &Path) -> Vec<[Value; 4]> {
    let text = fs::read_to_string(folder.join("tiny_model.run/metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        ["step", "train_loss", "grad_norm", "val_loss"].map(|name| line[name].clone())
    };
    text.lines().map(line).collect()
}

/// A number in 0..1 that differs from call to call and from run to run.
fn random() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

#[test]
fn killed_at_twenty_random_moments_a_run_is_the_run_that_was_never_killed() {
    let reference = folder();
    let started = Instant::now();
    succeed(reference.path(), LINE);
    let step = started.elapsed() / STEPS;
    let expected = losses(reference.path());
    assert_eq!(expected.len(), STEPS as usize + 1);
    let model = fs::read(reference.path().join("tiny_model.pt")).unwrap();
    let check_whole = |folder: &Path| {
        assert_eq!(losses(folder), expected);
        assert!(fs::read(folder.join("tiny_model.pt")).unwrap() == model, "the models differ");
        let mut names = contents(folder).into_iter().map(|(name, _)| name);
        assert!(names.all(|name| !name.ends_with(".tmp")), "half-written files are cleared away");
    };

    let mut killed = folder();
    let mut kills = 0;
    let mut killed_at = Vec::new();
    while kills < KILLS {
        let path = killed.path();
        let has_state = path.join("tiny_model.state/state.safetensors").exists();
        let line = if has_state { format!("{LINE} --resume") } else { LINE.to_owned() };
        let mut child = ngen3(path, &line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Most kills strike while it trains and saves, some while it starts.
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        if random() < 0.8 {
            let mut text = String::new();
            while !text.contains("run: ") && stderr.read_line(&mut text).unwrap() > 0 {}
        }
        sleep(step.mul_f64(10.0 * random()));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if status.signal().is_none() {
            assert!(status.success(), "{status}");
            check_whole(path);
            killed = folder();
            continue;
        }
        kills += 1;
        if path.join("tiny_model.pt").exists() {
            killed_at.push(Checkpoint::load(&path.join("tiny_model.pt")).unwrap().meta.iter_num);
        }
    }
    // Shown if the test fails, and with --nocapture.
    println!("killed at steps {killed_at:?}, a step being {:.1} ms", step.as_secs_f64() * 1e3);
    let resume = killed.path().join("tiny_model.state/state.safetensors").exists();
    succeed(killed.path(), &if resume { format!("{LINE} --resume") } else { LINE.to_owned() });
    check_whole(killed.path());
}

#[test]
fn a_run_that_was_killed_before_its_first_state_starts_again_and_a_trained_model_is_kept() {
    let folder = folder();
    let folder = folder.path();
    let line = |steps: u32| format!("train --config tiny.toml --data data.bin --eval_iters 1 --max_iters {steps}");
    // The first save of a run writes the model, then the state.
    succeed(folder, &line(0));
    fs::remove_dir_all(folder.join("tiny_model.state")).unwrap();
    succeed(folder, &line(3));
    fs::remove_dir_all(folder.join("tiny_model.state")).unwrap();
    let error = fail(folder, &line(3), 1);
    assert!(error.contains("tiny_model.pt already exists"), "{error}");
}
