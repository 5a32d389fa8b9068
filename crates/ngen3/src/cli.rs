//! The command line: every command with its flags, as one definition that parsing, help, completions and manual pages share.

use std::any::TypeId;
use std::ffi::OsString;

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, CommandFactory, FromArgMatches, Parser};
use ngen3_engine::{Dtype, Quant};
use ngen3_model::{Family, VARIANTS, Variant};

use crate::argv;
use crate::commands::{Command, finetune};
use crate::decoding::DecodeQuant;

/// From raw text to a language model you can use, on the machine in front of you.
#[derive(Parser)]
#[command(name = "ngen3", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 quickstart
  ngen3 tokenize --dataset tinyshakespeare --txt builtin:shakespeare
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin
  ngen3 sample --variant 7M --model_checkpoint 7M_model.pt --prompt \"To be\" --length 100
  ngen3 export --variant 7M --model_path 7M_model.pt --output_dir exported_7M

Run ngen3 COMMAND --help for the flags of a command, with examples. Commands and flags may be written with _ or -.";

/// Returns the definition of all commands and their flags.
pub fn definition() -> clap::Command {
    let cli = adapt_flags(Cli::command());
    ["finetune", "hf_finetune"].into_iter().fold(cli, |cli, name| cli.mut_subcommand(name, finetune::with_defaults))
}

/// Parses a command line that begins with the program's name.
///
/// # Errors
/// A usage error, or the text of `--help` or `--version`; `clap::Error::exit` prints either.
pub fn parse(
    definition: &clap::Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Command, clap::Error> {
    let arguments = argv::normalise(arguments, definition);
    let matches = definition.clone().try_get_matches_from(arguments).map_err(with_best_suggestion)?;
    Ok(Cli::from_arg_matches(&matches)?.command)
}

/// Keeps the best of several similar commands; clap lists them from the least to the most similar.
fn with_best_suggestion(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::Strings(names)) = error.get(ContextKind::SuggestedSubcommand) {
        let best = names.last().cloned().into_iter().collect();
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(best));
    }
    error
}

/// Applies to all flags of a command and its subcommands what the derive macros cannot say.
fn adapt_flags(command: clap::Command) -> clap::Command {
    let adapt = |arg: Arg| {
        // No flag begins as a negative number does: it is a value, which a flag accepts or rejects by its own name.
        let takes_values = arg.get_action().takes_values();
        with_choices(arg.allow_negative_numbers(takes_values))
    };
    command.mut_args(adapt).mut_subcommands(adapt_flags)
}

/// Lists the values of an enumeration for suggestions and completions; the help text explains them already.
fn with_choices(arg: Arg) -> Arg {
    let value = arg.get_value_parser().type_id();
    let parser: ValueParser = if value == TypeId::of::<&'static Variant>() {
        let names = PossibleValuesParser::new(VARIANTS.iter().map(|variant| variant.name));
        names.try_map(|name| Variant::by_name(&name)).into()
    } else if value == TypeId::of::<Dtype>() {
        PossibleValuesParser::new(["auto", "f32", "bf16"]).try_map(|name| name.parse::<Dtype>()).into()
    } else if value == TypeId::of::<Quant>() {
        PossibleValuesParser::new(Quant::NAMES).try_map(|name| name.parse::<Quant>()).into()
    } else if value == TypeId::of::<DecodeQuant>() {
        PossibleValuesParser::new(DecodeQuant::NAMES).try_map(|name| name.parse::<DecodeQuant>()).into()
    } else if value == TypeId::of::<Family>() {
        let names = PossibleValuesParser::new(Family::ALL.map(Family::model_type));
        names.try_map(|name| name.parse::<Family>()).into()
    } else {
        return arg;
    };
    // Only the variants' names have capitals, which Variant::by_name takes in either case.
    arg.value_parser(parser).ignore_case(value == TypeId::of::<&'static Variant>()).hide_possible_values(true)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    /// Returns the kind and the text of the error of a command line, without the program's name.
    fn error(line: &str) -> Option<(ErrorKind, String)> {
        let words = std::iter::once("ngen3").chain(line.split(' ')).map(OsString::from);
        let error = parse(&definition(), words).err()?;
        Some((error.kind(), error.to_string()))
    }

    #[test]
    fn a_negative_number_is_the_value_of_any_flag() {
        let (_, text) = error("train --data d --max_iters -1").unwrap();
        assert!(text.starts_with("error: invalid value '-1' for '--max_iters <N>': "), "{text}");
        let mut seen = 0;
        for command in definition().get_subcommands() {
            let flags = command.get_arguments().filter(|arg| arg.get_action().takes_values());
            for flag in flags.filter_map(Arg::get_long) {
                let found = error(&format!("{} --{flag} -1", command.get_name()));
                let taken = found.as_ref().is_none_or(|(kind, _)| *kind != ErrorKind::UnknownArgument);
                assert!(taken, "{} --{flag}: {found:?}", command.get_name());
                seen += 1;
            }
        }
        assert!(seen > 100, "{seen} flags");
    }

    #[test]
    fn the_definitions_are_consistent_and_help_shows_underscores() {
        let mut command = definition();
        command.clone().debug_assert();
        command.build();
        let mut commands = vec![command];
        while let Some(command) = commands.pop() {
            assert!(!command.get_name().contains('-'), "{}", command.get_name());
            for flag in command.get_arguments().filter_map(Arg::get_long) {
                assert!(!flag.contains('-'), "--{flag} of {}", command.get_name());
            }
            commands.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn a_typo_suggests_the_nearest_name() {
        for (line, nearest) in [
            ("trian --data d", "a similar subcommand exists: 'train'"),
            ("hf-tokenise", "a similar subcommand exists: 'hf_tokenize'"),
            ("help trian", "a similar subcommand exists: 'train'"),
            ("tokenizer trian", "a similar subcommand exists: 'train'"),
            ("train --max-iter 5", "a similar argument exists: '--max_iters'"),
            ("train --varient 7M", "a similar argument exists: '--variant'"),
            ("train --data d --variant 120", "a similar value exists: '120M'"),
            ("sample --model_checkpoint m --dtype fp32", "a similar value exists: 'f32'"),
            ("sample --model_checkpoint m --quant int3", "a similar value exists: 'int4'"),
            ("completions bsh", "a similar value exists: 'bash'"),
        ] {
            let (_, text) = error(line).unwrap();
            assert!(text.contains(nearest), "{line}: {text}");
        }
    }

    #[test]
    fn all_values_of_the_enumerations_are_accepted() {
        let quant = ["quant auto", "quant none", "quant int8", "quant int4"];
        for flag in ["dtype auto", "dtype f32", "dtype bf16", "variant 7M", "variant 7m"].into_iter().chain(quant) {
            assert_eq!(error(&format!("sample --model_checkpoint m --prompt p --{flag}")), None);
        }
    }
}
