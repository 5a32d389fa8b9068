//! Accepts `_` and `-` in the names of commands and flags; clap knows only the `_` form, which help shows.

use std::collections::HashMap;
use std::ffi::OsString;

use clap::Command;

/// Rewrites the names of known flags and commands into their `_` form, before clap sees them.
///
/// Only names that `command` or one of its subcommands defines are rewritten: values (file names), the value of a flag that
/// accepts a leading hyphen (a prompt), and everything after a lone `--` stay as typed. `help COMMAND` becomes
/// `COMMAND --help`, because clap suggests similar commands only for the latter.
pub fn normalise(arguments: impl IntoIterator<Item = OsString>, command: &Command) -> Vec<OsString> {
    let mut flags = HashMap::new();
    collect_flags(command, &mut flags);
    // Leading words are commands; each is a subcommand of the one before.
    let mut commands = Some(command);
    let (mut literal, mut is_value) = (false, false);
    let arguments = with_help_flag(arguments.into_iter().collect());
    let mut arguments = arguments.into_iter();
    let program = arguments.next();
    let rest = arguments.map(|argument| {
        let taken = std::mem::take(&mut is_value);
        let Some(text) = argument.to_str().filter(|_| !literal && !taken) else { return argument };
        if text == "--" {
            literal = true;
        } else if let Some(flag) = text.strip_prefix("--") {
            let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
            let name = name.replace('-', "_");
            if let Some(takes_anything) = flags.get(&name) {
                is_value = *takes_anything && value.is_empty();
                return format!("--{name}{value}").into();
            }
        } else if let Some(parent) = commands {
            let name = text.replace('-', "_");
            commands = parent.find_subcommand(&name);
            if commands.is_some() {
                return name.into();
            }
        }
        argument
    });
    program.into_iter().chain(rest).collect()
}

/// Turns `ngen3 help COMMAND…` into `ngen3 COMMAND… --help`.
fn with_help_flag(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_flag = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"-");
    if let [_, help, commands @ ..] = &arguments[..]
        && help == "help"
        && !commands.is_empty()
        && !commands.iter().any(is_flag)
    {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    arguments
}

/// Collects the names of all flags; `true` if a flag's value may begin with a hyphen.
fn collect_flags(command: &Command, flags: &mut HashMap<String, bool>) {
    let named =
        command.get_arguments().filter_map(|arg| Some((arg.get_long()?.to_owned(), arg.is_allow_hyphen_values_set())));
    flags.extend(named);
    command.get_subcommands().for_each(|child| collect_flags(child, flags));
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn normalised(line: &str) -> String {
        let command = Command::new("ngen3").subcommand(
            Command::new("hf_tokenize")
                .arg(Arg::new("split").long("hf_split"))
                .arg(Arg::new("prompt").long("the_prompt").allow_hyphen_values(true))
                .subcommand(Command::new("dry_run").arg(Arg::new("iters").long("max_iters"))),
        );
        let arguments = line.split(' ').map(OsString::from);
        normalise(arguments, &command).into_iter().map(|a| a.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn known_names_take_their_underscore_form() {
        assert_eq!(normalised("ngen3 hf-tokenize --hf-split a-b"), "ngen3 hf_tokenize --hf_split a-b");
        assert_eq!(normalised("ngen3 hf_tokenize --hf-split=a-b=c-d"), "ngen3 hf_tokenize --hf_split=a-b=c-d");
        assert_eq!(normalised("ngen3 hf-tokenize dry-run --max-iters 3"), "ngen3 hf_tokenize dry_run --max_iters 3");
    }

    #[test]
    fn help_of_a_command_is_its_flag() {
        assert_eq!(normalised("ngen3 help hf-tokenize dry-run"), "ngen3 hf_tokenize dry_run --help");
        assert_eq!(normalised("ngen3 help no-such"), "ngen3 no-such --help");
        for line in ["ngen3 help", "ngen3 help --hf_split", "ngen3 hf_tokenize help"] {
            assert_eq!(normalised(line), line);
        }
    }

    #[test]
    fn a_value_that_looks_like_a_flag_stays_as_typed() {
        assert_eq!(
            normalised("ngen3 hf-tokenize --the-prompt --hf-split --hf-split x"),
            "ngen3 hf_tokenize --the_prompt --hf-split --hf_split x"
        );
        assert_eq!(
            normalised("ngen3 hf-tokenize --the-prompt=--hf-split --hf-split x"),
            "ngen3 hf_tokenize --the_prompt=--hf-split --hf_split x"
        );
        assert_eq!(
            normalised("ngen3 hf-tokenize --the-prompt -- --hf-split x"),
            "ngen3 hf_tokenize --the_prompt -- --hf_split x"
        );
    }

    #[test]
    fn everything_else_stays_as_typed() {
        for line in [
            "ngen3 hf_tokenize --no-such --hf_split x",
            "ngen3 hf_tokenize -- --hf-split dry-run",
            "ngen3 dry-run",
            "ngen3 other hf-tokenize",
            "ngen3-x",
        ] {
            assert_eq!(normalised(line), line);
        }
    }
}
