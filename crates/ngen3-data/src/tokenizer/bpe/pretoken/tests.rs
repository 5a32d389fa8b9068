//! Every pre-tokenizer against the `tokenizers` crate's.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use super::Pretokenizer;
use super::ascii::ascii_word;

/// A pre-tokenizer of ours, and the crate's.
struct Pair {
    name: &'static str,
    ours: Pretokenizer,
    reference: PreTokenizerWrapper,
}

static PAIRS: LazyLock<[Pair; 4]> = LazyLock::new(|| {
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |numbers: &str| {
        let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let pattern = json!({"Regex": pattern.replace("NUMBERS", numbers)});
        let split = json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    [
        ("gpt2", Pretokenizer::gpt2(), bytes(true)),
        ("smollm2", Pretokenizer::smollm2(), json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]})),
        ("llama3", Pretokenizer::llama3(), split(r"\p{N}{1,3}")),
        ("qwen2", Pretokenizer::qwen2(), split(r"\p{N}")),
    ]
    .map(|(name, ours, file)| Pair { name, ours, reference: serde_json::from_value(file).unwrap() })
});

fn words(pretokenizer: Pretokenizer, text: &str) -> Vec<&str> {
    let (mut words, mut start) = (Vec::new(), 0);
    while start < text.len() {
        let end = pretokenizer.word_end(text.as_bytes(), start);
        words.push(&text[start..end]);
        start = end;
    }
    words
}

fn assert_as_the_reference(pair: &Pair, text: &str) {
    let mut split = PreTokenizedString::from(text);
    pair.reference.pre_tokenize(&mut split).unwrap();
    let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let expected: Vec<_> = splits.into_iter().map(|(_, (start, end), _)| &text[start..end]).collect();
    let got = words(pair.ours, text);
    if got != expected {
        let at = got.iter().zip(&expected).take_while(|(got, expected)| got == expected).count();
        let shown = |words: &[&str]| words[at.saturating_sub(2)..words.len().min(at + 3)].join("|");
        panic!("{}: words {at}…: {:?}, not {:?}", pair.name, shown(&got), shown(&expected));
    }
}

/// Texts rich in what the patterns treat specially.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "['sdmtlvreaſSDMTLVRE]{1,3}",
        4 => "[ \n\t\r\u{b}\u{85}\u{a0}\u{2003}\u{2028}\u{3000}]{1,3}",
        2 => "(\r\n| \n|\n )",
        3 => "[a-zA-Z]{1,20}",
        2 => "[0-9½٣Ⅷ]{1,5}",
        2 => "[!-/@\\[-`{-~\0\u{200b}\u{301}🎉]{1,3}",
        2 => "[éßжя中日ㅎ𐐀]{1,6}",
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..30).prop_map(|parts| parts.concat())
}

#[test]
fn every_character_is_of_the_class_that_the_patterns_say() {
    for pair in &*PAIRS {
        // Planes 4 to 13 are empty, 15 and 16 for private use.
        let codes: Vec<u32> = (0..0x4_0000).chain(0xe_0000..0xe_1000).chain([0x10_ffff]).collect();
        for block in codes.chunks(0x2000) {
            // After a letter, a number, a mark and a space, each of its own class: the words reveal the class of every character.
            let mut text = String::new();
            for c in block.iter().copied().filter_map(char::from_u32) {
                text.extend(['a', c, '1', c, '!', c, ' ', c]);
                // In a contraction: those with a case may be a letter of it for `(?i:…)`.
                if !c.to_lowercase().eq([c]) || !c.to_uppercase().eq([c]) {
                    text.extend(['\'', c, 'l', '\'', 'l', c, '\'', 'v', c, '\'', c, 'e']);
                }
            }
            assert_as_the_reference(pair, &text);
        }
    }
}

#[test]
fn every_short_text_of_nasty_characters_has_the_words_of_the_pattern() {
    let alphabet = ['\'', 's', 'L', 'ſ', 'e', ' ', '\n', '\r', '\u{a0}', '1', '٣', '!', '\u{301}'];
    for pair in &*PAIRS {
        let mut texts = vec![String::new()];
        for _ in 0..4 {
            texts = texts.iter().flat_map(|text| alphabet.map(|c| format!("{text}{c}"))).collect();
            texts.iter().for_each(|text| assert_as_the_reference(pair, text));
        }
    }
}

#[test]
fn a_safe_split_is_found_before_the_last_word() {
    let cases = [
        // text, then what follows the split in GPT-2's, SmolLM2's, Llama 3's and Qwen 2's words.
        ("one two three", [" three"; 4].map(Some)),
        ("one two\n\n", ["\n\n"; 4].map(Some)),
        ("one two\n  thr", ["\n  thr"; 4].map(Some)),
        ("abc123", [Some("123"), Some("3"), Some("123"), Some("3")]),
        ("1234", [None, Some("4"), None, Some("4")]),
        ("中文。字", [Some("字"), Some("字"), Some("。字"), Some("。字")]),
        ("it's", ["'s"; 4].map(Some)),
        ("it.\n", [Some("\n"), Some("\n"), Some(".\n"), Some(".\n")]),
        ("it. ", [" "; 4].map(Some)),
        ("'s", [None; 4]),
        ("\n\na", [None; 4]),
        ("aaaa", [None; 4]),
        (" ", [None; 4]),
        ("", [None; 4]),
    ];
    for (text, expected) in cases {
        for (pair, expected) in PAIRS.iter().zip(expected) {
            let split = pair.ours.safe_split(text, |_, _| true).map(|cut| &text[cut..]);
            assert_eq!(split, expected, "{} of {text:?}", pair.name);
        }
    }
    assert_eq!(Pretokenizer::gpt2().safe_split("one two three", |left, _| left != 'o'), Some(3));
}

proptest! {
    #[test]
    fn words_are_the_matches_of_the_pattern(text in text()) {
        PAIRS.iter().for_each(|pair| assert_as_the_reference(pair, &text));
    }

    #[test]
    fn the_quick_way_cuts_the_same_words(text in text()) {
        for pair in &*PAIRS {
            let mut start = 0;
            for word in words(pair.ours, &text) {
                let rest = &text.as_bytes()[start..];
                if let Some(window) = rest.first_chunk::<16>() {
                    let quick = ascii_word(u128::from_le_bytes(*window)) as usize;
                    let letters = word.strip_prefix(' ').unwrap_or(word);
                    let next_is_ascii = rest.get(word.len()).is_some_and(u8::is_ascii);
                    let simple = letters.bytes().all(|byte| byte.is_ascii_alphabetic()) && !letters.is_empty();
                    prop_assert_eq!(quick, if simple && word.len() <= 15 && next_is_ascii { word.len() } else { 0 });
                }
                start += word.len();
            }
        }
    }

    #[test]
    fn a_safe_split_changes_no_word_whatever_follows(before in text(), after in text()) {
        for pair in &*PAIRS {
            if let Some(cut) = pair.ours.safe_split(&before, |_, _| true) {
                let whole = before.clone() + &after;
                let parts = [words(pair.ours, &before[..cut]), words(pair.ours, &whole[cut..])].concat();
                prop_assert!(cut > 0 && cut < before.len());
                prop_assert_eq!(parts, words(pair.ours, &whole));
            }
        }
    }
}
