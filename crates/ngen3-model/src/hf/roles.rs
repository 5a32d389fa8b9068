//! Roles of special tokens: the one that ends a document, the one that ends a turn of a conversation, the one that begins a text.
//!
//! A tokenizer.json does not tell them. The files beside it do (`tokenizer_config.json`, `special_tokens_map.json`,
//! `generation_config.json`); without these, the names of the field's models. Roles that its tokens' names alone would not give
//! are kept in the tokenizer.json itself, in the key [`KEY`] of the tokens' entries, which other programs ignore.

use std::path::Path;

use serde_json::{Value, json};

use super::lookup::{added_tokens, id_of, token_of};
use super::settings::{Settings, text_of};
use crate::Error;
use crate::files::read_object;

/// Size limit of generation_config.json, in bytes.
const MAX_BYTES: u64 = 4 << 20;
/// Key of an entry of `added_tokens` that lists the token's roles.
const KEY: &str = "ngen3";
const DOCUMENT_END: &str = "document_end";
const TURN_END: &str = "turn_end";
const BOS: &str = "bos";
const DOCUMENT_START: &str = "document_start";

/// Tokens that end a document: GPT-2, Qwen, Phi and many others; Llama 3; Llama 2, Mistral, T5; Gemma; DeepSeek; Cohere; Kimi.
const DOCUMENT_ENDS: [&str; 9] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<EOS_TOKEN>",
    "[EOS]",
    "<|eos|>",
    "<EOS>",
];
/// Tokens that end a turn: ChatML, Llama 3, Gemma, Phi 3, Llama 4, Cohere, gpt-oss, Kimi.
const TURN_ENDS: [&str; 8] =
    ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "[EOT]"];
/// Tokens that begin a text.
const BEGINNINGS: [&str; 6] =
    ["<s>", "<|begin_of_text|>", "<bos>", "<\u{ff5c}begin\u{2581}of\u{2581}sentence\u{ff5c}>", "<BOS_TOKEN>", "[BOS]"];

/// Special tokens by role, as tokenizer.json spells them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Ends a document.
    pub document_end: Option<String>,
    /// Ends a turn of a conversation.
    pub turn_end: Option<String>,
    /// Begins a text: `bos_token` of chat templates.
    pub bos: Option<String>,
    /// True if [`bos`](Roles::bos) begins every document: `add_bos_token` in `tokenizer_config.json`.
    pub add_bos: bool,
}

impl Roles {
    /// Returns the roles of a vocabulary whose only special token, if any, ends documents and turns.
    pub fn ending_with(token: Option<&str>) -> Self {
        let token = || token.map(str::to_owned);
        Self { document_end: token(), turn_end: token(), bos: None, add_bos: false }
    }

    /// Returns the roles that a parsed tokenizer.json keeps; if it keeps none, those that the names of its tokens give.
    pub fn of(file: &Value) -> Self {
        if !keeps_roles(file) {
            return Declared::default().roles(file);
        }
        let with = |role: &str| {
            let has = |entry: &&Value| entry[KEY].as_array().is_some_and(|roles| roles.iter().any(|one| one == role));
            added_tokens(file).iter().find(has)?["content"].as_str().map(str::to_owned)
        };
        let add_bos = with(DOCUMENT_START).is_some();
        Self { document_end: with(DOCUMENT_END), turn_end: with(TURN_END), bos: with(BOS), add_bos }
    }

    /// Returns the roles of a parsed tokenizer.json in `folder`: those that it keeps; if none, those that the files beside it
    /// declare, completed by the names of its tokens.
    ///
    /// # Errors
    /// [`Error::Read`] if a file beside it is too large or not a JSON object.
    pub fn beside(folder: &Path, file: &Value) -> Result<Self, Error> {
        if keeps_roles(file) { Ok(Self::of(file)) } else { Ok(Declared::read(folder, file)?.roles(file)) }
    }

    /// Returns the roles in a parsed tokenizer.json whose model declares these tokens: `eos`, others that end the model's answer,
    /// and `bos`, which begins every document with `add_bos`.
    pub(crate) fn declared(
        file: &Value,
        eos: Option<String>,
        other_ends: Vec<String>,
        bos: Option<String>,
        add_bos: bool,
    ) -> Self {
        Declared { eos, generation_ends: other_ends, bos, add_bos }.roles(file)
    }

    /// Makes a token end documents, and turns too unless another token did.
    #[must_use]
    pub fn with_document_end(self, token: &str) -> Self {
        let own = if self.turn_end == self.document_end { None } else { self.turn_end };
        Self { document_end: Some(token.into()), turn_end: own.or_else(|| Some(token.into())), ..self }
    }

    /// Keeps the roles in a parsed tokenizer.json, unless the names of its tokens give the same. Returns true if it changed.
    pub fn keep_in(&self, file: &mut Value) -> bool {
        if Self::of(file) == *self {
            return false;
        }
        if !file["added_tokens"].is_array() {
            file["added_tokens"] = json!([]);
        }
        without_roles(file);
        let start = self.bos.as_ref().filter(|_| self.add_bos);
        let roles = [
            (DOCUMENT_END, self.document_end.as_ref()),
            (TURN_END, self.turn_end.as_ref()),
            (BOS, self.bos.as_ref()),
            (DOCUMENT_START, start),
        ];
        for (role, token) in roles.into_iter().filter_map(|(role, token)| Some((role, token?))) {
            let id = id_of(file, token);
            let Some(entries) = file["added_tokens"].as_array_mut() else { break };
            let at = entries.iter().position(|entry| entry["content"] == *token).unwrap_or_else(|| {
                entries.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true
                }));
                entries.len() - 1
            });
            match entries[at][KEY].as_array_mut() {
                Some(list) => list.push(role.into()),
                None => entries[at][KEY] = json!([role]),
            }
        }
        true
    }
}

fn keeps_roles(file: &Value) -> bool {
    added_tokens(file).iter().any(|entry| !entry[KEY].is_null())
}

/// Removes the roles from a parsed tokenizer.json, which leaves the file that they were added to.
pub(crate) fn without_roles(file: &mut Value) {
    let entries = file.get_mut("added_tokens").and_then(Value::as_array_mut);
    for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
        // In place, so that the other keys keep their order.
        entry.shift_remove(KEY);
    }
}

/// Content of the files beside a tokenizer.json, limited to tokens that it has.
#[derive(Default)]
struct Declared {
    /// `eos_token`.
    eos: Option<String>,
    /// Tokens of `eos_token_id` in generation_config.json: one or several.
    generation_ends: Vec<String>,
    bos: Option<String>,
    add_bos: bool,
}

impl Declared {
    fn read(folder: &Path, file: &Value) -> Result<Self, Error> {
        let settings = Settings::read(folder)?;
        let generation = read_object(&folder.join("generation_config.json"), MAX_BYTES)?;
        let token = |name| {
            let text = settings.token(name).and_then(text_of)?;
            id_of(file, text).map(|_| text.to_owned())
        };
        let by_id = |id: &Value| token_of(file, id.as_u64()?).map(str::to_owned);
        let generation_ends = match generation.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(by_id).collect(),
            Some(id) => by_id(id).into_iter().collect(),
            None => Vec::new(),
        };
        let bos = token("bos_token").or_else(|| generation.get("bos_token_id").and_then(by_id));
        let add_bos = settings.entry("add_bos_token") == Some(&Value::Bool(true)) && bos.is_some();
        Ok(Self { eos: token("eos_token"), generation_ends, bos, add_bos })
    }

    /// Assigns the roles. The field's `eos_token` ends a document in some models and a turn in others, so its name decides, and
    /// the other role goes to a token that has it by name.
    fn roles(self, file: &Value) -> Roles {
        let ends_turns = |token: &&String| TURN_ENDS.contains(&token.as_str());
        let ends_documents = |token: &&String| DOCUMENT_ENDS.contains(&token.as_str());
        let ends: Vec<String> = self.eos.into_iter().chain(self.generation_ends).collect();
        let document_end = ends
            .iter()
            .find(ends_documents)
            .or_else(|| ends.iter().find(|token| !ends_turns(token)))
            .cloned()
            .or_else(|| first_of(file, &DOCUMENT_ENDS))
            .or_else(|| ends.first().cloned())
            .or_else(|| first_of(file, &TURN_ENDS));
        let turn_end = ends
            .iter()
            .find(ends_turns)
            .or(ends.first())
            .cloned()
            .or_else(|| first_of(file, &TURN_ENDS))
            .or_else(|| document_end.clone());
        let bos = self.bos.or_else(|| first_of(file, &BEGINNINGS));
        // GPT-2's only special token has every role: then there is no other.
        let bos = bos.filter(|bos| self.add_bos || document_end.as_ref() != Some(bos));
        Roles { document_end, turn_end, bos, add_bos: self.add_bos }
    }
}

/// Returns the first of these tokens that is special in a tokenizer.json, else the first in its vocabulary: some vocabularies
/// hold `</s>` as markup.
fn first_of(file: &Value, names: &[&str]) -> Option<String> {
    let special = |name: &&&str| {
        let same = |entry: &Value| entry["content"] == **name && entry["special"] == true;
        added_tokens(file).iter().any(same)
    };
    let found = names.iter().find(special).or_else(|| names.iter().find(|name| id_of(file, name).is_some()));
    found.map(|&name| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::TokenizerRef;

    /// A tokenizer.json with these special tokens, from id 2 on, after the vocabulary `a`, `</s>`.
    fn file(special: &[&str]) -> Value {
        let entry = |(content, id): (&&str, u64)| json!({"id": id, "content": content, "special": true});
        json!({
            "model": {"type": "BPE", "vocab": {"a": 0, "</s>": 1}, "merges": []},
            "added_tokens": special.iter().zip(2..).map(entry).collect::<Vec<_>>(),
        })
    }

    /// Returns the document's end, the turn's end and the beginning of a text.
    fn roles(file: &Value, beside: &[(&str, Value)]) -> [Option<String>; 3] {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in beside {
            fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        let found = Roles::beside(folder.path(), file).unwrap();
        // The file keeps them.
        let mut kept = file.clone();
        found.keep_in(&mut kept);
        assert_eq!(Roles::of(&kept), found);
        assert!(!found.keep_in(&mut kept), "once");
        [found.document_end, found.turn_end, found.bos]
    }

    fn some<const N: usize>(tokens: [&str; N]) -> [Option<String>; N] {
        tokens.map(|token| Some(token.to_owned()))
    }

    #[test]
    fn the_fields_models_are_known_by_their_tokens_and_by_the_files_beside_them() {
        let config =
            |eos: Value| ("tokenizer_config.json", json!({"eos_token": eos, "bos_token": "<|begin_of_text|>"}));
        let llama3 = file(&["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]);
        let expected = some(["<|end_of_text|>", "<|eot_id|>", "<|begin_of_text|>"]);
        assert_eq!(roles(&llama3, &[]), expected);
        assert_eq!(roles(&llama3, &[config(json!("<|eot_id|>"))]), expected, "the instruct model");
        assert_eq!(roles(&llama3, &[config(json!({"content": "<|eot_id|>"}))]), expected);
        let base = some(["<|end_of_text|>", "<|end_of_text|>", "<|begin_of_text|>"]);
        assert_eq!(roles(&llama3, &[config(json!("<|end_of_text|>"))]), base, "the base model");
        let ids = |ids: Value| ("generation_config.json", json!({"eos_token_id": ids}));
        assert_eq!(roles(&llama3, &[ids(json!([3, 4]))]), expected);
        assert_eq!(roles(&llama3, &[ids(json!(3))]), base);

        let gemma = file(&["<bos>", "<eos>", "<end_of_turn>"]);
        let config = ("tokenizer_config.json", json!({"eos_token": "<eos>"}));
        assert_eq!(roles(&gemma, &[config, ids(json!([3, 4]))]), some(["<eos>", "<end_of_turn>", "<bos>"]));
        let qwen = file(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
        let config = ("tokenizer_config.json", json!({"eos_token": "<|im_end|>", "bos_token": null}));
        assert_eq!(roles(&qwen, &[config])[..2], some(["<|endoftext|>", "<|im_end|>"]));
        let deepseek = "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>";
        assert_eq!(roles(&file(&[deepseek]), &[])[..2], some([deepseek, deepseek]));
        assert_eq!(roles(&file(&["<|end|>", "<|endoftext|>"]), &[])[..2], some(["<|endoftext|>", "<|end|>"]));
        assert_eq!(roles(&file(&["<s>"]), &[]), some(["</s>", "</s>", "<s>"]));
        let odd = ("special_tokens_map.json", json!({"eos_token": "a"}));
        assert_eq!(roles(&file(&[]), &[odd])[..2], some(["a", "a"]), "any token, if it is declared");
        let absent = ("special_tokens_map.json", json!({"eos_token": "nowhere"}));
        assert_eq!(roles(&file(&[]), &[absent])[..2], some(["</s>", "</s>"]));
        let none = json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
        assert_eq!(roles(&none, &[]), [None, None, None]);
        let unigram = json!({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["a", -1.5]]}});
        assert_eq!(roles(&unigram, &[ids(json!(2))])[..2], some(["a", "a"]));
        assert_eq!(roles(&unigram, &[])[..2], some(["</s>", "</s>"]));
    }

    #[test]
    fn documents_begin_with_a_token_only_if_the_settings_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&["<s>"]);
        let settings = |text: &str| {
            fs::write(folder.path().join("tokenizer_config.json"), text).unwrap();
            Roles::beside(folder.path(), &file)
        };
        assert!(!settings("{}").unwrap().add_bos);
        assert!(!settings(r#"{"add_bos_token": true, "bos_token": "nowhere"}"#).unwrap().add_bos);
        let found = settings(r#"{"add_bos_token": true, "bos_token": "<s>"}"#).unwrap();
        assert!(found.add_bos);
        let mut kept = file.clone();
        assert!(found.keep_in(&mut kept));
        assert_eq!(Roles::of(&kept), found);
        assert!(settings("[").unwrap_err().to_string().contains("tokenizer_config.json"));
    }

    #[test]
    fn tokenizers_that_differ_in_roles_alone_agree() {
        let plain = file(&["<x>", "<y>"]);
        let mut kept = plain.clone();
        assert!(Roles::ending_with(Some("<y>")).keep_in(&mut kept));
        let [plain, kept, other] = [plain, kept, file(&["<x>"])].map(|file| TokenizerRef::Json(file.to_string()));
        assert!(plain.agrees_with(&kept) && kept.agrees_with(&plain) && !plain.agrees_with(&other));
        assert!(plain.agrees_with(&TokenizerRef::Unknown) && !plain.agrees_with(&TokenizerRef::Gpt2));
    }

    #[test]
    fn another_end_of_documents_is_the_end_of_turns_unless_they_have_their_own() {
        let roles = Roles::ending_with(Some("</s>")).with_document_end("a");
        assert_eq!((roles.document_end.as_deref(), roles.turn_end.as_deref()), (Some("a"), Some("a")));
        let own = Roles { turn_end: Some("<|im_end|>".into()), ..Roles::ending_with(Some("</s>")) };
        assert_eq!(own.with_document_end("a").turn_end.as_deref(), Some("<|im_end|>"));
        assert_eq!(Roles::default().with_document_end("a").turn_end.as_deref(), Some("a"));
    }
}
