//! Times whole training steps on random tokens: `cargo run --release -p ngen3-engine --example step -- 7M 8`.
//! Prints one JSON line, as the PyTorch peer of the same step does.

use std::time::Instant;

use ngen3_engine::{AdamW, Batch, CpuEngine, Engine, Options};
use ngen3_model::{ParamList, Variant};
use rand::{RngExt, SeedableRng};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let variant = Variant::by_name(&args.next().unwrap_or("7M".into()))?;
    let steps: u64 = args.next().map_or(Ok(8), |n| n.parse())?;
    let config = variant.config();
    let params = ParamList::new(&config).init(0);
    let mut engine = CpuEngine::new(config.clone(), params, Options::default())?;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let tokens = variant.recipe.batch_size * config.block_size;
    let mut draw = || (0..tokens).map(|_| rng.random_range(0..config.vocab_size as u32)).collect();
    let batch = Batch { seq_len: config.block_size, inputs: draw(), targets: draw() };
    let (mut times, mut loss) = (Vec::new(), 0.0);
    for step in 1..=steps {
        let start = Instant::now();
        loss = engine.forward_backward(&batch, 1.0, 0.0, 0)?;
        let lr = variant.recipe.learning_rate;
        let adamw = AdamW { step, lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };
        engine.update(&adamw)?;
        times.push(start.elapsed().as_secs_f64());
    }
    let mut rest = times.split_off(times.len().min(2));
    rest.sort_by(f64::total_cmp);
    let median = rest[rest.len() / 2];
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("").trim().to_owned();
    println!(
        "{{\"variant\": \"{}\", \"ms_per_step\": {:.1}, \"best_ms\": {:.1}, \"tokens_per_s\": {:.0}, \"loss\": {loss}, \"peak\": \"{peak}\"}}",
        variant.name,
        1e3 * median,
        1e3 * rest[0],
        tokens as f64 / median
    );
    Ok(())
}
