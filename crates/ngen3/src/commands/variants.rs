//! `ngen3 variants`: lists the named shapes with their parameter counts and memory.

use std::fmt::Write;

use ngen3_engine::{Options, Workload};
use ngen3_model::words::{grouped, memory_size};
use ngen3_model::{ParamList, VARIANTS};

use crate::device::device;
use crate::stdout;

/// List the model variants
///
/// Prints the shape, training defaults, true parameter count and estimated memory of each variant.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {}

const EXAMPLES: &str = "\
Examples:
  ngen3 variants";

/// Explanation of the parameter and memory columns, printed below the table.
const MEMORY: &str = "\
A variant's name is a label; the true parameter count is beside it, with GPT-2's vocabulary and
the shared token embedding counted once.
Training memory, with train's defaults on this machine: 16 bytes per parameter (weight, gradient,
two moments), a workspace, and the activations of up to 2,048 tokens, at 40 bytes per token, channel
and layer (4 bytes with train --recompute).
Sampling memory, for one text: 4 bytes per parameter, 2 more if weights are read in bf16, and
8 bytes per layer, channel and position for keys and values.";

/// Runs the command.
pub fn run(Args {}: Args) -> anyhow::Result<()> {
    stdout::print(&table())
}

/// Formats the table with its explanation.
fn table() -> String {
    let mut out = format!(
        "{:<8} {:>13} {:>6} {:>5} {:>5} {:>7} {:>5} {:>8} {:>10} {:>11} {:>10}\n",
        "variant",
        "parameters",
        "layers",
        "heads",
        "width",
        "context",
        "batch",
        "lr",
        "training",
        "recompute",
        "sampling"
    );
    for variant in &VARIANTS {
        let config = variant.config();
        let parameters = ParamList::new(&config).total();
        let batch = variant.recipe.batch_size;
        let memory = |workload, recompute| {
            let options = Options { recompute, ..Options::default() };
            memory_size(device().memory(&config, workload, options).expect("only adapters can be invalid"))
        };
        let training = |recompute| memory(Workload::Train { batch_size: batch }, recompute);
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:<8} {:>13} {:>6} {:>5} {:>5} {:>7} {:>5} {:>8} {:>10} {:>11} {:>10}",
            variant.name,
            grouped(parameters as u64),
            config.n_layer,
            config.n_head,
            config.n_embd,
            config.block_size,
            batch,
            format!("{:e}", variant.recipe.learning_rate),
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
        assert_eq!(shape, ["7M", "7,242,624", "4", "4", "128", "128", "16", "3e-4"]);
        // Parameters and moments alone take 116 MB; the rest depends on the machine's threads and matrix products.
        let [to_train, recompute]: [u64; 2] = [0, 2].map(|column| memory[column].parse().unwrap());
        assert!((150..350).contains(&to_train), "{to_train} MB");
        // All activations but the input of three blocks: 9 numbers per token and channel.
        assert!((27..31).contains(&(to_train - recompute)), "{recompute} MB");
        assert_eq!([1, 3, 5].map(|column| &*memory[column]), ["MB", "MB", "MB"]);
        // With or without a bf16 copy of the weights.
        assert!(["29", "44"].contains(&&*memory[4]), "{} MB", memory[4]);
        assert_eq!(row("500M")[2..8], ["28", "18", "1152", "512", "16", "2.5e-4"]);
        assert_eq!(table.lines().filter(|l| l.contains("e-4")).count(), VARIANTS.len());
    }
}
