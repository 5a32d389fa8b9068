//! `ngen3 train`: a model learns from a dataset.

use std::path::PathBuf;

use ngen3_engine::Dtype;
use ngen3_model::Variant;
use ngen3_train::{Overrides, RunKind, RunSpec, Shape, StartFrom, setup};

use crate::device::device;
use crate::training::Training;
use crate::{interrupt, model};

/// Train a model on a dataset
///
/// Leaves VARIANT_model.pt (the model, in nanoGPT's layout), VARIANT_model.state (what --resume goes on from) and
/// VARIANT_model.run (metrics.jsonl, TensorBoard events, loss.svg). Ctrl-C finishes the step, saves, and says how to go
/// on; an evaluation is left, and made when the run goes on.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Shape and training defaults; ngen3 variants lists them
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    variant: Option<&'static Variant>,
    /// Tokens to train on; ngen3 tokenize makes them
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Start from the weights of a model: .pt, .safetensors, a Hugging Face folder, a name on the hub, or hf (GPT-2 in the
    /// size of the variant)
    #[arg(long, value_name = "MODEL", conflicts_with = "resume")]
    init_from: Option<PathBuf>,
    #[command(flatten)]
    files: RunFlags,
    #[command(flatten)]
    flags: Flags,
}

/// Where a run goes, and whether it goes on from what is there: the same for every command that trains.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct RunFlags {
    /// File for the model (.pt or .safetensors) [default: the one named above]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Settings in TOML, named as the flags below, and the shape of a model that is no variant (n_layer, n_head, n_embd,
    /// block_size, vocab_size, activation), which is then named after the file; a flag comes before the file, and the file
    /// before the variant
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Go on from where the run stopped, as if it never had; settings given now replace the run's own
    #[arg(long)]
    pub resume: bool,
    /// Replace a model that is there already
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
}

impl RunFlags {
    /// Where the weights come from: the run's own state, or `start` for a fresh one.
    pub fn start(&self, start: StartFrom) -> StartFrom {
        if self.resume { StartFrom::Resume } else { start }
    }
}

/// The settings of a run. What they are when not given stands in `ngen3_train::TrainSettings` and in the variant.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", next_help_heading = "Settings")]
pub struct Flags {
    /// Steps of the whole run [default: the variant's]
    #[arg(long, value_name = "N")]
    max_iters: Option<u64>,
    /// Steps between two lines of metrics.jsonl, and of the output where it is no terminal [default: 10]
    #[arg(long, value_name = "N")]
    log_interval: Option<u64>,
    /// Steps between two evaluations [default: 250]
    #[arg(long, value_name = "N")]
    eval_interval: Option<u64>,
    /// Validation batches in an evaluation [default: 20]
    #[arg(long, value_name = "N")]
    eval_iters: Option<u64>,
    /// Steps between two saves [default: eval_interval]
    #[arg(long, value_name = "N")]
    save_interval: Option<u64>,
    /// Keep the model of the lowest validation loss rather than the latest [default: false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    keep_best: Option<bool>,
    /// Stop after so many evaluations without a lower validation loss; 0 is never [default: 0]
    #[arg(long, value_name = "N")]
    patience: Option<u64>,
    /// Rows in a batch [default: the variant's]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Tokens in a row, and the model's longest context [default: the variant's]
    #[arg(long, value_name = "N")]
    block_size: Option<usize>,
    /// Batches whose gradients make one step [default: 1]
    #[arg(long, value_name = "N")]
    gradient_accumulation: Option<u64>,
    /// Highest learning rate [default: the variant's]
    #[arg(long, value_name = "LR")]
    learning_rate: Option<f32>,
    /// Learning rate at the end, after a cosine [default: learning_rate / 10]
    #[arg(long, value_name = "LR")]
    min_lr: Option<f32>,
    /// Steps in which the learning rate climbs [default: 100, in a short run a tenth of it]
    #[arg(long, value_name = "N")]
    warmup_iters: Option<u64>,
    /// AdamW's decay of matrices and embeddings [default: 0.1]
    #[arg(long, value_name = "X")]
    weight_decay: Option<f32>,
    /// AdamW's first beta [default: 0.9]
    #[arg(long, value_name = "X")]
    beta1: Option<f32>,
    /// AdamW's second beta [default: 0.95]
    #[arg(long, value_name = "X")]
    beta2: Option<f32>,
    /// Largest norm of the gradient; 0 lets it be any [default: 1]
    #[arg(long, value_name = "X")]
    grad_clip: Option<f32>,
    /// Share of activations that are zeroed [default: 0]
    #[arg(long, value_name = "P")]
    dropout: Option<f32>,
    /// Decides the first weights, the batches and the dropout [default: 1337]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Share of the tokens, at their end, to validate on, where there is no val.bin [default: 0.1]
    #[arg(long, value_name = "P")]
    val_fraction: Option<f64>,
    /// Threads to compute with; 0 is all cores [default: 0]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Numbers to compute with: auto (the fastest that the processor has), f32 or bf16 [default: auto]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Keep only each layer's input and compute the rest again on the way back: the same numbers in less memory and an
    /// eighth to a quarter more time [default: false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    recompute: Option<bool>,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin --max_iters 5000 --resume
  ngen3 train --config tiny.toml --data _data_tinyshakespeare_/data.bin --out tiny.pt
  ngen3 train --variant 7M --init_from 7M_model.pt --data _data_plays_/data.bin --out plays.pt";

impl Flags {
    /// What was asked of a run, and of its model's shape.
    pub fn asked(self) -> (Overrides, Shape) {
        let overrides = Overrides {
            max_iters: self.max_iters,
            log_interval: self.log_interval,
            eval_interval: self.eval_interval,
            eval_iters: self.eval_iters,
            save_interval: self.save_interval,
            keep_best: self.keep_best,
            patience: self.patience,
            batch_size: self.batch_size,
            gradient_accumulation: self.gradient_accumulation,
            learning_rate: self.learning_rate,
            min_lr: self.min_lr,
            warmup_iters: self.warmup_iters,
            weight_decay: self.weight_decay,
            beta1: self.beta1,
            beta2: self.beta2,
            grad_clip: self.grad_clip,
            dropout: self.dropout,
            seed: self.seed,
            val_fraction: self.val_fraction,
            threads: self.threads,
            dtype: self.dtype,
            recompute: self.recompute,
        };
        (overrides, Shape { block_size: self.block_size, ..Shape::default() })
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (settings, shape) = args.flags.asked();
    // Before the signals are watched: a download that is stopped goes on the next time.
    let init_from = args.init_from.map(|named| model::find(&named, args.variant, None)).transpose()?;
    let shape = match &init_from {
        Some(found) => found.shaped(shape),
        None => shape,
    };
    let stop = interrupt::watch()?;
    let start = init_from.map_or(StartFrom::Scratch, |found| StartFrom::Checkpoint(found.path));
    let spec = RunSpec {
        kind: RunKind::Train,
        variant: args.variant,
        start: args.files.start(start),
        overwrite: args.files.overwrite,
        config_file: args.files.config,
        out: args.files.out,
        settings,
        shape,
        lora: None,
    };
    let (job, mut objective, weights) = setup::on_tokens(device(), spec, &args.data)?;
    let Some(training) = Training::new(&job, weights)? else { return Ok(()) };
    training.run(&mut objective, &["train".as_ref(), "--data".as_ref(), args.data.as_ref()], &stop)
}
