//! `ngen3 trace`: writes a model's loss and gradients, to compare with another implementation.

use std::io::Write;
use std::path::PathBuf;

use anyhow::ensure;
use ngen3_data::TokenFile;
use ngen3_engine::{Backward, Batch, Dtype, Feed, Options, Slot};
use ngen3_model::words::count;
use ngen3_model::{Checkpoint, ParamList, TokenizerRef, files};
use ngen3_train::check_reads;
use serde_json::{Map, json};

use crate::device::DeviceFlag;
use crate::progress::write_line;
use crate::threads::Threads;
use crate::{json_file, model, stdout};

/// Write a model's loss and gradients as JSON
///
/// Runs one forward and backward pass on the first sequences of a dataset. For each parameter tensor, the file has the norm
/// and the first eight values of its gradient, as benches/peers/torch_gpt.py trace writes them with PyTorch.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Model: .pt, .safetensors, .gguf, a Hugging Face folder, or a hub name
    #[arg(long, value_name = "MODEL")]
    model_checkpoint: PathBuf,
    /// Token file, from ngen3 tokenize, or a folder with one (data.bin or train.bin)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Sequences of block_size tokens, back to back from the first token
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    rows: u16,
    /// Also write the logits after the first sequence
    #[arg(long)]
    logits: bool,
    /// JSON file to write
    #[arg(long, value_name = "FILE", default_value = "trace.json")]
    out: PathBuf,
    /// Precision: auto (the fastest that the processor supports), f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    dtype: Dtype,
    #[command(flatten)]
    device: DeviceFlag,
    #[command(flatten)]
    threads: Threads,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 trace --model_checkpoint 7M_model.pt \\
    --data _data_tinyshakespeare_/data.bin --dtype f32
  python benches/peers/torch_gpt.py trace --checkpoint 7M_model.pt \\
    --data _data_tinyshakespeare_/data.bin --out torch.json";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    json_file::check(&args.out, &json_file::TRACE)?;
    let (found, checkpoint) = model::load(&args.model_checkpoint, None)?;
    let data = TokenFile::open(&args.data)?;
    if checkpoint.meta.tokenizer != TokenizerRef::Gpt2
        && let Some(doubt) = data.doubt()
    {
        write_line(&format!("note: {doubt}"));
    }
    check_reads(&found.path, &checkpoint, &data)?;
    let Checkpoint { config, params, .. } = checkpoint;
    let n = usize::from(args.rows) * config.block_size;
    ensure!(
        data.len() > n,
        "{}: expected at least {} tokens for {} of {}, got {}",
        args.data.display(),
        n + 1,
        count(args.rows, "sequence"),
        config.block_size,
        data.len()
    );
    let (block, mut inputs, mut targets) = (config.block_size, Vec::new(), Vec::new());
    data.copy(0..n, &mut inputs);
    data.copy(1..n + 1, &mut targets);
    let batch = Batch::even(block, inputs, targets);

    let list = ParamList::new(&config);
    let options = Options { threads: args.threads.count(), dtype: args.dtype, ..Options::default() };
    let mut engine = args.device.open(args.dtype != Dtype::Bf16)?.open(config, params, options)?;
    let loss = engine.forward_backward(&batch, Backward::default())?;
    let grads = engine.read(Slot::Grads);
    let traced: Map<_, _> = list
        .iter()
        .map(|param| {
            let grad = &grads[param.range()];
            let norm = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
            (param.name(), json!({ "norm": norm, "first": &grad[..grad.len().min(8)] }))
        })
        .collect();
    let mut trace = json!({ "loss": loss, "grads": traced });
    if args.logits {
        trace["logits"] = json!(engine.decoder(1)?.feed(&[Feed::new(0, &batch.inputs[..block])])?);
    }
    files::write_atomic(&args.out, |file| file.write_all(format!("{trace:#}\n").as_bytes()))?;
    stdout::print(&format!("loss {loss:.6}; gradients in {}\n", args.out.display()))
}
