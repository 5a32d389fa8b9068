//! Loss, gradients and training steps against PyTorch (`make_parity.py`, `make_muon.py`) and `peft` (`make_lora.py`).

use ngen3_engine::reference::ReferenceDevice;
use ngen3_engine::{AdamW, Backward, Model, Options, Slot, Trainer};
use ngen3_model::{Activation, Config, LoraList, ParamList};

use crate::fixtures::{ADAMW, config, fixture, numbers};
use crate::{adapter_values, batch, distance, engine, fixtures, lora};

const ACTIVATIONS: [(Activation, &str); 2] = [(Activation::GeluNew, "gelu_new"), (Activation::Gelu, "gelu")];

#[test]
fn loss_and_every_gradient_equal_pytorchs() {
    for (activation, name) in ACTIVATIONS {
        let (config, expected) = (Config { activation, ..config() }, &fixture("parity")[name]);
        let mut engine = engine(&config);
        let loss = engine.forward_backward(&batch(0), Backward::default()).expect("a valid batch");
        let expected_loss = expected["loss"].as_f64().expect("a number");
        assert!((f64::from(loss) / expected_loss - 1.0).abs() < 1e-6, "{loss}, not {expected_loss}");
        let (found, expected) = (engine.read(Slot::Grads), numbers(&expected["grads"]));
        for param in &ParamList::new(&config) {
            let error = distance(&found[param.range()], &expected[param.range()]);
            // PyTorch computes in f32.
            assert!(error < 1e-5, "{}: relative error {error}", param.name());
        }
    }
}

#[test]
fn a_hundred_steps_follow_pytorchs() {
    for (activation, name) in ACTIVATIONS {
        let (config, expected) = (Config { activation, ..config() }, &fixture("parity")[name]);
        let mut engine = engine(&config);
        let steps = numbers(&expected["losses"]).into_iter().zip(numbers(&expected["norms"]));
        for (step, (loss, norm)) in (0..).zip(steps) {
            let found = engine.forward_backward(&batch(step), Backward::default()).expect("a valid batch");
            let found_norm = engine.update(&AdamW { step: step + 1, ..ADAMW }, None).expect("memory");
            assert!((f64::from(found) - loss).abs() < 2e-4, "step {step}: {found}, not {loss}");
            assert!((f64::from(found_norm) / norm - 1.0).abs() < 2e-3, "step {step}: norm {found_norm}, not {norm}");
        }
    }
}

#[test]
fn adapters_and_their_steps_equal_pefts() {
    for (name, targets) in [("all", "c_attn,c_proj,c_fc"), ("some", "c_attn,mlp.c_proj")] {
        let (config, lora, expected) = (config(), lora(targets), &fixture("lora")[name]);
        let mut engine = engine(&config);
        engine.adapt(&lora, adapter_values(&config, &lora)).expect("an adapter");
        let loss = engine.forward_backward(&batch(0), Backward::default()).expect("a valid batch");
        let expected_loss = expected["loss"].as_f64().expect("a number");
        assert!((f64::from(loss) / expected_loss - 1.0).abs() < 1e-6, "{loss}, not {expected_loss}");
        let grads = numbers(&expected["grads"]);
        for param in &LoraList::new(&config, &lora).expect("an adapter") {
            let error = distance(&engine.read(Slot::Grads)[param.range()], &grads[param.range()]);
            assert!(error < 1e-5, "{}: relative error {error}", param.name());
        }

        engine.write(Slot::Grads, &vec![0.0; grads.len()]).expect("memory");
        let (losses, norms) = (numbers(&expected["losses"]), numbers(&expected["norms"]));
        for (step, (loss, norm)) in (0..).zip(losses.iter().zip(&norms)) {
            let found = engine.forward_backward(&batch(step), Backward::default()).expect("a valid batch");
            let found_norm = engine.update(&AdamW { step: step + 1, ..ADAMW }, None).expect("memory");
            assert!((f64::from(found) - loss).abs() < 2e-5, "{name}, step {step}: {found}, not {loss}");
            assert!((f64::from(found_norm) / norm - 1.0).abs() < 1e-4, "step {step}: norm {found_norm}, not {norm}");
        }
        let expected = losses[norms.len()];
        let unmerged = engine.loss(&batch(norms.len() as u64)).expect("a valid batch");
        engine.merge();
        let merged = engine.loss(&batch(norms.len() as u64)).expect("a valid batch");
        for found in [unmerged, merged] {
            assert!((f64::from(found) - expected).abs() < 2e-5, "{name}: {found}, not {expected}");
        }
        assert_eq!(engine.read(Slot::Grads).len(), ParamList::new(&config).total(), "all parameters are trained again");
    }
}

#[test]
fn twenty_steps_with_muon_equal_pytorchs() {
    fixtures::muon::check(&ReferenceDevice, Options::default(), 1e-5);
}
