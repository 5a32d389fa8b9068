//! The column that holds the text, and how its values become documents.
//!
//! A string is the text itself. A list is a conversation: its texts, joined by the separator. A turn that is a struct of `role`
//! and `content`, or of `from` and `value`, reads `role: content`. A path `a.b` is the field `b` of the struct `a`, or of every
//! struct of a list. Records that are conversations keep the value as it is ([`Column::value`]).

use std::borrow::Cow;

use serde_json::Value;

use super::record::Record;
use crate::Error;

/// Fields of a turn: the speaker and the text.
pub(crate) const TURN_FIELDS: [(&str, &str); 2] = [("role", "content"), ("from", "value")];
/// Supported types of values, for messages.
const TEXTS: &str = "a string, a list of strings, or a list of {role, content} or {from, value}";

/// Names kept for a message.
pub(super) const MAX_NAMES: usize = 50;

/// Columns that hold the text unless the user names one, best first.
pub(super) const USUAL: [&str; 7] =
    ["text", "content", "messages", "conversations", "conversation", "utterances", "dialog"];

/// A column as the user names it.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// The whole name, which may be that of a column with dots in it.
    pub(super) full: String,
    /// Field names from the top level down.
    pub(super) path: Vec<String>,
    separator: String,
}

/// Text of a record as it is joined.
struct Turns<'a> {
    text: &'a mut String,
    separator: &'a str,
    count: usize,
}

impl Turns<'_> {
    fn push(&mut self, speaker: Option<&str>, text: &str) {
        if self.count > 0 {
            self.text.push_str(self.separator);
        }
        if let Some(speaker) = speaker {
            self.text.push_str(speaker);
            self.text.push_str(": ");
        }
        self.text.push_str(text);
        self.count += 1;
    }
}

impl Column {
    /// Parses a column as the user writes it.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty name.
    pub(super) fn parse(text: &str, separator: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Input("expected the name of the text column, got an empty name".into()));
        }
        let path = text.split('.').map(str::to_owned).collect();
        Ok(Self { full: text.into(), path, separator: separator.into() })
    }

    /// True if the column may be in the top-level column `name`.
    pub(super) fn is_in(&self, name: &str) -> bool {
        name == self.full || name == self.path[0]
    }

    /// Returns the message for a column that is not among these.
    pub(super) fn missing(&self, names: &[String]) -> String {
        match names.is_empty() {
            true => format!("no column {:?}: the file has no columns", self.full),
            false => format!("no column {:?}; choose one with --hf_text_column: {}", self.full, names.join(", ")),
        }
    }

    fn wrong_kind(&self, kind: &str) -> String {
        format!("column {}: expected {TEXTS}, got {kind}", self.full)
    }

    /// Returns the value in a record in which the column is, and the names of the fields below it.
    fn locate<'a>(&'a self, record: &'a Record) -> Option<(&'a Value, &'a [String])> {
        // The whole name takes precedence over the start of a path.
        match record.get(&self.full) {
            Some(value) => Some((value, &[])),
            None => Some((record.get(&self.path[0])?, &self.path[1..])),
        }
    }

    /// True if a record has all fields of the path, or no value where one is missing; else adds those that it has to `names`.
    pub(super) fn is_found(&self, record: &Record, names: &mut Vec<String>) -> bool {
        self.locate(record).is_some_and(|(value, below)| self.reaches(value, below, names))
    }

    fn reaches(&self, value: &Value, below: &[String], names: &mut Vec<String>) -> bool {
        match (value, below) {
            (Value::Array(items), [_, ..]) => items.iter().any(|item| self.reaches(item, below, names)),
            (Value::Object(fields), [name, rest @ ..]) => {
                if let Some(value) = fields.get(name) {
                    return self.reaches(value, rest, names);
                }
                let parent = self.path[..self.path.len() - below.len()].join(".");
                for name in fields.keys().map(|name| format!("{parent}.{name}")) {
                    if names.len() < MAX_NAMES && !names.contains(&name) {
                        names.push(name);
                    }
                }
                false
            }
            (Value::Null, [_, ..]) => false,
            _ => true,
        }
    }

    /// Returns the value of a record; `None` if it has none.
    pub(super) fn value<'a>(&'a self, record: &'a Record) -> Option<Cow<'a, Value>> {
        let (value, below) = self.locate(record)?;
        let value = if below.is_empty() { Cow::Borrowed(value) } else { Cow::Owned(field_of(value, below)) };
        (!value.is_null()).then_some(value)
    }

    /// Appends the text of a record; returns false if it has none.
    pub(super) fn text(&self, record: &Record, text: &mut String) -> Result<bool, String> {
        let Some((value, below)) = self.locate(record) else { return Ok(false) };
        let mut turns = Turns { text, separator: &self.separator, count: 0 };
        self.walk(value, below, &mut turns)?;
        Ok(turns.count > 0)
    }

    fn walk(&self, value: &Value, below: &[String], turns: &mut Turns) -> Result<(), String> {
        match (value, below) {
            (Value::Null, _) => Ok(()),
            (Value::String(text), []) => {
                turns.push(None, text);
                Ok(())
            }
            (Value::Array(items), _) => items.iter().try_for_each(|item| self.walk(item, below, turns)),
            // A missing field is null.
            (Value::Object(fields), [name, rest @ ..]) => {
                fields.get(name).map_or(Ok(()), |value| self.walk(value, rest, turns))
            }
            (Value::Object(fields), []) => {
                let (speaker, content) = turn_of(|name| fields.contains_key(name)).ok_or_else(|| {
                    let names: Vec<_> = fields.keys().map(|name| format!("{}.{name}", self.full)).collect();
                    format!("column {} holds objects; name one of their fields: {}", self.full, names.join(", "))
                })?;
                match (&fields[content], &fields[speaker]) {
                    (Value::Null, _) => {}
                    // An empty system prompt is no turn.
                    (Value::String(content), Value::String(speaker)) if content.is_empty() && speaker == "system" => {}
                    (Value::String(content), Value::String(speaker)) => turns.push(Some(speaker), content),
                    (Value::String(content), Value::Null) => turns.push(None, content),
                    (other, Value::String(_) | Value::Null) | (_, other) => {
                        return Err(self.wrong_kind(&format!("turns with {}", kind_of(other))));
                    }
                }
                Ok(())
            }
            (other, _) => Err(self.wrong_kind(kind_of(other))),
        }
    }
}

/// Returns the value below a path, for each item of a list.
fn field_of(value: &Value, below: &[String]) -> Value {
    match (value, below) {
        (value, []) => value.clone(),
        (Value::Array(items), _) => items.iter().map(|item| field_of(item, below)).collect(),
        (Value::Object(fields), [name, rest @ ..]) => {
            fields.get(name).map_or(Value::Null, |value| field_of(value, rest))
        }
        _ => Value::Null,
    }
}

/// Returns the fields of a turn, if a struct has them.
fn turn_of(has: impl Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
    TURN_FIELDS.into_iter().find(|(speaker, content)| has(speaker) && has(content))
}

/// Returns the message for a file without any of the usual columns.
pub(super) fn no_usual_column(names: &[String]) -> String {
    match names.is_empty() {
        true => "the file has no columns".into(),
        false => format!("no column with a usual name; choose one with --hf_text_column: {}", names.join(", ")),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "booleans",
        Value::Number(_) => "numbers",
        Value::String(_) => "strings, which have no fields",
        Value::Array(_) => "lists",
        Value::Object(_) => "objects",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn record(value: Value) -> Record {
        value.as_object().unwrap().clone()
    }

    fn read(column: &str, value: Value) -> Result<Option<String>, String> {
        let mut text = String::new();
        let has = Column::parse(column, "|").unwrap().text(&record(value), &mut text)?;
        Ok(has.then_some(text))
    }

    #[test]
    fn records_become_texts() {
        let text = |column: &str, row: Value| read(column, row).unwrap();
        assert_eq!(text("a", json!({"a": "x"})).as_deref(), Some("x"));
        assert_eq!(text("a", json!({"a": ["x", null, "", "y"]})).as_deref(), Some("x||y"));
        assert_eq!(text("a", json!({"a": null})), None);
        assert_eq!(text("a", json!({"a": []})), None);
        assert_eq!(text("a", json!({"a": ""})).as_deref(), Some(""));
        let turns = json!([{"role": "user", "content": "Hi"}, {"role": "tool", "content": null}, {"content": "Yes", "role": "bot"}]);
        assert_eq!(text("a", json!({"a": turns})).as_deref(), Some("user: Hi|bot: Yes"));
        let turns_ = json!([{"from": "system", "value": ""}, {"from": "human", "value": "Hi"}]);
        assert_eq!(text("a", json!({"a": turns_})).as_deref(), Some("human: Hi"));
        assert_eq!(text("a.b", json!({"a": {"b": "x", "c": 1}})).as_deref(), Some("x"));
        assert_eq!(text("a.b.c", json!({"a": [{"b": {"c": "x"}}, {"b": {"c": "y"}}]})).as_deref(), Some("x|y"));
        assert_eq!(text("a.content", json!({"a": turns})).as_deref(), Some("Hi|Yes"));
        assert_eq!(text("a.b", json!({"a": {"b": "y"}, "a.b": "x"})).as_deref(), Some("x"));
        assert!(read("a", json!({"a": 3})).unwrap_err().starts_with("column a: expected a string, a list of strings"));
        assert!(read("a.b", json!({"a": "x"})).unwrap_err().ends_with("got strings, which have no fields"));
        assert!(read("a", json!({"a": {"x": "1", "y": 2}})).unwrap_err().ends_with("fields: a.x, a.y"));
    }

    #[test]
    fn a_field_that_is_missing_is_told_from_one_without_a_value() {
        let found = |column: &str, row: Value| {
            let mut names = Vec::new();
            let found = Column::parse(column, "|").unwrap().is_found(&record(row), &mut names);
            (found, names.join(", "))
        };
        assert_eq!(found("a.b", json!({"a": {"b": null}})), (true, String::new()));
        assert_eq!(found("a.b", json!({"a": null})), (false, String::new()));
        assert_eq!(found("a.b", json!({"a": {"c": 1, "d": 2}})), (false, "a.c, a.d".into()));
        assert_eq!(found("a.b", json!({"a": [{"c": 1}, {"b": 1}]})), (true, "a.c".into()));
        assert_eq!(found("a.b.c", json!({"a": {"b": [{"x": 1}, {"y": 1}]}})), (false, "a.b.x, a.b.y".into()));
        assert_eq!(found("a.b", json!({"a": "text"})), (true, String::new()), "an error of another kind");
    }

    #[test]
    fn values_stay_what_they_are() {
        let value = |path: &str, row: Value| {
            let (column, row) = (Column::parse(path, "|").unwrap(), record(row));
            column.value(&row).map(Cow::into_owned)
        };
        assert_eq!(value("a", json!({"a": "x"})), Some(json!("x")));
        assert_eq!(value("a", json!({"a": null})), None);
        assert_eq!(value("a", json!({"a": ["x", null]})), Some(json!(["x", null])), "a missing entry is kept");
        let turns = json!([{"role": "user", "content": "Hi", "id": 1}]);
        assert_eq!(value("a", json!({"a": turns})), Some(turns));
        assert_eq!(value("a.b.c", json!({"a": {"b": [{"c": "x"}, {"c": "y"}]}})), Some(json!(["x", "y"])));
    }

    proptest! {
        #[test]
        fn lists_are_joined(texts in prop::collection::vec("[a-c|]{0,3}", 0..6)) {
            let expected = (!texts.is_empty()).then(|| texts.join("|"));
            prop_assert_eq!(read("a", json!({"a": &texts})).unwrap(), expected);
        }
    }
}
