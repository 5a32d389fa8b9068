//! Decoding, and sequences that continue another, against a full forward pass over the whole sequence.

use ngen3_engine::{Batch, Feed, IGNORE, Model, Trainer};
use ngen3_model::{Config, ParamList};

use crate::{adapter_values, engine, ids, lora};

fn config() -> Config {
    Config::new(2, 3, 12, 40, 97)
}

/// Returns the log probabilities after the last token, from the loss of each target.
fn expected_log_probs(model: &mut dyn Trainer, tokens: &[u32]) -> Vec<f64> {
    let loss_of = |target| {
        let mut targets = vec![IGNORE; tokens.len()];
        targets[tokens.len() - 1] = target;
        let mut batch = Batch::default();
        batch.push(tokens, &targets);
        -f64::from(model.loss(&batch).expect("a valid batch"))
    };
    (0..97).map(loss_of).collect()
}

fn log_probs(logits: &[f32]) -> Vec<f64> {
    let ln_total = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    logits.iter().map(|&logit| f64::from(logit) - ln_total).collect()
}

#[test]
fn sequences_of_any_length_that_join_and_leave_give_what_each_gives_alone() {
    let model = engine(&config());
    let mut alone = engine(&config());
    let mut decoder = model.decoder(3).expect("room");
    assert_eq!(decoder.sequences(), 3);
    let mut held: [Vec<u32>; 3] = Default::default();
    let mut next = 0;
    // Pairs of a sequence and the number of tokens it is fed; 0 clears it.
    for step in [
        &[(0, 7), (2, 1)][..],
        &[(2, 1)],
        &[(1, 40), (0, 1), (2, 12)],
        &[(1, 0)],
        &[(2, 1), (1, 3)],
        &[(0, 0), (2, 0)],
        &[(0, 1), (1, 1)],
        &[(1, 36), (2, 2), (0, 39)],
    ] {
        let mut tokens = Vec::new();
        for &(sequence, n) in step {
            if n == 0 {
                decoder.clear(sequence);
                held[sequence].clear();
                continue;
            }
            next += 1;
            let new = ids(n, next);
            held[sequence].extend(&new);
            tokens.push((sequence, new));
        }
        if tokens.is_empty() {
            continue;
        }
        let feeds: Vec<Feed<'_>> = tokens.iter().map(|(sequence, tokens)| Feed::new(*sequence, tokens)).collect();
        let logits = decoder.feed(&feeds).expect("room").to_vec();
        assert_eq!(logits.len(), feeds.len() * 97);
        for (feed, logits) in feeds.iter().zip(logits.chunks_exact(97)) {
            let expected = expected_log_probs(&mut alone, &held[feed.sequence]);
            for (found, expected) in log_probs(logits).iter().zip(&expected) {
                assert!((found - expected).abs() < 2e-6 * expected.abs().max(1.0), "{found}, not {expected}");
            }
        }
        assert_eq!([0, 1, 2].map(|i| decoder.len(i)), [0, 1, 2].map(|i| held[i].len()));
    }
}

#[test]
fn wrong_feeds_leave_all_sequences_as_they_were() {
    let model = engine(&config());
    assert!(model.decoder(0).is_err());
    let mut decoder = model.decoder(2).expect("room");
    let feed = |sequence, tokens| Feed::new(sequence, tokens);
    let forty = ids(40, 1);
    decoder.feed(&[feed(0, &forty[..39])]).expect("room");
    for bad in [
        &[][..],
        &[feed(1, &[1]), feed(0, &[1, 2])],
        &[feed(1, &[1]), feed(2, &[1])],
        &[feed(1, &[1]), feed(1, &[1])],
        &[feed(1, &[])],
        &[feed(0, &[1]), feed(1, &[97])],
    ] {
        assert!(decoder.feed(bad).is_err(), "{bad:?}");
        assert_eq!((decoder.len(0), decoder.len(1)), (39, 0));
    }
    let found = decoder.feed(&[feed(0, &forty[39..])]).expect("room").to_vec();
    let mut whole = model.decoder(1).expect("room");
    assert_eq!(whole.feed(&[feed(0, &forty)]).expect("room"), found);
}

#[test]
fn a_merged_model_decodes_what_it_had_learned() {
    let (config, lora) = (config(), lora("c_attn,c_proj,c_fc"));
    let mut model = engine(&config);
    model.adapt(&lora, adapter_values(&config, &lora)).expect("an adapter");
    let tokens = ids(9, 1);
    let expected = expected_log_probs(&mut model, &tokens);
    assert!(model.decoder(1).is_err(), "adapters must be merged first");
    let merged = model.merged().into_owned();
    model.merge();
    assert_eq!(merged, model.merged().into_owned());
    assert_eq!(merged.len(), ParamList::new(&config).total());
    let mut decoder = model.decoder(1).expect("room");
    let found = log_probs(decoder.feed(&[Feed::new(0, &tokens)]).expect("room"));
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}, not {expected:?}");
}

#[test]
fn a_sequence_that_continues_another_gives_what_both_give_as_one() {
    let mut model = engine(&config());
    let (prefix, endings) = (ids(11, 1), [ids(4, 2), ids(29, 3), ids(1, 4)]);
    let mut shared = Batch::default();
    shared.push(&ids(5, 9), &ids(5, 8));
    shared.push(&prefix, &[IGNORE; 11]);
    endings.iter().for_each(|ending| shared.push_after(ending, ending));
    let found = model.losses(&shared).expect("a valid batch");
    let mut expected = model.losses(&Batch::even(5, ids(5, 9), ids(5, 8))).expect("a valid batch");
    expected.extend([0.0; 11]);
    for ending in &endings {
        let mut whole = Batch::default();
        let targets: Vec<u32> = [IGNORE; 11].iter().chain(ending).copied().collect();
        whole.push(&[&prefix[..], ending].concat(), &targets);
        expected.extend(&model.losses(&whole).expect("a valid batch")[11..]);
    }
    assert_eq!(found, expected);
}
