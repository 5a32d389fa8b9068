//! Vocabularies of characters and of bytes: against the `tokenizers` crate, and against what Python's `tokenizers` gave for the
//! same files (plain.json, made by plain.py).

use ngen3_data::tokenizer::{Error, MissingChars, Tokenizer, train_chars};
use proptest::prelude::*;
use serde_json::Value;

use super::{reference, reference_ids, shakespeare, text};

fn chars(texts: &[&str], eos: Option<&str>) -> Tokenizer {
    train_chars(texts.iter().map(Ok::<_, Error>), eos, "chars").unwrap().tokenizer
}

fn read(json: &str) -> Tokenizer {
    Tokenizer::from_json(json.as_bytes(), "chars").unwrap()
}

#[test]
fn the_characters_of_shakespeare_have_nanogpts_ids() {
    let text = shakespeare();
    let tokenizer = chars(&[&text], None);
    assert_eq!((tokenizer.vocab_size(), tokenizer.eot(), tokenizer.turn_end()), (65, None, None));
    // As nanoGPT's prepare.py prints and encodes them.
    let all = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    assert_eq!(tokenizer.decode(&(0..65).collect::<Vec<_>>()), all);
    assert_eq!(
        tokenizer.encode("First Citizen:\n").unwrap(),
        [18, 47, 56, 57, 58, 1, 15, 47, 58, 47, 64, 43, 52, 10, 0]
    );
    let ids = tokenizer.encode(&text).unwrap();
    assert_eq!(ids.len(), 1_115_394);
    assert_eq!(tokenizer.decode(&ids), text);
    let loaded = read(&tokenizer.to_json());
    assert_eq!(loaded.safe_split("abc"), Some(3), "it runs on our own code");
    assert_eq!(loaded.encode(&text).unwrap(), ids);
}

#[test]
fn pythons_tokenizers_gives_the_same_ids() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("plain.json")).unwrap();
    assert!(cases.len() >= 3);
    for case in cases {
        let tokenizer = Tokenizer::from_json(case["tokenizer"].to_string().as_bytes(), "x").unwrap();
        assert!(tokenizer.safe_split("ab cd").is_some(), "it runs on our own code");
        for one in case["texts"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(one["ids"].clone()).unwrap();
            let text = one["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
            assert_eq!(tokenizer.decode(&ids), one["decoded"].as_str().unwrap());
        }
    }
}

#[test]
fn a_character_that_the_vocabulary_lacks_is_dropped_and_counted() {
    let tokenizer = chars(&["abc \n", "é"], Some("<|end|>"));
    let mut missing = MissingChars::default();
    let mut ids = Vec::new();
    tokenizer.encode_counting("a日b日é\n\u{7}", &mut ids, &mut missing).unwrap();
    assert_eq!(tokenizer.decode(&ids), "abé\n");
    assert_eq!((missing.count, missing.total), (3, 7));
    let note = "3 of 7 characters (42.86 %) are not in the vocabulary of chars and were dropped: '日', '\\u{7}'";
    assert_eq!(tokenizer.missing_note(&missing).unwrap(), note);
    // Of many, a few are shown.
    tokenizer.encode_counting("ABCDEFGH", &mut ids, &mut missing).unwrap();
    assert!(tokenizer.missing_note(&missing).unwrap().ends_with(": '日', '\\u{7}', 'A', 'B', 'C', …"));
    let mut none = MissingChars::default();
    Tokenizer::gpt2().encode_counting("日", &mut ids, &mut none).unwrap();
    assert_eq!((none, Tokenizer::gpt2().can_miss()), (MissingChars::default(), false));
}

#[test]
fn characters_that_a_library_tokenizer_loses_are_counted() {
    let model = serde_json::json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "the": 1, "cat": 2, "##s": 3}});
    let file = serde_json::json!({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}, "model": model});
    let tokenizer = read(&file.to_string());
    let (mut ids, mut missing) = (Vec::new(), MissingChars::default());
    tokenizer.encode_counting("The  cats zzé the", &mut ids, &mut missing).unwrap();
    assert_eq!(ids, tokenizer.encode("The  cats zzé the").unwrap());
    assert_eq!((missing.count, missing.total), (3, 17), "the white space between words is implied");
    assert!(tokenizer.missing_note(&missing).unwrap().ends_with("and became [UNK]: 'z', 'é'"));

    // BPE without an unknown token drops what it lacks.
    let model = serde_json::json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]});
    let tokenizer = read(&serde_json::json!({"model": model}).to_string());
    let (mut ids, mut missing) = (Vec::new(), MissingChars::default());
    tokenizer.encode_counting("xab日a", &mut ids, &mut missing).unwrap();
    assert_eq!((ids, missing.count), (vec![2, 0], 2));
}

#[test]
fn bytes_are_their_own_ids() {
    let tokenizer = Tokenizer::of_bytes("bytes");
    assert_eq!((tokenizer.vocab_size(), tokenizer.eot(), tokenizer.can_miss()), (257, Some(256), false));
    let text = "é\n\0 a日<|endoftext|>";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(tokenizer.decode(&ids), text);
    let loaded = read(&tokenizer.to_json());
    assert_eq!(loaded.encode(text).unwrap(), ids);
    assert_eq!((loaded.eot(), loaded.to_json()), (Some(256), tokenizer.to_json()));
}

#[test]
fn an_end_of_documents_with_any_name_is_kept_in_the_file() {
    let tokenizer = chars(&["ab"], Some("<stop>"));
    assert_eq!((tokenizer.vocab_size(), tokenizer.eot(), tokenizer.turn_end()), (3, Some(2), Some(2)));
    let loaded = read(&tokenizer.to_json());
    assert_eq!((loaded.eot(), loaded.turn_end(), loaded.bos()), (Some(2), Some(2), None));
    assert_eq!(loaded.special_tokens(), [("<stop>".to_owned(), 2)]);
    assert_eq!(loaded.encode("a<stop>b").unwrap(), [0, 1], "it is never found in text");
    for eos in ["", "x"] {
        let error = train_chars(["ab"].iter().map(Ok::<_, Error>), Some(eos), "x").err().unwrap();
        assert!(error.to_string().contains("expected several characters"), "{error}");
    }
    let error = train_chars([""].iter().map(Ok::<_, Error>), None, "x").err().unwrap();
    assert!(error.to_string().contains("no text to train"), "{error}");
}

proptest! {
    #[test]
    fn characters_and_bytes_have_the_crates_ids(known in text(), text in text(), cut in 0usize..200) {
        let characters = chars(&[&known, "x"], Some("<|endoftext|>"));
        for tokenizer in [characters, Tokenizer::of_bytes("bytes")] {
            let (reference, loaded) = (reference(&tokenizer), read(&tokenizer.to_json()));
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(&ids, &reference_ids(&reference, &text));
            prop_assert_eq!(&ids, &loaded.encode(&text).unwrap());
            let decoded = tokenizer.decode(&ids);
            prop_assert_eq!(&decoded, &reference.decode(&ids, false).unwrap());
            let mut stream = tokenizer.stream();
            let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            streamed += &stream.finish();
            prop_assert_eq!(&streamed, &decoded);
            let mut missing = MissingChars::default();
            tokenizer.encode_counting(&text, &mut Vec::new(), &mut missing).unwrap();
            if tokenizer.can_miss() {
                prop_assert_eq!(missing.count as usize + ids.len(), text.chars().count());
            }
            // Split anywhere that it says, both parts have the ids of the whole.
            let start = &text[..text.floor_char_boundary(cut.min(text.len()))];
            if let Some(at) = tokenizer.safe_split(start) {
                let (a, b) = text.split_at(at);
                prop_assert_eq!(ids, [tokenizer.encode(a).unwrap(), tokenizer.encode(b).unwrap()].concat());
            }
            let (mut placed, mut starts) = (Vec::new(), Vec::new());
            tokenizer.encode_places(&text, &mut placed, &mut starts).unwrap();
            prop_assert_eq!(placed.len(), starts.len());
            prop_assert!(starts.is_sorted());
        }
    }
}
