//! Files as those of GPT-2, SmolLM2, Llama 3 and Qwen: they run on our own code, with the ids of the `tokenizers` crate.

use std::sync::LazyLock;

use ngen3_data::tokenizer::{Error, Tokenizer, train};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{reference, reference_ids};

/// A tokenizer of ours, and the crate's of the same file.
struct Pair {
    name: &'static str,
    ours: Tokenizer,
    reference: tokenizers::Tokenizer,
}

const TEXT: &str = "The cat's HELLO hello\n\n  it's They'LL we'Ve I'M 123 4567 (the) \"the\" the; the.\n the.\r\n\tthe\tthe \
    größer größer été 中文中文 中文 한국 한국 !!! ... ??? --- x1 y2 z3 ٣٤٥ ٣٤٥ 👩‍🚀👩‍🚀";

/// Characters that the patterns treat specially.
const NASTY: [char; 13] = ['\'', 's', 'L', 'ſ', 'e', ' ', '\n', '\r', '\u{a0}', '1', '٣', '!', '\u{301}'];

/// Returns a file whose ids tell which characters are in one word: any two bytes of [`NASTY`] merge. Some words are in the
/// vocabulary although no merges make them.
fn base() -> Value {
    static BASE: LazyLock<Value> = LazyLock::new(|| {
        let trained = train([Ok::<_, Error>(TEXT)].into_iter(), 400, "small", || Ok(())).unwrap().tokenizer;
        let small = reference(&trained);
        let spell = |text: &str| small.encode(text, false).unwrap().get_tokens().concat();
        let mut file: Value = serde_json::from_str(&trained.to_json()).unwrap();
        let mut merges = file["model"]["merges"].take().as_array().unwrap().clone();
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let bytes = spell(&NASTY.iter().collect::<String>());
        for (left, right) in bytes.chars().flat_map(|left| bytes.chars().map(move |right| (left, right))) {
            let merge = json!([left.to_string(), right.to_string()]);
            if !merges.contains(&merge) {
                let next = vocab.len();
                vocab.entry(format!("{left}{right}")).or_insert(next.into());
                merges.push(merge);
            }
        }
        for word in [" Hello", "123", "'LL", "!!\n", " \n\n", "中文日", "    ", "Hello world"] {
            let next = vocab.len();
            vocab.entry(spell(word)).or_insert(next.into());
        }
        file["model"]["merges"] = merges.into();
        file["post_processor"] = Value::Null;
        file
    });
    BASE.clone()
}

fn bytes(regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex})
}

fn sequence(steps: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn split(numbers: &str) -> Value {
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let pattern = json!({"Regex": pattern.replace("NUMBERS", numbers)});
    json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
}

fn digits(individual: bool) -> Value {
    json!({"type": "Digits", "individual_digits": individual})
}

fn with(steps: Value) -> Value {
    let mut file = base();
    file["pre_tokenizer"] = steps;
    file
}

fn smollm2() -> Value {
    with(sequence(&[digits(true), bytes(true)]))
}

/// SmolLM2's vocabulary lacks bytes of control characters.
fn smollm2_with_holes() -> Value {
    let mut file = smollm2();
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    for lost in ["Ć", "ñ", "Q", "ÿ"] {
        assert!(vocab.remove(lost).is_some());
    }
    file
}

fn llama3() -> Value {
    let mut file = with(sequence(&[split(r"\p{N}{1,3}"), bytes(false)]));
    file["model"]["ignore_merges"] = true.into();
    add(&mut file, "<|begin_of_text|>", true, false);
    file
}

fn qwen2() -> Value {
    let mut file = with(sequence(&[split(r"\p{N}"), bytes(false)]));
    file["normalizer"] = json!({"type": "NFC"});
    add(&mut file, "<|im_end|>", true, false);
    add(&mut file, "<tool_call>", false, false);
    add(&mut file, "</think>", false, false);
    file
}

/// Qwen's, with added tokens of every kind that we find ourselves.
fn many_added() -> Value {
    let mut file = qwen2();
    for (content, special, normalized) in [
        ("<", false, true),
        ("end|>!", false, false),
        ("  ", false, true),
        ("1e", false, true),
        ("e\u{301}", false, false),
        ("é!", false, false),
        ("'s", false, true),
        ("the <s> cat", true, false),
        ("<s>", false, false),
        ("s>", true, true),
    ] {
        add(&mut file, content, special, normalized);
    }
    file
}

fn add(file: &mut Value, content: &str, special: bool, normalized: bool) {
    let (vocab, added) = (file["model"]["vocab"].as_object().unwrap(), file["added_tokens"].as_array().unwrap());
    let beyond = added.iter().filter(|added| !vocab.contains_key(added["content"].as_str().unwrap())).count();
    let id = vocab.get(content).cloned().unwrap_or_else(|| (vocab.len() + beyond).into());
    file["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": normalized,
        "special": special
    }));
}

fn read(file: &Value) -> Tokenizer {
    Tokenizer::from_json(file.to_string().as_bytes(), "test.json").unwrap()
}

fn is_fast(tokenizer: &Tokenizer) -> bool {
    tokenizer.safe_split("two words").is_some()
}

static PAIRS: LazyLock<[Pair; 6]> = LazyLock::new(|| {
    [
        ("gpt2", with(bytes(true))),
        ("smollm2", smollm2()),
        ("llama3", llama3()),
        ("qwen2", qwen2()),
        ("many_added", many_added()),
        ("smollm2_with_holes", smollm2_with_holes()),
    ]
    .map(|(name, file)| {
        let ours = read(&file);
        assert!(is_fast(&ours), "{name}");
        Pair { name, reference: reference(&ours), ours }
    })
});

/// Texts rich in what is easy to get wrong.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "( the|ing|Hello| Hello world|['sdmtlvreaſSDMTLVRE]{1,3})",
        4 => "[ \n\t\r\u{85}\u{a0}\u{2028}\u{3000}]{1,4}",
        2 => "(\r\n| \n|\n |!!\n|\\.\r\n\r\n)",
        2 => "[a-zA-Z]{1,24}",
        3 => "[0-9½٣Ⅷ]{1,5}",
        2 => "[!-/:-@\\[-`{-~\0\u{200b}\u{301}🎉👨]{1,4}",
        2 => "[éßжя中日ㅎ𐐀]{1,8}",
        2 => "[aeo=<][\u{301}\u{327}\u{338}]{1,2}[ a!]?",
        1 => "[\u{1100}-\u{1103}\u{1161}-\u{1163}\u{11a8}가\u{212b}\u{f900}\u{958}]{1,3}",
        2 => "(<tool_call>|</think>|<\\|im_end\\|>|<\\|im_end\\|>!|the <s> cat|<s>|<|é!|1e|<\\|endoftext\\|>)",
        1 => any::<String>(),
    ];
    prop::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
}

fn assert_as_the_crate(pair: &Pair, text: &str) {
    let ids = pair.ours.encode(text).unwrap();
    let expected = reference_ids(&pair.reference, text);
    if ids != expected {
        let shown = |ids: &[u32]| ids.iter().map(|&id| pair.ours.decode(&[id])).collect::<Vec<_>>();
        panic!("{}: {text:?} became {:?}, not {:?}", pair.name, shown(&ids), shown(&expected));
    }
}

#[test]
fn every_short_text_of_nasty_characters_has_the_crates_ids() {
    for pair in &*PAIRS {
        let mut texts = vec![String::new()];
        for _ in 0..4 {
            texts = texts.iter().flat_map(|text| NASTY.map(|c| format!("{text}{c}"))).collect();
            texts.iter().for_each(|text| assert_as_the_crate(pair, text));
        }
    }
}

proptest! {
    #[test]
    fn ids_are_those_of_the_tokenizers_crate(text in text()) {
        for pair in &*PAIRS {
            assert_as_the_crate(pair, &text);
            let ids = pair.ours.encode(&text).unwrap();
            prop_assert_eq!(pair.ours.decode(&ids), pair.reference.decode(&ids, false).unwrap());
        }
    }

    #[test]
    fn text_cut_at_a_safe_split_has_the_ids_of_the_whole(before in text(), after in text()) {
        for pair in &*PAIRS {
            if let Some(cut) = pair.ours.safe_split(&before) {
                let mut ids = pair.ours.encode(&before[..cut]).unwrap();
                pair.ours.encode_into(&(before[cut..].to_string() + &after), &mut ids).unwrap();
                prop_assert_eq!(ids, pair.ours.encode(&(before.clone() + &after)).unwrap(), "{}", pair.name);
            }
        }
    }

    #[test]
    fn places_are_those_of_the_tokenizers_crate(text in text()) {
        for pair in &*PAIRS {
            let (mut ids, mut starts) = (vec![7], vec![7]);
            pair.ours.encode_places(&text, &mut ids, &mut starts).unwrap();
            let encoding = pair.reference.encode(text.as_str(), false).unwrap();
            prop_assert_eq!(&ids[1..], encoding.get_ids());
            prop_assert!(starts[1..].is_sorted() && starts.len() == ids.len());
            // After a byte that it drops, the crate's places are those of earlier text.
            if pair.ours.can_miss() {
                continue;
            }
            for (&start, &(expected, _)) in starts[1..].iter().zip(encoding.get_offsets()) {
                // The crate's are of whole characters. Ours begin with the letter that a mark combines with, even where the
                // crate gives the mark a place of its own.
                let start = text.floor_char_boundary(start);
                let between = text.get(start..expected);
                prop_assert!(between.is_some(), "{}: {start} for {expected} in {text:?}", pair.name);
                prop_assert!(between == Some("") || pair.ours.decode(&pair.ours.encode(&text).unwrap()) != text);
            }
        }
    }
}

#[test]
fn each_model_has_its_words() {
    let words = |name: &str, text: &str| {
        let pair = PAIRS.iter().find(|pair| pair.name == name).unwrap();
        pair.ours.encode(text).unwrap().iter().map(|&id| pair.ours.decode(&[id])).collect::<Vec<_>>()
    };
    assert_eq!(words("llama3", "123 Hello"), ["123", " Hello"], "words of the vocabulary are not merged");
    assert_eq!(words("llama3", "1111"), ["11", "1", "1"]);
    assert_eq!(words("qwen2", "1111"), ["1", "1", "1", "1"]);
    assert_eq!(words("smollm2", " 1  1e"), [" ", "1", "  ", "1", "e"]);
    assert_eq!(words("gpt2", " 1111"), [" 1", "11", "1"]);
    assert_eq!(words("qwen2", "<tool_call>e</think>"), ["<tool_call>", "e", "</think>"]);
    let qwen2 = &PAIRS[3].ours;
    assert_eq!(qwen2.decode(&qwen2.encode("e\u{301}\u{212b}").unwrap()), "éÅ");
    assert!(words("qwen2", "<|im_end|>").len() > 1);
}

#[test]
fn added_tokens_that_are_not_special_have_places_ids_and_spellings() {
    let qwen2 = &PAIRS[3].ours;
    let (call, think) = (qwen2.id_of("<tool_call>").unwrap(), qwen2.id_of("</think>").unwrap());
    let (mut ids, mut starts) = (Vec::new(), Vec::new());
    // The accent takes two bytes, and é, which it makes, two tokens or one.
    qwen2.encode_places("e\u{301}s<tool_call>!</think>", &mut ids, &mut starts).unwrap();
    let place = |id| starts[ids.iter().position(|&found| found == id).unwrap()];
    assert_eq!((starts[0], place(call), place(think)), (0, 4, 16));
    let special: Vec<_> = qwen2.special_tokens().into_iter().map(|(token, _)| token).collect();
    assert!(
        special.contains(&"<|im_end|>".to_string()) && !special.contains(&"<tool_call>".to_string()),
        "{special:?}"
    );
    assert_eq!(qwen2.decode(&[call, think]), "<tool_call></think>");
    assert_eq!(PAIRS[4].ours.id_of("e\u{301}"), PAIRS[4].reference.token_to_id("e\u{301}"));
}

#[test]
fn files_in_the_wild_are_fast() {
    let trimmed =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let mut no_regex_key = trimmed(true);
    no_regex_key.as_object_mut().unwrap().remove("use_regex");
    for (steps, same) in [
        (trimmed(true), 0),
        (no_regex_key.clone(), 0),
        (sequence(&[bytes(true)]), 0),
        (sequence(&[no_regex_key]), 0),
        (sequence(&[digits(true), trimmed(true)]), 1),
    ] {
        let tokenizer = read(&with(steps));
        assert!(is_fast(&tokenizer));
        assert_eq!(tokenizer.encode(TEXT).unwrap(), PAIRS[same].ours.encode(TEXT).unwrap());
    }
}

#[test]
fn files_that_differ_in_anything_are_run_by_the_tokenizers_crate() {
    let changed = |mut file: Value, path: &str, value: Value| {
        *file.pointer_mut(path).unwrap() = value;
        file
    };
    let with_added = |mut file: Value, content: &str, key: &str| {
        add(&mut file, content, false, true);
        let added = file["added_tokens"].as_array_mut().unwrap().last_mut().unwrap();
        added[key] = true.into();
        file
    };
    let split_path = "/pre_tokenizer/pretokenizers/0";
    for file in [
        changed(llama3(), &format!("{split_path}/behavior"), json!("MergedWithPrevious")),
        changed(llama3(), &format!("{split_path}/invert"), json!(true)),
        changed(llama3(), &format!("{split_path}/pattern/Regex"), json!(r"\p{N}{1,3}|\s+|\S")),
        changed(llama3(), &format!("{split_path}/pattern"), json!({"String": " "})),
        changed(llama3(), "/pre_tokenizer/pretokenizers/1/use_regex", json!(true)),
        changed(llama3(), "/pre_tokenizer/pretokenizers/1/add_prefix_space", json!(true)),
        changed(smollm2(), "/pre_tokenizer/pretokenizers/1/use_regex", json!(false)),
        with(sequence(&[digits(false), bytes(true)])),
        with(sequence(&[bytes(true), digits(true)])),
        with(sequence(&[digits(true), split(r"\p{N}"), bytes(false)])),
        changed(qwen2(), "/normalizer", json!({"type": "NFKC"})),
        changed(qwen2(), "/normalizer", json!({"type": "NFD"})),
        with_added(llama3(), "hello", "single_word"),
        with_added(llama3(), "hello", "lstrip"),
        with_added(llama3(), "hello", "rstrip"),
        // Normalization could change the token, too.
        with_added(qwen2(), "é", "normalized"),
    ] {
        let tokenizer = read(&file);
        assert!(!is_fast(&tokenizer), "{}", file["pre_tokenizer"]);
        assert_eq!(tokenizer.encode(TEXT).unwrap(), reference_ids(&reference(&tokenizer), TEXT));
    }
    assert!(is_fast(&read(&with_added(llama3(), "é", "normalized"))));
}
