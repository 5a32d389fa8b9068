//! `ngen3 chat`, with lines on stdin; `terminal.rs` types them at a terminal.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/pty.rs"]
mod pty;
#[cfg(unix)]
mod terminal;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{contents, fail, ngen3, protect, succeed, texts};
use ngen3_model::{ChatFormat, CheckpointMeta, Config, ParamList, checkpoint};
use serde_json::{Value, json};

/// Creates a folder with `tiny.pt`, a model with random weights and a chat template.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(1, 2, 8, 64, 50_257);
    let mut params = ParamList::new(&config).init(3);
    // Large weights: the answer depends on the conversation.
    params.iter_mut().for_each(|weight| *weight *= 20.0);
    let chat = ChatFormat {
        template: "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
            .into(),
        bos_token: None,
        eos_token: Some("<|endoftext|>".into()),
    };
    let meta = CheckpointMeta { chat: Some(chat), ..CheckpointMeta::default() };
    checkpoint::save(&folder.path().join("tiny.pt"), &config, &params, &meta).unwrap();
    folder
}

/// Runs a chat with these lines on stdin; returns stdout and stderr.
fn talk(folder: &Path, more: &str, typed: &str) -> (String, String) {
    let line = format!("chat --model_checkpoint tiny.pt --length 6 --temperature 0{more}");
    talk_by(ngen3(folder, &line), typed, 0)
}

/// Like [`talk`], where lines fail; removes the line from stderr that counts them.
fn fail_to_talk(folder: &Path, typed: &str, failed: &str) -> (String, String) {
    let line = "chat --model_checkpoint tiny.pt --length 6 --temperature 0";
    let (out, err) = talk_by(ngen3(folder, line), typed, 1);
    let end = format!("error: {failed} of stdin failed\n");
    (out, err.strip_suffix(&end).unwrap_or_else(|| panic!("{err}")).to_owned())
}

fn talk_by(mut command: Command, typed: &str, code: i32) -> (String, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    texts(&child.wait_with_output().unwrap(), code)
}

#[test]
fn every_line_is_answered_in_the_light_of_those_before() {
    let folder = folder();
    let folder = folder.path();
    let (first, err) = talk(folder, "", "Hello\n");
    assert!(first.ends_with('\n') && first.len() > 6, "{first:?}");
    assert_eq!(err, "");
    // Earlier turns matter, unless they are forgotten.
    let (both, _) = talk(folder, "", "Hello\n\n  Hello  \n");
    let second = both.strip_prefix(&first).unwrap();
    assert_ne!(second, first);
    let (reset, _) = talk(folder, "", "Hello\n/reset\nHello\n");
    assert_eq!(reset, format!("{first}{first}"));
    let (told, _) = talk(folder, " --system Loud!", "Hello\n");
    assert_ne!(told, first);
    let (told_twice, _) = talk(folder, " --system Loud!", "Hello\n/reset\nHello\n");
    assert_eq!(told_twice, format!("{told}{told}"), "the system message stays");
    let drawn = |seed: &str| {
        let line = format!("chat --model_checkpoint tiny.pt --length 20 --temperature 5 --seed {seed}");
        talk_by(ngen3(folder, &line), "Hello\n", 0).0
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
fn an_answer_is_made_as_a_sample_is() {
    let folder = folder();
    let folder = folder.path();
    let (likeliest, _) = talk(folder, "", "Hello\n");
    let mut command = ngen3(folder, "chat --model_checkpoint tiny.pt --length 6 --temperature 5 --min_p 1");
    assert_eq!(talk_by(command, "Hello\n", 0).0, likeliest, "no other token is kept");
    let answer = likeliest.trim_end();
    let stop = answer.chars().last().unwrap().to_string();
    command = ngen3(folder, "chat --model_checkpoint tiny.pt --length 6 --temperature 0");
    command.args(["--stop", &stop]);
    let (stopped, err) = talk_by(command, "Hello\n/save x.jsonl\n", 0);
    let expected = &answer[..answer.find(&stop).unwrap()];
    assert_eq!(stopped, format!("{expected}\n"));
    assert_eq!(err, "x.jsonl: 2 turns\n");
    let (rounded, _) = talk(folder, " --quant int8", "Hello\n");
    assert!(rounded.len() > 6, "{rounded:?}");
}

#[test]
fn a_conversation_is_saved_as_finetune_reads_it() {
    let folder = folder();
    let folder = folder.path();
    let (out, err) = talk(folder, "", "Hello\n/save saved chat.jsonl\n/quit\nnever read\n");
    assert_eq!(out.lines().count(), 1, "{out}");
    assert_eq!(err, "saved chat.jsonl: 2 turns\n");
    let saved: Value = serde_json::from_slice(&fs::read(folder.join("saved chat.jsonl")).unwrap()).unwrap();
    let answer = out.strip_suffix('\n').unwrap();
    let turns = json!([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]);
    assert_eq!(saved, json!({ "messages": turns }));
    fs::rename(folder.join("saved chat.jsonl"), folder.join("saved.jsonl")).unwrap();
    let line = "finetune --model_checkpoint tiny.pt --data saved.jsonl --finetune_iters 1 --out x.pt --val_fraction 0";
    succeed(folder, line);
}

#[test]
fn a_file_that_is_there_is_added_to() {
    let folder = folder();
    let folder = folder.path();
    let (_, err) = talk(folder, "", "Hello\n/save x.jsonl\n");
    assert_eq!(err, "x.jsonl: 2 turns\n");
    let first = fs::read_to_string(folder.join("x.jsonl")).unwrap();
    // As an editor may save it.
    fs::write(folder.join("x.jsonl"), first.trim_end()).unwrap();
    let (_, err) = talk(folder, " --system Loud!", "Who?\nYou?\n/save x.jsonl\n");
    assert_eq!(err, "appended to x.jsonl: 5 turns\n");
    let both = fs::read_to_string(folder.join("x.jsonl")).unwrap();
    let second: Value = serde_json::from_str(both.strip_prefix(&first).unwrap()).unwrap();
    assert_eq!(second["messages"][0], json!({ "role": "system", "content": "Loud!" }));
    succeed(folder, "tokenize --dataset talks --chats x.jsonl");

    let piqa = json!({ "goal": "a", "sol1": "b", "sol2": "c", "label": 0 });
    fs::write(folder.join("piqa.jsonl"), format!("{}{piqa}\n", first)).unwrap();
    let before = contents(folder);
    for name in ["tiny.pt", "piqa.jsonl"] {
        let (_, err) = fail_to_talk(folder, &format!("Hello\n/save {name}\n"), "1 line");
        let expected = "expected conversations to append to; choose another name";
        assert_eq!(err, format!("error: {name}: {expected}\n"));
    }
    assert!(contents(folder) == before);
    protect(&folder.join("x.jsonl"));
    let (_, err) = fail_to_talk(folder, "Hello\n/save x.jsonl\n", "1 line");
    assert_eq!(err, "error: cannot write x.jsonl: it is read-only\n");
    assert_eq!(fs::read_to_string(folder.join("x.jsonl")).unwrap(), both);
}

#[test]
fn what_is_saved_is_all_that_was_answered() {
    let folder = folder();
    let folder = folder.path();
    // An answer without tokens does not count.
    let line = "chat --model_checkpoint tiny.pt --length 0";
    let (_, err) = talk_by(ngen3(folder, line), "Hello\n/save x.jsonl\n", 1);
    assert_eq!(err, "error: /save: the conversation has no answer yet\nerror: 1 line of stdin failed\n");
    // Turns that the context has dropped are in the file.
    let long = format!("{}\n", "word ".repeat(20).trim());
    let (_, err) = talk(folder, "", &format!("{}/save x.jsonl\n/reset\nHello\n/save y.jsonl\n", long.repeat(3)));
    assert!(err.contains("were dropped"), "{err}");
    assert!(err.ends_with("\nx.jsonl: 6 turns\ny.jsonl: 2 turns\n"), "{err}");
    let saved: Value = serde_json::from_slice(&fs::read(folder.join("x.jsonl")).unwrap()).unwrap();
    assert_eq!(saved["messages"].as_array().unwrap().len(), 6);
}

#[cfg(unix)]
#[test]
fn a_signal_stops_an_answer_and_where_there_is_none_the_chat() {
    let folder = folder();
    let line = "chat --model_checkpoint tiny.pt --length 100000000 --temperature 0";
    let mut child = ngen3(folder.path(), line);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().to_string();
    let interrupt = || assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (mut stdin, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // The template has no end token: the answer continues until it is stopped.
    stdin.write_all(b"Hello\n").unwrap();
    let mut byte = [0];
    out.read_exact(&mut byte).unwrap();
    interrupt();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
    let drain = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    assert_eq!(err.next().unwrap().unwrap(), "(stopped)");
    // An error on stderr shows that it waits for the next line.
    stdin.write_all(b"/nonsense\n").unwrap();
    assert!(err.next().unwrap().unwrap().contains("unknown command /nonsense"));
    interrupt();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stdin);
    drain.join().unwrap().unwrap();
}

#[cfg(unix)]
#[test]
fn a_chat_that_is_terminated_ends_within_an_answer() {
    use std::os::unix::process::ExitStatusExt;

    let folder = folder();
    let line = "chat --model_checkpoint tiny.pt --length 100000000 --temperature 0";
    let mut child = ngen3(folder.path(), line);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"Hello\nHello again\n").unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0]).unwrap();
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let drain = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(15));
    drain.join().unwrap().unwrap();
}

#[test]
fn commands_that_fail_do_not_end_the_conversation() {
    let folder = folder();
    let folder = folder.path();
    let typed = "/save\n/save x.jsonl\n/help\n/nonsense\nHello\n/save no/where.jsonl\n";
    let (out, err) = fail_to_talk(folder, typed, "4 lines");
    assert!(out.starts_with("/reset ") && out.contains("/quit "), "{out}");
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "error: /save: expected the name of a file",
            "error: /save: the conversation has no answer yet",
            "error: unknown command /nonsense: expected one that /help lists"
        ]
    );
    assert_eq!(lines[3..], ["error: cannot write no/where.jsonl: there is no folder no"]);
    // Later lines do not hide the failure.
    let (_, err) = fail_to_talk(folder, "/nonsense\nHello\n/quit\n", "1 line");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn the_oldest_turns_are_forgotten_when_the_block_is_full() {
    let folder = folder();
    let folder = folder.path();
    let long = format!("{}\n", "word ".repeat(20).trim());
    let (out, err) = talk(folder, " --system Be", &long.repeat(3));
    assert_eq!(out.lines().count(), 3);
    assert!(err.contains("note: the context is full; the oldest 2 turns were dropped"), "{err}");
    let (_, err) = fail_to_talk(folder, &format!("{}\nHello\n", "word ".repeat(80)), "1 line");
    assert!(err.starts_with("error: the turn is too long: ") && err.contains("the context has 64"), "{err}");
    assert_eq!(err.lines().count(), 1);
}

#[test]
fn a_model_that_cannot_talk_is_told_apart() {
    let folder = folder();
    let folder = folder.path();
    let config = Config::new(1, 2, 8, 64, 97);
    let params = ParamList::new(&config).init(3);
    let meta = CheckpointMeta { tokenizer: ngen3_model::TokenizerRef::Unknown, ..CheckpointMeta::default() };
    checkpoint::save(&folder.join("mute.pt"), &config, &params, &meta).unwrap();
    let error = fail(folder, "chat --model_checkpoint mute.pt", 1);
    assert!(error.contains("mute.pt: no recorded tokenizer, so it cannot chat"), "{error}");
    let config = Config::new(1, 2, 8, 64, 50_257);
    let params = ParamList::new(&config).init(3);
    checkpoint::save(&folder.join("tiny.pt"), &config, &params, &CheckpointMeta::default()).unwrap();
    let (_, err) = talk(folder, "", "Hello\n");
    assert_eq!(err, "note: the model was not trained on conversations; its answers may make little sense\n");
}
