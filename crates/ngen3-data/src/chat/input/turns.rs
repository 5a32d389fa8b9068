//! Turns of a conversation from JSON: `{role, content}`, `{from, value}`, or strings.
//!
//! A turn keeps every key that a chat template may read. Marks that say whether it is learned are [`MARKS`].

use serde_json::{Map, Value, json};

use super::mapping::ChatMapping;
use crate::chat::conversation::{Message, Role};
use crate::chat::render::REASONING;
use crate::hf::TURN_FIELDS;

/// Keys of a turn that say whether it is learned: OpenAI's `weight`, and those of trainers.
const MARKS: [&str; 6] = ["weight", "loss", "train", "training", "train_on", "train_detail"];
/// Parts of a key that is probably a mark too.
const MARK_PARTS: [&str; 5] = ["train", "loss", "weight", "mask", "learn"];
/// Keys of tool calls in OpenAI's turns.
const CALLS: [&str; 2] = ["tool_calls", "function_call"];
/// Role of ShareGPT's turns that call a tool, with the call as JSON text.
const FUNCTION_CALL: &str = "function_call";

/// Parses a list of turns. `ignored` collects keys that look like marks but are unknown.
pub(super) fn from_turns(
    turns: &[Value],
    system: Option<&str>,
    mapping: &ChatMapping,
    ignored: &mut Vec<String>,
) -> Result<Vec<Message>, String> {
    let system = system.filter(|system| !system.trim().is_empty());
    if turns.iter().all(Value::is_string) {
        if system.is_some() {
            return Err("expected turns with roles after a system prompt, got strings".into());
        }
        return in_turn(turns.iter().filter_map(Value::as_str));
    }
    let mut messages = Vec::with_capacity(turns.len() + 1);
    for (turn, number) in turns.iter().zip(1..) {
        let message = message(turn, mapping, ignored).map_err(|reason| format!("turn {number}: {reason}"))?;
        messages.extend(message);
    }
    let has_system = messages.first().is_some_and(|message| message.role == Role::System);
    if let Some(system) = system.filter(|_| !has_system) {
        messages.insert(0, Message::new(Role::System, system));
    }
    if messages.is_empty() {
        return Err("expected at least one turn that is not an empty system prompt, got none".into());
    }
    Ok(messages)
}

/// Parses plain turns: the user begins, the assistant answers. White space around them is dropped.
pub(super) fn in_turn<'a>(turns: impl Iterator<Item = &'a str>) -> Result<Vec<Message>, String> {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let mut messages = Vec::new();
    for ((turn, role), number) in turns.zip(roles).zip(1..) {
        let content = turn.trim();
        if content.is_empty() {
            return Err(format!("turn {number}: the text is empty"));
        }
        messages.push(Message::new(role, content));
    }
    if messages.is_empty() {
        return Err("expected at least one turn, got none".into());
    }
    Ok(messages)
}

/// Returns the value of a field, unless it is missing or null.
pub(super) fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

/// True if a turn calls tools, which templates render from fields other than its text.
fn calls_tools(fields: &Map<String, Value>) -> bool {
    CALLS.iter().filter_map(|name| present(fields, name)).any(|calls| match calls {
        Value::Array(calls) => !calls.is_empty(),
        Value::Object(call) => !call.is_empty(),
        Value::String(call) => !call.is_empty(),
        _ => true,
    })
}

/// Parses a turn; `None` for an empty system prompt, which is no turn. A null field counts as missing, since a table has every
/// column in every record.
fn message(turn: &Value, mapping: &ChatMapping, ignored: &mut Vec<String>) -> Result<Option<Message>, String> {
    let Value::Object(fields) = turn else { return Err(format!("expected {{role, content}}, got {}", kind_of(turn))) };
    let named = |(speaker, _): &(&str, &str)| present(fields, speaker).is_some();
    let (speaker, text_field) = TURN_FIELDS.into_iter().find(named).ok_or("missing role (or from)")?;
    let name = match &fields[speaker] {
        Value::String(name) => name,
        other => return Err(format!("expected a string as {speaker}, got {}", kind_of(other))),
    };
    let role = mapping.role(name).ok_or_else(|| {
        format!(
            "unknown {speaker} {:?}: expected system, user, assistant, tool or another known name; say what it is with \
             --roles NAME=ROLE",
            name.chars().take(40).collect::<String>()
        )
    })?;
    let mut message = Message { role, content: None, fields: Map::new(), train: None };
    for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match key.as_str() {
            // Both forms of a turn in one: the other's keys are no template's.
            "role" | "content" | "from" | "value" => {}
            key if MARKS.contains(&key) => match mark(key, value)? {
                Some(train) => message.train = Some(train && message.train.unwrap_or(true)),
                None => ignored.push(key.to_owned()),
            },
            key => {
                if !value.is_string() && !value.is_object() && MARK_PARTS.iter().any(|part| key.contains(part)) {
                    ignored.push(key.to_owned());
                }
                message.fields.insert(key.to_owned(), value.clone());
            }
        }
    }
    let called = calls_tools(&message.fields);
    if !called {
        // Empty in every turn of a table in which some turn has calls; templates test for the key alone.
        CALLS.iter().for_each(|name| drop(message.fields.shift_remove(*name)));
    }
    match content(fields, text_field) {
        Ok(text) => message.content = Some(text),
        Err(_) if called && present(fields, text_field).is_none() => {}
        Err(reason) => return Err(reason),
    }
    if name.eq_ignore_ascii_case(FUNCTION_CALL)
        && let Some(call) = message.content.as_deref().and_then(tool_calls)
    {
        message.fields.insert(CALLS[0].into(), call);
        message.content = None;
    }
    let is_blank = message.content.as_ref().is_some_and(|text| text.trim().is_empty());
    if is_blank && role == Role::System {
        return Ok(None);
    }
    if is_blank && !called && REASONING.iter().all(|name| present(fields, name).is_none()) {
        return Err("the text is empty".into());
    }
    Ok(Some(message))
}

/// Reads a mark: true or 1 to learn the turn, false or 0 not to; `None` if it is something else, such as a list of parts.
fn mark(key: &str, value: &Value) -> Result<Option<bool>, String> {
    match value {
        Value::Bool(train) => Ok(Some(*train)),
        Value::Number(weight) => match weight.as_f64() {
            Some(0.0) => Ok(Some(false)),
            Some(1.0) => Ok(Some(true)),
            _ => Err(format!("expected {key} to be 0 or 1, got {weight}")),
        },
        _ => Ok(None),
    }
}

/// Returns the calls in a text such as `{"name": …, "arguments": …}`, as `tool_calls` has them; `None` if it is no call.
fn tool_calls(text: &str) -> Option<Value> {
    let call = |call: &Value| call.get("name").map(|_| json!({"type": "function", "function": call}));
    match serde_json::from_str(text).ok()? {
        Value::Array(calls) => calls.iter().map(call).collect::<Option<Vec<_>>>().map(Value::Array),
        one => Some(Value::Array(vec![call(&one)?])),
    }
}

/// Returns the text of a turn: a string, or a list of parts that are all text.
pub(super) fn content(fields: &Map<String, Value>, text_field: &str) -> Result<String, String> {
    match fields.get(text_field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(|part| match (&part["type"], &part["text"]) {
                (Value::String(kind), Value::String(text)) if kind == "text" => Ok(text.as_str()),
                _ => Err(format!("expected only text in {text_field}, got another part")),
            })
            .collect(),
        None | Some(Value::Null) => Err(format!("missing {text_field}")),
        Some(other) => Err(format!("expected a string as {text_field}, got {}", kind_of(other))),
    }
}

/// Names the type of a value for messages.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
