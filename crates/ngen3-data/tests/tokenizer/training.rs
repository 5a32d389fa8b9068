//! Training a tokenizer.

use ngen3_data::tokenizer::{Error, MAX_VOCAB_SIZE, Tokenizer, Trained, train};
use proptest::prelude::*;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::{reference, reference_ids, shakespeare, text};

fn train_on(texts: &[&str], vocab_size: usize) -> Trained {
    train(texts.iter().map(Ok::<_, Error>), vocab_size, "mine", || Ok(())).unwrap()
}

/// Returns the merges as tokenizer.json spells them.
fn merges(tokenizer: &Tokenizer) -> Vec<(String, String)> {
    let file: serde_json::Value = serde_json::from_str(&tokenizer.to_json()).unwrap();
    serde_json::from_value(file["model"]["merges"].clone()).unwrap()
}

/// Returns what the `tokenizers` crate's trainer learns from the same text by the same rules.
fn reference_merges(text: &str, vocab_size: usize) -> Vec<(String, String)> {
    let trainer = BpeTrainer::builder()
        // Without <|endoftext|>.
        .vocab_size(vocab_size - 1)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.train(&mut TrainerWrapper::from(trainer), [text].into_iter()).unwrap();
    let file: serde_json::Value = serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap();
    serde_json::from_value(file["model"]["merges"].clone()).unwrap()
}

#[test]
fn shakespeare_teaches_what_the_tokenizers_crate_learns_from_it() {
    let text = shakespeare();
    let trained = train_on(&[&text], 4096);
    assert!(trained.reached());
    assert_eq!((trained.requested, trained.bytes), (4096, 1_115_394));
    let tokenizer = &trained.tokenizer;
    assert_eq!((tokenizer.name(), tokenizer.vocab_size(), tokenizer.eot()), ("mine", 4096, Some(4095)));
    assert_eq!(merges(tokenizer), reference_merges(&text, 4096));
    let ids = tokenizer.encode(&text).unwrap();
    assert!(ids.len() < text.len() / 3, "{} ids", ids.len());
    assert_eq!(tokenizer.decode(&ids), text);
    assert_eq!(reference_ids(&reference(tokenizer), &text[..100_000]), tokenizer.encode(&text[..100_000]).unwrap());
}

#[test]
fn the_same_text_in_parts_on_any_number_of_threads_teaches_the_same() {
    let text = shakespeare().repeat(3);
    let whole = train_on(&[&text], 1000).tokenizer.to_json();
    let gpt2 = Tokenizer::gpt2();
    let (mut parts, mut rest) = (Vec::new(), text.as_str());
    while rest.len() > 10_000 {
        let (part, after) = rest.split_at(gpt2.safe_split(&rest[..10_000]).unwrap());
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| train_on(&[&text], 1000)).tokenizer.to_json(), whole);
        assert_eq!(pool.install(|| train_on(&parts, 1000)).tokenizer.to_json(), whole);
    }
}

#[test]
fn of_equally_frequent_pairs_the_lower_ids_go_first() {
    // a·b, b·c and Ġ·a occur three times each; in the byte alphabet a < b < Ġ.
    let tokenizer = train_on(&["bc bc bc ab ab ab"], 260).tokenizer;
    let expected = [("a", "b"), ("b", "c"), ("Ġ", "ab")];
    assert_eq!(merges(&tokenizer), expected.map(|(left, right)| (left.to_string(), right.to_string())));
}

#[test]
fn too_little_text_stops_early_and_says_so() {
    let trained = train_on(&["abab", "", "xyz"], 1000);
    assert!(!trained.reached());
    assert_eq!((trained.words, trained.bytes), (2, 7));
    // a·b occurs twice; nothing else does.
    assert_eq!(trained.tokenizer.vocab_size(), 258);
    assert_eq!(merges(&trained.tokenizer), [("a".to_string(), "b".to_string())]);
    assert_eq!(trained.tokenizer.eot(), Some(257));
    assert_eq!(trained.tokenizer.encode("abab").unwrap(), [256, 256]);
}

#[test]
fn the_smallest_vocabulary_is_bytes_and_the_end() {
    let tokenizer = train_on(&["some text"], 257).tokenizer;
    assert_eq!((tokenizer.vocab_size(), tokenizer.eot()), (257, Some(256)));
    assert_eq!(tokenizer.decode(&tokenizer.encode("né\0").unwrap()), "né\0");
}

#[test]
fn what_cannot_be_trained_is_an_error() {
    let fails = |texts: &[&str], vocab_size| {
        train(texts.iter().map(Ok::<_, Error>), vocab_size, "mine", || Ok(())).err().expect("an error").to_string()
    };
    assert!(fails(&["text"], 256).contains("vocab_size 256"));
    assert!(fails(&["text"], 0).contains("257"));
    assert!(fails(&["text"], MAX_VOCAB_SIZE + 1).contains("out of range"));
    assert!(fails(&[], 300).contains("no text"));
    assert!(fails(&["", ""], 300).contains("no text"));
}

#[test]
fn an_error_of_the_text_or_between_merges_is_passed_on() {
    #[derive(Debug, PartialEq)]
    struct Broken(&'static str);
    impl From<Error> for Broken {
        fn from(_: Error) -> Broken {
            Broken("tokenizer")
        }
    }
    let texts = [Ok("text"), Err(Broken("line 2")), Ok("text")];
    assert_eq!(train(texts.into_iter(), 300, "mine", || Ok(())).err(), Some(Broken("line 2")));

    let mut left = 2_u32;
    let stop = || {
        left = left.checked_sub(1).ok_or(Broken("stopped"))?;
        Ok(())
    };
    let texts = [Ok("a text of which there is a text")].into_iter();
    assert_eq!(train(texts, 300, "mine", stop).err(), Some(Broken("stopped")));
}

proptest! {
    #[test]
    fn a_trained_tokenizer_loads_back_and_agrees_with_the_tokenizers_crate(learned in text(), other in text()) {
        prop_assume!(!learned.is_empty());
        let tokenizer = train_on(&[&learned, &learned], 300).tokenizer;
        let json = tokenizer.to_json();
        let loaded = Tokenizer::from_json(json.as_bytes(), "mine").unwrap();
        prop_assert_eq!(loaded.to_json(), json);
        prop_assert_eq!((loaded.vocab_size(), loaded.eot()), (tokenizer.vocab_size(), tokenizer.eot()));
        let reference = reference(&tokenizer);
        for text in [&learned, &other] {
            let ids = tokenizer.encode(text).unwrap();
            prop_assert_eq!(&ids, &loaded.encode(text).unwrap());
            prop_assert_eq!(&ids, &reference_ids(&reference, text));
            prop_assert_eq!(&tokenizer.decode(&ids), text);
            prop_assert_eq!(&loaded.decode(&ids), text);
        }
    }
}
