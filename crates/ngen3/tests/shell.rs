//! The program in a shell: help, completions, manual pages, and the line that shows a run at a terminal.

mod common;
#[path = "common/pty.rs"]
mod pty;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{run, succeed, texts};

/// The names of all commands, from the help text.
fn commands() -> Vec<String> {
    let (help, _) = succeed(Path::new("."), "--help");
    let (_, list) = help.split_once("\nCommands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).filter(|name| name != "help").collect()
}

#[test]
fn without_a_command_the_program_prints_its_help() {
    let (out, err) = texts(&Command::new(env!("CARGO_BIN_EXE_ngen3")).output().unwrap(), 2);
    assert_eq!(out, "");
    assert!(
        err.contains("Usage: ngen3 <COMMAND>") && err.contains("  quickstart ") && err.contains("Examples:"),
        "{err}"
    );
    let (help, _) = succeed(Path::new("."), "help hf-tokenize");
    assert_eq!(help, succeed(Path::new("."), "hf_tokenize --help").0);
    assert!(help.contains("Usage: ngen3 hf_tokenize "), "{help}");
}

#[test]
fn a_typo_is_answered_with_the_nearest_name() {
    let (_, err) = texts(&run(Path::new("."), "trian --data x"), 2);
    assert!(err.starts_with("error: unrecognized subcommand 'trian'\n"), "{err}");
    assert!(err.contains("tip: a similar subcommand exists: 'train'\n"), "{err}");
}

#[test]
fn completions_know_every_command_and_its_flags() {
    let commands = commands();
    assert!(commands.len() >= 18, "{commands:?}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (script, _) = succeed(Path::new("."), &format!("completions {shell}"));
        for word in commands.iter().map(String::as_str).chain(["max_iters", "hf_text_column", "bf16"]) {
            assert!(script.contains(word), "{word} in {shell}");
        }
    }
    let (script, _) = succeed(Path::new("."), "completions bash");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ngen3.bash"), script).unwrap();
    // What Tab finds for the beginnings of a command, a flag, and a value.
    let found = "source ./ngen3.bash; complete -p ngen3 | grep -q _ngen3
        for line in 'ngen3 qui' 'ngen3 train --max_it' 'ngen3 sample --variant 12'; do
            COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            _ngen3 ngen3 \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"
            echo \"${COMPREPLY[*]}\"
        done";
    let checked = Command::new("bash").args(["-n", "ngen3.bash"]).current_dir(folder.path()).output();
    let Ok(checked) = checked else { return eprintln!("skipped: needs bash to check its completions") };
    assert!(checked.status.success(), "{checked:?}");
    let completed = Command::new("bash").args(["-c", found]).current_dir(folder.path()).stdin(Stdio::null()).output();
    assert_eq!(texts(&completed.unwrap(), 0).0, "quickstart\n--max_iters\n120M\n");
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let (out, _) = succeed(folder.path(), "man --out man/man1");
    let pages = folder.path().join("man/man1");
    let count = fs::read_dir(&pages).unwrap().count();
    assert_eq!(out, format!("man/man1: {count} manual pages\n"));
    for name in commands() {
        let page = fs::read_to_string(pages.join(format!("ngen3-{name}.1"))).unwrap();
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES"] {
            assert!(page.contains(&format!(".SH {section}\n")), "{section} of {name}");
        }
    }
    assert!(pages.join("ngen3-tokenizer-train.1").exists());
    let (main, _) = succeed(folder.path(), "man");
    assert_eq!(main, fs::read_to_string(pages.join("ngen3.1")).unwrap());
    assert!(main.contains("ngen3\\-train(1)") && main.contains("ngen3 quickstart"), "{main}");
}

#[cfg(unix)]
#[test]
fn a_run_at_a_terminal_is_one_line_with_a_chart() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("text.txt"), "to be or not to be, that is the question. ".repeat(50)).unwrap();
    succeed(folder, "tokenize --dataset t --txt text.txt");
    let toml =
        "n_layer = 1\nn_head = 2\nn_embd = 8\nblock_size = 16\nbatch_size = 2\nmax_iters = 60\neval_interval = 30";
    fs::write(folder.join("tiny.toml"), toml).unwrap();
    let train = "train --config tiny.toml --data _data_t_/data.bin --out tiny.pt --overwrite";
    let bars = |text: &str| text.chars().filter(|c| ('▁'..='█').contains(c)).count();
    let Some(wide) = pty::Pty::start(folder, 100, train, &[]) else { return };
    let (code, output) = wide.end();
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("step 30: validation loss ") && bars(&output) > 10, "{output}");
    let (code, output) = pty::Pty::start(folder, 45, train, &[]).unwrap().end();
    assert_eq!((code, bars(&output)), (0, 0), "{output}");
    assert!(output.contains("/60: loss "), "{output}");
    // Elsewhere the lines are as they were.
    let (_, err) = succeed(folder, train);
    assert_eq!(bars(&err), 0, "{err}");
}
