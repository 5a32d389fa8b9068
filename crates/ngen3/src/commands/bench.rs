//! `ngen3 bench`: measures training and decoding speed on this machine, with the time by layer.

mod jobs;

use std::cell::RefCell;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use ngen3_cluster::sums;
use ngen3_cluster::wire::Wire;
use ngen3_engine::{
    AdamW, Backward, Batch, Device, Dtype, Feed, Model, Muon, Options, Quant, Ready, Slot, Trainer, Workload,
};
use ngen3_model::words::{grouped, grouped_count, memory_size};
use ngen3_model::{Config, Family, Lora, LoraList, ParamList, Projection, Target, Targets, Variant};
use ngen3_train::ranks::{self, Reduction};
use ngen3_train::{LONGEST_SEQUENCE, OptimizerKind, check_fits};
use serde_json::json;

use self::jobs::JobSpeed;
use crate::decoding::{self, DecodeQuant};
use crate::device::DeviceFlag;
use crate::forecast::{Network, Step, table};
use crate::model::{self, sized_label, variant_help};
use crate::progress::write_line;
use crate::stdout;
use crate::threads::Threads;
use crate::training::processors;
use crate::world::{only_alone, world};

/// Benchmark training and decoding on this machine
///
/// Trains a variant on random tokens, reads a prompt and decodes greedily. Prints the median step time, tokens/s, GFLOP/s (also
/// as a share of this machine's rate on a large matrix product), memory, the prompt's and the decoded tokens/s, the weights read
/// for them in GB/s (also as a share of the rate at which this machine reads memory), and the time by layer. Writes no files.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    #[arg(long, value_name = "NAME", help = variant_help("Shape and batch size"))]
    #[arg(value_parser = Variant::by_name, default_value = "7M")]
    variant: &'static Variant,
    /// Family of the variant: gpt2, llama, mistral, qwen2 or qwen3
    #[arg(long, value_name = "NAME", default_value = "gpt2", conflicts_with = "model_checkpoint")]
    arch: Family,
    /// Model to benchmark in place of a variant: a checkpoint, a Hugging Face folder or a repository on the hub
    #[arg(long, value_name = "MODEL", conflicts_with = "variant")]
    model_checkpoint: Option<PathBuf>,
    /// Tokens per sequence [default: the model's context length, at most 1,024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(5..))]
    block_size: Option<u32>,
    /// Training steps to time, after two warm-up steps
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Sequences per batch [default: the variant's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,
    /// Tokens to decode, at most as many as fit in the context; 0 skips decoding
    #[arg(long, value_name = "N", default_value_t = 100)]
    tokens: usize,
    /// Tokens of the prompt to read, at most as many as fit in the context; 0 skips it
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    /// Instead of training, generate this many texts at once, of --tokens each, as a server does; several numbers separated by
    /// commas
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=4096))]
    #[arg(conflicts_with_all = ["world", "lora_rank"])]
    jobs: Vec<u16>,
    /// Weights to decode with, as in sample --quant: auto, none, int8 or int4
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    quant: DecodeQuant,
    /// Precision: auto (the fastest that the processor supports), f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    dtype: Dtype,
    /// Train LoRA adapters of this rank instead of the full model
    #[arg(long, value_name = "R")]
    lora_rank: Option<usize>,
    /// Layers that get an adapter: all, or names separated by commas as in finetune
    #[arg(long, value_name = "NAMES", default_value = "all", requires = "lora_rank")]
    lora_targets: Targets,
    /// Keep only each layer's input and recompute the rest in the backward pass, as train --recompute does
    #[arg(long)]
    recompute: bool,
    /// Optimizer: adamw, or muon for the matrices of the blocks
    #[arg(long, value_name = "NAME", default_value = "adamw")]
    optimizer: OptimizerKind,
    /// Forecast training on up to 1,024 machines, instead of decoding; under mpirun the exchange between the ranks is measured
    #[arg(long)]
    world: bool,
    /// Speed of the network in Gbit/s, for --world [default: as measured under mpirun, else 10]
    #[arg(long, value_name = "N", requires = "world", value_parser = positive)]
    gbit: Option<f64>,
    /// Latency of the network in microseconds, for --world [default: as measured under mpirun, else 50]
    #[arg(long, value_name = "N", requires = "world", value_parser = positive)]
    latency_us: Option<f64>,
    /// Print one line of JSON
    #[arg(long, conflicts_with = "world")]
    json: bool,
    #[command(flatten)]
    device: DeviceFlag,
    #[command(flatten)]
    threads: Threads,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 bench
  ngen3 bench --variant 120M --steps 3 --dtype f32
  ngen3 bench --variant 120M --arch llama --steps 3
  ngen3 bench --variant 120M --steps 3 --lora_rank 8
  ngen3 bench --variant 300M --steps 1 --batch_size 2 --recompute --tokens 0
  ngen3 bench --variant 7M --json --threads 1
  ngen3 bench --variant 7M --optimizer muon
  ngen3 bench --variant 120M --world --gbit 1
  ngen3 bench --variant 7M --jobs 1,8,32 --tokens 100
  ngen3 bench --model_checkpoint SmolLM2-135M-Instruct --block_size 256 --lora_rank 16
  ngen3 bench --model_checkpoint SmolLM2-135M-Instruct --steps 1 --quant int4";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if !args.world {
        only_alone("bench without --world")?;
    }
    let (threads, dtype, recompute) = (args.threads.count(), args.dtype, args.recompute);
    let options = Options { threads, dtype, recompute, ..Options::default() };
    // Training is measured beside decoding, whose weights only the CPU quantizes.
    let as_they_are = matches!(args.quant, DecodeQuant::Auto | DecodeQuant::As(Quant::None));
    let device = args.device.open(dtype != Dtype::Bf16 && as_they_are && !args.world)?;
    if !args.jobs.is_empty() {
        return measure_jobs(&args, device, options);
    }
    let (name, label, mut config, params) = match &args.model_checkpoint {
        Some(path) => {
            let (found, checkpoint) = model::load(path, None)?;
            let label = format!("{} ({})", found.name, grouped_count(checkpoint.params.len() as u64, "parameter"));
            (found.name, label, checkpoint.config, Some(checkpoint.params))
        }
        None => {
            let config = args.variant.config_of(args.arch);
            (args.variant.name.into(), sized_label(args.variant, &config), config, None)
        }
    };
    if params.is_some() && config.rope.is_none() && args.block_size.is_some_and(|n| n as usize != config.block_size) {
        bail!("--block_size: expected {}, since this model has learned positions", config.block_size);
    }
    config.block_size = args.block_size.map_or(config.block_size.min(LONGEST_SEQUENCE), |n| n as usize);
    let params = params.unwrap_or_else(|| ParamList::new(&config).init(0));
    let own_rows = if args.model_checkpoint.is_some() { 4 } else { args.variant.recipe.batch_size };
    let rows = args.batch_size.map_or(own_rows, usize::from);
    let lora = args.lora_rank.map(|rank| Lora { rank, alpha: rank as f32, targets: args.lora_targets.clone() });
    let workload = match &lora {
        Some(lora) => Workload::Adapt { batch_size: rows, lora },
        None => Workload::Train { batch_size: rows },
    };
    let estimated = device.memory(&config, workload, options)?;
    if !device.has_own_memory() {
        check_fits(estimated)?;
    }
    let mut engine = device.open(config.clone(), params, options)?;
    if let Some(lora) = &lora {
        engine.adapt(lora, LoraList::new(&config, lora)?.init(0))?;
    }

    let batch = batch(&config, rows);
    let lr = args.variant.recipe.learning_rate;
    let muon = Muon { lr, momentum: 0.95, weight_decay: 0.1 };
    let muon = (args.optimizer == OptimizerKind::Muon).then_some(muon);
    let (mut times, mut loss, mut parts) = (Vec::new(), 0.0, Vec::new());
    for step in 0..args.steps + 2 {
        if step == 2 {
            device.take_profile();
        }
        let start = Instant::now();
        loss = engine.forward_backward(&batch, Backward::default())?;
        engine.update(&adamw(step + 1, lr), muon.as_ref())?;
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
    if args.world {
        let list = match &lora {
            None => ParamList::new(&config).iter().cloned().collect(),
            Some(lora) => LoraList::new(&config, lora)?.iter().cloned().collect::<Vec<_>>(),
        };
        let shares = ranks::shares(&*world(), list.iter(), muon.is_some());
        let update = (&adamw(args.steps + 3, lr), muon.as_ref());
        let step = Step { seconds: median, tokens, ..early(&mut *engine, &batch, update)? };
        return forecast(&args, &label, step, &mut *engine, &batch, &shares, update);
    }
    let gflops = train_flops(&config, batch.inputs.len(), lora.as_ref()) / median / 1e9;
    let peak = device.product_gflops(args.dtype, options.threads, [2048, 2048, 2048])?;
    engine.merge();
    let room = config.block_size - START.len();
    if args.tokens > room {
        write_line(&format!(
            "note: decoding {}, the most that fit in the context",
            grouped_count(room as u64, "token")
        ));
    }
    let info = engine.info();
    let dtype = info.dtype.to_string();
    let mut speed = Speed::default();
    if args.tokens.min(room) > 0 || args.prompt_tokens > 0 {
        let model = model_to_decode(
            &args,
            device,
            engine,
            &config,
            Options { threads, dtype: args.dtype, ..Options::default() },
        )?;
        speed = decode(&*model, args.tokens.min(room), args.prompt_tokens.min(config.block_size))?;
    }
    let read = match speed.decoded {
        Some(_) if !device.has_own_memory() => Some(device.read_gbps(threads)?),
        _ => None,
    };

    if args.json {
        let parts: serde_json::Map<_, _> = parts.into_iter().map(|(part, ms)| (part.to_owned(), json!(ms))).collect();
        let line = json!({
            "model": name, "variant": args.model_checkpoint.is_none().then_some(args.variant.name), "arch": config.family.model_type(), "rows": rows, "block": config.block_size, "dtype": dtype,
            "threads": info.threads, "lora_rank": args.lora_rank, "recompute": recompute, "ms_per_step": 1e3 * median, "best_ms": 1e3 * times[0],
            "tokens_per_s": tokens / median, "gflops": gflops, "product_gflops": peak, "loss": loss,
            "estimated_mb": estimated / 1_000_000, "peak_rss_mb": peak_memory.map(|bytes| bytes / 1_000_000), "prompt_tokens_per_s": speed.prompt,
            "decode_tokens_per_s": speed.decoded, "decode_gbps": speed.gbps(), "read_gbps": read, "ms_by_part": parts,
        });
        return stdout::print(&format!("{line}\n"));
    }
    let mut out = format!(
        "{}, {} of {}, {}, {dtype}{}\n\n{:<10} {:>8.1} ms (median of {}; best {:.1} ms)\n",
        label,
        grouped_count(rows as u64, "sequence"),
        config.block_size,
        processors(info),
        if recompute { ", recompute" } else { "" },
        "step",
        1e3 * median,
        args.steps,
        1e3 * times[0],
    );
    out += &format!("{:<10} {:>8} tokens/s\n", "", grouped((tokens / median) as u64));
    out += &format!(
        "{:<10} {gflops:>8.0} GFLOP/s, {:.0} % of the {peak:.0} GFLOP/s of a large matrix product\n",
        "",
        100.0 * gflops / peak
    );
    if let Some(memory) = peak_memory {
        out += &format!("{:<10} {:>8} peak, {} estimated\n", "memory", memory_size(memory), memory_size(estimated));
    }
    if let Some(rate) = speed.prompt {
        out += &format!("{:<10} {:>8} tokens/s\n", "prompt", grouped(rate as u64));
    }
    if let Some(rate) = speed.decoded {
        out += &format!("{:<10} {:>8} tokens/s\n", "decoding", grouped(rate as u64));
        if let (Some(gbps), Some(read)) = (speed.gbps(), read) {
            out += &format!(
                "{:<10} {gbps:>8.1} GB/s of weights, {:.0} % of the {read:.1} GB/s at which memory is read\n",
                "",
                100.0 * gbps / read
            );
        }
    }
    out += "\n";
    for (part, ms) in parts {
        out += &format!("{part:<10} {ms:>8.1} ms {:>5.1} %\n", 0.1 * ms / median);
    }
    stdout::print(&out)
}

/// Measures which gradients are final before the backward pass ends, and how long before. Leaves the other numbers of the step 0.
fn early(engine: &mut dyn Trainer, batch: &Batch, update: (&AdamW, Option<&Muon>)) -> anyhow::Result<Step> {
    let received = RefCell::new((0, 0, None));
    let receive = |_: usize, values: &mut [f32]| {
        let (count, parts, first) = &mut *received.borrow_mut();
        *count += values.len();
        *parts += 1;
        first.get_or_insert_with(Instant::now);
    };
    engine.forward_backward(batch, Backward { ready: Some(Ready(&receive)), ..Backward::default() })?;
    let (count, parts, first) = received.into_inner();
    let window_s = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    engine.update(update.0, update.1)?;
    let total = engine.read(Slot::Params).len() as f64;
    let early = count as f64 / total;
    Ok(Step { seconds: 0.0, tokens: 0.0, bytes: 4.0 * total, early, parts: f64::from(parts), window_s })
}

/// Prints the forecast of training on many machines, from a step that was measured on each rank.
fn forecast(
    args: &Args,
    label: &str,
    step: Step,
    engine: &mut dyn Trainer,
    batch: &Batch,
    shares: &[Range<usize>],
    (adamw, muon): (&AdamW, Option<&Muon>),
) -> anyhow::Result<()> {
    let (world, mut network) = (world(), Network { bytes_per_s: 10.0 * GBIT, latency_s: 50.0 * MICROSECOND });
    let size = world.size();
    let mut out = format!("{label}, {}\n", grouped_count(size as u64, "rank"));
    let mut mean = [step.seconds];
    sums::sum(&*world, &mut mean);
    let step = Step { seconds: mean[0] / size as f64, ..step };
    out += &format!(
        "{:<10} {:>8.1} ms, {} tokens/s a rank\n",
        "step",
        1e3 * step.seconds,
        grouped((step.tokens / step.seconds) as u64)
    );
    if size > 1 {
        network = Network::measure(&*world, &mut engine.read(Slot::Grads).into_owned(), shares);
        let mut wire = Wire::default();
        let mut times = Vec::new();
        for _ in 0..args.steps {
            let start = Instant::now();
            let reduction = Reduction::new(&*world, shares, &mut wire);
            let add_up = |start: usize, grads: &mut [f32]| reduction.add(start, grads);
            let backward = Backward { weight: 1.0 / size as f32, ready: Some(Ready(&add_up)), ..Backward::default() };
            engine.forward_backward(batch, backward)?;
            ranks::update(reduction, engine, adamw, muon)?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let (exchange, together) = (network.exchange_s(step.bytes, size), times[times.len() / 2]);
        let hidden = (step.seconds + exchange - together).clamp(0.0, exchange);
        out += &format!(
            "{:<10} {:>8.1} ms, of which {:.1} ms are hidden: {:.1} ms a step with it\n",
            "exchange",
            1e3 * exchange,
            1e3 * hidden,
            1e3 * together
        );
    }
    network.bytes_per_s = args.gbit.map_or(network.bytes_per_s, |gbit| gbit * GBIT);
    network.latency_s = args.latency_us.map_or(network.latency_s, |us| us * MICROSECOND);
    out += &format!(
        "{:<10} {:>8.2} Gbit/s, {:.0} µs\n\n",
        "network",
        network.bytes_per_s / GBIT,
        network.latency_s / MICROSECOND
    );
    stdout::print(&(out + &table(step, network)))
}

/// Bytes per second.
const GBIT: f64 = 1e9 / 8.0;

/// Seconds.
const MICROSECOND: f64 = 1e-6;

/// Reads a positive number.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a positive number".into())
}

/// A fixed batch of pseudo-random tokens, `[rows, block_size]`.
fn batch(config: &Config, rows: usize) -> Batch {
    let token = |i: usize| ((i as u64 * 2_654_435_761 % (1 << 32) * config.vocab_size as u64) >> 32) as u32;
    let n = rows * config.block_size;
    Batch::even(config.block_size, (0..n).map(token).collect(), (n..2 * n).map(token).collect())
}

fn adamw(step: u32, lr: f32) -> AdamW {
    AdamW { step: step.into(), lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 }
}

/// Minimum floating-point operations of the matrix products in one training step. Each weight meets each token once in the
/// forward pass and twice in the backward pass, or once if an adapter is trained in its place; the adapter's two matrices
/// take three passes. Attention's two products cover half of each square.
fn train_flops(config: &Config, tokens: usize, lora: Option<&Lora>) -> f64 {
    let Config { n_layer, n_embd, block_size, vocab_size, .. } = *config;
    let of = |[outputs, inputs]: [usize; 2]| outputs * inputs;
    let layer: usize = Projection::ALL.map(|projection| of(projection.shape(config))).iter().sum();
    let weights = n_layer * layer + vocab_size * n_embd;
    let attention = 2 * n_layer * config.q_width() * block_size;
    let adapters = lora.map_or(0, |lora| {
        let widths = |target: Target| target.outputs(config).len() + target.projection().shape(config)[1];
        n_layer * lora.rank * lora.targets.of(config.family).map(widths).sum::<usize>()
    });
    let times = if lora.is_some() { 2 } else { 3 };
    tokens as f64 * (times * 2 * weights + 3 * (2 * adapters + attention)) as f64
}

/// Measures texts that are generated at once.
fn measure_jobs(args: &Args, device: &'static dyn Device, options: Options) -> anyhow::Result<()> {
    args.threads.start()?;
    let model: Box<dyn Model> = match (&args.model_checkpoint, args.quant) {
        (Some(path), quant) => decoding::load(device, path, None, quant, args.dtype)?.open(quant, options)?,
        (None, quant) => {
            let mut config = args.variant.config_of(args.arch);
            config.block_size = args.block_size.map_or(config.block_size, |n| n as usize);
            let params = ParamList::new(&config).init(0);
            let quant = if let DecodeQuant::As(quant) = quant { quant } else { Quant::None };
            device.open(config, params, Options { quant, ..options })?
        }
    };
    for &jobs in &args.jobs {
        let JobSpeed { jobs, tokens_per_s, first_token_ms } = jobs::measure(&*model, jobs.into(), args.tokens)?;
        let line = if args.json {
            json!({ "jobs": jobs, "tokens_per_s": tokens_per_s, "first_token_ms": first_token_ms }).to_string()
        } else {
            let jobs = format!("{:>4} {}", jobs, if jobs == 1 { "job" } else { "jobs" });
            format!(
                "{jobs:<10} {:>8} tokens/s, first tokens within {first_token_ms:.1} ms",
                grouped(tokens_per_s as u64)
            )
        };
        stdout::print(&format!("{line}\n"))?;
    }
    Ok(())
}

/// Prompt for decoding.
const START: [u32; 4] = [1, 2, 3, 4];

/// Returns the model to decode with: the trained one, or another with quantized weights.
fn model_to_decode(
    args: &Args,
    device: &'static dyn Device,
    engine: Box<dyn Trainer>,
    config: &Config,
    options: Options,
) -> anyhow::Result<Box<dyn Model>> {
    match (args.quant, &args.model_checkpoint) {
        (DecodeQuant::Auto, Some(path)) => {
            drop(engine);
            let mut loaded = decoding::load(device, path, None, args.quant, args.dtype)?;
            loaded.checkpoint.config.block_size = config.block_size;
            loaded.open(args.quant, options)
        }
        (DecodeQuant::Auto | DecodeQuant::As(Quant::None), _) => Ok(engine),
        (DecodeQuant::As(quant), _) => {
            let params = engine.read(Slot::Params).into_owned();
            drop(engine);
            Ok(device.open(config.clone(), params, Options { quant, ..options })?)
        }
    }
}

/// Speed of a model that generates.
#[derive(Default)]
struct Speed {
    /// Tokens per second of a prompt; `None` without one.
    prompt: Option<f64>,
    /// Tokens per second of decoding; `None` for 0 tokens.
    decoded: Option<f64>,
    /// Bytes of weights read for a token.
    bytes: usize,
}

impl Speed {
    /// Weights read while decoding, in GB/s, if their size is known.
    fn gbps(&self) -> Option<f64> {
        self.decoded.filter(|_| self.bytes > 0).map(|rate| rate * self.bytes as f64 / 1e9)
    }
}

/// Reads a prompt, three times, of which the fastest counts, and decodes greedily.
fn decode(model: &dyn Model, tokens: usize, prompt: usize) -> anyhow::Result<Speed> {
    let mut decoder = model.decoder(1)?;
    let mut speed = Speed { bytes: decoder.weight_bytes(), ..Speed::default() };
    if prompt > 0 {
        let words: Vec<u32> = batch(model.config(), 1).inputs.into_iter().take(prompt).collect();
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            decoder.clear(0);
            let start = Instant::now();
            decoder.feed(&[Feed::new(0, &words)])?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        decoder.clear(0);
        speed.prompt = Some(words.len() as f64 / best);
    }
    if tokens == 0 {
        return Ok(speed);
    }
    decoder.feed(&[Feed::new(0, &START)])?;
    let start = Instant::now();
    let mut token = 5;
    for _ in 0..tokens {
        let logits = decoder.feed(&[Feed::new(0, &[token])])?;
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        token = best.unwrap_or_default() as u32;
    }
    speed.decoded = Some(tokens as f64 / start.elapsed().as_secs_f64());
    Ok(speed)
}

/// Peak resident memory of this process in bytes; `None` if `/proc/self/status` does not report it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
