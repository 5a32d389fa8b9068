//! A chat at a terminal: editing, history, several lines, Ctrl-C, and colours.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::folder;
use crate::pty::Pty;

const CHAT: &str = "chat --model_checkpoint tiny.pt --length 3 --temperature 0";

fn chat(folder: &Path) -> Option<Pty> {
    Pty::start(folder, 80, CHAT, &[])
}

/// Saves the conversation, ends the chat, and returns the user's turns.
fn turns(mut chat: Pty, folder: &Path) -> Vec<String> {
    chat.keys_when_ready("/save turns.jsonl\r");
    chat.keys_when_ready("\x04");
    let (code, output) = chat.end();
    assert_eq!(code, 0, "{output}");
    let saved: Value = serde_json::from_slice(&fs::read(folder.join("turns.jsonl")).unwrap()).unwrap();
    fs::remove_file(folder.join("turns.jsonl")).unwrap();
    let messages = saved["messages"].as_array().unwrap();
    messages.iter().step_by(2).map(|turn| turn["content"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn lines_are_edited_and_remembered() {
    let folder = folder();
    let folder = folder.path();
    let Some(mut first) = chat(folder) else { return };
    // Left, and an l before the o.
    first.keys_when_ready("Helo\x1b[Dl\r");
    first.keys_when_ready("/rese\t\r");
    first.keys_when_ready(" not remembered\r");
    // Up past the command.
    first.keys_when_ready("\x1b[A\x1b[A!\r");
    assert_eq!(turns(first, folder), ["not remembered", "Hello!"]);

    let history = folder.join("home/.local/state/ngen3/chat_history");
    let text = fs::read_to_string(&history).unwrap();
    assert_eq!(text, "#V2\nHello\n/reset\nHello!\n/save turns.jsonl\n");
    assert_eq!(fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o600);

    // Another session, which searches backwards for an entry.
    let mut second = chat(folder).unwrap();
    second.keys_when_ready("\x12Hello!\r");
    assert_eq!(turns(second, folder), ["Hello!"]);
}

#[test]
fn a_turn_can_have_several_lines() {
    let folder = folder();
    let folder = folder.path();
    let Some(mut chat) = chat(folder) else { return };
    chat.keys_when_ready("one\\\rtwo\r");
    chat.keys_when_ready("\"\"\"/three\r\rfour\\\r\"\"\"\r");
    chat.keys_when_ready("\x1b[200~five\r\nsix\\\nseven\x1b[201~\r");
    assert_eq!(turns(chat, folder), ["one\ntwo", "/three\n\nfour\\", "five\nsix\\\nseven"]);
}

#[test]
fn keys_that_are_typed_early_are_kept() {
    let folder = folder();
    let folder = folder.path();
    let Some(mut chat) = chat(folder) else { return };
    chat.keys_when_ready("one\rtwo\r");
    chat.wait_for("model> ");
    chat.wait_for("model> ");
    assert_eq!(turns(chat, folder), ["one", "two"]);
}

#[test]
fn ctrl_c_clears_a_line_stops_an_answer_and_ends_the_chat() {
    let folder = folder();
    let endless = CHAT.replace("--length 3", "--length 100000000");
    let Some(mut chat) = Pty::start(folder.path(), 80, &endless, &[]) else { return };
    chat.keys_when_ready("forget this\x03/nonsense\r");
    chat.wait_for("unknown command /nonsense");
    chat.keys_when_ready("Hello\r");
    // The name has a style, which ends before the answer.
    chat.wait_for("model> \x1b[0m");
    chat.keys("\x03");
    chat.wait_for("(stopped)");
    chat.keys_when_ready("\x03");
    let (code, output) = chat.end();
    assert_eq!(code, 130, "{output}");
    assert!(!output.contains("error: interrupted"), "{output}");
}

#[test]
fn roles_have_colours_unless_they_are_disabled() {
    let folder = folder();
    for (env, coloured) in
        [(("LANG", "C"), true), (("NO_COLOR", ""), true), (("NO_COLOR", "1"), false), (("TERM", "dumb"), false)]
    {
        let Some(mut chat) = Pty::start(folder.path(), 80, CHAT, &[env]) else { return };
        // A dumb terminal has no line editor, and sends no sign of one.
        chat.wait_for("you> ");
        chat.keys("Hello\r");
        chat.wait_for("model> ");
        chat.wait_for("you> ");
        chat.keys("/quit\r");
        let (code, output) = chat.end();
        assert_eq!(code, 0, "{output}");
        assert_eq!(output.contains("\x1b[1;32myou> \x1b[0m"), coloured, "{env:?}: {output:?}");
        assert_eq!(output.contains("\x1b[1;34mmodel> \x1b[0m"), coloured, "{env:?}: {output:?}");
    }
}

#[test]
fn history_is_only_kept_at_a_terminal() {
    let folder = folder();
    let folder = folder.path();
    let mut piped = crate::ngen3(folder, CHAT);
    piped.env("HOME", folder.join("home"));
    crate::talk_by(piped, "Hello\n", 0);
    assert!(!folder.join("home").exists());
    // stdin is a terminal, but stdout is a file.
    let Some(mut chat) = Pty::start(folder, 80, &format!("{CHAT} > out.txt"), &[]) else { return };
    chat.wait_for("> ");
    chat.keys("Hello\r/quit\r");
    let (code, output) = chat.end();
    assert_eq!(code, 0, "{output}");
    assert!(!folder.join("home").exists());
    let answer = fs::read_to_string(folder.join("out.txt")).unwrap();
    assert!(!answer.contains("model> ") && answer.ends_with('\n'), "{answer:?}");
}
