//! Conversations as people bring them, from the command line: what is learned of each, and what is said about it.

mod common;

use std::fs;
use std::path::Path;

use common::{contents, fail, succeed};
use serde_json::{Value, json};

/// Tokenizes records as conversations; returns the text that is learned, each stretch in brackets, and the notes.
fn learned(records: &[Value], flags: &str) -> (String, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    fs::write(folder.path().join("x.jsonl"), lines).unwrap();
    let (_, err) = succeed(folder.path(), format!("tokenize --dataset x --chats x.jsonl {flags}").trim_end());
    let notes = err.lines().filter_map(|line| line.strip_prefix("note: ")).map(str::to_owned).collect();
    (learned_in(folder.path()), notes)
}

/// Returns the text that the dataset `x` marks as learned.
fn learned_in(folder: &Path) -> String {
    let data = fs::read(folder.join("_data_x_/data.bin")).unwrap();
    let mask = fs::read(folder.join("_data_x_/mask.bin")).unwrap();
    let ids: Vec<u32> = data.chunks_exact(2).map(|id| u16::from_le_bytes([id[0], id[1]]).into()).collect();
    assert_eq!(ids.len(), mask.len());
    let tokenizer = ngen3_data::Tokenizer::gpt2();
    let (mut text, mut stretch) = (String::new(), Vec::new());
    for (id, mark) in ids.iter().zip(&mask).map(|(id, mark)| (*id, *mark)).chain([(0, 0)]) {
        match mark & 1 != 0 {
            true => stretch.push(id),
            false if !stretch.is_empty() => {
                text += &format!("[{}]", tokenizer.decode(&stretch));
                stretch.clear();
            }
            false => {}
        }
    }
    text
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[test]
fn marks_of_what_is_not_to_be_learned_are_honoured_and_unknown_ones_are_named() {
    for mark in [json!({"weight": 0}), json!({"loss": false}), json!({"train": false}), json!({"training": 0})] {
        let mut first = turn("assistant", "No.");
        first.as_object_mut().unwrap().extend(mark.as_object().unwrap().clone());
        let record = json!({"messages": [turn("user", "Hi"), first, turn("user", "Again"), turn("assistant", "Yes.")]});
        let (text, notes) = learned(&[record], "");
        assert_eq!((text.as_str(), notes.len()), ("[Yes.<|endoftext|>]", 0), "{mark}: {notes:?}");
    }
    let asked = json!({"role": "user", "content": "Hi", "train": true});
    let odd = json!({"role": "assistant", "content": "Yes.", "token_mask": [1, 0]});
    let (text, notes) = learned(&[json!([asked, odd]), json!([turn("user", "Hi"), odd])], "");
    assert_eq!(text, "[user\nHi<|endoftext|>][Yes.<|endoftext|>][Yes.<|endoftext|>]");
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].starts_with("ignored token_mask in 2 turns: it looks like a mark"), "{notes:?}");
}

#[test]
fn instruction_data_needs_no_flag_and_other_columns_can_be_named() {
    let alpaca = [
        json!({"instruction": "Add.", "input": "1 and 2", "output": "3"}),
        json!({"instruction": "Greet.", "input": "", "output": "Hello!"}),
    ];
    let (text, notes) = learned(&alpaca, "");
    assert_eq!(text, "[3<|endoftext|>][Hello!<|endoftext|>]");
    assert_eq!(notes, ["read instruction=user,input=user,output=assistant (2 conversations)"]);
    let (text, notes) = learned(&[json!({"prompt": "The sky is", "completion": " blue."})], "");
    assert_eq!(text, "[ blue.<|endoftext|>]");
    assert!(notes[0].starts_with("read prompt and completion, one text without the chat template"), "{notes:?}");
    let own = [json!({"frage": "Add.", "antwort": "3"})];
    let (text, notes) = learned(&own, "--columns frage=user,antwort=assistant");
    assert_eq!((text.as_str(), notes.len()), ("[3<|endoftext|>]", 0));
    let speakers = [json!([{"role": "Guest", "content": "Hi"}, {"role": "Host", "content": "Welcome."}])];
    assert_eq!(learned(&speakers, "--roles Guest=user,Host=assistant").0, "[Welcome.<|endoftext|>]");
    let system = [json!([turn("system", " "), turn("user", "Hi"), turn("assistant", "Yes.")])];
    assert_eq!(learned(&system, "").0, "[Yes.<|endoftext|>]", "an empty system turn is no turn");

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.jsonl"), format!("{}\n", own[0])).unwrap();
    let tokenize = "tokenize --dataset x --chats x.jsonl";
    let error = fail(folder.path(), tokenize, 1);
    assert!(
        error.contains("line 1: expected messages, conversations or instruction data, got the keys frage"),
        "{error}"
    );
    let error = fail(folder.path(), &format!("{tokenize} --columns frage=critic"), 1);
    assert!(error.contains("--columns: unknown role \"critic\": expected system, user"), "{error}");
    assert_eq!(contents(folder.path()).len(), 1, "nothing is left after an error");
}

#[test]
fn a_template_that_does_not_end_its_turns_is_told_with_the_remedy() {
    let chat = json!([turn("user", "Hi"), turn("assistant", "Yes.")]);
    for (template, text, note) in [
        (
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}",
            "[Hi][Yes.]",
            "2 of 2 answers to learn end before the token that ends the turn, so the model does not learn to stop: move \
             that token inside {% generation %} in the chat template",
        ),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "[assistant: Yes.\n]",
            "1 of 1 answer to learn end without a special token, so the model does not learn to stop: let the chat \
             template end the assistant's turns with eos_token",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x.jsonl"), format!("{chat}\n")).unwrap();
        fs::write(folder.path().join("t.jinja"), template).unwrap();
        let (_, err) = succeed(folder.path(), "tokenize --dataset x --chats x.jsonl --chat_template t.jinja");
        assert_eq!(err.trim_end(), format!("note: {note}"));
        assert_eq!(learned_in(folder.path()), text);
    }
}

#[test]
fn hub_datasets_in_their_own_schemas_need_no_column() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let weighted = |from: &str, value: &str, weight: Value| json!({"from": from, "value": value, "weight": weight});
    for (name, record, text) in [
        (
            "no_robots",
            json!({"prompt": "Hi", "prompt_id": "1", "messages": [turn("user", "Hi"), turn("assistant", "Yes.")], "category": "Chat"}),
            "[Yes.<|endoftext|>]",
        ),
        (
            "SlimOrca",
            json!({"conversations": [
                weighted("system", "", Value::Null), weighted("human", "Hi", json!(0.0)), weighted("gpt", "Yes.", json!(1.0)),
            ]}),
            "[Yes.<|endoftext|>]",
        ),
        (
            "smoltalk",
            json!({"messages": [turn("user", "Hi"), turn("assistant", "Yes.")], "source": "x"}),
            "[Yes.<|endoftext|>]",
        ),
        ("fineweb", json!({"text": "A page.", "url": "x", "token_count": 3}), "[A page.<|endoftext|>]"),
        ("gsm8k", json!({"question": "Hi", "answer": "Yes."}), "[Yes.<|endoftext|>]"),
    ] {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("train.jsonl"), format!("{record}\n")).unwrap();
        succeed(folder, &format!("hf_tokenize --hf_dataset ./{name} --dataset x --chats"));
        assert_eq!(learned_in(folder), text, "{name}");
    }
    let (_, err) = succeed(folder, "hf_tokenize --hf_dataset ./no_robots --dataset y");
    assert_eq!(err.trim_end(), "note: reading the column messages; choose another with --hf_text_column");
    let error = fail(folder, "hf_tokenize --hf_dataset ./gsm8k --dataset y", 1);
    assert!(
        error.ends_with("no column with a usual name; choose one with --hf_text_column: question, answer"),
        "{error}"
    );
}
