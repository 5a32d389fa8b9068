//! `ngen3`: from raw text to a language model, on the machine in front of you.
//!
//! Read `commands/mod.rs` first: it lists the commands, one small file each, and each file is its flags and a straight
//! `run`. What the commands share is here: [`argv`] (flags with `_` or `-`), [`device`] (what they compute on),
//! [`model`] (what a flag may name as a model), [`training`] (a run that learns), [`streaming`] (a text as it is made),
//! [`threads`], [`progress`], [`interrupt`], [`json_file`], [`error_line`] and [`stdout`]. This file turns the outcome of a
//! command into one line and an exit code: 0 done, 1 failed, 2 used wrongly, 130 interrupted.

mod argv;
mod commands;
mod device;
mod error_line;
mod interrupt;
mod json_file;
mod model;
mod progress;
mod stdout;
mod streaming;
mod threads;
mod training;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

/// From raw text to a language model you can use, on the machine in front of you.
#[derive(Parser)]
#[command(name = "ngen3", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 quickstart
  ngen3 tokenize --dataset tinyshakespeare --txt builtin:shakespeare
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin
  ngen3 sample --variant 7M --model_checkpoint 7M_model.pt --prompt \"To be\" --length 100
  ngen3 export --variant 7M --model_path 7M_model.pt --output_dir exported_7M

Every command has examples of its own: ngen3 COMMAND --help. Flags and commands may be written with _ or -.";

fn main() -> ExitCode {
    let arguments = argv::normalise(std::env::args_os(), &command());
    let cli = match command().try_get_matches_from(arguments).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        // Usage errors go to stderr with code 2; help and version to stdout with code 0.
        Err(error) => error.exit(),
    };
    match check_environment().and_then(|()| cli.command.run()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has had enough (`ngen3 … | head`): nothing is wrong, and nobody is listening.
        Err(error) if error.is::<stdout::Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            progress::write_line(&format!("error: {}", error_line::one_line(&error)));
            if error.is::<interrupt::Interrupted>() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

/// Refuses to compute in another way than `NGEN3_SIMD` asks for.
fn check_environment() -> anyhow::Result<()> {
    ngen3_simd::forced().map(drop).map_err(anyhow::Error::msg)
}

/// All commands and their flags.
fn command() -> clap::Command {
    let cli = with_negative_numbers(Cli::command());
    ["finetune", "hf_finetune"]
        .into_iter()
        .fold(cli, |cli, name| cli.mut_subcommand(name, commands::finetune::with_defaults))
}

/// What begins as a negative number is a value, which a flag takes or refuses by its name, and no flag: none begins so.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let allow = |arg: clap::Arg| {
        let takes_values = arg.get_action().takes_values();
        arg.allow_negative_numbers(takes_values)
    };
    command.mut_args(allow).mut_subcommands(with_negative_numbers)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    /// The complaint about a flag of a command with this value, and its kind.
    fn complaint(words: &[&str]) -> Option<(ErrorKind, String)> {
        let error = command().try_get_matches_from(words).err()?;
        Some((error.kind(), error.to_string().lines().next().unwrap_or_default().to_owned()))
    }

    #[test]
    fn a_negative_number_is_the_value_of_any_flag() {
        let (_, line) = complaint(&["ngen3", "train", "--data", "d", "--max_iters", "-1"]).unwrap();
        assert!(line.starts_with("error: invalid value '-1' for '--max_iters <N>': "), "{line}");
        let mut seen = 0;
        for command in command().get_subcommands() {
            for flag in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
                let flag = format!("--{}", flag.get_long().unwrap());
                let found = complaint(&["ngen3", command.get_name(), &flag, "-1"]);
                let taken = found.as_ref().is_none_or(|(kind, _)| *kind != ErrorKind::UnknownArgument);
                assert!(taken, "{} {flag}: {found:?}", command.get_name());
                seen += 1;
            }
        }
        assert!(seen > 100, "{seen} flags");
    }

    #[test]
    fn the_definitions_are_consistent_and_help_shows_underscores() {
        let mut command = command();
        command.clone().debug_assert();
        command.build();
        let mut commands = vec![command];
        while let Some(command) = commands.pop() {
            assert!(!command.get_name().contains('-'), "{}", command.get_name());
            for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(!flag.contains('-'), "--{flag} of {}", command.get_name());
            }
            commands.extend(command.get_subcommands().cloned());
        }
    }
}
