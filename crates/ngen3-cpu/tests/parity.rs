//! Checks the whole model against PyTorch (`fixtures/make_parity.py`) and against finite differences, on odd sizes: width 12, 3
//! heads, 5 sequences of 5 tokens, vocabulary 97.

mod fixtures;

use std::cell::RefCell;

use fixtures::{ADAMW, batch, fixture, hashed, numbers, params};
use half::f16;
use ngen3_cpu::{Cpu, CpuEngine};
use ngen3_engine::{
    AdamW, Backward, Batch, Decoder, Device, Dtype, Error, Feed, IGNORE, Model, Options, Quant, Ready, Sequence, Slot,
    Trainer,
};
use ngen3_model::gguf::TensorType;
use ngen3_model::{Activation, Config, ParamList, StoredWeight};

const SEQUENCES: usize = 5;

fn config(activation: Activation) -> Config {
    Config { activation, ..fixtures::config() }
}

fn engine(config: &Config, threads: usize) -> CpuEngine {
    CpuEngine::new(config.clone(), params(config), Options { threads, dtype: Dtype::F32, ..Options::default() })
        .expect("a valid shape")
}

#[test]
fn loss_and_every_gradient_equal_pytorchs() {
    for (activation, name) in [(Activation::GeluNew, "gelu_new"), (Activation::Gelu, "gelu")] {
        let (config, expected) = (config(activation), &fixture("parity")[name]);
        let mut engine = engine(&config, 2);
        let loss = engine.forward_backward(&batch(&config, 0), Backward::default()).expect("a valid batch");
        let expected_loss = expected["loss"].as_f64().expect("a number");
        assert!((f64::from(loss) / expected_loss - 1.0).abs() < 1e-5, "expected {expected_loss}, got {loss}");
        let (found, expected) = (engine.read(Slot::Grads).into_owned(), numbers(&expected["grads"]));
        for param in &ParamList::new(&config) {
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let range = param.range();
            let size = norm(&mut expected[range.clone()].iter().copied());
            let error = norm(&mut range.map(|i| f64::from(found[i]) - expected[i]));
            assert!(error < 1e-4 * size, "{}: relative error {}", param.name(), error / size);
        }
    }
}

#[test]
fn a_hundred_steps_follow_pytorchs() {
    for (activation, name) in [(Activation::GeluNew, "gelu_new"), (Activation::Gelu, "gelu")] {
        let (config, expected) = (config(activation), &fixture("parity")[name]);
        let mut engine = engine(&config, 2);
        for (step, (loss, norm)) in
            numbers(&expected["losses"]).into_iter().zip(numbers(&expected["norms"])).enumerate()
        {
            let found =
                engine.forward_backward(&batch(&config, step as u64), Backward::default()).expect("a valid batch");
            let found_norm = engine.update(&AdamW { step: step as u64 + 1, ..ADAMW }, None).expect("memory");
            assert!((f64::from(found) - loss).abs() < 1e-3, "step {step}: expected {loss}, got {found}");
            assert!(
                (f64::from(found_norm) / norm - 1.0).abs() < 1e-2,
                "step {step}: expected norm {norm}, got {found_norm}"
            );
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
        f64::from(
            engine
                .forward_backward(&batch, Backward { weight: 0.0, dropout, seed, ready: None })
                .expect("a valid batch"),
        )
    };
    for param in &list {
        let largest = grads[param.range()].iter().fold(0.0f64, |m, &g| m.max(f64::from(g.abs())));
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

#[test]
fn the_gradients_of_blocks_are_given_as_soon_as_they_are_final() {
    let config = Config { n_layer: 5, ..config(Activation::GeluNew) };
    let (mut plain, mut engine) = (engine(&config, 3), engine(&config, 2));
    let parts = RefCell::new(Vec::new());
    let receive = |start: usize, values: &mut [f32]| parts.borrow_mut().push((start, values.to_vec()));
    for (seed, ready) in [(0, None), (1, Some(Ready(&receive)))] {
        let whole = batch(&config, seed);
        plain.forward_backward(&whole, Backward { ready: None, ..Backward::default() }).expect("a valid batch");
        engine.forward_backward(&whole, Backward { ready, ..Backward::default() }).expect("a valid batch");
    }
    let expected = plain.read(Slot::Grads);
    assert!(*engine.read(Slot::Grads) == *expected, "the same gradients");
    let parts = parts.into_inner();
    assert!((2..=5).contains(&parts.len()), "{} parts", parts.len());
    for (start, values) in &parts {
        assert!(expected[*start..][..values.len()] == *values, "gradients from {start} on were not final");
    }
    assert_eq!(parts[parts.len() - 1].0, ParamList::new(&config).blocks[0].ln_1_weight.start);
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
    for sequence in 0..SEQUENCES {
        let part = |ids: &[u32]| ids[sequence * n..(sequence + 1) * n].to_vec();
        let sequence = Batch::even(n, part(&whole.inputs), part(&whole.targets));
        total += engine
            .forward_backward(&sequence, Backward { weight: 1.0 / SEQUENCES as f32, ..Backward::default() })
            .expect("a valid batch")
            / SEQUENCES as f32;
    }
    assert!((total - loss).abs() < 1e-5);
    for (found, expected) in engine.read(Slot::Grads).iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "expected {expected}, got {found}");
    }
}

#[test]
fn sequences_of_any_length_give_what_each_gives_alone() {
    let config = Config::new(2, 3, 12, 40, 97);
    let mut engine = engine(&config, 2);
    let ids =
        |n: usize, seed: u64| -> Vec<u32> { (0..n as u64).map(|i| (hashed(seed * 1000 + i) * 97.0) as u32).collect() };
    let (mut whole, mut losses, mut num_target_tokens) = (Batch::default(), Vec::new(), 0);
    let sequences: Vec<Batch> = [40, 1, 17, 33]
        .iter()
        .zip(1..)
        .map(|(&len, seed)| {
            let (inputs, mut targets) = (ids(len, seed), ids(len, seed + 100));
            // Every third target is ignored.
            targets.iter_mut().skip(1).step_by(3).for_each(|target| *target = IGNORE);
            whole.push(&inputs, &targets);
            let mut sequence = Batch::default();
            sequence.push(&inputs, &targets);
            sequence
        })
        .collect();
    for sequence in &sequences {
        let alone = engine.losses(sequence).expect("a valid sequence");
        assert!(alone.iter().zip(&sequence.targets).all(|(&loss, &target)| (loss == 0.0) == (target == IGNORE)));
        losses.extend(alone);
        num_target_tokens += sequence.num_target_tokens();
    }
    let together = engine.losses(&whole).expect("a valid batch");
    assert!(together.iter().zip(&losses).all(|(a, b)| (a - b).abs() < 1e-5));
    let mean = losses.iter().sum::<f32>() / num_target_tokens as f32;
    assert!((engine.loss(&whole).expect("a valid batch") - mean).abs() < 1e-5);

    let loss = engine.forward_backward(&whole, Backward::default()).expect("a valid batch");
    assert!((loss - mean).abs() < 1e-5);
    let expected = engine.read(Slot::Grads).into_owned();
    engine.write(Slot::Grads, &vec![0.0; expected.len()]).expect("memory");
    for sequence in &sequences {
        let weight = sequence.num_target_tokens() as f32 / num_target_tokens as f32;
        engine.forward_backward(sequence, Backward { weight, ..Backward::default() }).expect("a valid sequence");
    }
    for (found, expected) in engine.read(Slot::Grads).iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "expected {expected}, got {found}");
    }
}

#[test]
fn a_sequence_that_continues_another_gives_what_both_give_as_one() {
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
    let mut expected = engine.losses(&Batch::even(5, ids(5, 9), ids(5, 8))).expect("a valid sequence");
    expected.extend([0.0; 11]);
    for ending in &endings {
        let mut whole = Batch::default();
        let targets: Vec<u32> = [IGNORE; 11].iter().chain(ending).copied().collect();
        whole.push(&[&prefix[..], ending].concat(), &targets);
        expected.extend(&engine.losses(&whole).expect("a valid sequence")[11..]);
    }
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "expected {expected:?}, got {found:?}");
    assert!(engine.forward_backward(&shared, Backward::default()).is_err(), "continued sequences have no gradient");
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
                engine.update(&AdamW { step: step + 1, ..ADAMW }, None).expect("memory");
                loss
            })
            .collect();
        (losses, engine.read(Slot::Params).into_owned())
    };
    let one = run(1);
    for threads in [2, 3, 7, 64, 192] {
        assert_eq!(one, run(threads), "{threads} threads");
    }
}

/// Feeds `tokens[i]` to sequence i.
fn feed_all<'a>(decoder: &'a mut dyn Decoder, tokens: &[Vec<u32>]) -> Result<&'a [f32], Error> {
    let feeds: Vec<_> = tokens.iter().enumerate().map(|(sequence, tokens)| Feed::new(sequence, tokens)).collect();
    decoder.feed(&feeds)
}

#[test]
fn decoding_gives_what_the_whole_sequence_gives() {
    let config = Config::new(2, 3, 12, 80, 97);
    let engine = engine(&config, 2);
    let sequences = 3;
    let take = |from: usize, n: usize| -> Vec<Vec<u32>> {
        let token = |sequence: u64, t: usize| (hashed(sequence * 999 + t as u64) * 97.0) as u32;
        (0..sequences as u64).map(|sequence| (from..from + n).map(|t| token(sequence, t)).collect()).collect()
    };
    let mut whole = engine.decoder(sequences).expect("memory");
    let expected = feed_all(&mut *whole, &take(0, 80)).expect("a block").to_vec();

    let mut parts = engine.decoder(sequences).expect("memory");
    assert_eq!(parts.sequences(), sequences);
    let mut logits = Vec::new();
    let mut fed = 0;
    for n in [1, 66, 5, 1, 1, 6] {
        logits = feed_all(&mut *parts, &take(fed, n)).expect("room").to_vec();
        fed += n;
        assert!((0..sequences).all(|sequence| parts.len(sequence) == fed));
    }
    assert_eq!((fed, logits.len()), (80, expected.len()));
    for (found, expected) in logits.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "expected {expected}, got {found}");
    }
    assert!(feed_all(&mut *parts, &take(0, 1)).is_err(), "the context is full");
    (0..sequences).for_each(|sequence| parts.clear(sequence));
    assert!(feed_all(&mut *parts, &[vec![97], vec![0], vec![0]]).is_err(), "outside the vocabulary");
    assert!((0..sequences).all(|sequence| parts.len(sequence) == 0));
    assert!(engine.decoder(0).is_err(), "no sequences");
}

/// A sequence decoded together with others, and a decoder of its own to compare with.
struct Pair<'a> {
    /// Tokens so far.
    tokens: Vec<u32>,
    alone: Box<dyn Decoder + 'a>,
}

/// Feeds random lengths from `lengths`: sequences start, grow and end at any step. Compares each, bit by bit, with the same
/// sequence in a decoder of its own, which is fed the same prompts in other pieces. Returns the number of feeds.
fn decode_at_random(engine: &CpuEngine, lengths: [usize; 8]) -> usize {
    const SLOTS: usize = 4;
    let (block, vocab_size) = (engine.config().block_size, engine.config().vocab_size);
    let pair = || Pair { tokens: Vec::new(), alone: engine.decoder(1).expect("memory") };
    let mut decoder = engine.decoder(SLOTS).expect("memory");
    let mut pairs: Vec<_> = (0..SLOTS).map(|_| pair()).collect();
    let mut compared = 0;
    for step in 0..80 {
        let mut feeds: Vec<(usize, Vec<u32>)> = Vec::new();
        // The order of the slots rotates.
        for slot in (0..SLOTS).map(|slot| (slot + step as usize) % SLOTS) {
            let n = lengths[(hashed(step * 8 + slot as u64) * 8.0) as usize];
            if pairs[slot].tokens.len() + n > block {
                decoder.clear(slot);
                pairs[slot] = pair();
            }
            let tokens = (0..n as u64).map(|t| (hashed(step * 999 + t * 7 + slot as u64) * vocab_size as f64) as u32);
            if n > 0 {
                feeds.push((slot, tokens.collect()));
            }
        }
        if feeds.is_empty() {
            continue;
        }
        let given: Vec<_> = feeds.iter().map(|(sequence, tokens)| Feed::new(*sequence, tokens)).collect();
        let logits = decoder.feed(&given).expect("room").to_vec();
        assert_eq!(logits.len(), feeds.len() * vocab_size);
        for ((slot, tokens), found) in feeds.iter().zip(logits.chunks_exact(vocab_size)) {
            let Pair { tokens: all, alone } = &mut pairs[*slot];
            all.extend(tokens);
            // A prompt of four tokens or more in two pieces.
            let (first, rest) =
                tokens.split_at(if tokens.len() < 4 { 0 } else { 2 + step as usize % (tokens.len() - 3) });
            if !first.is_empty() {
                alone.feed(&[Feed::new(0, first)]).expect("room");
            }
            let expected = alone.feed(&[Feed::new(0, rest)]).expect("room");
            assert!(found == expected, "step {step}, sequence {slot}");
            compared += 1;
        }
        assert!(pairs.iter().enumerate().all(|(slot, pair)| decoder.len(slot) == pair.tokens.len()));
    }
    compared
}

#[test]
fn each_of_several_sequences_decodes_as_it_does_alone() {
    let config = Config::new(2, 3, 24, 40, 97);
    for (dtype, quant) in [
        (Dtype::F32, Quant::None),
        (Dtype::F32, Quant::Int8),
        (Dtype::Auto, Quant::Int8),
        (Dtype::Auto, Quant::None),
        (Dtype::F32, Quant::Int4),
    ] {
        let options = Options { threads: 2, dtype, quant, ..Options::default() };
        let engine = CpuEngine::new(config.clone(), params(&config), options).expect("a valid shape");
        assert!(decode_at_random(&engine, [0, 0, 1, 1, 1, 2, 2, 2]) > 200);
        assert!(decode_at_random(&engine, [0, 0, 0, 0, 0, 1, 12, 30]) > 70);

        // A sequence's logits do not depend on the tokens of the others.
        let beside = |other: u32| {
            let mut decoder = engine.decoder(2).expect("memory");
            let (own, other): (Vec<u32>, Vec<u32>) = (0..20).map(|t| (t * t % 97, (other + 5 * t) % 97)).unzip();
            let mut feed = |tokens: std::ops::Range<usize>| {
                let feed = |sequence, tokens| Feed::new(sequence, tokens);
                let feeds = [feed(1, &other[..2 * tokens.len() - 1]), feed(0, &own[tokens])];
                decoder.feed(&feeds).expect("room")[97..].to_vec()
            };
            [feed(0..8), feed(8..15), feed(15..16)]
        };
        assert_eq!(beside(0), beside(50), "{dtype} {quant}");
    }
}

#[test]
fn what_a_decoder_refuses_leaves_every_sequence_as_it_was() {
    let config = config(Activation::GeluNew);
    let engine = engine(&config, 2);
    let mut decoder = engine.decoder(3).expect("memory");
    let mut alone = engine.decoder(1).expect("memory");
    let feed = |sequence, tokens| Feed::new(sequence, tokens);
    decoder.feed(&[feed(2, &[5, 6, 7]), feed(0, &[1])]).expect("room");
    alone.feed(&[feed(0, &[5, 6, 7])]).expect("room");
    let good = feed(0, &[2]);
    for (wrong, reason) in [
        (vec![], "expected at least 1 sequence to feed"),
        (vec![good, feed(2, &[8]), good], "twice"),
        (vec![good, feed(3, &[8])], "sequence 3 is out of range"),
        (vec![good, feed(2, &[])], "no tokens"),
        (vec![good, feed(2, &[8, 9, 10])], "exceed the context length of 5"),
        (vec![good, feed(1, &[0; 6])], "exceed the context length of 5"),
        (vec![good, feed(2, &[97])], "token 97 is outside the vocabulary"),
    ] {
        let error = decoder.feed(&wrong).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!([0, 1, 2].map(|sequence| decoder.len(sequence)), [1, 0, 3], "{reason}");
    }
    let expected = alone.feed(&[feed(0, &[8])]).expect("room").to_vec();
    assert_eq!(decoder.feed(&[feed(2, &[8]), good]).expect("room")[..97], expected);
    // A new sequence starts in a cleared slot and leaves the others unchanged.
    decoder.clear(0);
    let first = decoder.feed(&[feed(0, &[5, 6, 7]), feed(2, &[9])]).expect("room").to_vec();
    assert_eq!([0, 1, 2].map(|sequence| decoder.len(sequence)), [3, 0, 5]);
    let expected = alone.feed(&[feed(0, &[9])]).expect("room").to_vec();
    assert_eq!(first[97..], expected);
    alone.clear(0);
    assert_eq!(first[..97], *alone.feed(&[feed(0, &[5, 6, 7])]).expect("room"));
}

#[test]
fn decoding_with_narrower_weights_stays_near_and_agrees_with_itself() {
    let config = Config::new(2, 4, 64, 40, 301);
    let tokens: Vec<u32> = (0..30u64).map(|t| (hashed(t) * 301.0) as u32).collect();
    // The logits after the last token, with all tokens fed at once and one at a time.
    let logits = |dtype, quant| {
        let params = ParamList::new(&config).init(1).iter().map(|p| p * 5.0).collect();
        let engine = CpuEngine::new(config.clone(), params, Options { threads: 2, dtype, quant, ..Options::default() })
            .expect("a shape");
        let mut decoder = engine.decoder(1).expect("memory");
        let mut feed = |tokens: &[u32]| decoder.feed(&[Feed::new(0, tokens)]).expect("room").to_vec();
        let at_once = feed(&tokens);
        decoder.clear(0);
        let mut feed = |tokens: &[u32]| decoder.feed(&[Feed::new(0, tokens)]).expect("room").to_vec();
        let one_by_one = tokens.iter().map(|&t| feed(&[t])).last().expect("tokens");
        (at_once, one_by_one)
    };
    let distance = |a: &[f32], b: &[f32]| {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
    };
    let (exact, exact_steps) = logits(Dtype::F32, Quant::None);
    assert!(distance(&exact_steps, &exact) < 1e-5);
    let (at_once, one_by_one) = logits(Dtype::F32, Quant::Int8);
    assert!(distance(&one_by_one, &at_once) < 1e-5, "a prompt uses the same int8 weights");
    let error = distance(&at_once, &exact);
    assert!(error > 1e-4 && error < 0.05, "int8: {error}");
    let (_, one_by_one) = logits(Dtype::Auto, Quant::None);
    assert!(distance(&one_by_one, &exact) < 0.02, "auto");
    let (at_once, one_by_one) = logits(Dtype::F32, Quant::Int4);
    assert!(distance(&one_by_one, &at_once) < 0.02, "a prompt uses the same int4 weights");
    let error = distance(&at_once, &exact);
    assert!(error > 0.01 && error < 0.3, "int4: {error}");
}

/// Random blocks of a type, as a file might hold them, with scales of about `scale`.
fn stored(tensor_type: TensorType, elements: usize, scale: f64, seed: u64) -> StoredWeight {
    let (block, size) = tensor_type.block().expect("a type with blocks");
    let numbers = if tensor_type == TensorType::Q4_1 { 2 } else { 1 };
    let mut bytes = Vec::new();
    for i in 0..(elements / block) as u64 {
        for number in 0..numbers {
            let x = scale * hashed(seed + 7 * i) * if number == 0 { 1.0 } else { -7.5 };
            bytes.extend(f16::from_f64(x).to_le_bytes());
        }
        bytes.extend((0..(size - 2 * numbers) as u64).map(|j| (hashed(seed + 1_000_003 * i + j) * 256.0) as u8));
    }
    StoredWeight { tensor_type, bytes }
}

#[test]
fn weights_of_a_file_decode_as_their_values_do() {
    let config = Config { block_size: 300, ..Config::llama(2, 4, 2, 64, 96, 300, 301) };
    let list = ParamList::new(&config);
    let mut params = list.init(1);
    let mut weights = Vec::new();
    for (i, param) in list.iter().enumerate() {
        // Types differ from tensor to tensor, also within queries, keys and values, and some weights are not quantized.
        let name = param.name();
        let tensor_type = [Some(TensorType::Q4_0), Some(TensorType::Q4_1), Some(TensorType::Q8_0), None][i % 4];
        let weight = tensor_type.filter(|_| name.contains("proj") || name.contains("lm_head"));
        let weight =
            weight.map(|kind| stored(kind, param.len(), if kind == TensorType::Q8_0 { 1e-3 } else { 0.02 }, i as u64));
        if let Some(StoredWeight { tensor_type, bytes }) = &weight {
            tensor_type.decode(bytes, &mut params[param.range()]);
        }
        weights.push(weight);
    }
    assert!(weights.iter().flatten().count() > 8);
    let tokens: Vec<u32> = (0..280u64).map(|t| (hashed(t) * 301.0) as u32).collect();
    let run = |model: &dyn Model| {
        let mut decoder = model.decoder(1).expect("memory");
        let at_once = decoder.feed(&[Feed::new(0, &tokens)]).expect("room").to_vec();
        decoder.clear(0);
        let mut steps = Vec::new();
        for tokens in tokens.chunks(1) {
            steps = decoder.feed(&[Feed::new(0, tokens)]).expect("room").to_vec();
        }
        (at_once, steps)
    };
    let distance = |a: &[f32], b: &[f32]| {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
    };
    let options = |threads, dtype| Options { threads, dtype, ..Options::default() };
    let exact = CpuEngine::new(config.clone(), params.clone(), options(2, Dtype::F32)).expect("a valid shape");
    let open = |weights: &[Option<StoredWeight>], options| {
        Cpu.open_stored(config.clone(), params.clone(), weights.to_vec(), options)
    };
    let of_file = open(&weights, options(2, Dtype::F32)).expect("weights that fit");
    let (expected, _) = run(&exact);
    let (at_once, steps) = run(&*of_file);
    // Only the inputs of products are rounded, to 8 bits.
    for found in [&at_once, &steps] {
        let error = distance(found, &expected);
        assert!(error > 1e-5 && error < 0.03, "{error}");
    }
    let other = open(&weights, options(3, Dtype::F32)).expect("weights that fit");
    assert_eq!(run(&*other), (at_once, steps), "the same bits on any number of threads");

    let refused = |weights: &[Option<StoredWeight>]| open(weights, options(1, Dtype::F32)).err().map(|e| e.to_string());
    let error = refused(&weights[1..]).expect("too few");
    assert!(error.contains("stored weights: expected"), "{error}");
    let mut damaged = weights.clone();
    let index = damaged.iter().position(Option::is_some).expect("a weight");
    damaged[index].as_mut().expect("a weight").bytes.pop();
    let error = refused(&damaged).expect("a byte is missing");
    assert!(error.contains("do not fit [") && error.starts_with("stored weight "), "{error}");
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let config = config(Activation::GeluNew);
    let mut engine = engine(&config, 1);
    engine
        .forward_backward(&batch(&config, 0), Backward { weight: f32::INFINITY, ..Backward::default() })
        .expect("a valid batch");
    assert!(!engine.update(&ADAMW, None).expect("memory").is_finite());
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
        Batch { sequences: vec![Sequence { len: 25, continues: true }], ..good.clone() },
        Batch { sequences: vec![Sequence { len: usize::MAX, continues: false }; 2], ..good.clone() },
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
        "dropout 1 would drop everything"
    );
    assert!(engine.loss(&good).is_ok());
    assert!(CpuEngine::new(config.clone(), vec![0.0; 3], Options::default()).is_err(), "too few parameters");
    assert!(
        CpuEngine::new(Config { n_head: 5, ..config }, Vec::new(), Options::default()).is_err(),
        "5 does not divide 12"
    );
}

#[test]
fn models_of_the_llama_family_equal_transformers_and_their_adapters_pefts() {
    for (threads, recompute) in [(1, false), (2, true)] {
        let options = Options { threads, recompute, dtype: Dtype::F32, ..Options::default() };
        fixtures::llama::check(&Cpu, options);
    }
}
