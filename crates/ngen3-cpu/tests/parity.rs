//! The whole model against PyTorch's numbers (`fixtures/make_parity.py`) and against finite differences, on odd sizes:
//! width 12, 3 heads, 5 rows of 5 tokens, vocabulary 97.

use ngen3_cpu::{CpuEngine, CpuTeacher};
use ngen3_engine::{
    AdamW, Backward, Batch, Distill, Divergence, Dtype, Engine, IGNORE, Options, Quant, Row, Slot, Teacher,
    TeacherModel,
};
use ngen3_model::{Activation, Config, ParamList};

const ROWS: usize = 5;

fn config(activation: Activation) -> Config {
    Config { activation, ..Config::new(2, 3, 12, 5, 97) }
}

/// The script's `hashed`.
fn hashed(i: u64) -> f64 {
    (i * 2_654_435_761 % (1 << 32)) as f64 / (1u64 << 32) as f64
}

fn params(config: &Config) -> Vec<f32> {
    (0..ParamList::new(config).total() as u64).map(|i| (hashed(i) - 0.5) as f32).collect()
}

fn batch(config: &Config, step: u64) -> Batch {
    let n = ROWS * config.block_size;
    let mut ids = (0..2 * n as u64).map(|i| (hashed(1_000_000 + step * 1000 + i) * config.vocab_size as f64) as u32);
    let inputs = ids.by_ref().take(n).collect();
    Batch::even(config.block_size, inputs, ids.collect())
}

fn engine(config: &Config, threads: usize) -> CpuEngine {
    CpuEngine::new(config.clone(), params(config), Options { threads, dtype: Dtype::F32, ..Options::default() })
        .expect("a valid shape")
}

const ADAMW: AdamW = AdamW { step: 1, lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

fn fixture(activation: &str) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(include_str!("fixtures/parity.json")).expect("JSON");
    all[activation].clone()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

#[test]
fn loss_and_every_gradient_equal_pytorchs() {
    for (activation, name) in [(Activation::GeluNew, "gelu_new"), (Activation::Gelu, "gelu")] {
        let (config, expected) = (config(activation), fixture(name));
        let mut engine = engine(&config, 2);
        let loss = engine.forward_backward(&batch(&config, 0), Backward::default()).expect("a valid batch");
        let expected_loss = expected["loss"].as_f64().expect("a number");
        assert!((f64::from(loss) / expected_loss - 1.0).abs() < 1e-5, "{loss}, not {expected_loss}");
        let (found, expected) = (engine.read(Slot::Grads).into_owned(), numbers(&expected["grads"]));
        for param in &ParamList::new(&config) {
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let range = param.range();
            let size = norm(&mut expected[range.clone()].iter().copied());
            let error = norm(&mut range.map(|i| f64::from(found[i]) - expected[i]));
            assert!(error < 1e-4 * size, "{}: relative error {}", param.name, error / size);
        }
    }
}

#[test]
fn a_hundred_steps_follow_pytorchs() {
    for (activation, name) in [(Activation::GeluNew, "gelu_new"), (Activation::Gelu, "gelu")] {
        let (config, expected) = (config(activation), fixture(name));
        let mut engine = engine(&config, 2);
        for (step, (loss, norm)) in
            numbers(&expected["losses"]).into_iter().zip(numbers(&expected["norms"])).enumerate()
        {
            let found =
                engine.forward_backward(&batch(&config, step as u64), Backward::default()).expect("a valid batch");
            let found_norm = engine.update(&AdamW { step: step as u64 + 1, ..ADAMW }).expect("memory");
            assert!((f64::from(found) - loss).abs() < 1e-3, "step {step}: {found}, not {loss}");
            assert!((f64::from(found_norm) / norm - 1.0).abs() < 1e-2, "step {step}: norm {found_norm}, not {norm}");
        }
    }
}

#[test]
fn gradients_match_finite_differences_with_dropout() {
    let config = config(Activation::GeluNew);
    let batch = batch(&config, 0);
    let mut engine = engine(&config, 1);
    let (dropout, seed) = (0.2, 7);
    engine.forward_backward(&batch, Backward { dropout, seed, ..Backward::default() }).expect("a valid batch");
    let grads = engine.read(Slot::Grads).into_owned();
    let start = params(&config);
    let list = ParamList::new(&config);
    let mut at = |index: usize, offset: f32| {
        let mut moved = start.clone();
        moved[index] += offset;
        engine.write(Slot::Params, &moved).expect("memory");
        f64::from(engine.forward_backward(&batch, Backward { weight: 0.0, dropout, seed }).expect("a valid batch"))
    };
    for param in &list {
        let largest = grads[param.range()].iter().fold(0.0f64, |m, &g| m.max(f64::from(g.abs())));
        for index in [param.offset, param.offset + param.len() / 2, param.range().end - 1] {
            let h = 4e-3f32;
            let wide = (at(index, 2.0 * h) - at(index, -2.0 * h)) / (4.0 * f64::from(h));
            let narrow = (at(index, h) - at(index, -h)) / (2.0 * f64::from(h));
            let expected = (4.0 * narrow - wide) / 3.0;
            let error = (f64::from(grads[index]) - expected).abs();
            assert!(error < 2e-3 * largest + 3e-4, "{} at {index}: {}, not {expected}", param.name, grads[index]);
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_whole_batch() {
    let config = config(Activation::GeluNew);
    let whole = batch(&config, 0);
    let mut engine = engine(&config, 2);
    let loss = engine.forward_backward(&whole, Backward::default()).expect("a valid batch");
    let expected = engine.read(Slot::Grads).into_owned();
    engine.write(Slot::Grads, &vec![0.0; expected.len()]).expect("memory");
    let mut total = 0.0;
    let n = config.block_size;
    for row in 0..ROWS {
        let part = |ids: &[u32]| ids[row * n..(row + 1) * n].to_vec();
        let row = Batch::even(n, part(&whole.inputs), part(&whole.targets));
        total += engine
            .forward_backward(&row, Backward { weight: 1.0 / ROWS as f32, ..Backward::default() })
            .expect("a valid batch")
            / ROWS as f32;
    }
    assert!((total - loss).abs() < 1e-5);
    for (found, expected) in engine.read(Slot::Grads).iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
    }
}

#[test]
fn rows_of_any_length_give_what_each_gives_alone() {
    let config = Config::new(2, 3, 12, 40, 97);
    let mut engine = engine(&config, 2);
    let ids =
        |n: usize, seed: u64| -> Vec<u32> { (0..n as u64).map(|i| (hashed(seed * 1000 + i) * 97.0) as u32).collect() };
    let (mut whole, mut losses, mut counted) = (Batch::default(), Vec::new(), 0);
    let rows: Vec<Batch> = [40, 1, 17, 33]
        .iter()
        .zip(1..)
        .map(|(&len, seed)| {
            let (inputs, mut targets) = (ids(len, seed), ids(len, seed + 100));
            // Every third is not asked for.
            targets.iter_mut().skip(1).step_by(3).for_each(|target| *target = IGNORE);
            whole.push(&inputs, &targets);
            let mut row = Batch::default();
            row.push(&inputs, &targets);
            row
        })
        .collect();
    for row in &rows {
        let of_row = engine.losses(row).expect("a valid row");
        assert!(of_row.iter().zip(&row.targets).all(|(&loss, &target)| (loss == 0.0) == (target == IGNORE)));
        losses.extend(of_row);
        counted += row.counted();
    }
    let together = engine.losses(&whole).expect("a valid batch");
    assert!(together.iter().zip(&losses).all(|(a, b)| (a - b).abs() < 1e-5));
    let mean = losses.iter().sum::<f32>() / counted as f32;
    assert!((engine.loss(&whole).expect("a valid batch") - mean).abs() < 1e-5);

    let loss = engine.forward_backward(&whole, Backward::default()).expect("a valid batch");
    assert!((loss - mean).abs() < 1e-5);
    let expected = engine.read(Slot::Grads).into_owned();
    engine.write(Slot::Grads, &vec![0.0; expected.len()]).expect("memory");
    for row in &rows {
        let weight = row.counted() as f32 / counted as f32;
        engine.forward_backward(row, Backward { weight, ..Backward::default() }).expect("a valid row");
    }
    for (found, expected) in engine.read(Slot::Grads).iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
    }
}

#[test]
fn a_row_that_continues_another_gives_what_both_give_as_one() {
    let config = Config::new(2, 3, 12, 40, 97);
    let mut engine = engine(&config, 2);
    let ids =
        |n: usize, seed: u64| -> Vec<u32> { (0..n as u64).map(|i| (hashed(seed * 1000 + i) * 97.0) as u32).collect() };
    let (prefix, endings) = (ids(11, 1), [ids(4, 2), ids(29, 3), ids(1, 4)]);
    let mut shared = Batch::default();
    shared.push(&ids(5, 9), &ids(5, 8));
    shared.push(&prefix, &[IGNORE; 11]);
    for ending in &endings {
        shared.push_after(ending, ending);
    }
    let found = engine.losses(&shared).expect("a valid batch");
    let mut expected = engine.losses(&Batch::even(5, ids(5, 9), ids(5, 8))).expect("a valid row");
    expected.extend([0.0; 11]);
    for ending in &endings {
        let mut whole = Batch::default();
        let targets: Vec<u32> = [IGNORE; 11].iter().chain(ending).copied().collect();
        whole.push(&[&prefix[..], ending].concat(), &targets);
        expected.extend(&engine.losses(&whole).expect("a valid row")[11..]);
    }
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}, not {expected:?}");
    assert!(engine.forward_backward(&shared, Backward::default()).is_err(), "losses only");
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let config = Config::new(2, 4, 32, 70, 301);
    let run = |threads| {
        let mut engine = engine(&config, threads);
        let losses: Vec<f32> = (0..5)
            .map(|step| {
                let loss = engine
                    .forward_backward(
                        &batch(&config, step),
                        Backward { dropout: 0.1, seed: step, ..Backward::default() },
                    )
                    .expect("a valid batch");
                engine.update(&AdamW { step: step + 1, ..ADAMW }).expect("memory");
                loss
            })
            .collect();
        (losses, engine.read(Slot::Params).into_owned())
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        assert_eq!(one, run(threads), "{threads} threads");
    }
}

#[test]
fn decoding_gives_what_the_whole_sequence_gives() {
    let config = Config::new(2, 3, 12, 80, 97);
    let params = params(&config);
    let engine =
        CpuEngine::new(config.clone(), params, Options { threads: 2, dtype: Dtype::F32, ..Options::default() })
            .expect("a shape");
    let rows = 3;
    let sequence = |row: u64| (0..80u64).map(move |t| (hashed(row * 999 + t) * 97.0) as u32);
    let mut whole = engine.decoder(rows).expect("memory");
    let all: Vec<u32> = (0..rows as u64).flat_map(sequence).collect();
    let expected = whole.feed(&all).expect("a block").to_vec();

    let mut parts = engine.decoder(rows).expect("memory");
    let take =
        |from: usize, n: usize| -> Vec<u32> { (0..rows as u64).flat_map(|r| sequence(r).skip(from).take(n)).collect() };
    let mut logits = Vec::new();
    let mut fed = 0;
    for n in [1, 66, 5, 1, 1, 6] {
        logits = parts.feed(&take(fed, n)).expect("room").to_vec();
        fed += n;
    }
    assert_eq!((fed, parts.len()), (80, 80));
    for (found, expected) in logits.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "{found}, not {expected}");
    }
    assert!(parts.feed(&take(0, 1)).is_err(), "the block is full");
    parts.clear();
    assert!(parts.feed(&[97, 0, 0]).is_err(), "outside the vocabulary");
    assert!(parts.feed(&[1, 2]).is_err(), "ragged");
    assert!(parts.is_empty());
}

#[test]
fn decoding_with_narrower_weights_stays_near_and_agrees_with_itself() {
    let config = Config::new(2, 4, 64, 40, 301);
    let tokens: Vec<u32> = (0..30u64).map(|t| (hashed(t) * 301.0) as u32).collect();
    // The logits after the last token, fed in one pass and a token at a time.
    let logits = |dtype, quant| {
        let params = ParamList::new(&config).init(1).iter().map(|p| p * 5.0).collect();
        let engine = CpuEngine::new(config.clone(), params, Options { threads: 2, dtype, quant, ..Options::default() })
            .expect("a shape");
        let mut decoder = engine.decoder(1).expect("memory");
        let at_once = decoder.feed(&tokens).expect("room").to_vec();
        decoder.clear();
        let one_by_one = tokens.iter().map(|&t| decoder.feed(&[t]).expect("room").to_vec()).last().expect("tokens");
        (at_once, one_by_one)
    };
    let distance = |a: &[f32], b: &[f32]| {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
    };
    let (exact, exact_steps) = logits(Dtype::F32, Quant::None);
    assert!(distance(&exact_steps, &exact) < 1e-5);
    let (at_once, one_by_one) = logits(Dtype::F32, Quant::Int8);
    assert!(distance(&one_by_one, &at_once) < 1e-5, "a prompt goes through the same int8 weights");
    let error = distance(&at_once, &exact);
    assert!(error > 1e-4 && error < 0.05, "int8: {error}");
    let (_, one_by_one) = logits(Dtype::Auto, Quant::None);
    assert!(distance(&one_by_one, &exact) < 0.02, "auto");
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let config = config(Activation::GeluNew);
    let mut engine = engine(&config, 1);
    engine
        .forward_backward(&batch(&config, 0), Backward { weight: f32::INFINITY, ..Backward::default() })
        .expect("a valid batch");
    assert!(!engine.update(&ADAMW).expect("memory").is_finite());
    assert_eq!(&*engine.read(Slot::Params), params(&config));
    assert!(engine.read(Slot::Grads).iter().all(|&g| g == 0.0));
}

#[test]
fn wrong_input_is_an_error() {
    let config = config(Activation::GeluNew);
    let mut engine = engine(&config, 1);
    let good = batch(&config, 0);
    let bad = [
        Batch::even(0, good.inputs.clone(), good.targets.clone()),
        Batch::even(4, good.inputs.clone(), good.targets.clone()),
        Batch::even(25, good.inputs.clone(), good.targets.clone()),
        Batch { rows: vec![Row { len: 25, continues: true }], ..good.clone() },
        Batch { rows: vec![Row { len: usize::MAX, continues: false }; 2], ..good.clone() },
        Batch { targets: vec![0], ..good.clone() },
        Batch { inputs: vec![97; 25], ..good.clone() },
        Batch { targets: vec![IGNORE; 25], ..good.clone() },
        Batch { targets: vec![98; 25], ..good.clone() },
        Batch::default(),
    ];
    for batch in bad {
        assert!(engine.loss(&batch).is_err(), "{batch:?}");
        assert!(engine.forward_backward(&batch, Backward::default()).is_err(), "{batch:?}");
    }
    assert!(
        engine.forward_backward(&good, Backward { dropout: 1.0, ..Backward::default() }).is_err(),
        "everything would be dropped"
    );
    assert!(engine.loss(&good).is_ok());
    assert!(CpuEngine::new(config.clone(), vec![0.0; 3], Options::default()).is_err(), "too few parameters");
    assert!(CpuEngine::new(Config { n_head: 5, ..config }, Vec::new(), Options::default()).is_err(), "12 / 5");
}

#[test]
fn a_distillation_step_of_the_whole_model_equals_pytorchs() {
    let config = config(Activation::GeluNew);
    let all: serde_json::Value = serde_json::from_str(include_str!("fixtures/distill.json")).expect("JSON");
    let values = |first: u64, scale: f64, n: usize| -> Vec<f32> {
        (0..n as u64).map(|i| (scale * (hashed((first + i) * (first + i)) - 0.5)) as f32).collect()
    };
    let mut batch = batch(&config, 0);
    batch.targets.iter_mut().skip(3).step_by(4).for_each(|target| *target = IGNORE);
    let tokens = batch.inputs.len();
    let (hidden, wte) = (values(20_000, 8.0, tokens * 12), values(30_000, 1.0, config.vocab_size * 12));
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
                let mut engine = engine(&config, 2);
                let teacher = Teacher::Head { hidden: &hidden, wte: &wte, quant: Quant::None };
                let distill = Distill { teacher, temperature: temperature as f32, alpha, divergence };
                let backward = Backward { weight: 1.0, dropout: 0.0, seed: 0 };
                let loss = engine.distill(&batch, &distill, Some(backward)).expect("a valid batch");
                let close = |found: f32, expected: &serde_json::Value| {
                    let expected = expected.as_f64().expect("a number");
                    assert!((f64::from(found) - expected).abs() < 1e-4 * expected, "{name}: {found}, not {expected}");
                };
                close(loss.cross_entropy, &plain["loss"]);
                if alpha > 0.0 {
                    close(loss.divergence, &expected["loss"]);
                }
                let grads = engine.read(Slot::Grads);
                for (i, param) in list.iter().enumerate() {
                    let direction = values(50_000 + 100 * i as u64, 1.0, param.len());
                    let found: f64 =
                        grads[param.range()].iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
                    let [soft, hard] = [expected, plain].map(|value| numbers(&value["grads"][i]));
                    let mixed = f64::from(alpha) * soft[1] + f64::from(1.0 - alpha) * hard[1];
                    let size = f64::from(alpha) * soft[0] + f64::from(1.0 - alpha) * hard[0];
                    let name = &param.name;
                    assert!((found - mixed).abs() < 1e-4 * size.max(1e-2), "{name}: {found}, not {mixed} of {size}");
                }
            }
        }
    }
}

#[test]
fn the_likeliest_tokens_of_a_teacher_teach_nearly_what_all_of_it_does() {
    let config = config(Activation::GeluNew);
    let batch = batch(&config, 0);
    let mut teacher =
        CpuEngine::new(config.clone(), ParamList::new(&config).init(3), Options::default()).expect("a shape");
    let hidden = teacher.hidden(&batch).expect("a valid batch");
    let wte = teacher.read(Slot::Params)[ParamList::new(&config).wte.clone()].to_vec();
    let (ids, log_probs) = teacher.top_k(&batch, 96, 2.0).expect("a valid batch");
    for (ids, log_probs) in ids.chunks(96).zip(log_probs.chunks(96)) {
        assert!(log_probs.is_sorted_by(|a, b| a >= b));
        let sum: f32 = log_probs.iter().map(|p| p.exp()).sum();
        assert!((0.9..1.0).contains(&sum), "{sum} of all but one token");
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 96);
    }
    let loss = |teacher| {
        let mut student = engine(&config, 2);
        let distill = Distill { teacher, temperature: 2.0, alpha: 0.5, divergence: Divergence::ForwardKl };
        student.distill(&batch, &distill, None).expect("a valid batch")
    };
    let whole = loss(Teacher::Head { hidden: &hidden, wte: &wte, quant: Quant::None });
    let likeliest = loss(Teacher::TopK { k: 96, ids: &ids, log_probs: &log_probs });
    assert_eq!(whole.cross_entropy, likeliest.cross_entropy);
    assert!((whole.divergence - likeliest.divergence).abs() < 0.02 * whole.divergence, "{whole:?} {likeliest:?}");
    assert!(teacher.top_k(&batch, 98, 1.0).is_err() && teacher.top_k(&batch, 1, 0.0).is_err());
}

#[test]
fn a_teacher_in_int8_says_nearly_the_same_and_the_same_whole_or_as_its_likeliest_tokens() {
    let config = Config::new(3, 2, 34, 70, 301);
    let ids: Vec<u32> = (0..140).map(|i| i * i % 301).collect();
    let batch = Batch::even(70, ids.clone(), ids);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let options = |quant| Options { threads: 2, dtype, quant, ..Options::default() };
        let Ok(mut plain) = CpuTeacher::new(config.clone(), params(&config), options(Quant::None)) else {
            assert_eq!(dtype, Dtype::Bf16, "every processor computes in f32");
            continue;
        };
        let mut int8 = CpuTeacher::new(config.clone(), params(&config), options(Quant::Int8)).expect("a valid shape");
        let (expected, hidden) = (plain.hidden(&batch).expect("a batch"), int8.hidden(&batch).expect("a batch"));
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
        let gap = square(&mut hidden.iter().zip(&expected).map(|(a, b)| a - b)) / square(&mut expected.iter().copied());
        assert!((1e-6..1e-3).contains(&gap), "{dtype}: {gap}");

        let (ids, log_probs) = int8.top_k(&batch, 300, 2.0).expect("a valid batch");
        let divergence = |teacher| {
            let mut student = engine(&config, 2);
            student.forward_backward(&batch, Backward::default()).expect("a valid batch");
            student.update(&AdamW { step: 1, lr: 0.05, ..ADAMW }).expect("memory");
            let distill = Distill { teacher, temperature: 2.0, alpha: 0.5, divergence: Divergence::ForwardKl };
            student.distill(&batch, &distill, None).expect("a valid batch").divergence
        };
        let whole = divergence(int8.says(&hidden));
        let likeliest = divergence(Teacher::TopK { k: 300, ids: &ids, log_probs: &log_probs });
        let in_bf16_or_f32 = divergence(plain.says(&expected));
        assert!((whole - likeliest).abs() < 1e-3 * whole, "{dtype}: {whole} {likeliest}");
        assert!((whole - in_bf16_or_f32).abs() < 0.05 * whole && whole != in_bf16_or_f32, "{whole} {in_bf16_or_f32}");
    }
}

#[test]
fn a_teacher_says_what_the_engine_of_the_same_weights_says() {
    for config in [config(Activation::GeluNew), Config::new(3, 2, 34, 70, 301)] {
        // More tokens than go through the layers together, in rows of several lengths.
        let mut batch = Batch::default();
        for row in 0..40 {
            let len = 1 + row * 7 % config.block_size;
            let ids: Vec<u32> = (0..len).map(|i| ((row * 31 + i * i) % config.vocab_size) as u32).collect();
            batch.push(&ids, &ids);
        }
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let options = Options { threads: 2, dtype, ..Options::default() };
            let Ok(mut engine) = CpuEngine::new(config.clone(), params(&config), options) else {
                assert_eq!(dtype, Dtype::Bf16, "every processor computes in f32");
                continue;
            };
            let mut teacher = CpuTeacher::new(config.clone(), params(&config), options).expect("a valid shape");
            for _ in 0..2 {
                let hidden = teacher.hidden(&batch).expect("a valid batch");
                assert!(hidden == engine.hidden(&batch).expect("a valid batch"), "{dtype}");
                let likeliest = teacher.top_k(&batch, 5, 2.0).expect("a valid batch");
                assert!(likeliest == engine.top_k(&batch, 5, 2.0).expect("a valid batch"), "{dtype}");
            }
            // Hidden states are those that the losses are made from.
            let hidden = teacher.hidden(&batch).expect("a valid batch");
            let Teacher::Head { wte, .. } = teacher.says(&hidden) else { panic!("likeliest tokens") };
            assert!(matches!(engine.says(&hidden), Teacher::Head { wte: same, .. } if same == wte));
            let width = config.n_embd;
            let logit = |token: u32| -> f64 {
                let (h, w) = (&hidden[..width], &wte[token as usize * width..][..width]);
                h.iter().zip(w).map(|(&h, &w)| f64::from(h) * f64::from(w)).sum()
            };
            let sum: f64 = (0..config.vocab_size as u32).map(|token| logit(token).exp()).sum();
            let loss = sum.ln() - logit(batch.targets[0]);
            let found = f64::from(engine.losses(&batch).expect("a valid batch")[0]);
            assert!((found - loss).abs() < 0.02 * loss.max(1.0), "{dtype}: {found}, not {loss}");
        }
    }
}
