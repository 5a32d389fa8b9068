//! `ngen3 bench`: how fast a model trains and writes on this machine, and where the time goes.

use std::time::Instant;

use ngen3_engine::{AdamW, Backward, Batch, Dtype, Feed, Model, Options, Workload};
use ngen3_model::words::{grouped, grouped_count, memory_size};
use ngen3_model::{Config, Lora, LoraList, ParamList, Targets, Variant};
use ngen3_train::check_fits;
use serde_json::json;

use crate::device::device;
use crate::progress::write_line;
use crate::stdout;
use crate::threads::Threads;

/// Measure training and decoding of a variant on this machine
///
/// Trains on random tokens and decodes greedily, and prints the median step, its rate in tokens and arithmetic, the share
/// of the rate at which this machine multiplies large matrices, memory, and the time by layer. Nothing is written.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Shape and batch; ngen3 variants lists them
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name, default_value = "7M")]
    variant: &'static Variant,
    /// Training steps to time, after two that warm up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Rows in a batch [default: the variant's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,
    /// Tokens to decode, as many as fit into the block; 0 leaves decoding out
    #[arg(long, value_name = "N", default_value_t = 100)]
    tokens: usize,
    /// Numbers to compute with: auto (the fastest that the processor has), f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    dtype: Dtype,
    /// Train low-rank adapters of this rank beside the model, in place of all of it
    #[arg(long, value_name = "R")]
    lora_rank: Option<usize>,
    /// Keep only each layer's input and compute the rest again on the way back, as train does with this flag
    #[arg(long)]
    recompute: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    threads: Threads,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 bench
  ngen3 bench --variant 120M --steps 3 --dtype f32
  ngen3 bench --variant 120M --steps 3 --lora_rank 8
  ngen3 bench --variant 300M --steps 1 --batch_size 2 --recompute --tokens 0
  ngen3 bench --variant 7M --json --threads 1";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (threads, dtype, recompute) = (args.threads.count(), args.dtype, args.recompute);
    let options = Options { threads, dtype, recompute, ..Options::default() };
    let config = args.variant.config();
    let rows = args.batch_size.map_or(args.variant.recipe.batch_size, usize::from);
    let lora = args.lora_rank.map(|rank| Lora { rank, alpha: rank as f32, targets: Targets::default() });
    let workload = match &lora {
        Some(lora) => Workload::Adapt { batch_size: rows, lora },
        None => Workload::Train { batch_size: rows },
    };
    let device = device();
    let estimated = device.memory(&config, workload, options)?;
    check_fits(estimated)?;
    let mut engine = device.open(config.clone(), ParamList::new(&config).init(0), options)?;
    if let Some(lora) = &lora {
        engine.adapt(lora, LoraList::new(&config, lora)?.init(0))?;
    }

    let batch = batch(&config, rows);
    let (mut times, mut loss, mut parts) = (Vec::new(), 0.0, Vec::new());
    for step in 0..args.steps + 2 {
        if step == 2 {
            device.take_profile();
        }
        let start = Instant::now();
        loss = engine.forward_backward(&batch, Backward::default())?;
        engine.update(&adamw(step + 1, args.variant.recipe.learning_rate))?;
        times.push(start.elapsed().as_secs_f64());
    }
    for (part, time) in device.take_profile() {
        parts.push((part, 1e3 * time.as_secs_f64() / f64::from(args.steps)));
    }
    times.drain(..2);
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let peak_memory = peak_memory();
    let tokens = batch.inputs.len() as f64;
    let gflops = train_flops(&config, batch.inputs.len(), args.lora_rank) / median / 1e9;
    let peak = device.product_gflops(args.dtype, options.threads, [2048, 2048, 2048])?;
    engine.merge();
    let room = config.block_size - START.len();
    if args.tokens > room {
        write_line(&format!(
            "note: {} fit into the block after the start, and are decoded",
            grouped_count(room as u64, "token")
        ));
    }
    let decoded = decode(&*engine, args.tokens.min(room))?;
    let info = engine.info();
    let dtype = info.dtype.to_string();

    if args.json {
        let parts: serde_json::Map<_, _> = parts.into_iter().map(|(part, ms)| (part.to_owned(), json!(ms))).collect();
        let line = json!({
            "variant": args.variant.name, "rows": rows, "block": config.block_size, "dtype": dtype,
            "threads": info.threads, "lora_rank": args.lora_rank, "recompute": recompute, "ms_per_step": 1e3 * median, "best_ms": 1e3 * times[0],
            "tokens_per_s": tokens / median, "gflops": gflops, "product_gflops": peak, "loss": loss,
            "estimated_mb": estimated / 1_000_000, "peak_rss_mb": peak_memory.map(|bytes| bytes / 1_000_000), "decode_tokens_per_s": decoded, "ms_by_part": parts,
        });
        return stdout::print(&format!("{line}\n"));
    }
    let mut out = format!(
        "{}, {} of {}, {}, {dtype}{}\n\n{:<10} {:>8.1} ms, the best of {} {:.1} ms\n",
        args.variant.name,
        grouped_count(rows as u64, "row"),
        config.block_size,
        grouped_count(info.threads as u64, "thread"),
        if recompute { ", recompute" } else { "" },
        "step",
        1e3 * median,
        args.steps,
        1e3 * times[0],
    );
    out += &format!("{:<10} {:>8} tokens/s\n", "", grouped((tokens / median) as u64));
    out += &format!(
        "{:<10} {gflops:>8.0} GFLOP/s, {:.0} % of the {peak:.0} of a large product\n",
        "",
        100.0 * gflops / peak
    );
    if let Some(memory) = peak_memory {
        out += &format!("{:<10} {:>8} at most, {} expected\n", "memory", memory_size(memory), memory_size(estimated));
    }
    if let Some(rate) = decoded {
        out += &format!("{:<10} {:>8} tokens/s\n", "decoding", grouped(rate as u64));
    }
    out += "\n";
    for (part, ms) in parts {
        out += &format!("{part:<10} {ms:>8.1} ms {:>5.1} %\n", 0.1 * ms / median);
    }
    stdout::print(&out)
}

/// Tokens without a pattern, the same each time.
fn batch(config: &Config, rows: usize) -> Batch {
    let token = |i: usize| ((i as u64 * 2_654_435_761 % (1 << 32) * config.vocab_size as u64) >> 32) as u32;
    let n = rows * config.block_size;
    Batch::even(config.block_size, (0..n).map(token).collect(), (n..2 * n).map(token).collect())
}

fn adamw(step: u32, lr: f32) -> AdamW {
    AdamW { step: step.into(), lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 }
}

/// Floating-point operations of the products in one training step, the fewest that can do: each weight is multiplied with
/// each token once forward and twice backward, or once where an adapter learns in its place, whose two matrices are multiplied
/// three times; and attention's two products see half of each square.
fn train_flops(config: &Config, tokens: usize, lora_rank: Option<usize>) -> f64 {
    let Config { n_layer, n_embd, block_size, vocab_size, .. } = *config;
    let weights = 12 * n_layer * n_embd * n_embd + vocab_size * n_embd;
    let attention = 2 * n_layer * n_embd * block_size;
    // The adapters of a block have 16 widths of inputs and outputs.
    let adapters = 16 * n_layer * n_embd * lora_rank.unwrap_or(0);
    let times = if lora_rank.is_some() { 2 } else { 3 };
    tokens as f64 * (times * 2 * weights + 3 * (2 * adapters + attention)) as f64
}

/// What decoding starts from.
const START: [u32; 4] = [1, 2, 3, 4];

/// Tokens a second, greedily.
fn decode(model: &dyn Model, tokens: usize) -> anyhow::Result<Option<f64>> {
    if tokens == 0 {
        return Ok(None);
    }
    let mut decoder = model.decoder(1)?;
    decoder.feed(&[Feed { sequence: 0, tokens: &START }])?;
    let start = Instant::now();
    let mut token = 5;
    for _ in 0..tokens {
        let logits = decoder.feed(&[Feed { sequence: 0, tokens: &[token] }])?;
        let likeliest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        token = likeliest.unwrap_or_default() as u32;
    }
    Ok(Some(tokens as f64 / start.elapsed().as_secs_f64()))
}

/// The most memory that this process has held, in bytes, where the system says.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
