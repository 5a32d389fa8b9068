//! Training on a GPU: against PyTorch's numbers, beside the CPU for many steps, and runs that move between both.

mod common;
#[path = "../../ngen3-cpu/tests/fixtures/mod.rs"]
mod fixtures;

use common::gpu;
use ngen3_cpu::Cpu;
use ngen3_engine::{AdamW, Backward, Batch, Device, Dtype, Options, Slot, Trainer, splitmix};
use ngen3_model::{Config, ParamList};

const ADAMW: AdamW = AdamW { step: 1, lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

/// Tokens with a pattern to learn, for step `step`.
fn batch(config: &Config, step: u64) -> Batch {
    let mut batch = Batch::default();
    for sequence in 0..4 {
        let start = splitmix(step << 8 | sequence) as usize;
        let ids: Vec<u32> = (0..=config.block_size - sequence as usize)
            .map(|i| ((start % 97 + 7 * i) % config.vocab_size) as u32)
            .collect();
        batch.push(&ids[..ids.len() - 1], &ids[1..]);
    }
    batch
}

fn models() -> [(&'static str, Config); 2] {
    [("GPT-2", Config::new(2, 3, 24, 40, 97)), ("Llama", Config::llama(2, 6, 2, 36, 64, 40, 97))]
}

fn open(device: &dyn Device, config: &Config) -> Box<dyn Trainer> {
    let options = Options { threads: 1, dtype: Dtype::F32, ..Options::default() };
    device.open(config.clone(), ParamList::new(config).init(7), options).expect("a valid shape")
}

fn step(trainer: &mut dyn Trainer, step: u64) -> f32 {
    let backward = Backward { dropout: 0.1, seed: step, ..Backward::default() };
    let loss = trainer.forward_backward(&batch(trainer.config(), step), backward).expect("a valid batch");
    trainer.update(&AdamW { step: step + 1, ..ADAMW }, None).expect("memory");
    loss
}

#[test]
fn models_of_the_llama_family_equal_transformers_and_their_adapters_pefts() {
    let Some(gpu) = gpu() else { return };
    fixtures::llama::check(gpu, Options::default());
}

#[test]
fn fifty_steps_lose_what_those_of_the_cpu_lose_and_the_same_twice() {
    let Some(gpu) = gpu() else { return };
    for (name, config) in models() {
        let [mut on_cpu, mut on_gpu, mut again] = [open(&Cpu, &config), open(gpu, &config), open(gpu, &config)];
        let (mut first, mut last, mut largest) = (0.0, 0.0, 0.0f32);
        for i in 0..50 {
            let (expected, found) = (step(&mut *on_cpu, i), step(&mut *on_gpu, i));
            largest = largest.max((expected - found).abs());
            assert!((expected - found).abs() < 1e-3, "{name}, step {i}: expected {expected}, got {found}");
            (first, last) = (if i == 0 { found } else { first }, found);
            assert_eq!(step(&mut *again, i).to_bits(), found.to_bits(), "{name}, step {i}: the same bits");
        }
        eprintln!("{name}: largest difference of a loss {largest:.1e}");
        assert!(last < first - 0.5, "{name} learns: {first} at first, {last} at last");
        assert_eq!(again.read(Slot::Params), on_gpu.read(Slot::Params), "{name}: the same parameters");
    }
}

#[test]
fn a_run_that_moves_between_devices_goes_on_as_on_one() {
    let Some(gpu) = gpu() else { return };
    for (name, config) in models() {
        for (from, to) in [(gpu as &dyn Device, &Cpu as &dyn Device), (&Cpu, gpu)] {
            let (mut moving, mut staying) = (open(from, &config), open(&Cpu, &config));
            for i in 0..12 {
                if i == 6 {
                    let mut next = open(to, &config);
                    for slot in [Slot::Params, Slot::ExpAvg, Slot::ExpAvgSq] {
                        next.write(slot, &moving.read(slot)).expect("memory");
                    }
                    moving = next;
                }
                let (expected, found) = (step(&mut *staying, i), step(&mut *moving, i));
                assert!((expected - found).abs() < 1e-3, "{name}, step {i}: expected {expected}, got {found}");
            }
        }
    }
}

#[test]
fn an_array_is_read_as_it_was_written() {
    let Some(gpu) = gpu() else { return };
    let (_, config) = &models()[1];
    let mut trainer = open(gpu, config);
    for slot in [Slot::Params, Slot::Grads, Slot::ExpAvg, Slot::ExpAvgSq] {
        let values: Vec<f32> = (0..ParamList::new(config).total()).map(|i| i as f32 + slot as u8 as f32).collect();
        trainer.write(slot, &values).expect("memory");
        assert_eq!(*trainer.read(slot), values, "{slot:?}");
    }
}

#[test]
fn a_model_that_does_not_fit_is_an_error_that_names_its_memory() {
    let Some(gpu) = gpu() else { return };
    // Keys and values of a layer for a billion tokens.
    let trainer = open(gpu, &models()[0].1);
    let error = trainer.decoder_within(1, 1 << 25).err().expect("no device has so much").to_string();
    assert!(error.starts_with("cannot allocate ") && error.contains("keys and values"), "{error}");
    let config = &models()[0].1;
    let options = Options { dtype: Dtype::Bf16, ..Options::default() };
    let error = gpu.open(config.clone(), ParamList::new(config).init(1), options).err().expect("no bf16").to_string();
    assert!(error.contains("expected auto or f32"), "{error}");
}
