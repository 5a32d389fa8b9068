//! `distill --teacher_writes` from the command line: a teacher of another tokenizer.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{contents, fail, interrupt_at, ngen3, run, succeed, texts};
use ngen3_data::TokenFile;
use ngen3_model::{Checkpoint, Family};
use serde_json::Value;
use tempfile::TempDir;

const TEACHER: &str = "\
arch = 'llama'
layers = 1
heads = 2
kv_heads = 1
width = 16
block = 64
learning_rate = 0.01
eval_iters = 1
max_iters = 30
";

const STUDENT: &str = "\
layers = 1
heads = 1
width = 8
block = 8
batch_size = 4
learning_rate = 0.01
min_lr = 0.01
warmup_iters = 0
eval_iters = 1
dtype = 'f32'
";

/// A folder with a Llama that has learned Shakespeare in tokens of its own, and data in those of the student.
fn folder() -> TempDir {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fs::write(folder.join("teacher.toml"), TEACHER).unwrap();
    fs::write(folder.join("student.toml"), STUDENT).unwrap();
    for (name, vocab_size) in [("teacher", 290), ("student", 300)] {
        succeed(
            folder,
            &format!("tokenizer train --txt builtin:shakespeare --vocab_size {vocab_size} --out {name}.json"),
        );
        succeed(folder, &format!("tokenize --dataset {name} --txt builtin:shakespeare --tokenizer {name}.json"));
    }
    succeed(folder, "train --config teacher.toml --data _data_teacher_/data.bin --out teacher.pt");
    temporary
}

const LINE: &str = "distill --teacher_model_path teacher.pt --config student.toml --data _data_student_/data.bin";

/// The lines of a folder's texts.
fn lines(folder: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(name).join("texts.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn load(folder: &Path, name: &str) -> Checkpoint {
    Checkpoint::load(&folder.join(name)).unwrap()
}

#[test]
fn a_student_learns_what_a_teacher_of_another_tokenizer_writes() {
    let folder = folder();
    let folder = folder.path();
    let complaint = fail(folder, LINE, 1);
    let expected = "teacher.pt cannot be the teacher: its vocabulary has 290 tokens, the student's 300; a teacher of \
                    another tokenizer can write the student's texts instead, with --teacher_writes N";
    assert_eq!(complaint, expected);
    let write = "--teacher_writes 20 --teacher_texts w --teacher_length 24 --teacher_prompt_tokens 6";
    let (out, err) = succeed(folder, &format!("{LINE} {write} --max_iters 4"));
    assert!(out.starts_with("distilled_student_model.pt: 4 steps in "), "{out}");
    let student = load(folder, "distilled_student_model.pt");
    assert_eq!((student.config.vocab_size, student.config.family), (300, Family::Gpt2));

    // Each text is a prompt of the data and its continuation, one line each.
    let written = lines(folder, "w");
    assert_eq!(written.len(), 20);
    let shakespeare = String::from_utf8(common::shakespeare()).unwrap();
    let text = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let (mut tokens, mut cut, mut replaced) = (0, 0, 0);
    for line in &written {
        let (prompt, continuation) = (text(line, "prompt"), text(line, "continuation"));
        assert!(!prompt.is_empty() && shakespeare.contains(&prompt), "{prompt:?}");
        assert!(line["tokens"].as_u64().unwrap() <= 24 && continuation.len() <= 24 * 20, "{line}");
        replaced += u64::from(continuation.contains('\u{fffd}'));
        tokens += line["tokens"].as_u64().unwrap();
        cut += u64::from(line["cut"].as_bool().unwrap());
        assert_eq!(line["cut"], line["tokens"] == 24, "{line}");
    }
    assert!(written.iter().any(|line| line["prompt"] != written[0]["prompt"]));

    // They are the student's data, in its tokens, and the report counts them.
    let data = TokenFile::open(&folder.join("w")).unwrap();
    let mut ids = Vec::new();
    data.copy(0..data.len(), &mut ids);
    let empty = |line: &&Value| text(line, "continuation").trim().is_empty();
    let eot = "<|endoftext|>";
    let expected: String = written
        .iter()
        .filter(|line| !empty(line))
        .map(|line| text(line, "prompt") + &text(line, "continuation") + eot)
        .collect();
    assert_eq!(data.tokenizer().unwrap().decode(&ids), expected);
    let dropped = written.iter().filter(empty).count();
    let report = format!(
        "texts: w: {} texts, {} tokens of the student, {tokens} of the teacher; {cut} cut at --teacher_length, {dropped} \
         empty and dropped\n",
        20 - dropped,
        ngen3_model::words::grouped(ids.len() as u64)
    );
    assert!(err.contains(&report), "{report}{err}");
    assert!(err.contains("data:  w/data.bin: "), "{err}");
    // A teacher that has learned this little writes bytes that are no characters.
    let note = format!("note: {replaced} of the texts have bytes that are not UTF-8, which became \u{fffd}\n");
    assert!(replaced > 0 && err.contains(&note), "{note}{err}");

    // More texts are added to those that are there; a resumed run and another student write none.
    let more = write.replace("20", "30");
    let (_, err) = succeed(folder, &format!("{LINE} {more} --max_iters 2 --out more.pt"));
    assert!(err.contains("texts: w: 20 of 30 are there\n"), "{err}");
    assert_eq!(lines(folder, "w")[..20], written);
    let before = fs::read(folder.join("w/texts.jsonl")).unwrap();
    succeed(folder, &format!("{LINE} {more} --max_iters 4 --out more.pt --resume"));
    succeed(folder, &format!("{LINE} {more} --max_iters 4 --out whole.pt"));
    assert_eq!(load(folder, "more.pt").params, load(folder, "whole.pt").params);
    assert_eq!(fs::read(folder.join("w/texts.jsonl")).unwrap(), before);
    // Written at once, they are the same.
    succeed(folder, &format!("{LINE} {} --max_iters 0 --out other.pt", more.replace(" w ", " v ")));
    assert_eq!(lines(folder, "v"), lines(folder, "w"));
    // A text is what the teacher's settings make it: the most likely one here, of a new document.
    let greedy = "--teacher_writes 2 --teacher_texts g --teacher_length 5 --teacher_prompt_tokens 0 --teacher_temperature 0 --dtype f32";
    succeed(folder, &format!("{LINE} {greedy} --max_iters 0 --out g.pt --block_size 2 --val_fraction 0.5"));
    let greedy = lines(folder, "g");
    let (sampled, _) = succeed(folder, "sample --model_checkpoint teacher.pt --length 5 --temperature 0 --dtype f32");
    assert_eq!(greedy[0], greedy[1]);
    let end = ['\n', '\u{fffd}'];
    assert_eq!(text(&greedy[0], "continuation").trim_end_matches(end), sampled.trim_end_matches(end));
}

#[test]
fn interrupted_writing_keeps_what_is_written_and_goes_on() {
    let folder = folder();
    let folder = folder.path();
    let write = |n| format!("{LINE} --teacher_writes {n} --teacher_texts w --teacher_length 40 --max_iters 2");
    let text = interrupt_at(ngen3(folder, &write(100_000)), "teacher writing: ");
    assert!(text.contains(" texts kept; rerun the same command to continue\n"), "{text}");
    assert!(text.contains(" tokens/s\n") && text.contains(" left, "), "{text}");
    let kept = lines(folder, "w");
    assert!(kept.len() >= 16 && kept.len().is_multiple_of(16), "{}", kept.len());
    assert!(!folder.join("w/data.bin").exists() && !folder.join("distilled_student_model.pt").exists());

    // Killed in the middle of a line, too.
    let path = folder.join("w/texts.jsonl");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    succeed(folder, &write(kept.len()));
    assert_eq!(fs::read(&path).unwrap(), whole);

    // In whole batches, so that texts do not depend on how many there were before.
    let some = |n, out| write(n).replace("--teacher_texts w", &format!("--teacher_texts {out} --overwrite"));
    succeed(folder, &some(5, "parts"));
    succeed(folder, &some(13, "parts"));
    assert_eq!(lines(folder, "parts"), lines(folder, "w")[..13]);

    // A run that is interrupted while the student learns names its texts.
    let line = write(kept.len()).replace("--max_iters 2", "--max_iters 100000 --log_interval 5 --overwrite");
    let text = interrupt_at(ngen3(folder, &line), "step 5/");
    let said = text.lines().find(|line| line.contains(": saved after step")).unwrap_or_else(|| panic!("{text}"));
    let (_, command) = said.split_once("; resume with: ").unwrap();
    let done = load(folder, "distilled_student_model.pt").meta.iter_num;
    let command = format!("{command} --max_iters {}", done + 2);
    texts(&Command::new("sh").args(["-c", &command]).current_dir(folder).output().unwrap(), 0);
    assert_eq!(load(folder, "distilled_student_model.pt").meta.iter_num, done + 2);
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn bad_requests_are_refused_before_the_teacher_writes() {
    let folder = folder();
    let folder = folder.path();
    let short = "--teacher_texts w --teacher_length 8";
    succeed(folder, &format!("{LINE} {short} --teacher_writes 20 --max_iters 0"));
    let before = contents(folder);
    let cases = [
        (format!("{short} --teacher_writes 9"), "distilled_student_model.pt already exists; "),
        (format!("{short} --teacher_writes 9 --out teacher.pt --overwrite"), "teacher.pt is the teacher; "),
        (
            format!("{short} --teacher_writes 9 --out x.pt --teacher_temperature -1"),
            "temperature: expected 0 (greedy) or",
        ),
        (format!("{short} --teacher_writes 9 --out x.pt --teacher_top_p 0"), "top_p: expected above 0 and at most 1"),
        (
            format!("{short} --teacher_writes 9 --out x.pt --learning_rate 0"),
            "learning_rate: expected a positive number",
        ),
        (
            format!("{short} --teacher_writes 9 --out x.pt --teacher_seed 2"),
            "w/writing.json: not for this run: expected seed 2, got 1337; choose another --teacher_texts",
        ),
        (
            "--teacher_writes 9 --out x.pt --teacher_texts _data_student_".into(),
            "_data_student_: holds another dataset; choose another --teacher_texts",
        ),
    ];
    for (flags, expected) in cases {
        let complaint = fail(folder, &format!("{LINE} {flags}"), 1);
        assert!(complaint.contains(expected), "{flags}: {complaint}");
        assert_eq!(contents(folder), before, "{flags}");
    }
    for flags in [
        "--teacher_writes 0",
        "--teacher_length 5",
        "--teacher_writes 5 --alpha 1",
        "--teacher_writes 5 --teacher_cache c",
    ] {
        let (_, err) = texts(&run(folder, &format!("{LINE} {flags}")), 2);
        assert!(err.starts_with("error: "), "{flags}: {err}");
    }
    assert_eq!(contents(folder), before);
}
