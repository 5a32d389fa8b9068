//! `ngen3 completions`: completion scripts for shells.

use clap_complete::Shell;

use crate::stdout;

/// Print a script that completes commands and flags in a shell
///
/// With it, Tab completes the names of commands, flags, files and fixed values such as variants.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Shell to write the script for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples (create missing folders with mkdir -p, and open a new shell afterwards):
  ngen3 completions bash > ~/.local/share/bash-completion/completions/ngen3
  ngen3 completions zsh > ~/.zfunc/_ngen3
    # in ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit; compinit
  ngen3 completions fish > ~/.config/fish/completions/ngen3.fish
  ngen3 completions elvish >> ~/.config/elvish/rc.elv
  ngen3 completions powershell >> $PROFILE";

/// Runs the command; `definition` is that of all commands.
pub fn run(Args { shell }: Args, definition: &clap::Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition.clone(), definition.get_name(), &mut script);
    stdout::print(&String::from_utf8(script)?)
}
