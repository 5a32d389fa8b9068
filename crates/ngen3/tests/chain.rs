//! The whole pipeline, each command reading the previous one's output: text, tokens, teacher, student, conversations,
//! sample, export.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{interrupt_at, ngen3, succeed, texts};
use ngen3_model::Checkpoint;
use serde_json::Value;

#[test]
fn every_command_takes_what_the_one_before_left() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let shape = |layers, width| {
        format!(
            "n_layer = {layers}\nn_head = 2\nn_embd = {width}\nblock_size = 32\nbatch_size = 8\nlearning_rate = 3e-3\n\
             eval_iters = 2\n"
        )
    };
    fs::write(folder.join("teacher.toml"), shape(3, 32)).unwrap();
    fs::write(folder.join("student.toml"), shape(1, 16)).unwrap();

    succeed(folder, "tokenizer train --txt builtin:shakespeare --vocab_size 300 --out own.json");
    succeed(folder, "tokenize --dataset plays --txt builtin:shakespeare --tokenizer own.json");
    succeed(folder, "train --config teacher.toml --data _data_plays_/data.bin --max_iters 60");
    let (out, _) = succeed(
        folder,
        "distill --teacher_model_path teacher_model.pt --config student.toml --data _data_plays_/data.bin \
         --temperature 2.0 --alpha 0.5 --max_iters 40",
    );
    assert!(out.starts_with("distilled_student_model.pt: 40 steps"), "{out}");
    fs::write(folder.join("chats.jsonl"), "[\"Who?\", \"Romeo\"]\n[\"Hi\", \"Yes\"]\n".repeat(10)).unwrap();
    succeed(folder, "tokenize --dataset conversations --chats chats.jsonl --tokenizer own.json");
    let (out, _) = succeed(
        folder,
        "finetune --model_checkpoint distilled_student_model.pt --data _data_conversations_/data.bin --finetune_iters 20 \
         --prompt Who? --sample_length 10 --sample_temperature 1.0 --out finetuned_student_model.pt",
    );
    assert!(
        out.starts_with("finetuned_student_model.pt: 20 steps") && out.contains("\nuser: Who?\nassistant: "),
        "{out}"
    );
    let (text, _) = succeed(
        folder,
        "sample --model_checkpoint finetuned_student_model.pt --prompt ROMEO: --length 20 --temperature 1.0 --seed 1",
    );
    assert!(text.starts_with("ROMEO:") && text.len() > 20, "{text}");
    succeed(folder, "export --model_path finetuned_student_model.pt --output_dir exported");

    let student = Checkpoint::load(&folder.join("finetuned_student_model.pt")).unwrap();
    let exported = Checkpoint::load(&folder.join("exported")).unwrap();
    assert_eq!((exported.config, exported.params), (student.config, student.params));
    assert!(student.meta.chat.is_some());
    assert_eq!(exported.meta.chat, student.meta.chat);
    let config: Value = serde_json::from_slice(&fs::read(folder.join("exported/config.json")).unwrap()).unwrap();
    assert_eq!((&config["model_type"], &config["n_embd"]), (&"gpt2".into(), &16.into()));
    assert!(folder.join("exported/tokenizer.json").exists());
    let card = fs::read_to_string(folder.join("exported/README.md")).unwrap();
    for part in [
        "chats.jsonl",
        "| finetune: train_on | assistant |",
        ", fine-tuned for ",
        "apply_chat_template",
        "- conversational",
    ] {
        assert!(card.contains(part), "{part:?} is not in {card}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_quickstart_says_how_to_go_on_from_where_the_user_is() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // A program run by its relative path, as cargo does.
    fs::create_dir(folder.join("bin")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ngen3"), folder.join("bin/ngen3")).unwrap();
    let shell = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(folder);
        command
    };
    let text = interrupt_at(shell("exec bin/ngen3 quickstart --steps 100000 --dir 'a b'"), "run:   ");
    let (_, command) = text.split_once("\nfrom the current folder: ").unwrap_or_else(|| panic!("{text}"));
    let command = command.lines().next().unwrap();
    let done = Checkpoint::load(&folder.join("a b/7M_model.pt")).unwrap().meta.iter_num;
    texts(&shell(&format!("{command} --max_iters {}", done + 1)).output().unwrap(), 0);
    assert_eq!(Checkpoint::load(&folder.join("a b/7M_model.pt")).unwrap().meta.iter_num, done + 1);
}

#[cfg(unix)]
#[test]
fn a_quickstart_that_is_interrupted_after_training_ends() {
    let folder = tempfile::tempdir().unwrap();
    let text = interrupt_at(ngen3(folder.path(), "quickstart --steps 1"), "# generate text");
    assert!(text.ends_with("error: interrupted\n") && !text.contains("from the current folder"), "{text}");
    assert!(Path::new(&folder.path().join("ngen3_quickstart/7M_model.pt")).exists());
    assert!(!folder.path().join("ngen3_quickstart/exported_7M").exists());
}
