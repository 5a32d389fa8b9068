//! Checks distillation of the whole model against PyTorch (`tests/fixtures/make_distill.py`), and a teacher against the engine
//! with the same weights.

use ngen3_engine::{
    AdamW, Backward, Batch, DistillConfig, DistillLoss, Distiller, Divergence, Dtype, Error, IGNORE, Model, Options,
    Quant, Slot, Teacher as _, TeacherSource, TopK, Trainer,
};
use ngen3_model::{Config, ParamList};

use super::batch_plan::TEACHER_TOKENS;
use super::runner::Runner;
use super::{CpuEngine, CpuTeacher};
use crate::base::fixtures::{batch, config, fixture, numbers, params, squares};
use crate::base::testing::skipped_bf16;
use crate::layers::loss::Teacher;

fn engine(config: &Config) -> CpuEngine {
    let options = Options { threads: 2, dtype: Dtype::F32, ..Options::default() };
    CpuEngine::new(config.clone(), params(config), options).expect("a valid shape")
}

/// Returns a teacher's hidden states, embeddings and quantisation.
fn head(teacher: &mut CpuTeacher, batch: &Batch, config: &Config) -> (Vec<f32>, Vec<f32>, Quant) {
    match teacher.output(batch, config.vocab_size).expect("a valid batch") {
        Teacher::Head { hidden, wte, quant } => (hidden.to_vec(), wte.to_vec(), quant),
        Teacher::TopK { .. } => panic!("expected the teacher's full output, got its top k"),
    }
}

#[test]
fn a_distillation_step_of_the_whole_model_equals_pytorchs() {
    let config = config();
    let all = fixture("distill");
    let mut batch = batch(&config, 0);
    batch.targets.iter_mut().skip(3).step_by(4).for_each(|target| *target = IGNORE);
    let tokens = batch.inputs.len();
    let (hidden, wte) = (squares(20_000, 8.0, tokens * 12), squares(30_000, 1.0, config.vocab_size * 12));
    let list = ParamList::new(&config);
    let plain = &all["model"]["cross_entropy"];
    for temperature in [1, 2, 4] {
        for (name, divergence) in [
            ("forward_kl", Divergence::ForwardKl),
            ("reverse_kl", Divergence::ReverseKl),
            ("jensen_shannon", Divergence::JensenShannon),
        ] {
            let expected = &all["model"][format!("{name} {temperature}")];
            for alpha in [0.0f32, 0.5, 1.0] {
                let mut engine = engine(&config);
                let teacher = Teacher::Head { hidden: &hidden, wte: &wte, quant: Quant::None };
                let distill = DistillConfig { temperature: temperature as f32, alpha, divergence };
                let backward = Backward::default();
                let loss = engine.distill_from(&batch, teacher, &distill, Some(backward)).expect("a valid batch");
                let close = |found: f32, expected: &serde_json::Value| {
                    let expected = expected.as_f64().expect("a number");
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-4 * expected,
                        "{name}: expected {expected}, got {found}"
                    );
                };
                close(loss.cross_entropy, &plain["loss"]);
                if alpha > 0.0 {
                    close(loss.divergence, &expected["loss"]);
                }
                let grads = engine.read(Slot::Grads);
                for (i, param) in list.iter().enumerate() {
                    let direction = squares(50_000 + 100 * i as u64, 1.0, param.len());
                    let found: f64 =
                        grads[param.range()].iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
                    let [soft, hard] = [expected, plain].map(|value| numbers(&value["grads"][i]));
                    let mixed = f64::from(alpha) * soft[1] + f64::from(1.0 - alpha) * hard[1];
                    let size = f64::from(alpha) * soft[0] + f64::from(1.0 - alpha) * hard[0];
                    let name = &param.name();
                    assert!(
                        (found - mixed).abs() < 1e-4 * size.max(1e-2),
                        "{name}: expected {mixed}, got {found}, norm {size}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_most_likely_tokens_of_a_teacher_teach_nearly_what_all_of_it_does() {
    let config = config();
    let batch = batch(&config, 0);
    let mut teacher =
        CpuTeacher::new(config.clone(), ParamList::new(&config).init(3), Options::default()).expect("a shape");
    let top_k = teacher.top_k(&batch, 96, 2.0).expect("a valid batch");
    assert_eq!([top_k.ids.len(), top_k.log_probs.len()], [96 * batch.inputs.len(); 2]);
    for (ids, log_probs) in top_k.ids.chunks(96).zip(top_k.log_probs.chunks(96)) {
        assert!(log_probs.is_sorted_by(|a, b| a >= b));
        let sum: f32 = log_probs.iter().map(|p| p.exp()).sum();
        assert!((0.9..1.0).contains(&sum), "probability of all but one token: {sum}");
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 96);
    }
    let loss = |teacher: TeacherSource<'_>| {
        let mut student = engine(&config);
        let distill = DistillConfig { temperature: 2.0, alpha: 0.5, divergence: Divergence::ForwardKl };
        student.distill(&batch, teacher, &distill, None).expect("a valid batch")
    };
    let whole = loss(TeacherSource::Teacher(&mut teacher));
    let most_likely = loss(TeacherSource::TopK(&top_k));
    assert_eq!(whole.cross_entropy, most_likely.cross_entropy);
    assert!((whole.divergence - most_likely.divergence).abs() < 0.02 * whole.divergence, "{whole:?} {most_likely:?}");
    assert!(teacher.top_k(&batch, 98, 1.0).is_err() && teacher.top_k(&batch, 1, 0.0).is_err());
}

#[test]
fn a_teacher_in_int8_gives_nearly_the_same_and_the_same_whole_or_as_its_most_likely_tokens() {
    let config = Config::new(3, 2, 34, 70, 301);
    let ids: Vec<u32> = (0..140).map(|i| i * i % 301).collect();
    let batch = Batch::even(70, ids.clone(), ids);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let options = |quant| Options { threads: 2, dtype, quant, ..Options::default() };
        let Ok(mut plain) = CpuTeacher::new(config.clone(), params(&config), options(Quant::None)) else {
            assert_eq!(dtype, Dtype::Bf16, "f32 runs on every processor");
            skipped_bf16();
            continue;
        };
        let mut int8 = CpuTeacher::new(config.clone(), params(&config), options(Quant::Int8)).expect("a valid shape");
        let ((expected, _, quant), (hidden, _, rounded)) =
            (head(&mut plain, &batch, &config), head(&mut int8, &batch, &config));
        assert_eq!((quant, rounded), (Quant::None, Quant::Int8));
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
        let gap = square(&mut hidden.iter().zip(&expected).map(|(a, b)| a - b)) / square(&mut expected.iter().copied());
        assert!((1e-6..1e-3).contains(&gap), "{dtype}: {gap}");

        let top_k = int8.top_k(&batch, 300, 2.0).expect("a valid batch");
        let adamw = AdamW { step: 1, lr: 0.05, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };
        let divergence = |teacher: TeacherSource<'_>| {
            let mut student = engine(&config);
            student.forward_backward(&batch, Backward::default()).expect("a valid batch");
            student.update(&adamw, None).expect("memory");
            let distill = DistillConfig { temperature: 2.0, alpha: 0.5, divergence: Divergence::ForwardKl };
            student.distill(&batch, teacher, &distill, None).expect("a valid batch").divergence
        };
        let whole = divergence(TeacherSource::Teacher(&mut int8));
        let most_likely = divergence(TeacherSource::TopK(&top_k));
        let in_bf16_or_f32 = divergence(TeacherSource::Teacher(&mut plain));
        assert!((whole - most_likely).abs() < 1e-3 * whole, "{dtype}: {whole} {most_likely}");
        assert!((whole - in_bf16_or_f32).abs() < 0.05 * whole && whole != in_bf16_or_f32, "{whole} {in_bf16_or_f32}");
    }
}

#[test]
fn a_teacher_gives_what_the_engine_of_the_same_weights_gives() {
    for config in [config(), Config::new(3, 2, 34, 70, 301)] {
        // More tokens than fit in one pass, in sequences of several lengths.
        let mut batch = Batch::default();
        for sequence in 0..40 {
            let len = 1 + sequence * 7 % config.block_size;
            let ids: Vec<u32> = (0..len).map(|i| ((sequence * 31 + i * i) % config.vocab_size) as u32).collect();
            batch.push(&ids, &ids);
        }
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let options = Options { threads: 2, dtype, ..Options::default() };
            let Ok(mut engine) = CpuEngine::new(config.clone(), params(&config), options) else {
                assert_eq!(dtype, Dtype::Bf16, "f32 runs on every processor");
                skipped_bf16();
                continue;
            };
            // Unpacked weights, as in the engine.
            let mut runner = Runner::new(config.clone(), params(&config), options).expect("a valid shape");
            let mut teacher = CpuTeacher::new(config.clone(), params(&config), options).expect("a valid shape");
            for _ in 0..2 {
                runner.plan(&batch, TEACHER_TOKENS).expect("a valid batch");
                let mut hidden = Vec::new();
                runner
                    .run(&batch, |model, passes| model.hidden(passes, |some| hidden.extend_from_slice(some)))
                    .expect("a valid batch");
                assert!(head(&mut teacher, &batch, &config).0 == hidden, "{dtype}");
                let places = 5 * batch.inputs.len();
                let (mut ids, mut log_probs) = (vec![0; places], vec![0.0; places]);
                runner
                    .run(&batch, |model, passes| model.top_k(passes, 2.0, &mut ids, &mut log_probs))
                    .expect("a valid batch");
                let found = teacher.top_k(&batch, 5, 2.0).expect("a valid batch");
                assert!(found == TopK { k: 5, ids, log_probs }, "{dtype}");
            }
            // The losses follow from these hidden states.
            let (hidden, wte, quant) = head(&mut teacher, &batch, &config);
            assert!(quant == Quant::None && engine.read(Slot::Params)[ParamList::new(&config).wte] == wte);
            let width = config.n_embd;
            let logit = |token: u32| -> f64 {
                let (h, w) = (&hidden[..width], &wte[token as usize * width..][..width]);
                h.iter().zip(w).map(|(&h, &w)| f64::from(h) * f64::from(w)).sum()
            };
            let sum: f64 = (0..config.vocab_size as u32).map(|token| logit(token).exp()).sum();
            let loss = sum.ln() - logit(batch.targets[0]);
            let found = f64::from(engine.losses(&batch).expect("a valid batch")[0]);
            assert!((found - loss).abs() < 0.02 * loss.max(1.0), "{dtype}: expected {loss}, got {found}");
        }
    }
}

#[test]
fn a_teacher_gives_the_same_by_its_handle_as_by_its_hidden_states() {
    let config = config();
    let batch = batch(&config, 0);
    // The teacher differs in depth, width and context length.
    let shape = Config::new(1, 2, 20, 9, 97);
    let options = Options { threads: 2, ..Options::default() };
    let mut teacher = CpuTeacher::new(shape.clone(), params(&shape), options).expect("a valid shape");
    let (hidden, wte, quant) = head(&mut teacher, &batch, &config);
    let distill = DistillConfig { temperature: 2.0, alpha: 0.5, divergence: Divergence::JensenShannon };
    let step = |work: &mut dyn FnMut(&mut CpuEngine) -> DistillLoss| {
        let mut engine = engine(&config);
        (work(&mut engine), engine.read(Slot::Grads).into_owned())
    };
    let by_handle = step(&mut |engine| {
        let teacher = TeacherSource::Teacher(&mut teacher);
        engine.distill(&batch, teacher, &distill, Some(Backward::default())).expect("a valid batch")
    });
    let by_hidden = step(&mut |engine| {
        let teacher = Teacher::Head { hidden: &hidden, wte: &wte, quant };
        engine.distill_from(&batch, teacher, &distill, Some(Backward::default())).expect("a valid batch")
    });
    assert!(by_handle == by_hidden);
}

/// Teacher that no device opened.
struct Stranger;

impl ngen3_engine::Teacher for Stranger {
    fn top_k(&mut self, _: &Batch, _: usize, _: f32) -> Result<TopK, Error> {
        Err(Error::Unsupported("teaching"))
    }
}

#[test]
fn a_wrong_teacher_is_an_error() {
    let config = config();
    let batch = batch(&config, 0);
    let tokens = batch.inputs.len();
    let teacher = |shape: Config| {
        let params = params(&shape);
        CpuTeacher::new(shape, params, Options { threads: 1, ..Options::default() }).expect("a valid shape")
    };
    let mut student = engine(&config);
    let mut distill = |teacher: TeacherSource<'_>, distill: DistillConfig| {
        student.distill(&batch, teacher, &distill, Some(Backward::default())).map_err(|error| error.to_string())
    };
    let good = DistillConfig { temperature: 2.0, alpha: 0.5, divergence: Divergence::ForwardKl };
    let mut same = teacher(config.clone());
    let mut larger = teacher(Config { vocab_size: 98, ..config.clone() });
    let mut shorter = teacher(Config { block_size: 4, ..config.clone() });
    let top_k = same.top_k(&batch, 3, 2.0).expect("a valid batch");
    let outside = TopK { ids: vec![97; 3 * tokens], ..top_k.clone() };
    let too_few = TopK { log_probs: vec![-1.0; 3 * tokens - 1], ..top_k.clone() };
    let all = same.top_k(&batch, 97, 2.0).expect("a valid batch");
    let none = TopK::default();
    for (teacher, config, reason) in [
        (TeacherSource::Teacher(&mut Stranger), good, "another device"),
        (TeacherSource::Teacher(&mut larger), good, "expected 97 tokens as in the student, got 98"),
        (TeacherSource::Teacher(&mut shorter), good, "context length of 4"),
        (TeacherSource::Teacher(&mut same), DistillConfig { temperature: 0.0, ..good }, "temperature is 0"),
        (TeacherSource::TopK(&top_k), DistillConfig { alpha: 1.5, ..good }, "alpha is 1.5"),
        (TeacherSource::TopK(&top_k), DistillConfig { divergence: Divergence::ReverseKl, ..good }, "only forward_kl"),
        (TeacherSource::TopK(&outside), good, "token 97 is outside the vocabulary"),
        (TeacherSource::TopK(&too_few), good, "expected 25 × k teacher tokens"),
        (TeacherSource::TopK(&all), good, "with k = 97"),
        (TeacherSource::TopK(&none), good, "with k = 0"),
    ] {
        let error = distill(teacher, config).expect_err(reason);
        assert!(error.contains(reason), "expected {reason:?} in {error:?}");
    }
    assert!(distill(TeacherSource::Teacher(&mut same), good).is_ok());
    assert!(distill(TeacherSource::TopK(&top_k), good).is_ok());
}
