//! Losses against PyTorch's formulas in float64 (`make_distill.py`), and edge cases.

use serde_json::Value;

use super::super::fixtures::{fixture, floats, hashed, squares};
use super::super::layers::{linear_backward, linear_forward};
use super::*;

const TOKENS: usize = 6;
const WIDTH: usize = 8;
const TEACHER_WIDTH: usize = 12;
const VOCAB: usize = 61;

fn distance_of(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / norm(&mut b.iter().map(|&b| f64::from(b))).max(1e-6)
}

#[test]
fn losses_and_gradients_equal_pytorchs_for_every_divergence_and_temperature() {
    let fixture = &fixture("distill")["kernel"];
    let (hidden, wte) = (squares(0, 8.0, TOKENS * WIDTH), squares(10_000, 1.0, VOCAB * WIDTH));
    let teacher_hidden = squares(20_000, 8.0, TOKENS * TEACHER_WIDTH);
    let teacher = linear_forward(&teacher_hidden, &squares(30_000, 1.0, VOCAB * TEACHER_WIDTH), &[], TEACHER_WIDTH);
    let target = |i: u64| (hashed((40_000 + i) * (40_000 + i)) * VOCAB as f64) as u32;
    let mut targets: Vec<u32> = (0..TOKENS as u64).map(target).collect();
    targets[2] = IGNORE;
    let logits = linear_forward(&hidden, &wte, &[], WIDTH);
    let weight = 1.0 / (TOKENS - 1) as f32;

    let close = |case: &str, losses: &[f32], dlogits: &[f32], expected: &Value| {
        assert_eq!(losses[2], 0.0, "an ignored target has no loss");
        let mean = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / (TOKENS - 1) as f64;
        let expected_loss = expected["loss"].as_f64().expect("a number");
        assert!((mean - expected_loss).abs() < 2e-6 * expected_loss.max(0.1), "{case}: {mean}, not {expected_loss}");
        let mut dwte = vec![0.0; wte.len()];
        let dhidden = linear_backward(&hidden, &wte, WIDTH, dlogits, &mut dwte, &mut []);
        let (dh, dw) = (&floats(&expected["d_hidden"]), &floats(&expected["d_wte"]));
        let (dh, dw) = (distance_of(&dhidden, dh), distance_of(&dwte, dw));
        assert!(dh < 5e-6 && dw < 5e-6, "{case}: {dh}, {dw}");
    };
    let (losses, dlogits) =
        (cross_entropy_forward(&logits, &targets), cross_entropy_backward(&logits, &targets, weight));
    close("cross entropy", &losses, &dlogits, &fixture["cross_entropy"]);
    for temperature in [1, 2, 4] {
        let top_k = &fixture[format!("teacher {temperature}")];
        let ids = floats(&top_k["ids"]).iter().map(|&id| id as u32).collect();
        let top_k = Guide::TopK(TopK { k: 5, ids, log_probs: floats(&top_k["log_probs"]) });
        let whole = Guide::Logits(teacher.clone());
        for (name, guide, divergence) in [
            ("forward_kl", &whole, Divergence::ForwardKl),
            ("reverse_kl", &whole, Divergence::ReverseKl),
            ("jensen_shannon", &whole, Divergence::JensenShannon),
            ("top_k", &top_k, Divergence::ForwardKl),
        ] {
            let distill = DistillConfig { temperature: temperature as f32, alpha: 1.0, divergence };
            let losses = divergence_forward(&logits, &targets, guide, &distill);
            let dlogits = divergence_backward(&logits, &targets, guide, &distill, weight);
            let case = format!("{name} {temperature}");
            close(&case, &losses, &dlogits, &fixture[&case]);
        }
    }
}

#[test]
fn what_a_teacher_is_sure_of_and_what_it_excludes_stay_finite() {
    let teacher = Guide::Logits(vec![0.0, 300.0, -300.0, 2.0]);
    let logits = [400.0, -400.0, 0.0, 1.0];
    let sure = Guide::TopK(TopK { k: 1, ids: vec![1], log_probs: vec![0.0] });
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::JensenShannon] {
        let distill = DistillConfig { temperature: 0.5, alpha: 1.0, divergence };
        for guide in [&teacher, &sure] {
            let loss = divergence_forward(&logits, &[0], guide, &distill);
            let dlogits = divergence_backward(&logits, &[0], guide, &distill, 1.0);
            assert!(loss[0].is_finite() && loss[0] > 0.0, "{loss:?}");
            assert!(dlogits.iter().all(|d| d.is_finite()), "{dlogits:?}");
            assert!(dlogits.iter().sum::<f32>().abs() < 1e-3, "{dlogits:?}");
        }
    }
    // The teacher gives all probability to one token: the gradient is q − p everywhere.
    let distill = DistillConfig { temperature: 1.0, alpha: 1.0, divergence: Divergence::ForwardKl };
    let dlogits = divergence_backward(&[0.0; 4], &[0], &sure, &distill, 1.0);
    assert_eq!(dlogits, [0.25, -0.75, 0.25, 0.25]);
}
