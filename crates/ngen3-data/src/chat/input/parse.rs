//! Parses one conversation from a line of text or a JSON value. Errors are the reason alone.
//!
//! [`ChatParser`] recognises the form: lists of turns are parsed by `turns.rs`, instruction data by `forms.rs`.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::forms::{self, keys};
use super::mapping::ChatMapping;
use super::turns::{from_turns, in_turn, kind_of, present};
use crate::chat::conversation::Conversation;
use crate::json_scan::with_null_for_nan;

/// Keys of an object's list of turns. The first two are OpenAI's and ShareGPT's; others name lists of plain strings.
pub(super) const TURNS: [&str; 9] =
    ["messages", "conversations", "conversation", "turns", "utterances", "dialog", "dialogue", "chat", "data"];
/// End of an utterance in files such as DailyDialog's.
const END_OF_UTTERANCE: &str = "__eou__";
/// Key of more values for the template.
const TEMPLATE_KWARGS: &str = "chat_template_kwargs";

/// A conversation as it was parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedChat {
    /// The conversation.
    pub conversation: Conversation,
    /// How its record was read, unless it is a list of turns or a line of text.
    pub form: Option<String>,
    /// Keys of turns that look like marks of what is learned, but are unknown.
    pub ignored: Vec<String>,
}

/// Parses conversations.
#[derive(Clone, Debug, Default)]
pub struct ChatParser {
    mapping: ChatMapping,
    /// Names that the chat template reads, apart from the messages.
    context: Vec<String>,
}

impl ChatParser {
    /// Makes a parser; `context` names what the chat template reads apart from the messages.
    pub fn new(mapping: ChatMapping, context: Vec<String>) -> Self {
        Self { mapping, context }
    }

    /// Returns the columns of a table that may be parts of a conversation.
    pub(in crate::chat) fn columns(&self) -> Vec<String> {
        let mut columns: Vec<String> = match self.mapping.columns() {
            [] => TURNS.into_iter().chain(forms::columns()).chain(["text"]).map(str::to_owned).collect(),
            columns => columns.iter().map(|(name, _)| name.clone()).collect(),
        };
        columns.extend(self.context_columns());
        columns
    }

    /// Returns the columns of a table that the chat template may read.
    pub(in crate::chat) fn context_columns(&self) -> Vec<String> {
        let known = forms::SYSTEM.into_iter().chain([TEMPLATE_KWARGS]).map(str::to_owned);
        self.context.iter().cloned().chain(known).collect()
    }

    /// Parses a value in a column of a table: a list or object, also as JSON text, or else a line of text. The template may read
    /// the other columns. `None` if the cell is empty.
    pub(in crate::chat) fn cell(
        &self,
        value: &Value,
        columns: &Map<String, Value>,
    ) -> Option<Result<ParsedChat, String>> {
        let parsed;
        let value = match value {
            Value::Null => return None,
            Value::String(text) if text.is_empty() => return None,
            Value::String(text) if text.trim_start().starts_with(['[', '{']) => {
                parsed = serde_json::from_str(text).unwrap_or_else(|_| value.clone());
                &parsed
            }
            value => value,
        };
        let mut ignored = Vec::new();
        let found = match value {
            Value::Array(turns) => self.list(turns, system_of(columns), &mut ignored),
            value => return Some(self.json(value)),
        };
        Some(found.map(|(conversation, form)| ParsedChat {
            conversation: self.with_context(conversation, columns),
            form,
            ignored,
        }))
    }

    /// Parses a record of a table by its columns; `None` if they are all empty.
    pub(in crate::chat) fn row(&self, columns: Map<String, Value>) -> Option<Result<ParsedChat, String>> {
        let is_empty = |value: &Value| value.is_null() || value.as_str().is_some_and(str::is_empty);
        (!columns.values().all(is_empty)).then(|| self.json(&Value::Object(columns)))
    }

    /// Parses a line of text: turns are separated by tabs or by `__eou__` and alternate between the user and the assistant. A
    /// line without either is plain text.
    ///
    /// # Errors
    /// If the line or a turn is empty.
    pub fn line(&self, line: &str) -> Result<ParsedChat, String> {
        Ok(ParsedChat { conversation: from_line(line)?, form: None, ignored: Vec::new() })
    }

    /// Parses a JSON value: a record with a list of turns or of a known form, a list of turns, or a string, which is parsed as a
    /// line of text. Turns are `{role, content}`, `{from, value}`, or strings, which alternate between the user and the assistant.
    /// A null field counts as missing, since a table has every column in every record.
    ///
    /// # Errors
    /// If there are no turns, or a turn has no role, an unknown role, or no text.
    pub fn json(&self, value: &Value) -> Result<ParsedChat, String> {
        let mut ignored = Vec::new();
        let (conversation, form) = match value {
            Value::String(text) => (from_line(text)?, None),
            Value::Array(turns) => self.list(turns, None, &mut ignored)?,
            Value::Object(fields) => self.record(fields, &mut ignored)?,
            other => return Err(format!("expected a conversation, got {}", kind_of(other))),
        };
        Ok(ParsedChat { conversation, form, ignored })
    }

    /// Parses a line of JSON. NaN and infinities, which Python writes, count as null.
    ///
    /// # Errors
    /// As [`ChatParser::json`]; if the line is not valid JSON.
    pub fn json_line(&self, line: &str) -> Result<ParsedChat, String> {
        let line = line.trim_end();
        let value = serde_json::from_str(line).or_else(|error| match with_null_for_nan(line.as_bytes()) {
            Some(line) => serde_json::from_slice(&line).map_err(|_| error),
            None => Err(error),
        });
        let value: Value = value.map_err(|error| {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            format!("invalid JSON: {what} (column {})", error.column())
        })?;
        self.json(&value)
    }

    fn record(&self, fields: &Map<String, Value>, ignored: &mut Vec<String>) -> FoundChat {
        if !self.mapping.columns().is_empty() {
            let found = forms::from_columns(fields, &self.mapping)?;
            return Ok((self.with_context(found, fields), None));
        }
        if let Some(turns) = TURNS.iter().find_map(|name| list_of(present(fields, name)?)) {
            let turns = turns.map_err(|reason| format!("expected a list of turns, got {reason}"))?;
            let (conversation, form) = self.list(&turns, system_of(fields), ignored)?;
            return Ok((self.with_context(conversation, fields), form));
        }
        if let Some(found) = forms::from_form(fields, &self.mapping, ignored) {
            let (conversation, form) = found?;
            return Ok((self.with_context(conversation, fields), Some(form)));
        }
        match fields.get("text") {
            Some(Value::String(text)) => Ok((from_line(text)?, None)),
            _ if TURNS[..2].iter().any(|name| fields.contains_key(*name)) => {
                let got = TURNS[..2].iter().find_map(|name| present(fields, name));
                Err(format!("expected a list of turns, got {}", got.map_or("null", kind_of)))
            }
            _ => Err(format!(
                "expected messages, conversations or instruction data, got {}; name its columns with --columns \
                 COLUMN=ROLE",
                keys(fields)
            )),
        }
    }

    fn list(&self, turns: &[Value], system: Option<&str>, ignored: &mut Vec<String>) -> FoundChat {
        if let Some(found) = forms::from_exchanges(turns) {
            return found.map(|(conversation, form)| (conversation, Some(form)));
        }
        let messages = from_turns(turns, system, &self.mapping, ignored)?;
        Ok((Conversation::turns(messages), None))
    }

    /// Adds what the template reads of a record. A string that holds a JSON list or object is parsed: tables without nested
    /// columns have `tools` so.
    fn with_context(&self, conversation: Conversation, fields: &Map<String, Value>) -> Conversation {
        let Conversation::Turns { messages, mut context } = conversation else { return conversation };
        let more = present(fields, TEMPLATE_KWARGS).and_then(Value::as_object);
        let wanted = fields.iter().filter(|(name, _)| self.context.contains(name));
        for (name, value) in wanted.chain(more.into_iter().flatten()).filter(|(_, value)| !value.is_null()) {
            let parsed = value.as_str().filter(|text| text.trim_start().starts_with(['[', '{']));
            let parsed = parsed.and_then(|text| serde_json::from_str(text).ok());
            context.insert(name.clone(), parsed.unwrap_or_else(|| value.clone()));
        }
        Conversation::Turns { messages, context }
    }
}

/// Returns the system prompt that a record has beside its turns.
fn system_of(fields: &Map<String, Value>) -> Option<&str> {
    forms::SYSTEM.iter().find_map(|name| fields.get(*name).and_then(Value::as_str))
}

/// Returns a value as a list. It may be a string that holds one: tables without nested columns have lists so. `None` for other
/// values, an error for a string that begins like a list but is none.
fn list_of(value: &Value) -> Option<Result<Cow<'_, [Value]>, String>> {
    match value {
        Value::Array(items) => Some(Ok(Cow::Borrowed(items))),
        Value::String(text) if text.trim_start().starts_with('[') => Some(match serde_json::from_str(text) {
            Ok(items) => Ok(Cow::Owned(items)),
            Err(_) => Err("a string that is not a JSON list".into()),
        }),
        _ => None,
    }
}

/// A conversation and how its record was read.
type FoundChat = Result<(Conversation, Option<String>), String>;

fn from_line(line: &str) -> Result<Conversation, String> {
    let line = line.trim();
    let turns: Vec<&str> = if line.contains(END_OF_UTTERANCE) {
        // The last turn ends with it too.
        line.strip_suffix(END_OF_UTTERANCE).unwrap_or(line).split(END_OF_UTTERANCE).collect()
    } else if line.contains('\t') {
        line.split('\t').collect()
    } else if line.is_empty() {
        return Err("expected a conversation, got an empty text".into());
    } else {
        return Ok(Conversation::text(line));
    };
    in_turn(turns.into_iter()).map(Conversation::turns)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::chat::Message;
    use crate::hf::TURN_FIELDS;

    fn parse(value: &Value) -> Result<ParsedChat, String> {
        ChatParser::default().json(value)
    }

    fn turns(conversation: Conversation) -> Vec<(&'static str, String)> {
        match conversation {
            Conversation::Turns { messages, .. } => {
                messages.into_iter().map(|message| (message.role.name(), message.content.unwrap_or_default())).collect()
            }
            Conversation::Text { text, .. } => panic!("{text:?} has turns"),
        }
    }

    #[track_caller]
    fn assert_turns(value: Value, expected: &[(&'static str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(role, content)| (*role, content.to_string())).collect();
        assert_eq!(turns(parse(&value).unwrap().conversation), expected, "{value}");
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
        let whole = ChatParser::default().line(" Hi ! How are you ? ").unwrap();
        assert_eq!((whole.conversation, whole.form), (Conversation::text("Hi ! How are you ?"), None));
    }

    #[test]
    fn instruction_data_is_read_as_it_is() {
        let question = [("user", "Add."), ("assistant", "3")];
        for (value, expected, form) in [
            (
                json!({"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below is …"}),
                &[("user", "Add.\n1 2"), ("assistant", "3")][..],
                "instruction=user,input=user,output=assistant",
            ),
            (
                json!({"instruction": "Add.", "input": "", "output": "3"}),
                &question,
                "instruction=user,input=user,output=assistant",
            ),
            (
                json!({"instruction": "Add.", "context": null, "response": "3"}),
                &question,
                "instruction=user,response=assistant",
            ),
            (json!({"prompt": "Add.", "response": "3"}), &question, "prompt=user,response=assistant"),
            (json!({"question": "Add.", "answer": "3", "level": 1}), &question, "question=user,answer=assistant"),
            (
                json!({"system_prompt": "Be kind.", "question": "Add.", "response": "3"}),
                &[("system", "Be kind."), ("user", "Add."), ("assistant", "3")],
                "system_prompt=system,question=user,response=assistant",
            ),
            (json!({"input": "Add.", "output": "3"}), &question, "input=user,output=assistant"),
            (
                json!({"conversation": [{"system": "Be kind.", "input": "Add.", "output": "3"}, {"input": "More.", "output": "4"}]}),
                &[("system", "Be kind."), ("user", "Add."), ("assistant", "3"), ("user", "More."), ("assistant", "4")],
                "system=system,input=user,output=assistant",
            ),
            (
                json!({"chosen": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}], "rejected": []}),
                &question,
                "chosen, a list of turns",
            ),
            (
                json!({"prompt": [{"role": "user", "content": "Add."}], "completion": [{"role": "assistant", "content": "3"}]}),
                &question,
                "prompt and completion, lists of turns; only completion is learned",
            ),
            (json!({"prompt": "Add.", "chosen": "3", "rejected": "4"}), &question, "prompt=user,chosen=assistant"),
        ] {
            let parsed = parse(&value).unwrap();
            assert_eq!(parsed.form.as_deref(), Some(form), "{value}");
            let expected: Vec<_> = expected.iter().map(|(role, content)| (*role, content.to_string())).collect();
            assert_eq!(turns(parsed.conversation), expected, "{value}");
        }
        let parsed = parse(&json!({"prompt": "Once", "completion": " upon a time"})).unwrap();
        assert_eq!(parsed.conversation, Conversation::Text { prompt: "Once".into(), text: " upon a time".into() });
        // Lists within strings, and lists of strings under other names.
        assert_turns(
            json!({"messages": "[{\"role\": \"user\", \"content\": \"Add.\"}, {\"from\": \"gpt\", \"value\": \"3\"}]"}),
            &question,
        );
        assert_turns(json!({"id": "1", "data": ["Add.", "3"]}), &question);
        // The user's own columns.
        let mapping = ChatMapping::new(&[], &["q=user", "hint=user", "a=assistant"].map(str::to_owned)).unwrap();
        let parser = ChatParser::new(mapping, Vec::new());
        let parsed = parser.json(&json!({"q": "Add.", "hint": "1 2", "a": "3", "messages": []})).unwrap();
        assert_eq!(turns(parsed.conversation), [("user", "Add.\n1 2".into()), ("assistant", "3".into())]);
        assert_eq!(turns(parser.json(&json!({"q": "Add.", "hint": null, "a": "3"})).unwrap().conversation).len(), 2);
        let error = parser.json(&json!({"question": "x"})).unwrap_err();
        assert_eq!(error, "expected the columns q, hint, a, got the keys question");
    }

    #[test]
    fn marks_and_what_templates_read_are_kept() {
        let call = json!([{"type": "function", "function": {"name": "f", "arguments": "{}"}}]);
        let parser = ChatParser::new(ChatMapping::default(), vec!["tools".into(), "documents".into()]);
        let value = json!({
            "messages": [
                {"role": "system", "content": ""},
                {"role": "developer", "content": "Be kind.", "name": "boss"},
                {"role": "user", "content": "Hi", "train": true},
                {"role": "assistant", "content": null, "tool_calls": call, "weight": 0},
                {"role": "function", "content": "1", "tool_call_id": "x", "loss_mask": 1},
                {"from": "function_call", "value": "{\"name\": \"g\", \"arguments\": {}}"},
                {"from": "observation", "value": "2"},
                {"from": "chatgpt", "value": "Done.", "reasoning_content": "Easy.", "loss": false, "train": 1, "masks": [0]},
            ],
            "tools": "[{\"name\": \"f\"}]",
            "documents": null,
            "chat_template_kwargs": {"enable_thinking": false},
            "other": 1,
        });
        let ParsedChat { conversation, ignored, .. } = parser.json(&value).unwrap();
        let Conversation::Turns { messages, context } = conversation else { panic!("expected turns") };
        let seen: Vec<_> = messages
            .iter()
            .map(|message| (message.role.name(), message.content.as_deref(), message.train, message.fields.len()))
            .collect();
        assert_eq!(
            seen,
            [
                ("developer", Some("Be kind."), None, 1),
                ("user", Some("Hi"), Some(true), 0),
                ("assistant", None, Some(false), 1),
                ("function", Some("1"), None, 2),
                ("assistant", None, None, 1),
                ("tool", Some("2"), None, 0),
                ("assistant", Some("Done."), Some(false), 2),
            ]
        );
        assert_eq!(messages[2].fields["tool_calls"], call);
        assert_eq!(
            messages[4].fields["tool_calls"],
            json!([{"type": "function", "function": {"name": "g", "arguments": {}}}])
        );
        assert_eq!(Value::Object(context), json!({"tools": [{"name": "f"}], "enable_thinking": false}));
        assert_eq!(ignored, ["loss_mask", "masks"]);
    }

    #[test]
    fn bad_ones_say_what_is_wrong() {
        let error = |value: Value| parse(&value).unwrap_err();
        for (value, reason) in [
            (json!({"messages": []}), "expected at least one turn, got none"),
            (json!([]), "expected at least one turn, got none"),
            (json!({"messages": "x"}), "expected a list of turns, got a string"),
            (
                json!({"title": "x", "year": "y"}),
                "expected messages, conversations or instruction data, got the keys title, year; name its columns with \
                 --columns COLUMN=ROLE",
            ),
            (
                json!({}),
                "expected messages, conversations or instruction data, got no keys; name its columns with --columns \
                 COLUMN=ROLE",
            ),
            (json!({"messages": null}), "expected a list of turns, got null"),
            (json!(3), "expected a conversation, got a number"),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"content": "y"}]}),
                "turn 2: missing role (or from)",
            ),
            (json!({"messages": [{"role": null, "content": "x"}]}), "turn 1: missing role (or from)"),
            (json!({"messages": [{"role": 3, "content": "x"}]}), "turn 1: expected a string as role, got a number"),
            (
                json!({"messages": [{"role": "critic", "content": "x"}]}),
                "turn 1: unknown role \"critic\": expected system, user, assistant, tool or another known name; say what it \
                 is with --roles NAME=ROLE",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x", "weight": 0.5}]}),
                "turn 1: expected weight to be 0 or 1, got 0.5",
            ),
            (
                json!({"messages": [{"role": "system", "content": " "}]}),
                "expected at least one turn that is not an empty system prompt, got none",
            ),
            (json!({"instruction": "", "output": "x"}), "expected text in instruction and output, got an empty one"),
            (json!({"question": "x", "answer": 42}), "expected a string as answer, got a number"),
            (json!({"prompt": "x", "completion": ""}), "the completion is empty"),
            (json!({"messages": "[1"}), "expected a list of turns, got a string that is not a JSON list"),
            (json!([{"input": 1, "output": "x"}]), "turn 1: expected a string as input, got a number"),
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
        let scored = ChatParser::default().json_line("{\"messages\": [\"Hi\", \"NaN\"], \"score\": NaN}").unwrap();
        assert_eq!(turns(scored.conversation), [("user", "Hi".into()), ("assistant", "NaN".into())]);
        let broken = ChatParser::default().json_line("{\"messages\": [").unwrap_err();
        assert_eq!(broken, "invalid JSON: EOF while parsing a list (column 14)");
    }

    proptest! {
        #[test]
        fn turns_with_roles_come_back_as_they_were(text_field in prop::collection::vec(("(user|assistant|system|tool)", "[a\u{e9}\\n\"\\\\ ]{0,6}x"), 1..6)) {
            for (speaker, content) in TURN_FIELDS {
                let turns_: Vec<Value> = text_field.iter().map(|(role, text)| json!({speaker: role, content: text})).collect();
                let line = json!({"messages": turns_}).to_string();
                let found = turns(ChatParser::default().json_line(&line).unwrap().conversation);
                let found: Vec<_> = found.into_iter().map(|(role, text)| (role.to_owned(), text)).collect();
                prop_assert_eq!(&found, &text_field);
            }
        }

        #[test]
        fn no_line_makes_it_panic(line in any::<String>(), json in "[\\[\\]{}\":,a-c0-9 ]{0,40}|\\{\"messages\":[\\[\\]{}\":,a-c0-9 ]{0,40}") {
            for line in [&line, &json] {
                let parser = ChatParser::default();
                let value = Value::String(line.clone());
                let cell = parser.cell(&value, &Map::new());
                for result in [Some(parser.line(line)), Some(parser.json_line(line)), cell].into_iter().flatten() {
                    match result.map(|parsed| parsed.conversation) {
                        Ok(Conversation::Turns { messages, .. }) => {
                            prop_assert!(!messages.is_empty());
                            let blank = |message: &Message| message.content.as_ref().is_some_and(|text| text.trim().is_empty());
                            prop_assert!(!messages.iter().any(blank));
                        }
                        Ok(Conversation::Text { text, .. }) => prop_assert!(!text.is_empty()),
                        Err(reason) => prop_assert!(!reason.is_empty() && !reason.contains('\n')),
                    }
                }
            }
        }
    }
}
