//! Checks that `recompute` uses less memory and gives the same bits.

mod common;

use ngen3_cpu::{Cpu, CpuEngine, CpuTeacher};
use ngen3_engine::{
    AdamW, Backward, Batch, Device, DistillConfig, Distiller, Divergence, Dtype, IGNORE, Model, Options, Slot,
    TeacherSource, Trainer, Workload,
};
use ngen3_model::{Config, Lora, LoraList, ParamList};

/// Five blocks, so that there are some between the first and the last.
fn config() -> Config {
    Config::new(5, 3, 12, 37, 97)
}

/// Sequences of different lengths, with more tokens than fit in one pass; every third target is ignored.
fn ragged() -> Batch {
    let mut batch = Batch::default();
    for row in 0..130u32 {
        let ids: Vec<u32> = (0..1 + row * 17 % 37).map(|i| (row * 31 + i * i * 7) % 97).collect();
        let skip = |(i, id): (usize, &u32)| if i % 3 == 1 { IGNORE } else { (id + 5) % 97 };
        let targets: Vec<u32> = ids.iter().enumerate().map(skip).collect();
        batch.push(&ids, &targets);
    }
    assert!(batch.inputs.len() > 2048);
    batch
}

fn even() -> Batch {
    let ids = |first: u32| (first..first + 5 * 37).map(|i| i * i % 97).collect();
    Batch::even(37, ids(0), ids(1))
}

/// Creates an engine, or returns `None` if the processor lacks the dtype.
fn engine(dtype: Dtype, recompute: bool, targets: Option<&str>) -> Option<CpuEngine> {
    let config = config();
    let options = Options { threads: 2, dtype, recompute, ..Options::default() };
    let mut engine = CpuEngine::new(config.clone(), ParamList::new(&config).init(3), options).ok()?;
    if let Some(targets) = targets {
        let lora = Lora { rank: 3, alpha: 6.0, targets: targets.parse().expect("targets") };
        let params = 0..LoraList::new(&config, &lora).expect("an adapter").total() as u64;
        let params = params.map(|i| (i * 2_654_435_761 % 1000) as f32 / 1000.0 - 0.5).collect();
        engine.adapt(&lora, params).expect("an adapter");
    }
    Some(engine)
}

/// Returns the losses of a few steps, the gradients of the next, and the parameters.
fn steps(mut engine: CpuEngine, mut step: impl FnMut(&mut CpuEngine, u64) -> f32) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut losses = Vec::new();
    for number in 1..=3 {
        losses.push(step(&mut engine, number));
        let adamw =
            AdamW { step: number, lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };
        engine.update(&adamw, None).expect("memory");
        // Evaluation uses another arena layout.
        losses.push(engine.loss(&even()).expect("a valid batch"));
    }
    losses.push(step(&mut engine, 4));
    (losses, engine.read(Slot::Grads).into_owned(), engine.read(Slot::Params).into_owned())
}

#[test]
fn training_gives_the_same_bits() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for targets in [None, Some("c_attn,c_proj,c_fc"), Some("mlp.c_proj"), Some("attn.c_proj,c_fc")] {
            for (batch, dropout) in [(even(), 0.0), (ragged(), 0.0), (ragged(), 0.2)] {
                let run = |recompute| {
                    let step = |engine: &mut CpuEngine, number| {
                        engine
                            .forward_backward(&batch, Backward { weight: 0.5, dropout, seed: number, ready: None })
                            .expect("a valid batch")
                    };
                    engine(dtype, recompute, targets).map(|engine| steps(engine, step))
                };
                let (kept, again) = (run(false), run(true));
                assert!(kept.is_some() || dtype == Dtype::Bf16, "f32 runs on every processor");
                if kept.is_none() {
                    common::skipped_bf16();
                }
                assert!(kept == again, "{dtype}, adapters on {targets:?}, dropout {dropout}");
            }
        }
    }
}

#[test]
fn distilling_gives_the_same_bits() {
    let batch = ragged();
    let shape = Config::new(2, 2, 8, 40, 97);
    let params = ParamList::new(&shape).init(4).iter().map(|p| p * 20.0).collect();
    let options = Options { threads: 2, ..Options::default() };
    let mut teacher = CpuTeacher::new(shape, params, options).expect("a valid shape");
    let distill = DistillConfig { temperature: 2.0, alpha: 0.5, divergence: Divergence::ForwardKl };
    let mut run = |recompute| {
        let step = |engine: &mut CpuEngine, seed| {
            let backward = Backward { dropout: 0.1, seed, ..Backward::default() };
            let teacher = TeacherSource::Teacher(&mut teacher);
            engine.distill(&batch, teacher, &distill, Some(backward)).expect("a valid batch").divergence
        };
        steps(engine(Dtype::Auto, recompute, None).expect("a valid shape"), step)
    };
    assert!(run(false) == run(true));
}

#[test]
fn it_keeps_one_block_and_the_inputs_of_the_others() {
    let config = Config::new(12, 12, 768, 256, 50_257);
    let of = |recompute| {
        let options = Options { threads: 2, dtype: Dtype::F32, recompute, ..Options::default() };
        Cpu.memory(&config, Workload::Train { batch_size: 8 }, options).expect("a valid shape")
    };
    // For the eleven other blocks: qkv, attention's output, the stream between attention and MLP, and the MLP's hidden layer;
    // plus less than 1 %.
    let saved = 11 * 2048 * 9 * 768 * 4;
    let found = of(false) - of(true);
    assert!((saved..saved + saved / 100).contains(&found), "expected about {saved}, got {found}");
}
