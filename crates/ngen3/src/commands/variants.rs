//! `ngen3 variants`: the named shapes, their true sizes and what they need.

use std::fmt::Write;

use ngen3_engine::{Options, Workload};
use ngen3_model::words::{grouped, memory_size};
use ngen3_model::{ParamList, VARIANTS};

use crate::device::device;
use crate::stdout;

/// List the model variants with their true parameter counts and memory
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {}

const EXAMPLES: &str = "\
Examples:
  ngen3 variants";

/// What the table's last two columns mean, printed below it.
const MEMORY: &str = "\
Parameters count the shared token embedding once; the name is a label.
Memory to train, with train's defaults on this machine: 16 bytes a parameter (weight, gradient, two moments), and what
backward needs of up to 2,048 tokens at a time (40 bytes a token, channel and layer, and a workspace); with train's
--recompute a tenth of it (4 bytes a token, channel and layer, and the workspace).
Memory to sample one text: 4 bytes a parameter, 2 more where its weights are read in bf16, and 8 a layer, channel and position
for keys and values.";

/// Runs the command.
pub fn run(Args {}: Args) -> anyhow::Result<()> {
    stdout::print(&table())
}

/// The whole output.
fn table() -> String {
    let mut out = format!(
        "{:<8} {:>6} {:>5} {:>5} {:>5} {:>5} {:>8} {:>13} {:>10} {:>11} {:>10}\n",
        "variant",
        "layers",
        "heads",
        "width",
        "block",
        "batch",
        "lr",
        "parameters",
        "to train",
        "recompute",
        "to sample"
    );
    for variant in &VARIANTS {
        let config = variant.config();
        let parameters = ParamList::new(&config).total();
        let batch = variant.recipe.batch_size;
        let memory = |workload, recompute| {
            let options = Options { recompute, ..Options::default() };
            memory_size(device().memory(&config, workload, options).expect("only adapters can be impossible"))
        };
        let training = |recompute| memory(Workload::Train { batch_size: batch }, recompute);
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:<8} {:>6} {:>5} {:>5} {:>5} {:>5} {:>8} {:>13} {:>10} {:>11} {:>10}",
            variant.name,
            config.n_layer,
            config.n_head,
            config.n_embd,
            config.block_size,
            batch,
            format!("{:e}", variant.recipe.learning_rate),
            grouped(parameters as u64),
            training(false),
            training(true),
            memory(Workload::Sample, false),
        );
    }
    out.push('\n');
    out.push_str(MEMORY);
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_true_counts_and_memory() {
        let table = table();
        let row = |name: &str| {
            let line = table.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no row {name}"));
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        // 50,257·128 + 128·128 + 4·(12·128² + 13·128) + 2·128 parameters.
        let seven = row("7M");
        let (shape, memory) = seven.split_at(8);
        assert_eq!(shape, ["7M", "4", "4", "128", "128", "16", "3e-4", "7,242,624"]);
        // Parameters and moments alone take 116 MB; how much more depends on the machine's threads and products.
        let [to_train, recompute]: [u64; 2] = [0, 2].map(|column| memory[column].parse().unwrap());
        assert!((150..350).contains(&to_train), "{to_train} MB");
        // Of three blocks all but the input: 9 numbers a token and channel.
        assert!((27..31).contains(&(to_train - recompute)), "{recompute} MB");
        assert_eq!([1, 3, 5].map(|column| &*memory[column]), ["MB", "MB", "MB"]);
        // With or without a copy of the weights in bf16.
        assert!(["29", "44"].contains(&&*memory[4]), "{} MB", memory[4]);
        assert_eq!(row("500M")[..6], ["500M", "28", "18", "1152", "512", "16"]);
        assert_eq!(row("500M")[6], "2.5e-4");
        assert_eq!(table.lines().filter(|l| l.contains("e-4")).count(), VARIANTS.len());
    }
}
