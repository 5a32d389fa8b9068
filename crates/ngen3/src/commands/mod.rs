//! The commands. Each file holds a command's flags (`Args`) and what it does (`run`), and no logic that another
//! program could want: that lives in the library crates.

mod bench;
mod chat;
mod distill;
mod eval;
mod export;
pub mod finetune;
mod hf_finetune;
mod hf_tokenize;
mod import;
mod quickstart;
mod sample;
pub mod tokenize;
mod tokenizer;
mod trace;
mod train;
pub mod variants;

/// What `ngen3` can do.
#[derive(clap::Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Command {
    Bench(bench::Args),
    Chat(chat::Args),
    Distill(distill::Args),
    Eval(eval::Args),
    Export(export::Args),
    Finetune(finetune::Args),
    HfFinetune(hf_finetune::Args),
    HfTokenize(hf_tokenize::Args),
    Import(import::Args),
    Quickstart(quickstart::Args),
    Sample(sample::Args),
    Tokenize(tokenize::Args),
    Tokenizer(tokenizer::Args),
    Trace(trace::Args),
    Train(train::Args),
    Variants(variants::Args),
}

impl Command {
    /// Runs the command to its end.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Bench(args) => bench::run(args),
            Self::Chat(args) => chat::run(args),
            Self::Distill(args) => distill::run(args),
            Self::Eval(args) => eval::run(args),
            Self::Export(args) => export::run(args),
            Self::Finetune(args) => finetune::run(args),
            Self::HfFinetune(args) => hf_finetune::run(args),
            Self::HfTokenize(args) => hf_tokenize::run(args),
            Self::Import(args) => import::run(args),
            Self::Quickstart(args) => quickstart::run(args),
            Self::Sample(args) => sample::run(args),
            Self::Tokenize(args) => tokenize::run(args),
            Self::Tokenizer(args) => tokenizer::run(args),
            Self::Trace(args) => trace::run(args),
            Self::Train(args) => train::run(args),
            Self::Variants(args) => variants::run(args),
        }
    }
}
