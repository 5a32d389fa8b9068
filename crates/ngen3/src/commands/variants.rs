//! `ngen3 variants`: the named shapes, their true sizes and what they need.

use std::fmt::Write;

use ngen3_model::{Config, ParamList, VARIANTS};

use crate::progress::counted;
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
Memory is what the numbers take, all in f32. To sample: 4 bytes a parameter, and 8 a layer, channel and position for
the keys and values of one text. To train: 16 bytes a parameter (weight, gradient, two moments); for each token of a
batch, 40 a channel in every layer and 48 a channel besides; and 25 MB for logits. A smaller --batch_size with more
--gradient_accumulation needs less.";

/// Runs the command.
pub fn run(Args {}: Args) -> anyhow::Result<()> {
    stdout::print(&table())
}

/// The whole output.
fn table() -> String {
    let mut out = format!(
        "{:<8} {:>6} {:>5} {:>5} {:>5} {:>5} {:>8} {:>13} {:>10} {:>10}\n",
        "variant", "layers", "heads", "width", "block", "batch", "lr", "parameters", "to train", "to sample"
    );
    for variant in &VARIANTS {
        let config = variant.config();
        let parameters = ParamList::new(&config).total();
        let batch = variant.recipe.batch_size;
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:<8} {:>6} {:>5} {:>5} {:>5} {:>5} {:>8} {:>13} {:>10} {:>10}",
            variant.name,
            config.n_layer,
            config.n_head,
            config.n_embd,
            config.block_size,
            batch,
            format!("{:e}", variant.recipe.learning_rate),
            counted(parameters as u64),
            bytes(train_bytes(&config, batch)),
            bytes(sample_bytes(&config)),
        );
    }
    out.push('\n');
    out.push_str(MEMORY);
    out.push('\n');
    out
}

/// Bytes to train with rows of `block_size` tokens: parameters, gradients and AdamW's moments; what a layer keeps for its
/// backward (input 1, query, key and value 3, attention 1, stream 1, MLP 4, times width); what the layers share (12 times
/// width); a block of logits.
pub fn train_bytes(config: &Config, batch_size: usize) -> u64 {
    let channels = (batch_size * config.block_size * config.n_embd) as u64;
    let layers = config.n_layer as u64;
    16 * ParamList::new(config).total() as u64 + (40 * layers + 48) * channels + 25_000_000
}

/// Bytes to sample one text: parameters, and a full block of keys and values.
fn sample_bytes(config: &Config) -> u64 {
    4 * ParamList::new(config).total() as u64 + 8 * (config.n_layer * config.n_embd * config.block_size) as u64
}

/// Bytes with three digits or so: `29 MB`, `1.5 GB`.
pub fn bytes(n: u64) -> String {
    let megabytes = n as f64 / 1e6;
    if megabytes < 1e3 { format!("{megabytes:.0} MB") } else { format!("{:.1} GB", megabytes / 1e3) }
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
        let expected = ["7M", "4", "4", "128", "128", "16", "3e-4", "7,242,624", "195", "MB", "29", "MB"];
        assert_eq!(row("7M"), expected);
        assert_eq!(row("500M")[..6], ["500M", "28", "18", "1152", "512", "16"]);
        assert_eq!(row("500M")[6], "2.5e-4");
        assert_eq!(table.lines().filter(|l| l.contains("e-4")).count(), VARIANTS.len());
    }
}
