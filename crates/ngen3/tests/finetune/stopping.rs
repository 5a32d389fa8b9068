//! Fine-tuning runs that are interrupted and resumed.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::*;

/// A run that is interrupted and resumed with the printed command ends with the same model.
#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_as_if_it_never_stopped() {
    let more = " --train_on all --skip_bad --prompt Hi --sample_length 3 --sample_temperature 0.5";
    for (lora, again) in [("", ""), (" --lora_rank 2", more)] {
        let folder = folder();
        let folder = folder.path();
        let line = format!(
            "{TINY} --finetune_iters 120 --eval_interval 40 --dropout 0.1 --gradient_accumulation 2{lora}{again}"
        );
        succeed(folder, &line.replace("x.pt", "whole.pt"));
        let mut command = ngen3(folder, &line);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = folder.join("x.run/metrics.jsonl");
        interrupt_when(&child, || fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 3));
        let (_, err) = texts(&child.wait_with_output().unwrap(), 130);
        let told = err.lines().find(|line| line.contains("resume with: ")).unwrap();
        assert!(told.ends_with(&format!("ngen3 finetune --data chats.jsonl{again} --out x.pt --resume")), "{told}");
        fs::rename(folder.join("tiny.pt"), folder.join("gone.pt")).unwrap();
        if !again.is_empty() {
            let error = complaint(&run(folder, "finetune --data chats.jsonl --out x.pt --resume"), 1);
            assert!(
                error.contains("the objective cannot change on --resume: train_on was all, now assistant"),
                "{error}"
            );
        }
        let (out, err) = succeed(folder, &format!("finetune --data chats.jsonl{again} --out x.pt --resume"));
        assert!(err.contains("resuming after step"), "{err}");
        assert!(out.contains("perplexity on the last tenth"), "{out}");
        assert_eq!(out.contains("\nuser: Hi\nassistant: "), !again.is_empty(), "{out}");
        // Resuming a finished run repeats what comes after training.
        let (out, _) = succeed(folder, &format!("finetune --data chats.jsonl{again} --out x.pt --resume"));
        assert!(out.contains("all 120 steps are done") && !out.contains("perplexity"), "{out}");
        assert_eq!(out.contains("\nuser: Hi\nassistant: "), !again.is_empty(), "{out}");
        let (whole, resumed) = (load(folder, "whole.pt"), load(folder, "x.pt"));
        assert_eq!(whole.meta, resumed.meta);
        assert!(whole.params == resumed.params, "bit for bit");
        let files: &[&str] = if lora.is_empty() {
            &["run/reference.json"]
        } else {
            &["run/reference.json", "adapter/adapter_model.safetensors"]
        };
        for file in files {
            let read = |run: &str| fs::read(folder.join(format!("{run}.{file}"))).unwrap();
            assert_eq!(read("whole"), read("x"), "{file}");
        }

        // Other conversations are an error, and so is another model.
        let more = "finetune --data chats.jsonl --out x.pt --resume --max_iters 200";
        if !lora.is_empty() {
            let kept = folder.join("x.state/base.safetensors");
            let base = Checkpoint::load(&kept).unwrap();
            let mut params = base.params;
            params[7] += 1.0;
            checkpoint::save(&kept, &base.config, &params, &base.meta).unwrap();
            let error = complaint(&run(folder, more), 1);
            assert!(error.contains("expected the base model of the run's adapters"), "{error}");
            continue;
        }
        fs::write(folder.join("chats.jsonl"), chats(39)).unwrap();
        let error = complaint(&run(folder, more), 1);
        assert!(error.contains("chats.jsonl: expected the data of the resumed run"), "{error}");
    }
}

/// A run that is interrupted while it measures a perplexity, before or after training, measures it on resume.
#[cfg(unix)]
#[test]
fn a_perplexity_that_is_stopped_is_measured_when_the_run_goes_on() {
    let folder = folder();
    let folder = folder.path();
    let words = "one two three four five six seven ".repeat(300);
    fs::write(folder.join("a.txt"), &words).unwrap();
    succeed(folder, "tokenize --dataset plain --txt a.txt");
    let line = TINY.replace("chats.jsonl", "_data_plain_/data.bin") + " --finetune_iters 2";
    let (line, again) = (
        format!("{line} --reference_text known.txt"),
        "finetune --data _data_plain_/data.bin --reference_text known.txt --out x.pt --resume",
    );
    // The run waits for its text after it has installed its signal handlers.
    let known = folder.join("known.txt");
    let stopped = |line: &str| {
        assert!(Command::new("mkfifo").arg(&known).status().unwrap().success());
        let child = ngen3(folder, line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = fs::File::options().write(true).open(&known).unwrap();
        interrupt_when(&child, || true);
        pipe.write_all(words.as_bytes()).unwrap();
        drop(pipe);
        let said = texts(&child.wait_with_output().unwrap(), 130);
        fs::remove_file(&known).unwrap();
        said
    };
    let (_, err) = stopped(&line);
    let told = err.lines().find(|line| line.contains("resume with: ")).unwrap();
    assert!(told.starts_with("x.pt: saved after step 0; ") && told.ends_with(again), "{told}");
    assert!(!folder.join("x.run/reference.json").exists());
    fs::write(&known, &words).unwrap();
    let (out, _) = succeed(folder, again);
    assert!(out.starts_with("x.pt: 2 steps in ") && out.contains("\nperplexity on known.txt, "), "{out}");

    // The state of a run that was interrupted after its last step.
    let path = folder.join("x.run/reference.json");
    let whole = fs::read(&path).unwrap();
    let mut report: Value = serde_json::from_slice(&whole).unwrap();
    report["after"] = Value::Null;
    fs::write(&path, report.to_string()).unwrap();
    fs::remove_file(&known).unwrap();
    let (_, err) = stopped(again);
    let told =
        err.lines().find(|line| line.starts_with("x.pt: training is finished; ")).unwrap_or_else(|| panic!("{err}"));
    assert!(told.contains("measure the perplexity with: ") && told.ends_with(again), "{told}");
    fs::write(&known, &words).unwrap();
    let (out, _) = succeed(folder, again);
    assert!(out.contains("\nperplexity on known.txt, "), "{out}");
    assert!(fs::read(&path).unwrap() == whole);
}

fn interrupt_when(child: &Child, ready: impl Fn() -> bool) {
    while !ready() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let killed = Command::new("sh").args(["-c", "kill -INT \"$0\"", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}
