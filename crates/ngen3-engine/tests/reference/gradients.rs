//! Gradients against finite differences of the whole model for each parameter, and their accumulation.

use ngen3_engine::{Backward, Batch, IGNORE, Model, Slot, Trainer};
use ngen3_model::{Activation, Config, LoraList, Param, ParamList};

use crate::fixtures::{ADAMW, config};
use crate::{adapter_values, batch, engine, ids, lora};

/// Compares three elements of each parameter's gradient with central differences (Richardson extrapolation of two widths).
fn check<'a>(
    engine: &mut dyn Trainer,
    params: impl Iterator<Item = &'a Param>,
    loss: impl Fn(&mut dyn Trainer, f32) -> f32,
) {
    loss(engine, 1.0);
    let grads = engine.read(Slot::Grads).into_owned();
    let start = engine.read(Slot::Params).into_owned();
    let mut at = |index: usize, offset: f32| {
        let mut moved = start.clone();
        moved[index] += offset;
        engine.write(Slot::Params, &moved).expect("memory");
        f64::from(loss(engine, 0.0))
    };
    for param in params {
        let largest = grads[param.range()].iter().fold(0.0f64, |m, &g| m.max(f64::from(g.abs())));
        assert!(largest > 0.0, "{} has no gradient", param.name());
        for index in [param.offset, param.offset + param.len() / 2, param.range().end - 1] {
            let h = 4e-3f32;
            let wide = (at(index, 2.0 * h) - at(index, -2.0 * h)) / (4.0 * f64::from(h));
            let narrow = (at(index, h) - at(index, -h)) / (2.0 * f64::from(h));
            let expected = (4.0 * narrow - wide) / 3.0;
            let error = (f64::from(grads[index]) - expected).abs();
            assert!(error < 1e-3 * largest + 2e-4, "{} at {index}: {}, not {expected}", param.name(), grads[index]);
        }
    }
}

/// Returns sequences of several lengths, some targets ignored.
fn uneven() -> Batch {
    let mut batch = Batch::default();
    for (len, seed) in [(5, 1), (1, 2), (4, 3), (3, 4)] {
        let mut targets = ids(len, seed + 100);
        targets.iter_mut().skip(2).step_by(3).for_each(|target| *target = IGNORE);
        batch.push(&ids(len, seed), &targets);
    }
    batch
}

#[test]
fn gradients_match_finite_differences_with_dropout() {
    for (activation, epsilon) in [(Activation::GeluNew, 1e-5), (Activation::Gelu, 0.1)] {
        let config = Config { activation, layer_norm_epsilon: epsilon, ..config() };
        let batch = uneven();
        check(&mut engine(&config), ParamList::new(&config).iter(), |engine, weight| {
            engine
                .forward_backward(&batch, Backward { weight, dropout: 0.2, seed: 7, ready: None })
                .expect("a valid batch")
        });
    }
}

#[test]
fn gradients_of_adapters_match_finite_differences_with_dropout() {
    for targets in ["c_attn,c_proj,c_fc", "attn.c_proj", "c_fc"] {
        let (config, lora, batch) = (config(), lora(targets), uneven());
        let mut engine = engine(&config);
        engine.adapt(&lora, adapter_values(&config, &lora)).expect("an adapter");
        check(&mut engine, LoraList::new(&config, &lora).expect("an adapter").iter(), |engine, weight| {
            engine
                .forward_backward(&batch, Backward { weight, dropout: 0.2, seed: 7, ready: None })
                .expect("a valid batch")
        });
    }
}

#[test]
fn micro_batches_and_sequences_add_up_to_the_whole_batch() {
    let config = config();
    let mut engine = engine(&config);
    let whole = uneven();
    let loss = engine.forward_backward(&whole, Backward::default()).expect("a valid batch");
    let expected = engine.read(Slot::Grads).into_owned();
    engine.write(Slot::Grads, &vec![0.0; expected.len()]).expect("memory");
    let (mut total, mut start, mut losses) = (0.0, 0, Vec::new());
    for sequence in &whole.sequences {
        let tokens = start..start + sequence.len;
        start = tokens.end;
        let mut part = Batch::default();
        part.push(&whole.inputs[tokens.clone()], &whole.targets[tokens]);
        let weight = part.num_target_tokens() as f32 / whole.num_target_tokens() as f32;
        total += weight * engine.forward_backward(&part, Backward { weight, ..Backward::default() }).expect("a batch");
        losses.extend(engine.losses(&part).expect("a batch"));
    }
    assert!((total - loss).abs() < 1e-6, "{total}, not {loss}");
    assert_eq!(engine.losses(&whole).expect("a batch"), losses, "sequences do not attend to each other");
    assert!((engine.loss(&whole).expect("a batch") - loss).abs() < 1e-6);
    for (found, expected) in engine.read(Slot::Grads).iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
    }
}

#[test]
fn dropout_of_a_pass_is_that_of_its_tokens_alone() {
    // Two passes of 2,048 tokens, each with its own dropout seed.
    let config = Config::new(1, 2, 4, 64, 97);
    let tokens = |first| ids(2048, first);
    let backward = Backward { dropout: 0.3, seed: 5, ..Backward::default() };
    let mut whole = tokens(1);
    whole.extend(tokens(2));
    let mut engine = engine(&config);
    let both = engine.forward_backward(&Batch::even(64, whole.clone(), whole), backward).expect("a batch");
    let first = engine.forward_backward(&Batch::even(64, tokens(1), tokens(1)), backward).expect("a batch");
    let second = engine.forward_backward(&Batch::even(64, tokens(2), tokens(2)), backward).expect("a batch");
    let after = engine.forward_backward(&Batch::even(64, tokens(1), tokens(1)), backward).expect("a batch");
    assert_eq!(first, after, "the seed alone decides");
    assert!((2.0 * both - first - second).abs() > 1e-4, "another pass drops others: {both}, {first}, {second}");
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_but_the_gradients() {
    let mut engine = engine(&config());
    engine.forward_backward(&batch(0), Backward::default()).expect("a valid batch");
    engine.update(&ADAMW, None).expect("memory");
    let before = [Slot::Params, Slot::ExpAvg, Slot::ExpAvgSq].map(|slot| engine.read(slot).into_owned());
    let backward = Backward { weight: f32::INFINITY, ..Backward::default() };
    engine.forward_backward(&batch(0), backward).expect("a valid batch");
    assert!(!engine.update(&ADAMW, None).expect("memory").is_finite());
    let after = [Slot::Params, Slot::ExpAvg, Slot::ExpAvgSq].map(|slot| engine.read(slot).into_owned());
    assert_eq!(before, after);
    assert!(engine.read(Slot::Grads).iter().all(|&g| g == 0.0));
}

#[test]
fn wrong_input_is_an_error() {
    let config = config();
    let mut model = engine(&config);
    let good = batch(0);
    let mut continued = good.clone();
    continued.sequences[0].continues = true;
    for bad in [
        Batch::even(4, good.inputs.clone(), good.targets.clone()),
        Batch::even(25, good.inputs.clone(), good.targets.clone()),
        Batch { targets: vec![0], ..good.clone() },
        Batch { inputs: vec![97; 25], ..good.clone() },
        Batch { targets: vec![IGNORE; 25], ..good.clone() },
        Batch { targets: vec![98; 25], ..good.clone() },
        continued,
        Batch::default(),
    ] {
        assert!(model.loss(&bad).is_err(), "{bad:?}");
        assert!(model.forward_backward(&bad, Backward::default()).is_err(), "{bad:?}");
    }
    let all_dropped = Backward { dropout: 1.0, ..Backward::default() };
    assert!(model.forward_backward(&good, all_dropped).is_err());
    assert!(model.read(Slot::Grads).iter().all(|&g| g == 0.0), "an error adds no gradient");
    let lora = lora("c_attn");
    let adapters = adapter_values(&config, &lora);
    assert!(model.adapt(&lora, adapters[1..].to_vec()).is_err(), "too few");
    model.adapt(&lora, adapters.clone()).expect("an adapter");
    assert!(model.adapt(&lora, adapters).is_err() && model.decoder(1).is_err(), "the model has adapters already");
}
