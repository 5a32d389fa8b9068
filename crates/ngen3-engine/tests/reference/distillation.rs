//! Distillation through the contract. `src/reference/loss/tests.rs` tests every divergence against PyTorch.

use ngen3_engine::reference::{Reference, ReferenceTeacher};
use ngen3_engine::{
    Backward, DistillConfig, Distiller, Divergence, IGNORE, Model, Slot, Teacher, TeacherSource, TopK, Trainer,
};
use ngen3_model::{Config, ParamList};

use crate::fixtures::{config, fixture, numbers, params, squares, values};
use crate::{batch, engine};

/// Returns the `k` most likely tokens of the teacher of the whole model in `make_distill.py`.
fn fixture_top_k(k: usize, temperature: f64) -> TopK {
    let (hidden, wte) = (squares(20_000, 8.0, 25 * 12), squares(30_000, 1.0, 97 * 12));
    let mut top_k = TopK { k, ..TopK::default() };
    for hidden in hidden.chunks_exact(12) {
        let product = |word: &[f32]| hidden.iter().zip(word).map(|(&h, &w)| f64::from(h) * f64::from(w)).sum::<f64>();
        let logits: Vec<f64> = wte.chunks_exact(12).map(|word| product(word) / temperature).collect();
        let ln_total = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let mut ids: Vec<u32> = (0..97).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        ids.truncate(k);
        top_k.log_probs.extend(ids.iter().map(|&id| (logits[id as usize] - ln_total) as f32));
        top_k.ids.extend(ids);
    }
    top_k
}

#[test]
fn a_step_with_the_most_likely_tokens_equals_pytorchs() {
    let all = fixture("distill");
    let mut batch = batch(0);
    batch.targets.iter_mut().skip(3).step_by(4).for_each(|target| *target = IGNORE);
    let list = ParamList::new(&config());
    for temperature in [1, 2, 4] {
        // With all tokens but one, the remainder is that one and nothing is lost.
        for (name, k) in [("top_k", 5), ("forward_kl", 96)] {
            let mut student = engine(&config());
            let top_k = fixture_top_k(k, f64::from(temperature));
            let distill =
                DistillConfig { temperature: temperature as f32, alpha: 1.0, divergence: Divergence::ForwardKl };
            let backward = Some(Backward::default());
            let loss = student.distill(&batch, TeacherSource::TopK(&top_k), &distill, backward).expect("a batch");
            let expected = &all["model"][format!("{name} {temperature}")];
            let expected_loss = expected["loss"].as_f64().expect("a number");
            let error = (f64::from(loss.divergence) / expected_loss - 1.0).abs();
            assert!(error < 1e-5, "{name} {temperature}: {loss:?}, not {expected_loss}");
            for (i, param) in list.iter().enumerate() {
                let direction = squares(50_000 + 100 * i as u64, 1.0, param.len());
                let grads = student.read(Slot::Grads);
                let found: f64 =
                    grads[param.range()].iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
                let [size, expected] = numbers(&expected["grads"][i])[..] else { panic!("a pair") };
                let name = &param.name();
                assert!((found - expected).abs() < 1e-5 * size.max(1e-2), "{name}: {found}, not {expected}");
            }
        }
    }
}

#[test]
fn at_alpha_0_it_is_training_and_a_teacher_that_is_the_student_teaches_nothing() {
    let mut plain = engine(&config());
    let backward = Backward { weight: 0.5, dropout: 0.2, seed: 3, ready: None };
    let loss = plain.forward_backward(&batch(0), backward).expect("a batch");
    let mut teacher = ReferenceTeacher::new(config(), params(&config())).expect("a valid shape");
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::JensenShannon] {
        let mut student = engine(&config());
        let alone = DistillConfig { temperature: 2.0, alpha: 0.0, divergence };
        let found = student.distill(&batch(0), TeacherSource::Teacher(&mut teacher), &alone, Some(backward));
        let found = found.expect("a batch");
        assert_eq!((found.cross_entropy, found.divergence), (loss, 0.0));
        assert_eq!(student.read(Slot::Grads), plain.read(Slot::Grads));

        let mut student = engine(&config());
        let taught = DistillConfig { alpha: 1.0, ..alone };
        let backward = Some(Backward::default());
        let found = student.distill(&batch(0), TeacherSource::Teacher(&mut teacher), &taught, backward);
        assert!(found.expect("a batch").divergence.abs() < 1e-9);
        assert!(student.read(Slot::Grads).iter().all(|g| g.abs() < 1e-9));
    }
}

#[test]
fn the_most_likely_tokens_of_a_teacher_teach_what_all_of_it_does() {
    let shape = Config::new(1, 2, 6, 5, 97);
    let params = values(77, ParamList::new(&shape).total());
    let mut teacher = ReferenceTeacher::new(shape, params).expect("a valid shape");
    let top_k = teacher.top_k(&batch(0), 96, 2.0).expect("a batch");
    for (ids, log_probs) in top_k.ids.chunks(96).zip(top_k.log_probs.chunks(96)) {
        assert!(log_probs.is_sorted_by(|a, b| a >= b));
        let sum: f32 = log_probs.iter().map(|p| p.exp()).sum();
        assert!((0.9..1.0).contains(&sum), "{sum} of all but one token");
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 96);
    }
    let mut run = |with_top_k| {
        let mut student = engine(&config());
        let distill = DistillConfig { temperature: 2.0, alpha: 0.5, divergence: Divergence::ForwardKl };
        let source = if with_top_k { TeacherSource::TopK(&top_k) } else { TeacherSource::Teacher(&mut teacher) };
        let loss = student.distill(&batch(0), source, &distill, Some(Backward::default())).expect("a batch");
        (loss, student.read(Slot::Grads).into_owned())
    };
    let ((whole, grads), (most_likely, found)) = (run(false), run(true));
    assert_eq!(whole.cross_entropy, most_likely.cross_entropy);
    assert!((whole.divergence / most_likely.divergence - 1.0).abs() < 1e-5, "{whole:?} {most_likely:?}");
    assert!(grads.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn wrong_teachers_are_an_error() {
    struct Elsewhere;
    impl Teacher for Elsewhere {
        fn top_k(&mut self, _: &ngen3_engine::Batch, _: usize, _: f32) -> Result<TopK, ngen3_engine::Error> {
            Ok(TopK::default())
        }
    }
    let teacher = |config: Config| {
        let params = params(&config);
        ReferenceTeacher::new(config, params).expect("a valid shape")
    };
    let mut student: Reference = engine(&config());
    let good = DistillConfig { temperature: 1.0, alpha: 0.5, divergence: Divergence::ReverseKl };
    let mut refused = |source: TeacherSource<'_>, distill: &DistillConfig| {
        student.distill(&batch(0), source, distill, None).expect_err("a wrong teacher").to_string()
    };
    assert!(refused(TeacherSource::Teacher(&mut Elsewhere), &good).contains("another device"));
    let mut other = teacher(Config { vocab_size: 96, ..config() });
    assert!(refused(TeacherSource::Teacher(&mut other), &good).contains("vocabulary"));
    let mut short = teacher(Config { block_size: 4, ..config() });
    assert!(refused(TeacherSource::Teacher(&mut short), &good).contains("context length of 4"));
    assert!(refused(TeacherSource::TopK(&fixture_top_k(5, 1.0)), &good).contains("forward_kl"));
    let cold = DistillConfig { temperature: 0.0, ..good };
    assert!(refused(TeacherSource::Teacher(&mut teacher(config())), &cold).contains("temperature"));
    let mut teacher = teacher(config());
    for (k, temperature) in [(0, 1.0), (98, 1.0), (1, 0.0)] {
        assert!(teacher.top_k(&batch(0), k, temperature).is_err());
    }
    assert!(student.loss(&batch(0)).is_ok());
}
