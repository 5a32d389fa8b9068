//! Input: a tokenizer.json, which then encodes and decodes text; or, after a byte of 0 to 4, text for a file like a model's.
//! Tokenizers that run on our own code must have the ids of the `tokenizers` crate.

#![no_main]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ngen3_data::Tokenizer;
use serde_json::{Value, json};

const TEXT: &str =
    "Hello, world!  It'S 1,234\u{301} größer\r\n\n\t<|endoftext|> 你好 e\u{301} \u{1f469}\u{200d}\u{1f680}";

fuzz_target!(
    init: ngen3_fuzz::allow_panics_of_libraries(),
    |bytes: &[u8]| match bytes.split_first() {
        Some((&model @ 0..5, text)) => {
            let (ours, reference) = &MODELS[usize::from(model)];
            compare(ours, reference, &String::from_utf8_lossy(text));
        }
        _ => read_file(bytes),
    }
);

fn read_file(bytes: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(bytes, "x") else { return };
    if let Ok(ids) = tokenizer.encode(TEXT) {
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        tokenizer.decode(&ids);
    }
    tokenizer.decode(&[0, 1, 2, u32::MAX]);
    tokenizer.special_tokens();
    // Split anywhere: it runs on our own code. The crate may refuse or panic on what we read.
    if tokenizer.safe_split(TEXT).is_some()
        && let Ok(Some(reference)) = catch_unwind(|| reference(bytes))
    {
        compare(&tokenizer, &reference, TEXT);
    }
    // Its own JSON loads again.
    Tokenizer::from_json(tokenizer.to_json().as_bytes(), "y").expect("its own file");
}

fn reference(file: &[u8]) -> Option<tokenizers::Tokenizer> {
    let mut reference = str::from_utf8(file).ok()?.parse::<tokenizers::Tokenizer>().ok()?;
    reference.with_truncation(None).ok()?;
    reference.with_padding(None);
    reference.set_encode_special_tokens(true);
    Some(reference)
}

fn compare(ours: &Tokenizer, reference: &tokenizers::Tokenizer, text: &str) {
    let ids = ours.encode(text).expect("our own code never fails");
    if let Ok(Ok(expected)) = catch_unwind(AssertUnwindSafe(|| reference.encode_fast(text, false))) {
        assert_eq!(ids, expected.get_ids());
    }
    let (mut placed, mut starts) = (Vec::new(), Vec::new());
    ours.encode_places(text, &mut placed, &mut starts).expect("our own code never fails");
    assert!(placed == ids && starts.len() == ids.len() && starts.is_sorted());
    assert!(starts.last().is_none_or(|&last| last < text.len()));
    if let Some(cut) = ours.safe_split(text) {
        let parts = [&text[..cut], &text[cut..]].map(|part| ours.encode(part).expect("our own code never fails"));
        assert_eq!(parts.concat(), ids);
    }
}

/// Files like those of GPT-2, SmolLM2, Llama 3 and Qwen, and the last with more added tokens.
static MODELS: LazyLock<[(Tokenizer, tokenizers::Tokenizer); 5]> = LazyLock::new(|| {
    let small = include_str!("../../crates/ngen3-model/tests/fixtures/hf/tokenizer/tokenizer.json");
    let small: Value = serde_json::from_str(small).expect("a file");
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |numbers: &str| {
        let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let pattern = json!({"Regex": pattern.replace("NUMBERS", numbers)});
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let qwen2 = vec![split(r"\p{N}"), bytes(false)];
    [
        (vec![bytes(true)], Value::Null, false, 0),
        (vec![digits, bytes(true)], Value::Null, false, 0),
        (vec![split(r"\p{N}{1,3}"), bytes(false)], Value::Null, true, 0),
        (qwen2.clone(), json!({"type": "NFC"}), false, 2),
        (qwen2, json!({"type": "NFC"}), false, 6),
    ]
    .map(|(steps, normalizer, ignore_merges, added)| {
        let mut file = small.clone();
        file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
        file["normalizer"] = normalizer;
        file["model"]["ignore_merges"] = ignore_merges.into();
        add_tokens(&mut file, added);
        let file = file.to_string();
        let ours = Tokenizer::from_json(file.as_bytes(), "x").expect("a file");
        assert!(ours.safe_split("two words").is_some(), "it runs on our own code");
        (ours, reference(file.as_bytes()).expect("a file"))
    })
});

/// Adds tokens of several kinds to a file, and merges of all pairs of bytes that the patterns treat specially.
fn add_tokens(file: &mut Value, count: usize) {
    let vocab = file["model"]["vocab"].as_object().expect("a vocabulary").clone();
    let mut merges = file["model"]["merges"].as_array().expect("merges").clone();
    let mut next = vocab.len();
    let bytes = "'sLtleĠĊč1!ÂÅ¿ÌģĠ";
    for (left, right) in bytes.chars().flat_map(|left| bytes.chars().map(move |right| (left, right))) {
        let token = format!("{left}{right}");
        if file["model"]["vocab"].get(&token).is_none() {
            file["model"]["vocab"][token] = next.into();
            merges.push(json!([left.to_string(), right.to_string()]));
            next += 1;
        }
    }
    file["model"]["merges"] = merges.into();
    let tokens = [("<t>", false), ("</t>", false), ("<", true), ("e\u{301}", false), ("  ", true), ("'s1", true)];
    for (content, normalized) in tokens.into_iter().take(count) {
        // A token of the vocabulary keeps its id.
        let id = file["model"]["vocab"].get(content).and_then(Value::as_u64).unwrap_or(next as u64);
        next += usize::from(id == next as u64);
        file["added_tokens"].as_array_mut().expect("a list").push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": normalized, "special": false
        }));
    }
}
