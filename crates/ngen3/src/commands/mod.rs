//! The commands. Each file holds a command's flags (`Args`) and its `run`; logic that another program could use belongs in
//! the library crates.

mod bench;
mod chat;
mod completions;
mod devices;
mod distill;
mod eval;
mod export;
pub mod finetune;
mod hf_finetune;
mod hf_tokenize;
mod import;
mod make;
mod man;
mod quickstart;
mod sample;
mod serve;
pub mod tokenize;
mod tokenizer;
mod trace;
mod train;
pub mod variants;

use clap::FromArgMatches;

use crate::world;

/// The commands of `ngen3`.
#[derive(clap::Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Command {
    Bench(bench::Args),
    Chat(chat::Args),
    Completions(completions::Args),
    Devices(devices::Args),
    Distill(distill::Args),
    Eval(eval::Args),
    Export(export::Args),
    Finetune(finetune::Args),
    HfFinetune(hf_finetune::Args),
    HfTokenize(hf_tokenize::Args),
    Import(import::Args),
    Make(make::Args),
    Man(man::Args),
    Quickstart(quickstart::Args),
    Sample(sample::Args),
    Serve(serve::Args),
    Tokenize(tokenize::Args),
    Tokenizer(tokenizer::Args),
    Trace(trace::Args),
    Train(train::Args),
    Variants(variants::Args),
}

impl Command {
    /// Runs the command; `definition` is that of all commands.
    pub fn run(self, definition: &clap::Command) -> anyhow::Result<()> {
        if !matches!(
            self,
            Self::Bench(_)
                | Self::Distill(_)
                | Self::Eval(_)
                | Self::Finetune(_)
                | Self::HfFinetune(_)
                | Self::Train(_)
        ) {
            world::only_alone("this command")?;
        }
        match self {
            Self::Bench(args) => bench::run(args),
            Self::Chat(args) => chat::run(args),
            Self::Completions(args) => completions::run(args, definition),
            Self::Devices(args) => devices::run(args),
            Self::Distill(args) => distill::run(args),
            Self::Eval(args) => eval::run(args),
            Self::Export(args) => export::run(args),
            Self::Finetune(args) => finetune::run(args),
            Self::HfFinetune(args) => hf_finetune::run(args),
            Self::HfTokenize(args) => hf_tokenize::run(args),
            Self::Import(args) => import::run(args),
            Self::Make(args) => make::run(args, &|words| parse(definition, words)?.run(definition)),
            Self::Man(args) => man::run(args, definition),
            Self::Quickstart(args) => quickstart::run(args, &|words| parse(definition, words)?.run(definition)),
            Self::Sample(args) => sample::run(args),
            Self::Serve(args) => serve::run(args),
            Self::Tokenize(args) => tokenize::run(args),
            Self::Tokenizer(args) => tokenizer::run(args),
            Self::Trace(args) => trace::run(args),
            Self::Train(args) => train::run(args),
            Self::Variants(args) => variants::run(args),
        }
    }
}

/// Parses a command line without the program's name.
fn parse(definition: &clap::Command, words: &[String]) -> Result<Command, clap::Error> {
    Command::from_arg_matches(&definition.clone().no_binary_name(true).try_get_matches_from(words)?)
}

#[cfg(test)]
mod tests {
    use clap::Subcommand;

    use super::*;

    #[test]
    fn every_line_of_quickstart_is_one_that_could_be_typed() {
        let definition = Command::augment_subcommands(clap::Command::new("ngen3"));
        for (purpose, words) in quickstart::script(10) {
            assert!(parse(&definition, &words).is_ok(), "{purpose}");
        }
    }
}
