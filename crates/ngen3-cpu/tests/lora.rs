//! Checks low-rank adapters of the whole model, on odd sizes: against `peft` (`fixtures/make_lora.py`), against finite
//! differences, and merged against unmerged.

mod common;
mod fixtures;

use fixtures::{ADAMW, batch, config, fixture, hashed, numbers, params, values};
use ngen3_cpu::{Cpu, CpuEngine, CpuTeacher};
use ngen3_engine::{
    AdamW, Backward, Batch, Device, DistillConfig, Distiller, Divergence, Dtype, IGNORE, Model, Options, Slot,
    TeacherSource, Trainer, Workload,
};
use ngen3_model::{Config, Lora, LoraList, ParamList};

fn lora(targets: &str) -> Lora {
    Lora { rank: 3, alpha: 6.0, targets: targets.parse().expect("targets") }
}

fn plain(config: &Config, dtype: Dtype, threads: usize) -> CpuEngine {
    CpuEngine::new(config.clone(), params(config), Options { threads, dtype, ..Options::default() })
        .expect("a valid shape")
}

fn adapted(config: &Config, lora: &Lora, threads: usize) -> CpuEngine {
    let mut engine = plain(config, Dtype::F32, threads);
    let total = LoraList::new(config, lora).expect("an adapter").total();
    engine.adapt(lora, values(3_000_000, total)).expect("an adapter");
    engine
}

#[test]
fn loss_gradients_and_steps_equal_pefts() {
    let all = fixture("lora");
    for (name, targets) in [("all", "c_attn,c_proj,c_fc"), ("some", "c_attn,mlp.c_proj")] {
        let (config, lora, expected) = (config(), lora(targets), &all[name]);
        let mut engine = adapted(&config, &lora, 2);
        let loss = engine.forward_backward(&batch(&config, 0), Backward::default()).expect("a valid batch");
        let expected_loss = expected["loss"].as_f64().expect("a number");
        assert!((f64::from(loss) / expected_loss - 1.0).abs() < 1e-5, "expected {expected_loss}, got {loss}");
        let (found, grads) = (engine.read(Slot::Grads).into_owned(), numbers(&expected["grads"]));
        assert_eq!(found.len(), grads.len());
        for param in &LoraList::new(&config, &lora).expect("an adapter") {
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let size = norm(&mut grads[param.range()].iter().copied());
            let error = norm(&mut param.range().map(|i| f64::from(found[i]) - grads[i]));
            assert!(error < 1e-4 * size, "{}: relative error {}", param.name(), error / size);
        }

        let mut engine = adapted(&config, &lora, 2);
        let (losses, norms) = (numbers(&expected["losses"]), numbers(&expected["norms"]));
        for (step, (loss, norm)) in losses.iter().zip(&norms).enumerate() {
            let found =
                engine.forward_backward(&batch(&config, step as u64), Backward::default()).expect("a valid batch");
            let found_norm = engine.update(&AdamW { step: step as u64 + 1, ..ADAMW }, None).expect("memory");
            assert!((f64::from(found) - loss).abs() < 1e-4, "{name}, step {step}: expected {loss}, got {found}");
            assert!(
                (f64::from(found_norm) / norm - 1.0).abs() < 1e-3,
                "step {step}: expected norm {norm}, got {found_norm}"
            );
        }
        engine.merge();
        let merged = engine.loss(&batch(&config, norms.len() as u64)).expect("a valid batch");
        let expected = losses[norms.len()];
        assert!((f64::from(merged) - expected).abs() < 1e-4, "{name}, merged: expected {expected}, got {merged}");
    }
}

#[test]
fn gradients_match_finite_differences_with_dropout() {
    for targets in ["c_attn,c_proj,c_fc", "attn.c_proj", "c_fc"] {
        let (config, lora) = (config(), lora(targets));
        let mut batch = batch(&config, 0);
        batch.targets.iter_mut().skip(1).step_by(4).for_each(|target| *target = IGNORE);
        let mut engine = adapted(&config, &lora, 1);
        let (dropout, seed) = (0.2, 7);
        engine.forward_backward(&batch, Backward { dropout, seed, ..Backward::default() }).expect("a valid batch");
        let grads = engine.read(Slot::Grads).into_owned();
        let start = engine.read(Slot::Params).into_owned();
        let mut at = |index: usize, offset: f32| {
            let mut moved = start.clone();
            moved[index] += offset;
            engine.write(Slot::Params, &moved).expect("memory");
            f64::from(
                engine
                    .forward_backward(&batch, Backward { weight: 0.0, dropout, seed, ready: None })
                    .expect("a valid batch"),
            )
        };
        for param in &LoraList::new(&config, &lora).expect("an adapter") {
            let largest = grads[param.range()].iter().fold(0.0f64, |m, &g| m.max(f64::from(g.abs())));
            assert!(largest > 0.0, "{}", param.name());
            for index in [param.offset, param.offset + param.len() / 2, param.range().end - 1] {
                let h = 4e-3f32;
                let wide = (at(index, 2.0 * h) - at(index, -2.0 * h)) / (4.0 * f64::from(h));
                let narrow = (at(index, h) - at(index, -h)) / (2.0 * f64::from(h));
                let expected = (4.0 * narrow - wide) / 3.0;
                let error = (f64::from(grads[index]) - expected).abs();
                let (name, found) = (param.name(), grads[index]);
                assert!(error < 2e-3 * largest + 3e-4, "{name} at {index}: expected {expected}, got {found}");
            }
        }
    }
}

/// Weights that bf16 holds exactly are kept in no other form while adapters train.
#[test]
fn weights_exact_in_bf16_train_adapters_as_others_do_and_come_back_unchanged() {
    exact_weights_come_back(config(), "c_attn,c_proj");
    exact_weights_come_back(Config { tied: false, ..Config::llama(2, 4, 2, 32, 48, 24, 97) }, "q_proj,o_proj,up_proj");
}

fn exact_weights_come_back(config: Config, targets: &str) {
    let lora = lora(targets);
    let exact: Vec<f32> = params(&config).iter().map(|p| f32::from_bits(p.to_bits() & 0xFFFF_0000)).collect();
    let adapters = values(3_000_000, LoraList::new(&config, &lora).expect("an adapter").total());
    let open = |dtype, recompute| {
        let options = Options { threads: 2, dtype, recompute, ..Options::default() };
        CpuEngine::new(config.clone(), exact.clone(), options).map(|mut engine| {
            engine.adapt(&lora, adapters.clone()).expect("an adapter");
            engine
        })
    };
    let mut expected = open(Dtype::F32, false).expect("a valid shape");
    for recompute in [false, true] {
        let Ok(mut engine) = open(Dtype::Bf16, recompute) else { return common::skipped_bf16() };
        assert_eq!(*engine.merged(), *expected.merged());
        let mut losses = [0.0; 2];
        for (engine, loss) in [&mut engine, &mut expected].into_iter().zip(&mut losses) {
            engine.write(Slot::Grads, &vec![0.0; adapters.len()]).expect("memory");
            *loss = engine.forward_backward(&batch(&config, 0), Backward::default()).expect("a valid batch");
        }
        assert!((losses[0] - losses[1]).abs() < 0.02, "{losses:?}");
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let (found, wanted) = (engine.read(Slot::Grads), expected.read(Slot::Grads));
        let error = norm(&mut found.iter().zip(wanted.iter()).map(|(f, w)| f - w));
        assert!(error < 0.05 * norm(&mut wanted.iter().copied()), "{error}");
        drop((found, wanted));
        // Distilling reads the embeddings in another form.
        let [found, wanted] = [&mut engine, &mut expected].map(|engine| {
            let losses = engine.losses(&batch(&config, 1)).expect("a valid batch");
            let shape = ParamList::new(&config);
            let options = Options { threads: 2, dtype: Dtype::F32, ..Options::default() };
            let mut teacher =
                CpuTeacher::new(config.clone(), values(9_000_000, shape.total()), options).expect("a valid shape");
            let distill = DistillConfig { temperature: 1.0, alpha: 0.5, divergence: Divergence::ForwardKl };
            let teacher = TeacherSource::Teacher(&mut teacher);
            let distilled = engine.distill(&batch(&config, 1), teacher, &distill, None).expect("a valid batch");
            assert_eq!(engine.losses(&batch(&config, 1)).expect("a valid batch"), losses, "losses after distilling");
            [losses.iter().sum::<f32>() / losses.len() as f32, distilled.cross_entropy, distilled.divergence]
        });
        assert!(found.iter().zip(&wanted).all(|(f, w)| (f - w).abs() < 0.02), "expected {wanted:?}, got {found:?}");
        let merged = expected.merged().into_owned();
        engine.merge();
        assert_eq!(*engine.read(Slot::Params), merged);
        engine.forward_backward(&batch(&config, 0), Backward::default()).expect("a valid batch");
        assert_eq!(engine.read(Slot::Grads).len(), merged.len(), "now all parameters learn");
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_learns_beside_weights_that_stay() {
    let (config, lora) = (config(), lora("c_attn,c_proj,c_fc"));
    let fresh = LoraList::new(&config, &lora).expect("an adapter").init(5);
    let base = params(&config);
    let mut engine = plain(&config, Dtype::F32, 2);
    let expected = engine.losses(&batch(&config, 0)).expect("a valid batch");
    engine.adapt(&lora, fresh.clone()).expect("an adapter");
    assert_eq!(engine.losses(&batch(&config, 0)).expect("a valid batch"), expected);
    assert_eq!(*engine.merged(), base);
    assert_eq!(*engine.read(Slot::ExpAvg), vec![0.0; fresh.len()]);

    let losses: Vec<f32> = (0..60)
        .map(|step| {
            let loss = engine.forward_backward(&batch(&config, 0), Backward::default()).expect("a valid batch");
            engine.update(&AdamW { step: step + 1, ..ADAMW }, None).expect("memory");
            loss
        })
        .collect();
    assert!(losses[59] < losses[0] - 0.2, "the loss falls: {} to {}", losses[0], losses[59]);
    let learned = engine.read(Slot::Params).into_owned();
    engine.write(Slot::Params, &fresh).expect("memory");
    assert_eq!(*engine.merged(), base, "training leaves the base model unchanged");
    assert_eq!(engine.losses(&batch(&config, 0)).expect("a valid batch"), expected);
    engine.write(Slot::Params, &learned).expect("memory");

    // Merging changes only the weights of the linear layers.
    let merged = engine.merged().into_owned();
    for param in &ParamList::new(&config) {
        let adapted = ["c_attn.weight", "c_proj.weight", "c_fc.weight"].iter().any(|name| param.name().ends_with(name));
        assert_eq!(merged[param.range()] != base[param.range()], adapted, "{}", param.name());
    }
}

#[test]
fn merged_equals_unmerged() {
    let config = Config::new(2, 3, 24, 40, 97);
    let mut batch = Batch::default();
    for (len, first) in [(40, 0), (1, 50), (17, 60)] {
        let ids = |n: u64| -> Vec<u32> { (0..len).map(|i| (hashed(n + first + i) * 97.0) as u32).collect() };
        batch.push(&ids(0), &ids(1000));
    }
    for targets in ["c_attn,c_proj,c_fc", "mlp.c_proj"] {
        let mut engine = adapted(&config, &lora(targets), 2);
        let with = engine.losses(&batch).expect("a valid batch");
        let merged = engine.merged().into_owned();
        assert!(engine.decoder(1).is_err(), "decoding needs merged adapters");
        let without = plain(&config, Dtype::F32, 2).losses(&batch).expect("a valid batch");
        assert!(with.iter().zip(&without).any(|(a, b)| (a - b).abs() > 0.1), "the adapters change the losses");

        engine.merge();
        assert_eq!(*engine.read(Slot::Params), merged);
        let after = engine.losses(&batch).expect("a valid batch");
        assert!(with.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-5), "expected {with:?}, got {after:?}");
        engine.forward_backward(&batch, Backward::default()).expect("all parameters are trainable again");
        assert_eq!(engine.read(Slot::Grads).len(), merged.len());
        assert!(engine.decoder(1).is_ok());
        let fresh = LoraList::new(&config, &lora(targets)).expect("an adapter").init(5);
        engine.adapt(&lora(targets), fresh).expect("the model has no adapters after merging");
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let config = Config::new(2, 4, 32, 70, 301);
    for (rank, dtype) in [(1, Dtype::F32), (3, Dtype::F32), (8, Dtype::Auto), (32, Dtype::Auto)] {
        let lora = Lora { rank, ..lora("c_attn,c_proj,c_fc") };
        let run = |threads| {
            let mut engine = plain(&config, dtype, threads);
            engine.adapt(&lora, LoraList::new(&config, &lora).expect("an adapter").init(1)).expect("an adapter");
            let losses: Vec<f32> = (0..4)
                .map(|step| {
                    let loss = engine
                        .forward_backward(
                            &batch(&config, step),
                            Backward { dropout: 0.1, seed: step, ..Backward::default() },
                        )
                        .expect("a valid batch");
                    engine.update(&AdamW { step: step + 1, ..ADAMW }, None).expect("memory");
                    loss
                })
                .collect();
            (losses, engine.read(Slot::Params).into_owned(), engine.merged().into_owned())
        };
        let one = run(1);
        for threads in [2, 3, 7] {
            assert!(one == run(threads), "rank {rank}, {threads} threads");
        }
    }
}

#[test]
fn rounded_products_stay_near_exact_ones() {
    let config = Config::new(2, 4, 32, 70, 301);
    let lora = Lora { rank: 8, alpha: 8.0, ..lora("c_attn,c_proj,c_fc") };
    let list = LoraList::new(&config, &lora).expect("an adapter");
    let run = |dtype| {
        let params: Vec<f32> = params(&config).iter().map(|p| p * 0.3).collect();
        let mut engine = CpuEngine::new(config.clone(), params, Options { threads: 2, dtype, ..Options::default() })
            .expect("a shape");
        engine.adapt(&lora, values(3_000_000, list.total()).iter().map(|p| p * 0.3).collect()).expect("an adapter");
        let loss = engine.forward_backward(&batch(&config, 0), Backward::default()).expect("a valid batch");
        (loss, engine.read(Slot::Grads).into_owned())
    };
    let ((exact, exact_grads), (rounded, grads)) = (run(Dtype::F32), run(Dtype::Auto));
    assert!((exact - rounded).abs() < 0.02, "expected {exact}, got {rounded}");
    for param in &list {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let error = norm(&mut param.range().map(|i| grads[i] - exact_grads[i]));
        let size = norm(&mut exact_grads[param.range()].iter().copied());
        assert!(error < 0.05 * size, "{}: relative error {}", param.name(), error / size);
    }
}

#[test]
fn micro_batches_add_up_and_distilling_teaches_the_adapter() {
    let (config, lora) = (config(), lora("c_attn,c_proj,c_fc"));
    let batch = batch(&config, 0);
    let gradient = |work: &mut dyn FnMut(&mut CpuEngine)| {
        let mut engine = adapted(&config, &lora, 2);
        work(&mut engine);
        engine.read(Slot::Grads).into_owned()
    };
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    let whole = gradient(&mut |engine| {
        engine.forward_backward(&batch, Backward::default()).expect("a valid batch");
    });
    let twice = gradient(&mut |engine| {
        for _ in 0..2 {
            engine.forward_backward(&batch, Backward { weight: 0.5, ..Backward::default() }).expect("a valid batch");
        }
    });
    assert!(close(&whole, &twice));

    let shape = Config::new(1, 2, 16, 5, 97);
    let params = values(9_000_000, ParamList::new(&shape).total());
    let options = Options { threads: 2, dtype: Dtype::F32, ..Options::default() };
    let mut teacher = CpuTeacher::new(shape, params, options).expect("a valid shape");
    let mut distilled = |alpha| {
        let distill = DistillConfig { temperature: 1.0, alpha, divergence: Divergence::ForwardKl };
        let backward = Backward::default();
        gradient(&mut |engine| {
            let teacher = TeacherSource::Teacher(&mut teacher);
            engine.distill(&batch, teacher, &distill, Some(backward)).expect("a valid batch");
        })
    };
    assert!(close(&whole, &distilled(0.0)), "alpha 0 gives the plain gradient");
    let [half, all] = [0.5, 1.0].map(&mut distilled);
    let mixed: Vec<f32> = whole.iter().zip(&all).map(|(a, b)| 0.5 * (a + b)).collect();
    assert!(close(&mixed, &half) && !close(&whole, &all));
}

#[test]
fn training_an_adapter_takes_the_memory_of_the_model_and_its_activations() {
    let config = ngen3_model::Variant::by_name("120M").expect("a variant").config();
    let lora = Lora { rank: 8, ..lora("c_attn,c_proj,c_fc") };
    let options = Options { threads: 2, dtype: Dtype::F32, ..Options::default() };
    let whole = Cpu.memory(&config, Workload::Train { batch_size: 4 }, options).expect("a valid shape");
    let adapting = |lora: &Lora| Cpu.memory(&config, Workload::Adapt { batch_size: 4, lora }, options);
    let adapters = adapting(&lora).expect("an adapter");
    let total = 4 * ParamList::new(&config).total() as u64;
    assert!(adapters < whole - 3 * total + total / 10, "{adapters} of {whole}");
    assert!(adapting(&Lora { rank: 0, ..lora }).is_err());
}

#[test]
fn wrong_adapters_are_an_error() {
    let (config, good) = (config(), lora("c_attn"));
    let total = LoraList::new(&config, &good).expect("an adapter").total();
    let mut engine = plain(&config, Dtype::F32, 1);
    let error = engine.adapt(&good, vec![0.0; total + 1]).expect_err("too many").to_string();
    assert!(error.contains("adapter parameters, got"), "{error}");
    let error = engine.adapt(&Lora { rank: 13, ..good.clone() }, vec![0.0; total]).expect_err("too thick").to_string();
    assert!(error.contains("rank of an adapter is 13"), "{error}");
    assert!(engine.decoder(1).is_ok(), "the model still has no adapters");
    engine.adapt(&good, vec![0.0; total]).expect("an adapter");
    assert!(engine.adapt(&good, vec![0.0; total]).is_err(), "the model already has adapters");
    assert!(engine.decoder(1).is_err(), "the first adapters stay");
    assert_eq!(engine.read(Slot::Params).len(), total);
}
