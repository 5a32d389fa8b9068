//! One conversation from a line of text or a JSON value. Errors are the reason alone.

use serde_json::{Map, Value};

use super::conversation::{Conversation, Message, Role};
use crate::hf::TURN_FIELDS;

/// What turns are called in an object. The first two are OpenAI's and ShareGPT's; the others are names of plain lists.
pub(super) const TURNS: [&str; 5] = ["messages", "conversations", "turns", "utterances", "dialog"];
/// Where OpenAI's turns say which tools the assistant calls.
const CALLS: [&str; 2] = ["tool_calls", "function_call"];
/// Ends an utterance in files such as DailyDialog's.
const END_OF_UTTERANCE: &str = "__eou__";

impl Conversation {
    /// Reads a line of text: turns are separated by tabs or by `__eou__`, the user's and the assistant's in turn. A line
    /// without either is a text that is learned whole.
    ///
    /// # Errors
    /// When a turn is empty.
    pub fn from_line(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let turns: Vec<&str> = if line.contains(END_OF_UTTERANCE) {
            // The last one ends with it too.
            line.strip_suffix(END_OF_UTTERANCE).unwrap_or(line).split(END_OF_UTTERANCE).collect()
        } else if line.contains('\t') {
            line.split('\t').collect()
        } else if line.is_empty() {
            return Err("it is empty".into());
        } else {
            return Ok(Self::Text(line.into()));
        };
        in_turn(turns.into_iter())
    }

    /// Reads a JSON value: an object of `messages` or `conversations`, a bare list of turns, or a string, which is as a line
    /// of text. Turns are `{role, content}`, `{from, value}`, or strings: the user's and the assistant's in turn. What is null
    /// is not there: a table has every column in every row.
    ///
    /// # Errors
    /// When there are no turns, or one has no role, an unknown one, or no text, or calls tools.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Self::from_line(text),
            Value::Array(turns) => from_turns(turns, None),
            Value::Object(fields) => {
                if let Some(turns) = TURNS.iter().find_map(|name| present(fields, name)) {
                    let Value::Array(turns) = turns else {
                        return Err(format!("its turns are {}, not a list", kind_of(turns)));
                    };
                    return from_turns(turns, fields.get("system").and_then(Value::as_str));
                }
                match fields.get("text") {
                    Some(Value::String(text)) => Self::from_line(text),
                    _ if TURNS.iter().any(|name| fields.contains_key(*name)) => Err("its turns are null".into()),
                    _ => {
                        let keys: Vec<_> = fields.keys().take(8).map(String::as_str).collect();
                        Err(format!(
                            "it has neither messages nor conversations (its keys are: {})",
                            if keys.is_empty() { "none".into() } else { keys.join(", ") }
                        ))
                    }
                }
            }
            other => Err(format!("it is {}, not a conversation", kind_of(other))),
        }
    }

    /// Reads what stands in a cell of a table: JSON if it is a conversation's, else a line of text.
    ///
    /// # Errors
    /// As [`Conversation::from_json`].
    pub fn from_cell(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text) {
            Ok(value @ (Value::Array(_) | Value::Object(_))) => Self::from_json(&value),
            _ => Self::from_line(text),
        }
    }

    /// Reads a line of JSON.
    ///
    /// # Errors
    /// As [`Conversation::from_json`]; when it is no JSON.
    pub fn from_json_line(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line.trim_end()).map_err(|error| {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            format!("it is not JSON: {what} (column {})", error.column())
        })?;
        Self::from_json(&value)
    }
}

fn from_turns(turns: &[Value], system: Option<&str>) -> Result<Conversation, String> {
    if turns.iter().all(Value::is_string) {
        if system.is_some() {
            return Err("it has a system prompt, but its turns have no roles".into());
        }
        return in_turn(turns.iter().filter_map(Value::as_str));
    }
    let mut messages = Vec::with_capacity(turns.len() + 1);
    if let Some(content) = system.filter(|system| !system.trim().is_empty()) {
        messages.push(Message { role: Role::System, content: content.into() });
    }
    for (turn, number) in turns.iter().zip(1..) {
        messages.push(message(turn).map_err(|reason| format!("turn {number} {reason}"))?);
    }
    Ok(Conversation::Turns(messages))
}

/// Plain turns: the user begins, the assistant answers. White space around them is of the file, not of the turn.
fn in_turn<'a>(turns: impl Iterator<Item = &'a str>) -> Result<Conversation, String> {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let mut messages = Vec::new();
    for ((turn, role), number) in turns.zip(roles).zip(1..) {
        let content = turn.trim().to_owned();
        if content.is_empty() {
            return Err(format!("turn {number} is empty"));
        }
        messages.push(Message { role, content });
    }
    if messages.is_empty() {
        return Err("it has no turns".into());
    }
    Ok(Conversation::Turns(messages))
}

/// What stands in a field, if anything does.
fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

/// True if a turn calls tools, which templates write from what is not in its text.
fn calls_tools(fields: &Map<String, Value>) -> bool {
    CALLS.iter().filter_map(|name| present(fields, name)).any(|calls| match calls {
        Value::Array(calls) => !calls.is_empty(),
        Value::Object(call) => !call.is_empty(),
        Value::String(call) => !call.is_empty(),
        _ => true,
    })
}

/// A turn that is an object. The reason continues `turn 3 …`.
fn message(turn: &Value) -> Result<Message, String> {
    let Value::Object(fields) = turn else { return Err(format!("is {}, not a {{role, content}}", kind_of(turn))) };
    let named = |(speaker, _): &(&str, &str)| present(fields, speaker).is_some();
    let (speaker, text_field) = TURN_FIELDS.into_iter().find(named).ok_or("has no role (nor from)")?;
    let role = match &fields[speaker] {
        Value::String(name) => role_of(name).ok_or_else(|| {
            format!(
                "has the {speaker} {:?}; known are system, user, assistant and tool, and ShareGPT's human and gpt",
                name.chars().take(40).collect::<String>()
            )
        })?,
        other => return Err(format!("has {} for a {speaker}", kind_of(other))),
    };
    if calls_tools(fields) {
        return Err("calls tools, which are not rendered".into());
    }
    let content = content(fields, text_field)?;
    if content.trim().is_empty() {
        return Err("is empty".into());
    }
    Ok(Message { role, content })
}

/// The words that are said: a string, or a list of parts that are all text.
fn content(fields: &Map<String, Value>, text_field: &str) -> Result<String, String> {
    match fields.get(text_field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(|part| match (&part["type"], &part["text"]) {
                (Value::String(kind), Value::String(text)) if kind == "text" => Ok(text.as_str()),
                _ => Err(format!("has a part in its {text_field} that is no text")),
            })
            .collect(),
        None | Some(Value::Null) => Err(format!("has no {text_field}")),
        Some(other) => Err(format!("has {} for its {text_field}", kind_of(other))),
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
        // What is null is not there.
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
            (json!({"messages": []}), "it has no turns"),
            (json!([]), "it has no turns"),
            (json!({"messages": "x"}), "its turns are a string, not a list"),
            (
                json!({"prompt": "x", "answer": "y"}),
                "it has neither messages nor conversations (its keys are: prompt, answer)",
            ),
            (json!({}), "it has neither messages nor conversations (its keys are: none)"),
            (json!({"messages": null}), "its turns are null"),
            (json!(3), "it is a number, not a conversation"),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"content": "y"}]}),
                "turn 2 has no role (nor from)",
            ),
            (json!({"messages": [{"role": null, "content": "x"}]}), "turn 1 has no role (nor from)"),
            (json!({"messages": [{"role": 3, "content": "x"}]}), "turn 1 has a number for a role"),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [{}]}]}),
                "turn 2 calls tools, which are not rendered",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "Wait.", "function_call": {"name": "f"}}]}),
                "turn 1 calls tools, which are not rendered",
            ),
            (
                json!({"messages": [{"role": "critic", "content": "x"}]}),
                "turn 1 has the role \"critic\"; known are system, user, assistant and tool, and ShareGPT's human and gpt",
            ),
            (json!({"messages": [{"role": "user"}]}), "turn 1 has no content"),
            (json!({"messages": [{"role": "user", "content": null}]}), "turn 1 has no content"),
            (json!({"messages": [{"role": "user", "content": 3}]}), "turn 1 has a number for its content"),
            (json!({"messages": [{"role": "user", "content": " \n"}]}), "turn 1 is empty"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}),
                "turn 1 has a part in its content that is no text",
            ),
            (json!(["a", null]), "turn 1 is a string, not a {role, content}"),
            (json!(["a", " "]), "turn 2 is empty"),
            (json!({"system": "x", "turns": ["a"]}), "it has a system prompt, but its turns have no roles"),
            (json!("a\t\tb"), "turn 2 is empty"),
            (json!("__eou__"), "turn 1 is empty"),
            (json!(" "), "it is empty"),
        ] {
            assert_eq!(error(value.clone()), reason, "{value}");
        }
        let broken = Conversation::from_json_line("{\"messages\": [").unwrap_err();
        assert_eq!(broken, "it is not JSON: EOF while parsing a list (column 14)");
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
