//! `ngen3 man`: manual pages.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use ngen3_model::words::grouped_count;

use crate::stdout;

/// Print the manual page, or write one for each command
///
/// Without --out the main page goes to stdout. With it, FOLDER gets a page for each command: ngen3.1, ngen3-train.1, ….
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Folder for the pages; created if it does not exist
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 man | man -l -
  ngen3 man --out ~/.local/share/man/man1      # then: man ngen3-train";

/// Runs the command; `definition` is that of all commands.
pub fn run(Args { out }: Args, definition: &Command) -> anyhow::Result<()> {
    // The help command would get a page for each command it can explain.
    let mut program = definition.clone().disable_help_subcommand(true);
    program.build();
    let Some(folder) = out else {
        let mut page = Vec::new();
        write_page(&program, &program, &mut page)?;
        return stdout::print(&String::from_utf8(page)?);
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    let pages = write_pages(&program, &program, &folder)?;
    stdout::print(&format!("{}: {}\n", folder.display(), grouped_count(pages, "manual page")))
}

/// Writes the pages of a command and its subcommands into a folder; returns their number.
fn write_pages(program: &Command, command: &Command, folder: &Path) -> anyhow::Result<u64> {
    let path = folder.join(Man::new(command.clone()).get_filename());
    let mut page = Vec::new();
    write_page(program, command, &mut page)?;
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    let below = command.get_subcommands().map(|child| write_pages(program, child, folder));
    below.sum::<anyhow::Result<u64>>().map(|pages| pages + 1)
}

/// Writes a command's page. Unlike `Man::render`, it keeps the lines of the examples apart.
fn write_page(program: &Command, command: &Command, page: &mut dyn Write) -> io::Result<()> {
    let version = program.get_version().unwrap_or_default();
    let man = Man::new(command.clone()).source(format!("{} {version}", program.get_name()));
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    let Some(examples) = command.get_after_help() else { return Ok(()) };
    let mut section = Roff::new();
    section.control("SH", ["EXAMPLES"]).control("nf", []);
    let examples = examples.to_string();
    for line in examples.strip_prefix("Examples:\n").unwrap_or(&examples).lines() {
        section.text([roman(line)]);
    }
    section.control("fi", []).to_writer(page)
}
