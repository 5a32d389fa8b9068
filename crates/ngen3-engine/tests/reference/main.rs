//! The reference engine on odd sizes, against PyTorch, `peft`, finite differences and itself.
//!
//! Fixtures and the scripts that make them are in `../ngen3-cpu/tests/fixtures`.

mod conformance;
mod decoding;
mod distillation;
mod faulty;
#[path = "../../../ngen3-cpu/tests/fixtures/mod.rs"]
mod fixtures;
mod gradients;
mod parity;

use fixtures::{config, hashed, params, values};
use ngen3_engine::Batch;
use ngen3_engine::reference::Reference;
use ngen3_model::{Config, Lora, LoraList};

/// Returns token ids below 97.
fn ids(n: usize, seed: u64) -> Vec<u32> {
    (0..n as u64).map(|i| (hashed(seed * 1000 + i) * 97.0) as u32).collect()
}

/// Batch of the scripts at one step.
fn batch(step: u64) -> Batch {
    fixtures::batch(&config(), step)
}

fn engine(config: &Config) -> Reference {
    Reference::new(config.clone(), params(config)).expect("a valid shape")
}

fn lora(targets: &str) -> Lora {
    Lora { rank: 3, alpha: 6.0, targets: targets.parse().expect("targets") }
}

/// Adapters of the scripts.
fn adapter_values(config: &Config, lora: &Lora) -> Vec<f32> {
    values(3_000_000, LoraList::new(config, lora).expect("an adapter").total())
}

/// Returns the norm of the difference, relative to that of `expected`.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(&a, b)| f64::from(a) - b));
    difference / norm(&mut expected.iter().copied()).max(f64::MIN_POSITIVE)
}
