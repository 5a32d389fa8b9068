//! The commands. Each file holds a command's flags (`Args`) and what it does (`run`), and no logic that another
//! program could want: that lives in the library crates.

mod variants;

/// What `ngen3` can do.
#[derive(clap::Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Command {
    Variants(variants::Args),
}

impl Command {
    /// Runs the command to its end.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Variants(args) => variants::run(args),
        }
    }
}
