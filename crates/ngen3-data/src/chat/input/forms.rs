//! Records of instruction data: columns such as `instruction`, `input` and `output` instead of a list of turns.
//!
//! Which columns those of a known form are is [`USER`] to [`ASSISTANT`]; the user may name others with `--columns`. The result
//! says in one line how the record was read, for a note.

use serde_json::{Map, Value};

use super::mapping::ChatMapping;
use super::turns::{content, from_turns, present};
use crate::chat::conversation::{Conversation, Message, Role};

/// Columns of the system prompt.
pub(super) const SYSTEM: [&str; 2] = ["system", "system_prompt"];
/// Columns of the user's turn, best first.
const USER: [&str; 6] = ["instruction", "question", "prompt", "query", "problem", "input"];
/// Columns that go on with the user's turn: Alpaca's and Dolly's.
const MORE: [&str; 2] = ["input", "context"];
/// Columns of the assistant's turn, best first.
const ASSISTANT: [&str; 7] = ["output", "response", "answer", "completion", "solution", "chosen", "target"];

/// A record as a conversation, and how it was read.
pub(super) type FormResult = Result<(Conversation, String), String>;

/// Parses the columns that the user named; those that are empty are no turns.
pub(super) fn from_columns(fields: &Map<String, Value>, mapping: &ChatMapping) -> Result<Conversation, String> {
    let columns = mapping.columns();
    if columns.iter().all(|(name, _)| !fields.contains_key(name)) {
        let names: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
        return Err(format!("expected the columns {}, got {}", names.join(", "), keys(fields)));
    }
    let mut messages = Vec::new();
    for (name, role) in columns {
        push(&mut messages, fields, name, *role)?;
    }
    match messages.is_empty() {
        true => Err("every column of --columns is empty".into()),
        false => Ok(Conversation::turns(messages)),
    }
}

/// Parses a record of a known form; `None` if it has none.
pub(super) fn from_form(
    fields: &Map<String, Value>,
    mapping: &ChatMapping,
    ignored: &mut Vec<String>,
) -> Option<FormResult> {
    let first = |names: &[&'static str]| names.iter().copied().find(|name| present(fields, name).is_some());
    let answer = first(&ASSISTANT)?;
    let user = first(&USER);
    let lists = [user, Some(answer)].map(|name| name.and_then(|name| fields[name].as_array()));
    if let [prompt, Some(turns)] = lists {
        let form = match user.filter(|_| prompt.is_some()) {
            Some(user) => format!("{user} and {answer}, lists of turns; only {answer} is learned"),
            None => format!("{answer}, a list of turns"),
        };
        return Some(from_lists(prompt, turns, mapping, ignored).map(|messages| (Conversation::turns(messages), form)));
    }
    let user = user?;
    if (user, answer) == ("prompt", "completion") {
        return Some(prompt_and_completion(fields));
    }
    let more = MORE.into_iter().find(|&name| name != user && present(fields, name).is_some());
    let more = more.filter(|_| ["instruction", "question"].contains(&user));
    let columns =
        [(first(&SYSTEM), Role::System), (Some(user), Role::User), (more, Role::User), (Some(answer), Role::Assistant)];
    let mut messages = Vec::new();
    for (name, role) in columns {
        if let Some(name) = name
            && let Err(reason) = push(&mut messages, fields, name, role)
        {
            return Some(Err(reason));
        }
    }
    let named = columns.iter().filter_map(|(name, role)| Some(format!("{}={}", (*name)?, role.name())));
    let form = named.collect::<Vec<_>>().join(",");
    let has = |role| messages.iter().any(|message: &Message| message.role == role);
    Some(match has(Role::User) && has(Role::Assistant) {
        true => Ok((Conversation::turns(messages), form)),
        false => Err(format!("expected text in {user} and {answer}, got an empty one")),
    })
}

/// Parses the turns of `{"conversation": [{system, input, output}]}`.
pub(super) fn from_exchanges(turns: &[Value]) -> Option<FormResult> {
    let first = turns.first()?.as_object()?;
    let is_exchange = ["input", "output"].iter().any(|name| first.contains_key(*name));
    if !is_exchange || first.contains_key("role") || first.contains_key("from") {
        return None;
    }
    let mut messages = Vec::new();
    for (turn, number) in turns.iter().zip(1..) {
        let Value::Object(fields) = turn else {
            return Some(Err(format!("turn {number}: expected {{input, output}}")));
        };
        for (name, role) in [("system", Role::System), ("input", Role::User), ("output", Role::Assistant)] {
            if let Err(reason) = push(&mut messages, fields, name, role) {
                return Some(Err(format!("turn {number}: {reason}")));
            }
        }
    }
    match messages.is_empty() {
        true => Some(Err("every turn is empty".into())),
        false => Some(Ok((Conversation::turns(messages), "system=system,input=user,output=assistant".into()))),
    }
}

/// Makes a conversation of lists of turns. Of a prompt's turns none is learned unless it says so itself.
fn from_lists(
    prompt: Option<&Vec<Value>>,
    turns: &[Value],
    mapping: &ChatMapping,
    ignored: &mut Vec<String>,
) -> Result<Vec<Message>, String> {
    let mut messages = Vec::new();
    if let Some(prompt) = prompt {
        messages = from_turns(prompt, None, mapping, ignored)?;
        messages.iter_mut().for_each(|message| message.train = message.train.or(Some(false)));
    }
    messages.extend(from_turns(turns, None, mapping, ignored)?);
    Ok(messages)
}

/// Makes a text of `{prompt, completion}`, as OpenAI's first fine-tuning format and TRL have it: one after the other.
fn prompt_and_completion(fields: &Map<String, Value>) -> FormResult {
    let (prompt, text) = (content(fields, "prompt")?, content(fields, "completion")?);
    match text.is_empty() {
        true => Err("the completion is empty".into()),
        false => Ok((
            Conversation::Text { prompt, text },
            "prompt and completion, one text without the chat template; only the completion is learned (for turns: \
             --columns prompt=user,completion=assistant)"
                .into(),
        )),
    }
}

/// Adds the text of a column as a turn, or to the last turn if that has the same role. An empty one is no turn.
fn push(messages: &mut Vec<Message>, fields: &Map<String, Value>, name: &str, role: Role) -> Result<(), String> {
    if present(fields, name).is_none() {
        return Ok(());
    }
    let text = content(fields, name)?;
    if text.trim().is_empty() {
        return Ok(());
    }
    match messages.last_mut() {
        Some(Message { role: last, content: Some(before), .. }) if *last == role => {
            before.push('\n');
            before.push_str(&text);
        }
        _ => messages.push(Message::new(role, text)),
    }
    Ok(())
}

/// Names the keys of a record for messages.
pub(super) fn keys(fields: &Map<String, Value>) -> String {
    let keys: Vec<_> = fields.keys().take(8).map(String::as_str).collect();
    match keys.is_empty() {
        true => "no keys".into(),
        false => format!("the keys {}", keys.join(", ")),
    }
}

/// Returns the columns of all known forms.
pub(super) fn columns() -> impl Iterator<Item = &'static str> {
    SYSTEM.into_iter().chain(USER).chain(MORE).chain(ASSISTANT)
}
