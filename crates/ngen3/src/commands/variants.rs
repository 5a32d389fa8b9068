//! `ngen3 variants`: lists the named shapes with their parameter counts and memory.

use ngen3_engine::{Options, Workload};
use ngen3_model::words::{grouped, memory_size};
use ngen3_model::{Family, ParamList, VARIANTS, Variant};

use crate::device::cpu;
use crate::stdout;

/// List the model variants
///
/// Prints the shape, training defaults, true parameter count and estimated memory of each variant, in the GPT-2 and the Llama
/// family (train --arch). kv is the number of heads of keys and values, hidden the width of the MLP's hidden layer.
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
two moments), a workspace, and the activations of up to 2,048 tokens, in gpt2 at 40 bytes per token,
channel and layer, or 24 where products are in bf16 (4 bytes with train --recompute).
Sampling memory, for one text: 4 bytes per parameter, 2 more if weights are read in bf16, and
8 bytes per layer, position and channel of the kv heads for keys and values.";

/// Runs the command.
pub fn run(Args {}: Args) -> anyhow::Result<()> {
    stdout::print(&table())
}

/// Formats the table with its explanation.
fn table() -> String {
    let heading = [
        "variant",
        "arch",
        "parameters",
        "layers",
        "heads",
        "kv",
        "width",
        "hidden",
        "context",
        "batch",
        "lr",
        "training",
        "recompute",
        "sampling",
    ];
    let mut out = line(heading.map(String::from));
    for family in [Family::Gpt2, Family::Llama] {
        for variant in &VARIANTS {
            out += &line(row(variant, family));
        }
    }
    out + "\n" + MEMORY + "\n"
}

/// Returns the columns of a variant.
fn row(variant: &Variant, family: Family) -> [String; 14] {
    let config = variant.config_of(family);
    let batch_size = variant.recipe.batch_size;
    let memory = |workload, recompute| {
        let options = Options { recompute, ..Options::default() };
        memory_size(cpu().memory(&config, workload, options).expect("only adapters can be invalid"))
    };
    let training = |recompute| memory(Workload::Train { batch_size }, recompute);
    [
        variant.name.into(),
        family.model_type().into(),
        grouped(ParamList::new(&config).total() as u64),
        config.n_layer.to_string(),
        config.n_head.to_string(),
        config.kv_heads().to_string(),
        config.n_embd.to_string(),
        config.inner_width().to_string(),
        config.block_size.to_string(),
        batch_size.to_string(),
        format!("{:e}", variant.recipe.learning_rate),
        training(false),
        training(true),
        memory(Workload::Sample, false),
    ]
}

/// Aligns the columns of a line: the first two to the left.
fn line(columns: [String; 14]) -> String {
    const WIDTHS: [usize; 14] = [7, 5, 13, 6, 5, 2, 5, 6, 7, 5, 6, 8, 9, 8];
    let cell = |(index, (text, width)): (usize, (String, usize))| match index {
        0 | 1 => format!("{text:<width$}"),
        _ => format!("{text:>width$}"),
    };
    let cells: Vec<_> = columns.into_iter().zip(WIDTHS).enumerate().map(cell).collect();
    cells.join(" ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_true_counts_and_memory() {
        let table = table();
        let row = |name: &str, arch: &str| {
            let rows = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
            rows.into_iter().find(|row| row.starts_with(&[name.into(), arch.into()])).expect("a row")
        };
        // 50,257·128 + 128·128 + 4·(12·128² + 13·128) + 2·128 parameters.
        let seven = row("7M", "gpt2");
        let (shape, memory) = seven.split_at(11);
        assert_eq!(shape, ["7M", "gpt2", "7,242,624", "4", "4", "4", "128", "512", "128", "16", "3e-4"]);
        // Parameters and moments alone take 116 MB; the rest depends on the machine's threads and matrix products.
        let [to_train, recompute]: [u64; 2] = [0, 2].map(|column| memory[column].parse().unwrap());
        assert!((150..350).contains(&to_train), "{to_train} MB");
        // All activations but the input of three blocks: 9 numbers per token and channel, 8 of them in bf16 where products are.
        let saved = to_train - recompute;
        assert!((27..31).contains(&saved) || (14..18).contains(&saved), "{saved} MB");
        assert_eq!([1, 3, 5].map(|column| &*memory[column]), ["MB", "MB", "MB"]);
        // With or without a bf16 copy of the weights.
        assert!(["29", "44"].contains(&&*memory[4]), "{} MB", memory[4]);
        assert_eq!(row("500M", "gpt2")[3..11], ["28", "18", "18", "1152", "4608", "512", "16", "2.5e-4"]);
        // 50,257·128 + 4·(2·128² + 2·32·128 + 3·448·128 + 2·128) + 128 parameters.
        let llama = ["7M", "llama", "7,286,016", "4", "4", "1", "128", "448", "128", "16", "3e-4"];
        assert_eq!(row("7M", "llama")[..11], llama);
        assert_eq!(table.lines().filter(|l| l.contains("e-4")).count(), 2 * VARIANTS.len());
    }
}
