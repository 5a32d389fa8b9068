//! `--device`: the CPU where there is no GPU, a clear error where one is asked for in vain, and, in builds with the feature `gpu` on
//! machines with an adapter, the commands that compute on it.

mod common;

use std::fs;
use std::path::Path;

#[cfg(not(feature = "gpu"))]
use common::complaint;
use common::{ngen3, shakespeare, texts};

/// A shape that software computes in seconds.
const TINY: &str = "n_layer = 2\nn_head = 2\nn_embd = 24\nblock_size = 16\n";

/// A folder with a dataset of few tokens and a shape.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    fs::write(folder.path().join("plays.txt"), &shakespeare()[..60_000]).unwrap();
    succeed(folder.path(), "tokenizer train --txt plays.txt --vocab_size 300 --out tokenizer.json");
    succeed(folder.path(), "tokenize --dataset x --txt plays.txt --tokenizer tokenizer.json");
    folder
}

/// `ngen3 LINE`. Mesa's layer that chooses among GPUs complains on stderr where there is no screen.
fn quiet(folder: &Path, line: &str) -> std::process::Output {
    ngen3(folder, line).env("NODEVICE_SELECT", "1").output().unwrap()
}

fn succeed(folder: &Path, line: &str) -> (String, String) {
    texts(&quiet(folder, line), 0)
}

const TRAIN: &str =
    "train --config tiny.toml --data _data_x_/data.bin --batch_size 2 --eval_iters 1 --log_interval 1 --dtype f32";

#[test]
fn auto_takes_no_software_and_the_list_begins_with_the_cpu() {
    let folder = folder();
    let (_, log) = succeed(folder.path(), &format!("{TRAIN} --out a.pt --max_iters 1"));
    let on_gpu = log.contains(", GPU, ");
    assert!(!log.contains("software") && on_gpu == log.contains("device: "), "{log}");
    let (list, _) = succeed(folder.path(), "devices --threads 2");
    assert!(list.starts_with("cpu     2 threads, ") && list.contains("\ngpu"), "{list}");
    let (_, log) = texts(&quiet(folder.path(), &format!("{TRAIN} --out b.pt --device cuda")), 2);
    assert!(
        log.starts_with("error: invalid value 'cuda' for '--device <DEVICE>': expected auto, cpu, gpu or gpu:N"),
        "{log}"
    );
}

#[cfg(not(feature = "gpu"))]
#[test]
fn without_the_feature_a_gpu_is_one_clear_error() {
    let folder = folder();
    for line in [&format!("{TRAIN} --out a.pt --device gpu"), "bench --device gpu:1"] {
        let error = complaint(&quiet(folder.path(), line), 1);
        assert!(error.starts_with("--device gpu") && error.ends_with("--features gpu)"), "{error}");
    }
    assert!(!folder.path().join("a.pt").exists());
}

#[cfg(feature = "gpu")]
#[test]
fn runs_on_a_gpu_lose_what_those_on_the_cpu_do_and_move_between_both() {
    let folder = folder();
    let folder = folder.path();
    let (list, _) = succeed(folder, "devices");
    if list.contains("gpu     none") {
        // The test harness captures `eprintln!`.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIPPED: commands on a GPU (no adapter)\n");
        return;
    }
    let (_, log) = texts(&quiet(folder, "bench --device gpu:99"), 1);
    assert!(log.contains("--device gpu:99: expected gpu"), "{log}");

    // One run stays on the CPU, the other begins on the GPU and changes twice.
    let losses = |name: &str| -> Vec<f64> {
        let lines = common::metrics(folder, &format!("{name}.run"));
        lines.iter().filter_map(|line| line.get("train_loss")?.as_f64()).collect()
    };
    let settings = "--learning_rate 3e-3 --min_lr 3e-3 --warmup_iters 0 --dropout 0.1";
    succeed(folder, &format!("{TRAIN} {settings} --out stays.pt --max_iters 9 --device cpu"));
    for (steps, device, resume) in [(3, "gpu", ""), (6, "cpu", " --resume"), (9, "gpu", " --resume")] {
        let line = format!("{TRAIN} {settings} --out moves.pt --max_iters {steps} --device {device}{resume}");
        let (_, log) = succeed(folder, &line);
        assert_eq!(log.contains(", GPU, f32"), device == "gpu", "{log}");
    }
    let (stays, moves) = (losses("stays"), losses("moves"));
    assert!(stays.len() >= 9 && stays.len() == moves.len(), "{stays:?} {moves:?}");
    for (a, b) in stays.iter().zip(&moves) {
        assert!((a - b).abs() < 1e-3, "{stays:?} {moves:?}");
    }

    // The same text, whichever decodes, and the same perplexity.
    let sample = "sample --model_checkpoint moves.pt --prompt ROMEO --length 8 --temperature 0 --dtype f32";
    let [(on_gpu, _), (on_cpu, _)] =
        ["gpu", "cpu"].map(|device| succeed(folder, &format!("{sample} --device {device}")));
    assert_eq!(on_gpu, on_cpu);
    let eval = "eval --model_checkpoint moves.pt --tasks perplexity --text plays.txt --limit 4 --no_merge";
    let perplexity = |device: &str| succeed(folder, &format!("{eval} --device {device} --dtype f32")).0;
    assert_eq!(perplexity("gpu"), perplexity("cpu"));

    // Adapters, and a student of this model.
    fs::write(
        folder.join("chats.jsonl"),
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Ho\"}]}\n"
            .repeat(8),
    )
    .unwrap();
    let tune = "finetune --model_checkpoint moves.pt --data _data_x_/data.bin --finetune_iters 2 --eval_iters 1 --batch_size 2 \
                --lora_rank 2 --reference_text plays.txt";
    let distil = "distill --teacher_model_path moves.pt --config tiny.toml --data _data_x_/data.bin --max_iters 2 --eval_iters 1 \
                  --batch_size 2";
    for (line, out) in [(tune, "tuned"), (distil, "student")] {
        for device in ["gpu", "cpu"] {
            succeed(folder, &format!("{line} --out {out}_{device}.pt --device {device} --dtype f32 --log_interval 1"));
        }
        let (on_gpu, on_cpu) = (losses(&format!("{out}_gpu")), losses(&format!("{out}_cpu")));
        assert!(on_gpu.len() >= 2 && on_gpu.len() == on_cpu.len(), "{on_gpu:?}");
        assert!(on_gpu.iter().zip(&on_cpu).all(|(a, b)| (a - b).abs() < 1e-3), "{on_gpu:?} {on_cpu:?}");
    }
}
