//! A distillation step of the whole model against PyTorch (`make_distill.py`), with a teacher given by its logits.

use ngen3_model::ParamList;
use serde_json::Value;

use super::super::device::ReferenceDevice;
use super::super::fixtures::{batch, config, fixture, llama, params, squares};
use super::super::layers::linear_forward;
use super::*;
use crate::{Divergence, IGNORE, Options};

#[test]
fn a_distillation_step_of_the_whole_model_equals_pytorchs() {
    let (all, config) = (fixture("distill"), config());
    let (list, params) = (ParamList::new(&config), params(&config));
    let mut batch = batch(&config, 0);
    batch.targets.iter_mut().skip(3).step_by(4).for_each(|target| *target = IGNORE);
    let teacher = linear_forward(&squares(20_000, 8.0, 25 * 12), &squares(30_000, 1.0, 97 * 12), &[], 12);

    let plain = &all["model"]["cross_entropy"];
    for temperature in [1, 2, 4] {
        for (name, divergence) in [
            ("forward_kl", Divergence::ForwardKl),
            ("reverse_kl", Divergence::ReverseKl),
            ("jensen_shannon", Divergence::JensenShannon),
        ] {
            let expected = &all["model"][format!("{name} {temperature}")];
            for alpha in [0.0f32, 0.5, 1.0] {
                let mut student = Reference::new(config.clone(), params.clone()).expect("a valid shape");
                let distill = DistillConfig { temperature: temperature as f32, alpha, divergence };
                let guide = |_: &Pass, _| Guide::Logits(teacher.clone());
                let loss = student.distill_with(&batch, &distill, Some(Backward::default()), guide).expect("a batch");
                let close = |found: f32, expected: &Value| {
                    let expected = expected.as_f64().expect("a number");
                    assert!((f64::from(found) - expected).abs() < 1e-5 * expected, "{name}: {found}, not {expected}");
                };
                close(loss.cross_entropy, &plain["loss"]);
                if alpha > 0.0 {
                    close(loss.divergence, &expected["loss"]);
                }
                for (i, param) in list.iter().enumerate() {
                    let direction = squares(50_000 + 100 * i as u64, 1.0, param.len());
                    let products = student.grads[param.range()].iter().zip(&direction);
                    let found: f64 = products.map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
                    // Norm of the gradient, and its dot product with the direction.
                    let mixed = |which: usize| {
                        let [soft, hard] = [expected, plain].map(|value| value["grads"][i][which].as_f64());
                        let alpha = f64::from(alpha);
                        alpha * soft.expect("a number") + (1.0 - alpha) * hard.expect("a number")
                    };
                    let (size, expected) = (mixed(0), mixed(1));
                    let name = &param.name();
                    assert!((found - expected).abs() < 1e-5 * size.max(1e-2), "{name}: {found}, not {expected}");
                }
            }
        }
    }
}

#[test]
fn models_of_the_llama_family_equal_transformers_and_their_adapters_pefts() {
    llama::check(&ReferenceDevice, Options::default());
}
