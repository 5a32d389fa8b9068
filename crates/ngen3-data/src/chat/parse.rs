//! Parses one conversation from a line of text or a JSON value. Errors are the reason alone.

use serde_json::{Map, Value};

use super::conversation::{Conversation, Message, Role};
use crate::hf::TURN_FIELDS;

/// Keys of an object's list of turns. The first two are OpenAI's and ShareGPT's; the others name lists of plain strings.
pub(super) const TURNS: [&str; 5] = ["messages", "conversations", "turns", "utterances", "dialog"];
/// Keys of tool calls in OpenAI's turns.
const CALLS: [&str; 2] = ["tool_calls", "function_call"];
/// End of an utterance in files such as DailyDialog's.
const END_OF_UTTERANCE: &str = "__eou__";

impl Conversation {
    /// Parses a line of text: turns are separated by tabs or by `__eou__` and alternate between the user and the assistant. A
    /// line without either is plain text.
    ///
    /// # Errors
    /// If the line or a turn is empty.
    pub fn from_line(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let turns: Vec<&str> = if line.contains(END_OF_UTTERANCE) {
            // The last turn ends with it too.
            line.strip_suffix(END_OF_UTTERANCE).unwrap_or(line).split(END_OF_UTTERANCE).collect()
        } else if line.contains('\t') {
            line.split('\t').collect()
        } else if line.is_empty() {
            return Err("expected a conversation, got an empty text".into());
        } else {
            return Ok(Self::Text(line.into()));
        };
        in_turn(turns.into_iter())
    }

    /// Parses a JSON value: an object with `messages` or `conversations`, a list of turns, or a string, which is parsed as a line
    /// of text. Turns are `{role, content}`, `{from, value}`, or strings, which alternate between the user and the assistant. A
    /// null field counts as missing, since a table has every column in every record.
    ///
    /// # Errors
    /// If there are no turns, or a turn has no role, an unknown role, no text, or tool calls.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Self::from_line(text),
            Value::Array(turns) => from_turns(turns, None),
            Value::Object(fields) => {
                if let Some(turns) = TURNS.iter().find_map(|name| present(fields, name)) {
                    let Value::Array(turns) = turns else {
                        return Err(format!("expected a list of turns, got {}", kind_of(turns)));
                    };
                    return from_turns(turns, fields.get("system").and_then(Value::as_str));
                }
                match fields.get("text") {
                    Some(Value::String(text)) => Self::from_line(text),
                    _ if TURNS.iter().any(|name| fields.contains_key(*name)) => {
                        Err("expected a list of turns, got null".into())
                    }
                    _ => {
                        let keys: Vec<_> = fields.keys().take(8).map(String::as_str).collect();
                        Err(format!(
                            "expected messages or conversations, got the keys: {}",
                            if keys.is_empty() { "none".into() } else { keys.join(", ") }
                        ))
                    }
                }
            }
            other => Err(format!("expected a conversation, got {}", kind_of(other))),
        }
    }

    /// Parses a cell of a table: a JSON list or object, or else a line of text.
    ///
    /// # Errors
    /// As [`Conversation::from_json`].
    pub fn from_cell(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text) {
            Ok(value @ (Value::Array(_) | Value::Object(_))) => Self::from_json(&value),
            _ => Self::from_line(text),
        }
    }

    /// Parses a line of JSON.
    ///
    /// # Errors
    /// As [`Conversation::from_json`]; if the line is not valid JSON.
    pub fn from_json_line(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line.trim_end()).map_err(|error| {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            format!("invalid JSON: {what} (column {})", error.column())
        })?;
        Self::from_json(&value)
    }
}

fn from_turns(turns: &[Value], system: Option<&str>) -> Result<Conversation, String> {
    if turns.iter().all(Value::is_string) {
        if system.is_some() {
            return Err("expected turns with roles after a system prompt, got strings".into());
        }
        return in_turn(turns.iter().filter_map(Value::as_str));
    }
    let mut messages = Vec::with_capacity(turns.len() + 1);
    if let Some(content) = system.filter(|system| !system.trim().is_empty()) {
        messages.push(Message { role: Role::System, content: content.into() });
    }
    for (turn, number) in turns.iter().zip(1..) {
        messages.push(message(turn).map_err(|reason| format!("turn {number}: {reason}"))?);
    }
    Ok(Conversation::Turns(messages))
}

/// Makes a conversation of plain turns: the user begins, the assistant answers. White space around them is dropped.
fn in_turn<'a>(turns: impl Iterator<Item = &'a str>) -> Result<Conversation, String> {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let mut messages = Vec::new();
    for ((turn, role), number) in turns.zip(roles).zip(1..) {
        let content = turn.trim().to_owned();
        if content.is_empty() {
            return Err(format!("turn {number}: the text is empty"));
        }
        messages.push(Message { role, content });
    }
    if messages.is_empty() {
        return Err("expected at least one turn, got none".into());
    }
    Ok(Conversation::Turns(messages))
}

/// Returns the value of a field, unless it is missing or null.
fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
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

/// Parses a turn.
fn message(turn: &Value) -> Result<Message, String> {
    let Value::Object(fields) = turn else { return Err(format!("expected {{role, content}}, got {}", kind_of(turn))) };
    let named = |(speaker, _): &(&str, &str)| present(fields, speaker).is_some();
    let (speaker, text_field) = TURN_FIELDS.into_iter().find(named).ok_or("missing role (or from)")?;
    let role = match &fields[speaker] {
        Value::String(name) => role_of(name).ok_or_else(|| {
            format!(
                "unknown {speaker} {:?}: expected system, user, assistant or tool (ShareGPT: human or gpt)",
                name.chars().take(40).collect::<String>()
            )
        })?,
        other => return Err(format!("expected a string as {speaker}, got {}", kind_of(other))),
    };
    if calls_tools(fields) {
        return Err("tool calls are not supported".into());
    }
    let content = content(fields, text_field)?;
    if content.trim().is_empty() {
        return Err("the text is empty".into());
    }
    Ok(Message { role, content })
}

/// Returns the text of a turn: a string, or a list of parts that are all text.
fn content(fields: &Map<String, Value>, text_field: &str) -> Result<String, String> {
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

fn role_of(name: &str) -> Option<Role> {
    match name.to_ascii_lowercase().as_str() {
        "system" => Some(Role::System),
        "user" | "human" => Some(Role::User),
        "assistant" | "gpt" => Some(Role::Assistant),
        "tool" => Some(Role::Tool),
        _ => None,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn turns(conversation: Conversation) -> Vec<(&'static str, String)> {
        match conversation {
            Conversation::Turns(messages) => {
                messages.into_iter().map(|message| (message.role.name(), message.content)).collect()
            }
            Conversation::Text(text) => panic!("{text:?} has turns"),
        }
    }

    #[track_caller]
    fn assert_turns(value: Value, expected: &[(&'static str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(role, content)| (*role, content.to_string())).collect();
        assert_eq!(turns(Conversation::from_json(&value).unwrap()), expected);
    }

    #[test]
    fn every_form_gives_turns() {
        let two = [("user", "Hi"), ("assistant", " Hello!\n")];
        assert_turns(
            json!({"id": 7, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello!\n"}]}),
            &two,
        );
        assert_turns(
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " Hello!\n"}]}),
            &two,
        );
        assert_turns(json!([{"role": "User", "content": "Hi"}, {"from": "gpt", "value": " Hello!\n"}]), &two);
        assert_turns(
            json!({"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"}]}),
            &[("system", "Be kind."), ("user", "Hi")],
        );
        // A null field counts as missing.
        assert_turns(
            json!({"messages": null, "system": null, "conversations": [
                {"role": null, "content": null, "from": "human", "value": "Hi", "tool_calls": null},
                {"from": "gpt", "value": " Hello!\n", "tool_calls": [], "function_call": {}},
            ]}),
            &two,
        );
        assert_turns(json!({"messages": null, "text": "Hi\t Hello!"}), &[("user", "Hi"), ("assistant", "Hello!")]);
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        assert_turns(json!({"messages": [{"role": "tool", "content": parts}]}), &[("tool", "ab")]);
        let plain = [("user", "Hi !"), ("assistant", "How are you ?"), ("user", "Fine .")];
        assert_turns(json!(["Hi !", " How are you ? ", "Fine ."]), &plain);
        assert_turns(json!({"utterances": ["Hi !", " How are you ? ", "Fine ."]}), &plain);
        assert_turns(json!("Hi ! __eou__ How are you ? __eou__ Fine . __eou__"), &plain);
        assert_turns(json!({"text": "Hi !\tHow are you ?\t Fine ."}), &plain);
        let whole = Conversation::Text("Hi ! How are you ?".into());
        assert_eq!(Conversation::from_line(" Hi ! How are you ? "), Ok(whole));
    }

    #[test]
    fn bad_ones_say_what_is_wrong() {
        let error = |value: Value| Conversation::from_json(&value).unwrap_err();
        for (value, reason) in [
            (json!({"messages": []}), "expected at least one turn, got none"),
            (json!([]), "expected at least one turn, got none"),
            (json!({"messages": "x"}), "expected a list of turns, got a string"),
            (json!({"prompt": "x", "answer": "y"}), "expected messages or conversations, got the keys: prompt, answer"),
            (json!({}), "expected messages or conversations, got the keys: none"),
            (json!({"messages": null}), "expected a list of turns, got null"),
            (json!(3), "expected a conversation, got a number"),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"content": "y"}]}),
                "turn 2: missing role (or from)",
            ),
            (json!({"messages": [{"role": null, "content": "x"}]}), "turn 1: missing role (or from)"),
            (json!({"messages": [{"role": 3, "content": "x"}]}), "turn 1: expected a string as role, got a number"),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [{}]}]}),
                "turn 2: tool calls are not supported",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "Wait.", "function_call": {"name": "f"}}]}),
                "turn 1: tool calls are not supported",
            ),
            (
                json!({"messages": [{"role": "critic", "content": "x"}]}),
                "turn 1: unknown role \"critic\": expected system, user, assistant or tool (ShareGPT: human or gpt)",
            ),
            (json!({"messages": [{"role": "user"}]}), "turn 1: missing content"),
            (json!({"messages": [{"role": "user", "content": null}]}), "turn 1: missing content"),
            (
                json!({"messages": [{"role": "user", "content": 3}]}),
                "turn 1: expected a string as content, got a number",
            ),
            (json!({"messages": [{"role": "user", "content": " \n"}]}), "turn 1: the text is empty"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}),
                "turn 1: expected only text in content, got another part",
            ),
            (json!(["a", null]), "turn 1: expected {role, content}, got a string"),
            (json!(["a", " "]), "turn 2: the text is empty"),
            (json!({"system": "x", "turns": ["a"]}), "expected turns with roles after a system prompt, got strings"),
            (json!("a\t\tb"), "turn 2: the text is empty"),
            (json!("__eou__"), "turn 1: the text is empty"),
            (json!(" "), "expected a conversation, got an empty text"),
        ] {
            assert_eq!(error(value.clone()), reason, "{value}");
        }
        let broken = Conversation::from_json_line("{\"messages\": [").unwrap_err();
        assert_eq!(broken, "invalid JSON: EOF while parsing a list (column 14)");
    }

    proptest! {
        #[test]
        fn turns_with_roles_come_back_as_they_were(text_field in prop::collection::vec(("(user|assistant|system|tool)", "[a\u{e9}\\n\"\\\\ ]{0,6}x"), 1..6)) {
            for (speaker, content) in TURN_FIELDS {
                let turns_: Vec<Value> = text_field.iter().map(|(role, text)| json!({speaker: role, content: text})).collect();
                let line = json!({"messages": turns_}).to_string();
                let found = turns(Conversation::from_json_line(&line).unwrap());
                let found: Vec<_> = found.into_iter().map(|(role, text)| (role.to_owned(), text)).collect();
                prop_assert_eq!(&found, &text_field);
            }
        }

        #[test]
        fn no_line_makes_it_panic(line in any::<String>(), json in "[\\[\\]{}\":,a-c0-9 ]{0,40}|\\{\"messages\":[\\[\\]{}\":,a-c0-9 ]{0,40}") {
            for line in [&line, &json] {
                for result in [Conversation::from_line(line), Conversation::from_json_line(line)] {
                    match result {
                        Ok(Conversation::Turns(messages)) => {
                            prop_assert!(!messages.is_empty());
                            prop_assert!(messages.iter().all(|message| !message.content.trim().is_empty()));
                        }
                        Ok(Conversation::Text(text)) => prop_assert!(!text.is_empty()),
                        Err(reason) => prop_assert!(!reason.is_empty() && !reason.contains('\n')),
                    }
                }
            }
        }
    }
}
