//! The tokenizer's public interface: against tiktoken's ids (nasty.json, made by nasty.py), against the `tokenizers` crate on
//! random texts, on hostile files, those of GGUF files, and training.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../../ngen3-model/tests/gguf_file/builder.rs"]
mod builder;
mod files;
mod gguf;
mod models;
mod plain;
mod training;

use std::sync::LazyLock;

use ngen3_data::tokenizer::{ENDOFTEXT, Tokenizer};
use ngen3_model::hash::sha256;
use proptest::prelude::*;

/// Loads the output of `to_json` into the `tokenizers` crate, with special tokens in text as text.
fn reference(tokenizer: &Tokenizer) -> tokenizers::Tokenizer {
    let mut reference: tokenizers::Tokenizer = tokenizer.to_json().parse().unwrap();
    reference.set_encode_special_tokens(true);
    reference
}

fn reference_ids(reference: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
    reference.encode_fast(text, false).unwrap().get_ids().to_vec()
}

fn shakespeare() -> String {
    let packed = include_bytes!("../../data/tinyshakespeare.txt.zst");
    String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap()
}

/// Texts rich in what is easy to get wrong.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "( the|ing|tion|Hello|['sdmtlvrea]{1,3})",
        4 => "[ \n\t\r\u{85}\u{a0}\u{2028}\u{3000}]{1,4}",
        3 => "[a-zA-Z]{1,24}",
        2 => "[0-9½٣Ⅷ]{1,4}",
        2 => "[!-/:-@\\[-`{-~\0\u{200b}\u{301}🎉👨]{1,4}",
        2 => "[éßжя中日ㅎ𐐀]{1,8}",
        1 => Just(ENDOFTEXT.to_string()),
        1 => ("[a-z!7\u{4e2d} ]", 1usize..300).prop_map(|(part, count)| part.repeat(count)),
        1 => any::<String>(),
    ];
    prop::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
}

#[test]
fn nasty_texts_have_tiktokens_ids() {
    let cases: Vec<(String, Vec<u32>)> = serde_json::from_str(include_str!("nasty.json")).unwrap();
    assert!(cases.len() > 300);
    let gpt2 = Tokenizer::gpt2();
    for (text, ids) in &cases {
        assert_eq!(&gpt2.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(&gpt2.decode(ids), text);
    }
}

#[test]
fn shakespeare_has_tiktokens_ids() {
    let ids = Tokenizer::gpt2().encode(&shakespeare()).unwrap();
    assert_eq!(ids.len(), 338_025);
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| u16::try_from(id).unwrap().to_le_bytes()).collect();
    assert_eq!(sha256(bytes), "25c01b32b32f41897a6359dd222ec114992dc30c357bcafbfe6c56672f76cd31");
}

#[test]
fn gpt2_is_gpt2() {
    let gpt2 = Tokenizer::gpt2();
    assert_eq!((gpt2.name(), gpt2.vocab_size(), gpt2.eot()), ("gpt2", 50257, Some(50256)));
    assert_eq!(gpt2.id_of("!"), Some(0));
    assert_eq!(gpt2.id_of("Ġthe"), Some(262));
    assert_eq!(gpt2.id_of("Ġgazed"), Some(50255));
    assert_eq!(gpt2.id_of(" the"), None);
    assert_eq!(gpt2.id_of(""), None);
    assert_eq!(gpt2.encode("Hello, world!").unwrap(), [15496, 11, 995, 0]);
    assert_eq!(gpt2.encode(ENDOFTEXT).unwrap(), [27, 91, 437, 1659, 5239, 91, 29]);
    assert_eq!(gpt2.decode(&[15496, 50256, 995]), "Hello<|endoftext|> world");
    assert_eq!(gpt2.decode(&[15496, 50257, u32::MAX, 995]), "Hello world", "ids outside the vocabulary are skipped");
    let mut ids = vec![7];
    gpt2.encode_into("Hello", &mut ids).unwrap();
    assert_eq!(ids, [7, 15496]);
}

#[test]
fn a_word_of_a_million_letters_is_encoded_too() {
    let gpt2 = Tokenizer::gpt2();
    for text in ["a".repeat(1 << 20), "ab ".repeat(1 << 18), " ".repeat(1 << 20), "中".repeat(1 << 18)] {
        assert_eq!(gpt2.decode(&gpt2.encode(&text).unwrap()), text);
    }
}

#[test]
fn more_words_than_the_cache_holds_are_encoded_right() {
    let mut text = String::new();
    for i in 0..150_000u32 {
        let scrambled = i.wrapping_mul(0x9e37_79b9);
        text += &format!(
            " {}zq{i}{}",
            "xj".repeat(1 + i as usize % 4),
            char::from_u32(0x4e00 + scrambled % 20_000).unwrap()
        );
        text += &format!(" {}", scrambled.to_string().bytes().map(|b| (b + 49) as char).collect::<String>().repeat(2));
    }
    let gpt2 = Tokenizer::gpt2();
    let ids = gpt2.encode(&text).unwrap();
    assert!(ids.len() > 3 << 20, "{} ids: too few to overflow the cache", ids.len());
    assert_eq!(gpt2.encode(&text).unwrap(), ids, "again, with a full cache");
    assert_eq!(gpt2.decode(&ids), text);
}

#[test]
fn threads_share_a_tokenizer() {
    let text = shakespeare();
    let gpt2 = Tokenizer::gpt2();
    let whole = gpt2.encode(&text).unwrap();
    std::thread::scope(|scope| {
        for worker in [(); 4].map(|()| scope.spawn(|| gpt2.clone().encode(&text).unwrap())) {
            assert!(worker.join().unwrap() == whole);
        }
    });
}

static GPT2_REFERENCE: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| reference(&Tokenizer::gpt2()));

proptest! {
    #[test]
    fn ids_are_those_of_the_tokenizers_crate(text in text()) {
        prop_assert_eq!(Tokenizer::gpt2().encode(&text).unwrap(), reference_ids(&GPT2_REFERENCE, &text));
    }

    #[test]
    fn decoding_gives_the_text_back(text in text()) {
        let gpt2 = Tokenizer::gpt2();
        prop_assert_eq!(gpt2.decode(&gpt2.encode(&text).unwrap()), text);
    }

    #[test]
    fn a_stream_of_ids_shows_what_decoding_them_together_does(
        ids in prop::collection::vec(prop_oneof![3 => 0u32..256, 2 => 0u32..50300, 1 => 50255u32..50258], 0..40),
    ) {
        let gpt2 = Tokenizer::gpt2();
        let mut stream = gpt2.stream();
        let mut shown = String::new();
        for (i, &id) in ids.iter().enumerate() {
            shown += &stream.push(id);
            // At most one character's first bytes may be held back.
            prop_assert!(gpt2.decode(&ids[..=i]).len() <= shown.len() + 3);
        }
        shown += &stream.finish();
        prop_assert_eq!(shown, gpt2.decode(&ids));
    }

    #[test]
    fn text_cut_at_a_safe_split_has_the_ids_of_the_whole(before in text(), after in text()) {
        let gpt2 = Tokenizer::gpt2();
        if let Some(cut) = gpt2.safe_split(&before) {
            let mut ids = gpt2.encode(&before[..cut]).unwrap();
            gpt2.encode_into(&(before[cut..].to_string() + &after), &mut ids).unwrap();
            prop_assert_eq!(ids, gpt2.encode(&(before + &after)).unwrap());
        }
    }
}

#[test]
fn a_stream_holds_back_only_the_character_in_the_making() {
    let gpt2 = Tokenizer::gpt2();
    let party = gpt2.encode("a🎉b").unwrap();
    assert!(party.len() > 3, "the emoji is several tokens");
    let mut stream = gpt2.stream();
    let shown: Vec<String> = party.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(shown.first().map(String::as_str), Some("a"));
    assert_eq!(shown[1..party.len() - 2].concat(), "");
    assert_eq!(shown[party.len() - 2..], ["🎉", "b"]);
    assert_eq!(stream.finish(), "");

    let mut stream = gpt2.stream();
    assert_eq!(stream.push(party[1]), "");
    assert_eq!(stream.push(u32::MAX), "", "an id outside the vocabulary adds nothing");
    assert_eq!(stream.finish(), "\u{fffd}");
}
