//! The program in a shell: help, and suggestions for typos.

mod common;

use std::path::Path;
use std::process::Command;

use common::{run, succeed, texts};

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
