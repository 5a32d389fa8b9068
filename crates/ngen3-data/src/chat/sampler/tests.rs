use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;
use crate::chat::{ChatEncoder, ChatInput, ChatReading};
use crate::{Error, Tokenizer};

/// Reads conversations from lines of JSON, with the default template.
fn chats(lines: &str) -> Chats {
    chats_by(None, lines)
}

fn chats_by(template: Option<&str>, lines: &str) -> Chats {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    fs::write(&path, lines).unwrap();
    let encoder = ChatEncoder::with_template(Tokenizer::gpt2(), template).unwrap();
    let go = AtomicBool::new(false);
    let reading = ChatReading { answers: true, ..ChatReading::default() };
    Chats::read("x.jsonl", ChatInput::Files(&[path], None), &encoder, &reading, &go, &mut |_| {}).unwrap()
}

fn sampling(block_size: usize) -> ChatSampling {
    ChatSampling {
        block_size,
        batch_size: 2,
        val_fraction: 0.0,
        train_on: TrainOn::Assistant,
        too_long: TooLong::Split,
        skip_bad: false,
        seed: 7,
    }
}

fn sampler(lines: &str, sampling: ChatSampling) -> ChatSampler {
    ChatSampler::new(chats(lines), &sampling).unwrap()
}

/// Sequences as text: the inputs, and the targets.
type Sequences = Vec<(String, String)>;

fn sequences(draw: impl FnOnce(&mut dyn FnMut(&[u32], &[u32]))) -> Sequences {
    let mut sequences = Vec::new();
    draw(&mut |inputs, targets| {
        assert_eq!(inputs.len(), targets.len());
        let learned: Vec<u32> = targets.iter().copied().filter(|&target| target != IGNORE_INDEX).collect();
        for (target, next) in targets.iter().zip(&inputs[1..]) {
            assert!(*target == IGNORE_INDEX || target == next);
        }
        sequences.push((Tokenizer::gpt2().decode(inputs), Tokenizer::gpt2().decode(&learned)));
    });
    sequences
}

fn train(sampler: &mut ChatSampler, number: u64) -> Sequences {
    sequences(|put| sampler.train_batch(number, put))
}

const END: &str = "<|endoftext|>";

#[test]
fn a_sequence_is_a_conversation_whose_answers_are_learned() {
    let line = r#"["Hi", "Yes", "And", "No"]"#;
    let read = format!("user\nHi{END}assistant\nYes{END}user\nAnd{END}assistant\nNo");
    let mut assistant = sampler(line, sampling(64));
    assert_eq!(train(&mut assistant, 0), [(read.clone(), format!("Yes{END}No{END}"))]);
    assert_eq!(assistant.num_target_tokens(), (4, 0));
    let mut all = sampler(line, ChatSampling { train_on: TrainOn::All, ..sampling(64) });
    let everything = format!("\nHi{END}assistant\nYes{END}user\nAnd{END}assistant\nNo{END}");
    assert_eq!(train(&mut all, 3), [(read, everything)]);
    let mut text = sampler("\"one two three\"", sampling(64));
    assert_eq!(train(&mut text, 0), [("one two three".into(), format!(" two three{END}"))]);
}

#[test]
fn a_long_conversation_is_cut_before_turns_and_nothing_is_learned_twice() {
    // Turns of the user have 4 tokens, those of the assistant 5.
    let line = r#"["a", "b", "c", "d", "e", "f"]"#;
    let mut long = sampler(line, sampling(13));
    assert_eq!(long.split_stats(), SplitStats { long: 1, pieces: 3, ..SplitStats::default() });
    let mut found: Sequences = (0..2).flat_map(|number| train(&mut long, number)).collect();
    found.sort();
    let expected = [
        (format!("user\na{END}assistant\nb{END}user\nc"), format!("b{END}")),
        (format!("user\nc{END}assistant\nd{END}user\ne"), format!("d{END}")),
        (format!("user\ne{END}assistant\nf"), format!("f{END}")),
    ];
    assert_eq!(found, expected);
    // The targets do not depend on the splits.
    for block_size in 5..30 {
        let cut = sampler(line, sampling(block_size));
        assert_eq!(cut.num_target_tokens().0, 6, "block {block_size}");
    }
    let mut text = sampler("\"one two three four\"", sampling(2));
    let mut found = train(&mut text, 0);
    found.sort();
    assert_eq!(found, [(" three four".into(), format!(" four{END}")), ("one two".into(), " two three".into())]);
}

#[test]
fn a_long_conversation_whose_turns_cannot_be_told_apart_is_cut_anywhere() {
    // The text starts with the number of turns, so no beginning of a conversation is a prefix of the whole.
    let template = "{{ messages | length }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %} \
                    {{ m.content }}{{ eos_token }}{% endgeneration %}{% else %} {{ m.content }}{% endif %}{% endfor %}";
    let chats = chats_by(Some(template), r#"["a b c d", "e f g", "h i j k", "l"]"#);
    assert!(chats.have_turns());
    let mut cut = ChatSampler::new(chats, &sampling(5)).unwrap();
    assert_eq!(cut.split_stats(), SplitStats { long: 1, pieces: 3, ..SplitStats::default() });
    assert_eq!(cut.num_target_tokens().0, 6);
    let mut found: Sequences = (0..2).flat_map(|number| train(&mut cut, number)).collect();
    found.sort();
    let expected = [
        (" e f g".to_owned() + END + " h", " f g".to_owned() + END),
        (" i j k l".into(), format!(" l{END}")),
        ("4 a b c d".into(), " e".into()),
    ];
    assert_eq!(found, expected);
    // One that fits is not split.
    let chats = chats_by(Some(template), r#"["a", "b"]"#);
    assert_eq!(ChatSampler::new(chats, &sampling(5)).unwrap().split_stats(), SplitStats::default());
}

#[test]
fn what_cannot_be_learned_from_is_told() {
    let error = |lines: &str, sampling: ChatSampling| {
        ChatSampler::new(chats(lines), &sampling).map(|_| ()).unwrap_err().to_string()
    };
    let long = "[\"a\", \"b\"]\n\n[\"a\", \"one two three four five six\"]\n";
    let told = error(long, sampling(8));
    let expected = "x.jsonl: line 3: a message has 10 tokens, but block_size is 8 (shorten it, use a model with a \
                    larger block_size, skip such conversations with --skip_bad, or cut them with --too_long)";
    assert!(told.ends_with(expected), "{told}");
    let skipping = ChatSampling { skip_bad: true, ..sampling(8) };
    let kept = sampler(long, skipping);
    assert_eq!((kept.split_stats().too_long, kept.counts()), (1, (1, 0)));
    assert!(
        error("[\"a\", \"one two three four five six\"]", skipping)
            .contains("every conversation, or a message of it, is longer")
    );
    let told = error("[\"only the user\"]", sampling(64));
    assert!(told.starts_with("x.jsonl: no tokens to train on: no conversation has an assistant turn"), "{told}");
    let one = sampler("[\"only the user\"]\n[\"a\", \"b\"]", sampling(64));
    assert_eq!((one.split_stats().without_targets, one.counts()), (1, (1, 0)));
    let all = sampler("[\"only the user\"]", ChatSampling { train_on: TrainOn::All, ..sampling(64) });
    assert_eq!(all.counts(), (1, 0));
    for val_fraction in [-0.1, 1.0, f64::NAN] {
        assert!(error(long, ChatSampling { val_fraction, ..skipping }).contains("val_fraction"));
    }
    assert!(error(long, ChatSampling { batch_size: 0, ..skipping }).contains("at least 1"));
    assert!("nobody".parse::<TrainOn>().unwrap_err().to_string().contains("assistant or all"));
}

/// Returns `n` conversations, each identified by its number.
fn numbered(n: usize) -> String {
    (0..n).map(|number| format!("[\"say{}\", \"{number}\"]\n", " x".repeat(number % 5))).collect()
}

#[test]
fn an_epoch_has_every_sequence_once_in_batches_that_are_full() {
    let mut sampler_ = sampler(&numbered(60), ChatSampling { val_fraction: 0.2, ..sampling(24) });
    assert_eq!(sampler_.counts(), (48, 12));
    let held_out: BTreeSet<String> = (0..sampler_.val_batches())
        .flat_map(|index| sequences(|put| sampler_.val_batch(index, put)))
        .map(|(_, learned)| learned)
        .collect();
    assert_eq!(held_out.len(), 12);
    let (mut number, mut orders, mut sizes) = (0, Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut epoch = Vec::new();
        while epoch.len() < 48 {
            let batch = train(&mut sampler_, number);
            let mut tokens = 0;
            sampler_.train_batch(number, &mut |inputs, _| tokens += inputs.len());
            assert!(tokens <= 48 && !batch.is_empty(), "{tokens} tokens");
            sizes.push(tokens);
            epoch.extend(batch.into_iter().map(|(_, learned)| learned));
            number += 1;
        }
        let once: BTreeSet<_> = epoch.iter().cloned().collect();
        assert_eq!(once.len(), 48, "every sequence once");
        assert!(once.is_disjoint(&held_out));
        orders.push(epoch);
    }
    assert_ne!(orders[0], orders[1]);
    assert!(sizes.iter().filter(|&&tokens| tokens > 32).count() * 4 > sizes.len() * 3, "{sizes:?}");
}

#[test]
fn a_batch_follows_from_seed_and_number_alone() {
    let sampling = |seed| ChatSampling { seed, val_fraction: 0.1, ..sampling(24) };
    let mut forward = sampler(&numbered(30), sampling(1));
    let batches: Vec<Sequences> = (0..40).map(|number| train(&mut forward, number)).collect();
    let mut jumping = sampler(&numbered(30), sampling(1));
    for number in [39, 3, 17, 0, 39, 20] {
        assert_eq!(train(&mut jumping, number), batches[number as usize], "batch {number}");
    }
    let mut other = sampler(&numbered(30), sampling(2));
    assert_ne!(train(&mut other, 0), batches[0]);
    let val = |sampler: &mut ChatSampler| sequences(|put| sampler.val_batch(0, put));
    assert_eq!(val(&mut other), val(&mut forward), "the same conversations are held out");
}

proptest! {
    #[test]
    fn whatever_the_lengths_every_answer_is_learned_once(
        turns in prop::collection::vec(prop::collection::vec(1usize..9, 1..9), 1..8),
        block_size in 13usize..40,
        all: bool,
    ) {
        let line = |turns: &Vec<usize>| {
            let said: Vec<String> = turns.iter().map(|&words| ["w"; 9][..words].join(" ")).collect();
            format!("{}\n", serde_json::to_string(&said).unwrap())
        };
        let lines: String = turns.iter().map(line).collect();
        let train_on = if all { TrainOn::All } else { TrainOn::Assistant };
        let expected: usize = turns
            .iter()
            .map(|turns| match all {
                // Role, line break, words, end; the assistant's role has two tokens. The first is not predicted.
                true => turns.iter().zip([3, 4].into_iter().cycle()).map(|(words, more)| words + more).sum::<usize>() - 1,
                false => turns.iter().skip(1).step_by(2).map(|words| words + 1).sum(),
            })
            .sum();
        match ChatSampler::new(chats(&lines), &ChatSampling { train_on, ..sampling(block_size) }) {
            // A sequence that begins with a target has no input to predict its first token from.
            Ok(sampler) if all => {
                let (learned, split_stats) = (sampler.num_target_tokens().0, sampler.split_stats());
                prop_assert!(learned <= expected && learned + split_stats.pieces >= expected, "{} of {}", learned, expected);
            }
            Ok(sampler) => prop_assert_eq!(sampler.num_target_tokens().0, expected),
            Err(Error::Data(_)) => prop_assert_eq!(expected, 0),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn what_is_too_long_is_cut_or_skipped_as_asked() {
    // 17 tokens, of which 11 fit.
    let lines = "[\"c c c c\", \"one two three four five six\"]\n[\"a\", \"b\"]";
    let of = |too_long| ChatSampling { too_long, ..sampling(10) };
    let drawn = |too_long| {
        let mut sampler = sampler(lines, of(too_long));
        let drawn = sequences(|put| sampler.train_batch(0, put));
        (drawn.into_iter().map(|(_, targets)| targets).collect::<BTreeSet<_>>(), sampler.split_stats())
    };
    let whole = "one two three four five six<|endoftext|>";
    for (too_long, learned_whole) in [(TooLong::CutLeft, true), (TooLong::CutRight, false)] {
        let (targets, stats) = drawn(too_long);
        assert_eq!(targets.contains(whole), learned_whole, "{targets:?}");
        assert_eq!((targets.len(), stats.cut, stats.cut_tokens, stats.too_long), (2, 1, 6, 0));
    }
    let (targets, stats) = drawn(TooLong::Skip);
    assert_eq!((targets.len(), stats.cut, stats.too_long), (1, 0, 1));
    let error = ChatSampler::new(chats(lines), &of(TooLong::Error)).unwrap_err().to_string();
    assert!(error.contains("line 1: it has 17 tokens, but block_size is 10"), "{error}");
    assert!(
        "cut".parse::<TooLong>().unwrap_err().to_string().ends_with("one of split, cut_left, cut_right, skip, error")
    );
}
