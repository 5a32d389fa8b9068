//! Conversations as `transformers` renders them: see `fixtures/make_templates.py`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::conversation::{Conversation, Message};
use super::input::{ChatMapping, ChatParser};

/// A conversation and its expected rendering.
pub(super) struct Case {
    pub name: String,
    pub messages: Vec<Message>,
    /// Other values that the template reads.
    pub context: Map<String, Value>,
    pub text: String,
    pub asking: String,
    pub ids: Vec<u32>,
    /// 1 for each token that the template marks as the assistant's, if it marks any.
    pub assistant: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct File {
    templates: BTreeMap<String, String>,
    cases: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    messages: Value,
    #[serde(default)]
    context: Map<String, Value>,
    text: String,
    asking: String,
    ids: Vec<u32>,
    assistant: Option<Vec<u8>>,
}

fn file() -> File {
    serde_json::from_str(include_str!("fixtures/templates.json")).unwrap()
}

/// The templates by name.
pub(super) fn templates() -> BTreeMap<String, String> {
    file().templates
}

pub(super) fn cases() -> impl Iterator<Item = Case> {
    file().cases.into_iter().map(|Entry { name, messages, context, text, asking, ids, assistant }| {
        let names = context.keys().cloned().collect();
        let mut record = context;
        record.insert("messages".into(), messages);
        let parsed = ChatParser::new(ChatMapping::default(), names).json(&Value::Object(record)).unwrap();
        let Conversation::Turns { messages, context } = parsed.conversation else { panic!("{name}: expected turns") };
        Case { name, messages, context, text, asking, ids, assistant }
    })
}
