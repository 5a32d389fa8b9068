//! The reference engine on odd sizes: against PyTorch's and `peft`'s numbers, against finite differences, and against itself.
//!
//! The fixtures, and the scripts that make them, are the CPU engine's: `../ngen3-cpu/tests/fixtures`.

mod conformance;
mod decoding;
mod distillation;
mod faulty;
mod gradients;
mod parity;

use ngen3_engine::reference::Reference;
use ngen3_engine::{AdamW, Batch};
use ngen3_model::{Config, Lora, LoraList, ParamList};

const ADAMW: AdamW = AdamW { step: 1, lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

/// The scripts' model.
fn config() -> Config {
    Config::new(2, 3, 12, 5, 97)
}

/// The scripts' `hashed`.
fn hashed(i: u64) -> f64 {
    (i * 2_654_435_761 % (1 << 32)) as f64 / (1u64 << 32) as f64
}

/// The scripts' parameters, from number `first` on.
fn values(first: u64, n: usize) -> Vec<f32> {
    (first..first + n as u64).map(|i| (hashed(i) - 0.5) as f32).collect()
}

/// Token ids below 97.
fn ids(n: usize, seed: u64) -> Vec<u32> {
    (0..n as u64).map(|i| (hashed(seed * 1000 + i) * 97.0) as u32).collect()
}

/// The scripts' batch of one step.
fn batch(step: u64) -> Batch {
    let mut ids = ids(50, 1000 + step);
    let targets = ids.split_off(25);
    Batch::even(5, ids, targets)
}

fn engine(config: &Config) -> Reference {
    Reference::new(config.clone(), values(0, ParamList::new(config).total())).expect("a valid shape")
}

fn lora(targets: &str) -> Lora {
    Lora { rank: 3, alpha: 6.0, targets: targets.parse().expect("targets") }
}

/// The scripts' adapters.
fn adapter_values(config: &Config, lora: &Lora) -> Vec<f32> {
    values(3_000_000, LoraList::new(config, lora).expect("an adapter").total())
}

fn fixture(name: &str) -> serde_json::Value {
    let file = format!("{}/../ngen3-cpu/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(file).expect("the fixture")).expect("JSON")
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// Norm of the difference, relative to that of `expected`.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(&a, b)| f64::from(a) - b));
    difference / norm(&mut expected.iter().copied()).max(f64::MIN_POSITIVE)
}
