//! tokenizer.json files: which run on the fast path (`safe_split` returns an offset) and which on the `tokenizers` crate, that
//! both give that crate's ids, and that a damaged or hostile file is one clear error.

use std::sync::LazyLock;

use ngen3_data::tokenizer::{Error, MissingChars, Tokenizer, train};
use ngen3_model::TokenizerRef;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{reference, reference_ids, text};

/// Returns the file of a small byte-level tokenizer, as on the hub.
fn small() -> Value {
    static SMALL: LazyLock<Value> = LazyLock::new(|| {
        let text = "the cat sat on the mat; the dog's cat isn't the cat's dog. HELLO hello 123 123";
        let trained = train([Ok::<_, Error>(text)].into_iter(), 265, "small", || Ok(())).unwrap();
        serde_json::from_str(&trained.tokenizer.to_json()).unwrap()
    });
    SMALL.clone()
}

fn read(file: &Value) -> Tokenizer {
    Tokenizer::from_json(file.to_string().as_bytes(), "test.json").unwrap()
}

fn error(file: &Value) -> String {
    Tokenizer::from_json(file.to_string().as_bytes(), "test.json").expect_err("a bad file").to_string()
}

fn is_fast(tokenizer: &Tokenizer) -> bool {
    tokenizer.safe_split("two words").is_some()
}

fn changed(path: &str, value: Value) -> Value {
    let mut file = small();
    match file.pointer_mut(path) {
        Some(place) => *place = value,
        None => {
            let (parent, key) = path.rsplit_once('/').unwrap();
            file.pointer_mut(parent).unwrap()[key] = value;
        }
    }
    file
}

fn with_added(content: &str, id: u64, special: bool) -> Value {
    let mut file = small();
    file["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special
    }));
    file
}

const SAMPLE: &str = " the cat's HELLO  hello\n\n  Cat\u{e9} cafe\u{301} <|endoftext|> 123 \u{1f389}the-dog isn't\tzq";

#[test]
fn a_byte_level_file_is_fast_however_it_is_spelled() {
    let merge_lines: Vec<String> = serde_json::from_value::<Vec<(String, String)>>(small()["model"]["merges"].clone())
        .unwrap()
        .into_iter()
        .map(|(left, right)| format!("{left} {right}"))
        .collect();
    let mut with_header = merge_lines.clone();
    with_header.insert(0, "#version: 0.2".to_string());
    let mut untyped = small();
    untyped["model"].as_object_mut().unwrap().remove("type");
    untyped["pre_tokenizer"].as_object_mut().unwrap().remove("use_regex");
    let plain = read(&small());
    for file in [
        changed("/model/merges", json!(merge_lines)),
        changed("/model/merges", json!(with_header)),
        untyped,
        changed("/model/unk_token", json!("<|endoftext|>")),
        changed("/model/end_of_word_suffix", json!("")),
        changed("/truncation", json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0})),
        changed("/post_processor", Value::Null),
    ] {
        let tokenizer = read(&file);
        assert!(is_fast(&tokenizer), "{file}");
        assert_eq!(tokenizer.encode(SAMPLE).unwrap(), plain.encode(SAMPLE).unwrap());
        assert_eq!(tokenizer.to_json(), file.to_string(), "the file is kept verbatim");
        assert_eq!(tokenizer.name(), "test.json");
        assert_eq!(tokenizer.eot(), plain.eot());
    }
}

#[test]
fn a_file_that_asks_for_anything_else_is_run_by_the_tokenizers_crate() {
    let mut with_lstrip = with_added("dog", 265, false);
    with_lstrip["added_tokens"][1]["lstrip"] = true.into();
    let regex = json!({"type": "Split", "pattern": {"Regex": "\\s+|\\w+|."}, "behavior": "Isolated", "invert": false});
    let no_regex = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    for file in [
        changed("/pre_tokenizer/add_prefix_space", json!(true)),
        changed("/pre_tokenizer/use_regex", json!(false)),
        changed("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [regex, no_regex]})),
        changed("/normalizer", json!({"type": "NFKC"})),
        changed("/normalizer", json!({"type": "Lowercase"})),
        changed("/model/dropout", json!(0.0)),
        changed("/decoder", json!({"type": "Fuse"})),
        with_lstrip,
    ] {
        let tokenizer = read(&file);
        assert!(!is_fast(&tokenizer), "{file}");
        let reference = reference(&tokenizer);
        let ids = tokenizer.encode(SAMPLE).unwrap();
        assert_eq!(ids, reference_ids(&reference, SAMPLE));
        assert_eq!(tokenizer.decode(&ids), reference.decode(&ids, false).unwrap());
        let mut appended = vec![5];
        tokenizer.encode_into(SAMPLE, &mut appended).unwrap();
        assert_eq!(appended[1..], ids);
    }
}

#[test]
fn special_tokens_in_text_are_text_and_other_added_tokens_are_found() {
    let special = read(&with_added("<|user|>", 265, true));
    assert!(is_fast(&special));
    assert_eq!((special.vocab_size(), special.id_of("<|user|>")), (266, Some(265)));
    assert_eq!(special.encode("the <|user|>").unwrap(), read(&small()).encode("the <|user|>").unwrap());
    assert_eq!(special.decode(&[265]), "<|user|>");

    let found = read(&with_added("<|user|>", 265, false));
    assert!(is_fast(&found));
    assert_eq!(found.vocab_size(), 266);
    assert_eq!(found.encode("the <|user|>").unwrap().last(), Some(&265));
    assert!(!found.encode("<|endoftext|>").unwrap().contains(&264));
}

/// Makes a tokenizer like Llama 2's: spaces as `▁`, bytes as `<0x00>`.
fn sentencepiece() -> Tokenizer {
    let mut vocab = vec!["<unk>".to_string(), "<s>".into(), "</s>".into()];
    vocab.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    vocab.extend(["▁", "a", "b", "c", "ab", "▁ab"].map(String::from));
    let ids: serde_json::Map<String, Value> = (0..).zip(vocab).map(|(id, token)| (token, Value::from(id))).collect();
    let added = ["<unk>", "<s>", "</s>"].into_iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    read(&json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": ids,
            "merges": ["a b", "▁ ab"]},
    }))
}

#[test]
fn a_sentencepiece_like_file_works() {
    let tokenizer = sentencepiece();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eot()), (265, Some(2)));
    let ids = tokenizer.encode("ab abé").unwrap();
    assert_eq!(ids, [264, 264, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(tokenizer.decode(&ids), "ab abé");
    assert_eq!(tokenizer.decode(&[264, 9999, 264]), "ab ab", "ids outside the vocabulary are skipped");
    let mut stream = tokenizer.stream();
    let shown: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(shown, ["ab", " ab", "", "é"]);
    assert_eq!(stream.finish(), "");
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(3 + 0xc3), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn a_wordpiece_file_works() {
    let vocab = json!({"[UNK]": 0, "the": 1, "cat": 2, "##s": 3, "</s>": 4});
    let model = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab});
    let tokenizer = read(&json!({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false}, "model": model}));
    let ids = tokenizer.encode("The cats zzz").unwrap();
    assert_eq!(ids, [1, 2, 3, 0]);
    assert_eq!(tokenizer.eot(), Some(4));
    let mut stream = tokenizer.stream();
    assert_eq!(ids.iter().map(|&id| stream.push(id)).collect::<Vec<_>>(), ["the", " cat", "s", " [UNK]"]);
}

#[test]
fn a_stream_loses_nothing_when_the_decoder_rewrites_what_was_shown() {
    let tokenizer = sentencepiece();
    // A run of bytes that is not UTF-8 as a whole decodes to U+FFFD for each, even the é that began it.
    let ids = [3 + 0xc3, 3 + 0xa9, 3 + 0xc3, 260, 261];
    assert_eq!(tokenizer.decode(&ids), "\u{fffd}\u{fffd}\u{fffd}ab");
    let mut stream = tokenizer.stream();
    let shown = ids.map(|id| stream.push(id));
    assert_eq!(shown, ["", "é", "", "\u{fffd}\u{fffd}\u{fffd}a", "b"]);
    assert_eq!(stream.finish(), "");
}

#[test]
fn a_text_that_the_files_model_cannot_take_is_an_error() {
    let tokenizer = read(&json!({"pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"the": 0}}}));
    let mut ids = Vec::new();
    tokenizer.encode_into("the the", &mut ids).unwrap();
    assert_eq!(ids, [0, 0]);
    let error = tokenizer.encode_into("the cat", &mut ids).unwrap_err().to_string();
    assert!(error.contains("test.json") && error.contains("the cat"), "{error}");
    assert_eq!(ids, [0, 0], "nothing is appended");
}

#[test]
fn bad_files_are_one_clear_error() {
    let bytes = |bytes: &[u8]| Tokenizer::from_json(bytes, "test.json").expect_err("a bad file").to_string();
    let with_token = |id: Value| changed("/model/vocab/zzz", id);
    let prefixed = json!({"model": {"type": "BPE", "continuing_subword_prefix": "##", "merges": [["a", "b"]],
        "vocab": {"a": 0, "b": 1, "ab": 2}}});
    let wordpiece = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0}});
    for (got, expected) in [
        (bytes(b""), "invalid JSON"),
        (bytes(b"{"), "invalid JSON"),
        (bytes(b"\xff{}"), "invalid UTF-8"),
        (bytes(&[b'['; 1 << 20]), "recursion limit"),
        (bytes(format!("{{\"model\":{}", "{\"a\":".repeat(100_000)).as_bytes()), "recursion limit"),
        (bytes(&vec![b' '; TokenizerRef::MAX_BYTES + 1]), "too large"),
        (bytes(b"[]"), "no \"model\""),
        (bytes(b"{\"model\":{}}"), "no \"vocab\""),
        (bytes(&small().to_string().as_bytes()[..2000]), "invalid JSON"),
        (error(&with_token(json!(5))), "both have the id 5"),
        (error(&with_token(json!(4_294_967_295u64))), "4294967295"),
        (error(&with_token(json!(u64::MAX))), "18446744073709551615"),
        (error(&with_token(json!(-1))), "\"zzz\": expected an id, got -1"),
        (error(&with_token(json!("7"))), "expected an id, got \"7\""),
        (error(&changed("/model/merges/0", json!(["a", "nope"]))), "\"nope\", which is not in the vocabulary"),
        (error(&changed("/model/merges/0", json!("abc"))), "expected two tokens"),
        (error(&changed("/model/merges/0", json!(3))), "expected two tokens"),
        (error(&changed("/added_tokens/0/id", json!(265))), "\"<|endoftext|>\": expected the id 264, got 265"),
        (error(&with_added("<|user|>", 300, true)), "without gaps"),
        (error(&with_added("<|user|>", 300, false)), "without gaps"),
        (error(&with_added("<|user|>", 7, true)), "both have the id 7"),
        (error(&with_added("", 265, true)), "has no content"),
        (error(&changed("/added_tokens", json!(1))), "expected a list"),
        (error(&changed("/version", json!("9"))), "9"),
        (error(&changed("/model/type", json!("Quantum"))), "unknown model type \"Quantum\""),
        (error(&changed("/model/type", json!(3))), "unknown model type 3"),
        (error(&prefixed), "continuing_subword_prefix"),
        (
            error(&json!({"model": wordpiece, "added_tokens": [{"id": 9, "content": "x", "special": true}]})),
            "test.json",
        ),
        (error(&json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], 3]}})), "entry 1"),
    ] {
        assert!(got.starts_with("tokenizer test.json: ") && got.contains(expected), "{got:?} lacks {expected:?}");
        assert!(!got.contains('\n'), "{got:?}");
    }
}

#[test]
fn a_vocabulary_with_holes_or_without_some_byte_is_a_tokenizer_still() {
    let mut file = small();
    file["model"]["vocab"]["zzz"] = 400.into();
    let holes = read(&file);
    assert!(is_fast(&holes));
    assert_eq!((holes.vocab_size(), holes.id_of("zzz")), (401, Some(400)));
    assert_eq!(holes.decode(&[400, 350, 400]), "zzzzzz");
    assert_eq!(holes.encode("the zzz").unwrap(), read(&small()).encode("the zzz").unwrap());

    let mut file = small();
    file["model"]["vocab"].as_object_mut().unwrap().remove("Q");
    let no_q = read(&file);
    assert!(is_fast(&no_q) && no_q.can_miss());
    assert_eq!(no_q.encode("theQ cat").unwrap(), read(&small()).encode("the cat").unwrap());
    assert!(no_q.encode("Q").unwrap().is_empty());
    let mut missing = MissingChars::default();
    no_q.encode_counting("theQ Qat", &mut Vec::new(), &mut missing).unwrap();
    assert_eq!((missing.count, missing.total), (2, 8));
    assert!(no_q.missing_note(&missing).unwrap().ends_with("were dropped: 'Q'"));
    let (mut ids, mut starts) = (Vec::new(), Vec::new());
    no_q.encode_places("thQe QcQ", &mut ids, &mut starts).unwrap();
    assert_eq!(ids, no_q.encode("the c").unwrap());
    assert_eq!(starts, [0, 4, 6]);

    // With an unknown token in its place, by the `tokenizers` crate.
    file["model"]["unk_token"] = "the".into();
    let unknown = read(&file);
    assert!(!is_fast(&unknown) && unknown.can_miss());
    assert_eq!(unknown.encode("Q").unwrap(), [unknown.id_of("the").unwrap()]);

    // Bytes that no UTF-8 has are no loss.
    let mut file = small();
    file["model"]["vocab"].as_object_mut().unwrap().remove("ÿ");
    assert!(!read(&file).can_miss());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_file_never_panics(
        cut in 0usize..10_000,
        changes in prop::collection::vec((0usize..10_000, any::<u8>()), 0..4),
        text in text(),
    ) {
        let mut bytes = small().to_string().into_bytes();
        if cut % 3 == 0 {
            bytes.truncate(cut % bytes.len() + 1);
        }
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes, "test.json") {
            let mut ids = Vec::new();
            if tokenizer.encode_into(&text, &mut ids).is_ok() {
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                tokenizer.decode(&ids);
            }
        }
    }
}
