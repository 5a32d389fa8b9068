//! Conversations in every form that people bring get the token ids and masks of `transformers` and TRL.
//!
//! `crates/ngen3-data/src/chat/fixtures/make_masks.py` made the expected ones, with chat templates that mark the assistant's part.
//! Each template is used as it is, and once more without its marks, as most models have it. The tests say where a mask differs on
//! purpose, and count those tokens.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::succeed;
use ngen3_data::Tokenizer;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Expected {
    records: Vec<Record>,
    families: Vec<Family>,
}

#[derive(Deserialize)]
struct Record {
    form: String,
    record: Value,
}

/// A chat template, its tokenizer, and the expected ids and masks of the records, or of the first ones.
#[derive(Deserialize)]
struct Family {
    name: String,
    tokenizer: String,
    bos: String,
    eos: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    /// `1` for each token that TRL learns with `assistant_only_loss`, or else `0`.
    mask: String,
    /// The same without `assistant_only_loss`, if the record has a prompt and a completion.
    completion: Option<String>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ngen3-data/src/chat/fixtures/masks")
}

fn expected() -> Expected {
    let expected: Expected = serde_json::from_slice(&fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    let cases: Vec<_> = expected.families.iter().map(|family| (family.name.as_str(), family.cases.len())).collect();
    let [messages, all] = [27, 33];
    assert_eq!(expected.records.len(), all);
    assert_eq!(
        cases,
        [
            ("chatml", messages),
            ("qwen", all),
            ("qwen3", all),
            ("llama3", messages),
            ("mistral", all),
            ("gemma", messages),
            ("vicuna", messages)
        ]
    );
    expected
}

impl Family {
    fn template(&self) -> String {
        fs::read_to_string(fixtures().join(&self.name).with_extension("jinja")).unwrap()
    }

    /// The template without its marks.
    fn plain_template(&self) -> String {
        let plain = self.template().replace(" generation ", " if true ").replace(" endgeneration ", " endif ");
        assert!(plain != self.template() && !plain.contains("generation %}"));
        plain
    }

    fn tokenizer_file(&self) -> Option<PathBuf> {
        (self.tokenizer != "gpt2").then(|| fixtures().join("tokenizers").join(&self.tokenizer).with_extension("json"))
    }

    fn tokens(&self, case: &Case) -> Vec<String> {
        let tokenizer = match self.tokenizer_file() {
            Some(file) => Tokenizer::from_json(&fs::read(file).unwrap(), &self.tokenizer).unwrap(),
            None => Tokenizer::gpt2(),
        };
        case.ids.iter().map(|&id| tokenizer.decode(&[id])).collect()
    }

    /// Tokenizes the records from the command line; returns the ids and the mask of each.
    fn tokenize(&self, records: &[Record], template: &str) -> Vec<(Vec<u32>, String)> {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let lines: String = records.iter().map(|record| format!("{}\n", record.record)).collect();
        fs::write(folder.join("x.jsonl"), lines).unwrap();
        fs::write(folder.join("t.jinja"), template).unwrap();
        let mut line = "tokenize --dataset x --chats x.jsonl --chat_template t.jinja".to_owned();
        if let Some(file) = self.tokenizer_file() {
            fs::copy(file, folder.join("t.json")).unwrap();
            line += &format!(" --tokenizer t.json --bos_token {} --eos_token {}", self.bos, self.eos);
        }
        let (_, err) = succeed(folder, &line);
        assert!(err.lines().all(|line| line.starts_with("note: read ")), "{}: {err}", self.name);
        let data = fs::read(folder.join("_data_x_/data.bin")).unwrap();
        let mask = fs::read(folder.join("_data_x_/mask.bin")).unwrap();
        assert_eq!(data.len(), 2 * mask.len());
        let mut found = Vec::new();
        for (id, mark) in data.chunks_exact(2).zip(mask) {
            if mark & 2 != 0 {
                found.push((Vec::new(), String::new()));
            }
            let (ids, learned): &mut (Vec<u32>, String) = found.last_mut().expect("a conversation begins");
            ids.push(u16::from_le_bytes([id[0], id[1]]).into());
            learned.push(if mark & 1 == 0 { '0' } else { '1' });
        }
        found
    }

    /// Compares all records with the expected ids and with the masks that `mask` makes of the expected ones; returns the number of
    /// tokens whose mask differs from TRL's.
    fn compare(&self, records: &[Record], template: &str, mask: impl Fn(&[String], &Case) -> String) -> usize {
        let records = &records[..self.cases.len()];
        let found = self.tokenize(records, template);
        assert_eq!(found.len(), records.len(), "{}", self.name);
        let mut changed = 0;
        for ((Record { form, record }, case), (ids, learned)) in records.iter().zip(&self.cases).zip(found) {
            let tokens = self.tokens(case);
            let place = || format!("{}, {form}: {record}\n{tokens:?}", self.name);
            assert_eq!(ids, case.ids, "{}", place());
            assert_eq!(learned, mask(&tokens, case), "{}", place());
            changed += learned.bytes().zip(case.mask.bytes()).filter(|(own, trl)| own != trl).count();
        }
        changed
    }
}

#[test]
fn templates_that_mark_the_answers_give_the_ids_and_masks_of_transformers_and_trl() {
    let Expected { records, families } = expected();
    for family in families {
        // The block begins before the line break after the role. TRL counts that to the prompt of a completion.
        let begins_at_line_break = family.name == "qwen";
        let mask = |tokens: &[String], case: &Case| {
            let mut mask = case.mask.clone();
            let before = mask.find('1').unwrap() - 1;
            if begins_at_line_break && tokens[before - 1..=before] == ["assistant", "\n"] {
                assert!(case.completion.is_some());
                mask.replace_range(before..=before, "1");
            }
            mask
        };
        let changed = family.compare(&records, &family.template(), mask);
        assert_eq!(changed, if begins_at_line_break { 7 } else { 0 }, "{}", family.name);
    }
}

#[test]
fn answers_found_without_marks_are_those_that_the_marks_would_give() {
    let Expected { records, families } = expected();
    for family in families {
        // In Qwen's and Gemma's form, TRL's blocks go on to the line break after the token that ends the turn, which the template
        // writes, not the model; in Qwen2.5's they also begin with the one after the role.
        let mask = |tokens: &[String], case: &Case| {
            let mut mask = case.mask.clone().into_bytes();
            for at in 1..mask.len() {
                let begins = family.name == "qwen" && tokens[at - 1] == "assistant" && !mask[..at].ends_with(b"1");
                if tokens[at] == "\n" && (tokens[at - 1] == family.eos || begins) {
                    mask[at] = b'0';
                }
            }
            String::from_utf8(mask).unwrap()
        };
        let changed = family.compare(&records, &family.plain_template(), mask);
        let expected = match family.name.as_str() {
            "qwen" => 102,
            "qwen3" => 58,
            "gemma" => 48,
            _ => 0,
        };
        assert_eq!(changed, expected, "{}", family.name);
    }
}

/// Without `assistant_only_loss`, TRL learns all that follows the prompt: line breaks, and other turns between two answers.
#[test]
fn a_completion_is_learned_from_the_same_token_as_in_trl() {
    let Expected { records, families } = expected();
    let mut compared = 0;
    for family in families {
        let found = family.tokenize(&records[..family.cases.len()], &family.plain_template());
        for (case, (_, learned)) in family.cases.iter().zip(found) {
            let Some(completion) = &case.completion else { continue };
            let first = completion.find('1').unwrap();
            assert!(!completion[first..].contains('0'));
            assert_eq!(learned.find('1'), Some(first), "{}: {:?}", family.name, family.tokens(case));
            compared += 1;
        }
    }
    assert_eq!(compared, 7 * 5 + 3 * 3);
}
