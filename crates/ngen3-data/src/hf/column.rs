//! The column that holds the text, and how its values become documents.
//!
//! A string is the text itself. A list is a conversation: its texts, joined by the separator. A turn that is a struct of `role`
//! and `content`, or of `from` and `value`, reads `role: content`. A path `a.b` is the field `b` of the struct `a`, or of every
//! struct of a list. If records are conversations ([`Column::of_conversations`]), a list of turns stays a list, as JSON.

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, StructArray, downcast_dictionary_array};
use arrow_schema::{DataType, Field, Fields};
use serde_json::Value;

use crate::Error;

/// Fields of a turn: the speaker and the text.
pub(crate) const TURN_FIELDS: [(&str, &str); 2] = [("role", "content"), ("from", "value")];
/// Supported types of values, for messages.
const TEXTS: &str = "a string, a list of strings, or a list of {role, content} or {from, value}";

/// A column as the user names it.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// The whole name, which may be that of a column with dots in it.
    pub(super) full: String,
    /// Field names from the top level down.
    pub(super) path: Vec<String>,
    separator: String,
    /// True to keep lists of turns.
    conversations: bool,
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
        Ok(Self { full: text.into(), path, separator: separator.into(), conversations: false })
    }

    /// Returns the same column with lists kept: the text of a record is then JSON, except for plain strings.
    pub(super) fn of_conversations(self) -> Self {
        Self { conversations: true, ..self }
    }

    /// Returns the field names below the top-level column `name`; `None` if it is another column.
    pub(super) fn below(&self, name: &str) -> Option<&[String]> {
        if name == self.full {
            return Some(&[]);
        }
        (self.path.len() > 1 && name == self.path[0]).then(|| &self.path[1..])
    }

    /// Returns the message for a column that is not among these.
    pub(super) fn missing(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
        let names: Vec<_> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
        match names.is_empty() {
            true => format!("no column {:?}: the file has no columns", self.full),
            false => format!("no column {:?}; choose one with --hf_text_column: {}", self.full, names.join(", ")),
        }
    }

    /// Returns the index of the top-level column among these fields, and the field names below it.
    pub(super) fn find(&self, fields: &Fields) -> Result<(usize, &[String]), String> {
        let exact = fields.iter().position(|field| *field.name() == self.full);
        let found = exact.or_else(|| fields.iter().position(|field| self.below(field.name()).is_some()));
        let index = found.ok_or_else(|| self.missing(fields.iter().map(|field| field.name())))?;
        let below = self.below(fields[index].name()).unwrap_or_default();
        self.check(&fields[index], below)?;
        Ok((index, below))
    }

    /// Checks that a column of this type can be read as text.
    fn check(&self, field: &Field, below: &[String]) -> Result<(), String> {
        let mut kind = field.data_type();
        loop {
            match (kind, below) {
                (DataType::Dictionary(_, values), _) => kind = values,
                (DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _), _) => {
                    kind = item.data_type()
                }
                (DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null, []) => return Ok(()),
                (DataType::Struct(fields), []) if turn_of(|name| fields.find(name).is_some()).is_some() => {
                    return Ok(());
                }
                (DataType::Struct(fields), [name, rest @ ..]) => {
                    let (_, child) = fields.find(name).ok_or_else(|| {
                        let names: Vec<_> = fields.iter().map(|field| field.name().as_str()).collect();
                        format!("column {} has no field {name:?}: expected one of {}", self.full, names.join(", "))
                    })?;
                    return self.check(child, rest);
                }
                (DataType::Struct(fields), []) => {
                    let names: Vec<_> = fields.iter().map(|field| format!("{}.{}", self.full, field.name())).collect();
                    let names = names.join(", ");
                    return Err(format!("column {} holds structs; name one of their fields: {names}", self.full));
                }
                (other, _) => return Err(self.wrong_kind(&other.to_string())),
            }
        }
    }

    fn wrong_kind(&self, kind: &str) -> String {
        format!("column {}: expected {TEXTS}, got {kind}", self.full)
    }

    /// Appends a record's text; returns false if it has none.
    pub(super) fn arrow_text(
        &self,
        array: &ArrayRef,
        row: usize,
        below: &[String],
        text: &mut String,
    ) -> Result<bool, String> {
        if self.conversations {
            return Ok(put_value(self.arrow_value(array.as_ref(), row, below)?, text));
        }
        let mut turns = Turns { text, separator: &self.separator, count: 0 };
        self.walk_arrow(array.as_ref(), row, below, &mut turns)?;
        Ok(turns.count > 0)
    }

    fn walk_arrow(&self, array: &dyn Array, row: usize, below: &[String], turns: &mut Turns) -> Result<(), String> {
        if array.is_null(row) {
            return Ok(());
        }
        if let Some(text) = arrow_string(array, row) {
            if !below.is_empty() {
                return Err(self.wrong_kind("strings, which have no fields"));
            }
            turns.push(None, text);
            return Ok(());
        }
        if let Some(items) = arrow_items(array, row) {
            return (0..items.len()).try_for_each(|item| self.walk_arrow(items.as_ref(), item, below, turns));
        }
        match (array.data_type(), below) {
            (DataType::Struct(_), [name, rest @ ..]) => {
                let child = array.as_struct().column_by_name(name).ok_or_else(|| self.wrong_kind("other structs"))?;
                self.walk_arrow(child.as_ref(), row, rest, turns)
            }
            (DataType::Struct(_), []) => {
                let fields = array.as_struct();
                let (speaker, content) =
                    turn_of(|name| fields.column_by_name(name).is_some()).ok_or_else(|| self.wrong_kind("structs"))?;
                let content = self.field(fields, content, row)?;
                if let Some(content) = content {
                    turns.push(self.field(fields, speaker, row)?, content);
                }
                Ok(())
            }
            (DataType::Dictionary(..), _) => downcast_dictionary_array!(
                array => match array.key(row) {
                    Some(key) => self.walk_arrow(array.values().as_ref(), key, below, turns),
                    None => Ok(()),
                },
                other => Err(self.wrong_kind(&other.to_string())),
            ),
            (DataType::Null, _) => Ok(()),
            (other, _) => Err(self.wrong_kind(&other.to_string())),
        }
    }

    /// Returns a record's value as JSON. Values other than strings, lists and structs become null: no turn needs them.
    fn arrow_value(&self, array: &dyn Array, row: usize, below: &[String]) -> Result<Value, String> {
        if array.is_null(row) {
            return Ok(Value::Null);
        }
        if let Some(text) = arrow_string(array, row) {
            return Ok(text.into());
        }
        if let Some(items) = arrow_items(array, row) {
            let values = (0..items.len()).map(|item| self.arrow_value(items.as_ref(), item, below));
            return values.collect::<Result<_, _>>().map(Value::Array);
        }
        match (array.data_type(), below) {
            (DataType::Struct(_), [name, rest @ ..]) => {
                let child = array.as_struct().column_by_name(name).ok_or_else(|| self.wrong_kind("other structs"))?;
                self.arrow_value(child.as_ref(), row, rest)
            }
            (DataType::Struct(_), []) => {
                let fields = array.as_struct();
                let values = fields.column_names().into_iter().zip(fields.columns());
                let values =
                    values.map(|(name, column)| Ok((name.into(), self.arrow_value(column.as_ref(), row, &[])?)));
                values.collect::<Result<_, _>>().map(Value::Object)
            }
            (DataType::Dictionary(..), _) => downcast_dictionary_array!(
                array => match array.key(row) {
                    Some(key) => self.arrow_value(array.values().as_ref(), key, below),
                    None => Ok(Value::Null),
                },
                other => Err(self.wrong_kind(&other.to_string())),
            ),
            _ => Ok(Value::Null),
        }
    }

    /// Returns a string field of a turn, if it is there.
    fn field<'a>(&self, fields: &'a StructArray, name: &str, row: usize) -> Result<Option<&'a str>, String> {
        let Some(column) = fields.column_by_name(name).filter(|column| !column.is_null(row)) else { return Ok(None) };
        match column.data_type() {
            DataType::Null => Ok(None),
            kind => {
                let text = arrow_string(column.as_ref(), row);
                text.map(Some).ok_or_else(|| self.wrong_kind(&format!("turns whose {name} is {kind}")))
            }
        }
    }

    /// Appends the text of a JSON record's top-level value; returns false if it has none.
    pub(super) fn json_text(&self, value: &Value, below: &[String], text: &mut String) -> Result<bool, String> {
        if self.conversations {
            return Ok(put_value(json_value(value, below), text));
        }
        let mut turns = Turns { text, separator: &self.separator, count: 0 };
        self.walk_json(value, below, &mut turns)?;
        Ok(turns.count > 0)
    }

    fn walk_json(&self, value: &Value, below: &[String], turns: &mut Turns) -> Result<(), String> {
        match (value, below) {
            (Value::Null, _) => Ok(()),
            (Value::String(text), []) => {
                turns.push(None, text);
                Ok(())
            }
            (Value::Array(items), _) => items.iter().try_for_each(|item| self.walk_json(item, below, turns)),
            // A missing field is null.
            (Value::Object(fields), [name, rest @ ..]) => {
                fields.get(name).map_or(Ok(()), |value| self.walk_json(value, rest, turns))
            }
            (Value::Object(fields), []) => {
                let (speaker, content) = turn_of(|name| fields.contains_key(name)).ok_or_else(|| {
                    let names: Vec<_> = fields.keys().map(|name| format!("{}.{name}", self.full)).collect();
                    format!("column {} holds objects; name one of their fields: {}", self.full, names.join(", "))
                })?;
                match (&fields[content], &fields[speaker]) {
                    (Value::Null, _) => {}
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

/// Appends a value to a record's text, strings verbatim; returns false for null.
fn put_value(value: Value, text: &mut String) -> bool {
    match value {
        Value::Null => return false,
        Value::String(plain) => text.push_str(&plain),
        other => text.push_str(&other.to_string()),
    }
    true
}

/// Returns the value below a path, for each item of a list.
fn json_value(value: &Value, below: &[String]) -> Value {
    match (value, below) {
        (value, []) => value.clone(),
        (Value::Array(items), _) => items.iter().map(|item| json_value(item, below)).collect(),
        (Value::Object(fields), [name, rest @ ..]) => {
            fields.get(name).map_or(Value::Null, |value| json_value(value, rest))
        }
        _ => Value::Null,
    }
}

/// Returns the fields of a turn, if a struct has them.
fn turn_of(has: impl Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
    TURN_FIELDS.into_iter().find(|(speaker, content)| has(speaker) && has(content))
}

/// Returns the items of a list in a record; `None` for other types.
fn arrow_items(array: &dyn Array, row: usize) -> Option<ArrayRef> {
    match array.data_type() {
        DataType::List(_) => Some(array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => Some(array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => Some(array.as_fixed_size_list().value(row)),
        _ => None,
    }
}

/// Returns the string in a record; `None` for other types.
pub(super) fn arrow_string(array: &dyn Array, row: usize) -> Option<&str> {
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(array.as_string_view().value(row)),
        _ => None,
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
    use std::sync::Arc;

    use arrow_array::builder::{ListBuilder, StringBuilder};
    use arrow_array::{DictionaryArray, Int32Array, LargeStringArray, StringArray, StringViewArray};
    use arrow_schema::Schema;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn json(column: &str, row: Value) -> Result<Option<String>, String> {
        let column = Column::parse(column, "|").unwrap();
        let mut text = String::new();
        let (name, value) = row.as_object().unwrap().iter().next().unwrap();
        let has = column.json_text(value, column.below(name).unwrap(), &mut text)?;
        Ok(has.then_some(text))
    }

    fn arrow(column: &str, array: ArrayRef, row: usize) -> Result<Option<String>, String> {
        let column = Column::parse(column, "|").unwrap();
        let schema = Schema::new(vec![Field::new("a", array.data_type().clone(), true)]);
        let (_, below) = column.find(&schema.fields)?;
        let mut text = String::new();
        Ok(column.arrow_text(&array, row, below, &mut text)?.then_some(text))
    }

    #[test]
    fn json_rows_become_texts() {
        let text = |column: &str, row: Value| json(column, row).unwrap();
        assert_eq!(text("a", json!({"a": "x"})).as_deref(), Some("x"));
        assert_eq!(text("a", json!({"a": ["x", null, "", "y"]})).as_deref(), Some("x||y"));
        assert_eq!(text("a", json!({"a": null})), None);
        assert_eq!(text("a", json!({"a": []})), None);
        assert_eq!(text("a", json!({"a": ""})).as_deref(), Some(""));
        let turns = json!([{"role": "user", "content": "Hi"}, {"role": "tool", "content": null}, {"content": "Yes", "role": "bot"}]);
        assert_eq!(text("a", json!({"a": turns})).as_deref(), Some("user: Hi|bot: Yes"));
        assert_eq!(text("a", json!({"a": [{"from": "human", "value": "Hi"}]})).as_deref(), Some("human: Hi"));
        assert_eq!(text("a.b", json!({"a": {"b": "x", "c": 1}})).as_deref(), Some("x"));
        assert_eq!(text("a.b.c", json!({"a": [{"b": {"c": "x"}}, {"b": {"c": "y"}}]})).as_deref(), Some("x|y"));
        assert_eq!(text("a.content", json!({"a": turns})).as_deref(), Some("Hi|Yes"));
        assert_eq!(text("a.b", json!({"a.b": "x"})).as_deref(), Some("x"));
        assert!(json("a", json!({"a": 3})).unwrap_err().starts_with("column a: expected a string, a list of strings"));
        assert!(json("a.b", json!({"a": "x"})).unwrap_err().ends_with("got strings, which have no fields"));
        assert!(json("a", json!({"a": {"x": "1", "y": 2}})).unwrap_err().ends_with("fields: a.x, a.y"));
    }

    #[test]
    fn arrow_rows_become_texts() {
        let strings: [ArrayRef; 4] = [
            Arc::new(StringArray::from(vec![Some("x"), None])),
            Arc::new(LargeStringArray::from(vec![Some("x"), None])),
            Arc::new(StringViewArray::from(vec![Some("x"), None])),
            Arc::new(DictionaryArray::new(
                Int32Array::from(vec![Some(0), None]),
                Arc::new(StringArray::from(vec!["x"])),
            )),
        ];
        for array in strings {
            assert_eq!(arrow("a", array.clone(), 0).unwrap().as_deref(), Some("x"), "{}", array.data_type());
            assert_eq!(arrow("a", array, 1).unwrap(), None);
        }
        let mut list = ListBuilder::new(StringBuilder::new());
        list.append_value([Some("x"), None, Some("y")]);
        list.append_null();
        let list: ArrayRef = Arc::new(list.finish());
        assert_eq!(arrow("a", list.clone(), 0).unwrap().as_deref(), Some("x|y"));
        assert_eq!(arrow("a", list, 1).unwrap(), None);
        let column = |name: &str, texts: [Option<&str>; 2]| {
            let array: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
            (Arc::new(Field::new(name, DataType::Utf8, true)), array)
        };
        let turns: ArrayRef = Arc::new(StructArray::from(vec![
            column("role", [Some("user"), Some("tool")]),
            column("content", [Some("Hi"), None]),
        ]));
        assert_eq!(arrow("a", turns.clone(), 0).unwrap().as_deref(), Some("user: Hi"));
        assert_eq!(arrow("a", turns.clone(), 1).unwrap(), None);
        assert_eq!(arrow("a.role", turns.clone(), 1).unwrap().as_deref(), Some("tool"));
        assert_eq!(
            arrow("a.x", turns.clone(), 0).unwrap_err(),
            "column a.x has no field \"x\": expected one of role, content"
        );
        assert_eq!(arrow("b", turns, 0).unwrap_err(), "no column \"b\"; choose one with --hf_text_column: a");
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        assert!(arrow("a", numbers, 0).unwrap_err().ends_with("{from, value}, got Int32"));
    }

    #[test]
    fn conversations_stay_what_they_are_whatever_the_format() {
        let column = |path: &str| Column::parse(path, "|").unwrap().of_conversations();
        let json = |path: &str, row: Value| {
            let (column, mut text) = (column(path), String::new());
            let below = column.below("a").unwrap();
            column.json_text(&row, below, &mut text).unwrap().then_some(text)
        };
        let arrow = |path: &str, array: ArrayRef| {
            let (column, mut text) = (column(path), String::new());
            let schema = Schema::new(vec![Field::new("a", array.data_type().clone(), true)]);
            let (_, below) = column.find(&schema.fields).unwrap();
            column.arrow_text(&array, 0, below, &mut text).unwrap().then_some(text)
        };
        let strings: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        assert_eq!(json("a", json!("x")).as_deref(), Some("x"));
        assert_eq!(arrow("a", strings).as_deref(), Some("x"));
        assert_eq!(json("a", Value::Null), None);

        let mut list = ListBuilder::new(StringBuilder::new());
        list.append_value([Some("x"), None, Some("y")]);
        let (plain, list): (_, ArrayRef) = (json!(["x", null, "y"]), Arc::new(list.finish()));
        assert_eq!(json("a", plain.clone()), Some(plain.to_string()));
        assert_eq!(arrow("a", list), Some(plain.to_string()), "a missing entry is kept");

        let field = |name: &str, kind| Arc::new(Field::new(name, kind, true));
        let text = |texts: [Option<&str>; 2]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
        let turns = StructArray::from(vec![
            (field("role", DataType::Utf8), text([Some("user"), Some("tool")])),
            (field("content", DataType::Utf8), text([Some("Hi"), None])),
            (field("id", DataType::Int32), numbers),
        ]);
        let item = Arc::new(Field::new("item", turns.data_type().clone(), true));
        let turns: ArrayRef = Arc::new(arrow_array::FixedSizeListArray::new(item, 2, Arc::new(turns), None));
        let expected =
            json!([{"role": "user", "content": "Hi", "id": null}, {"role": "tool", "content": null, "id": null}]);
        assert_eq!(arrow("a", turns), Some(expected.to_string()));
        let nested = json!({"b": [{"c": "x"}, {"c": "y"}]});
        assert_eq!(json("a.b.c", nested), Some(json!(["x", "y"]).to_string()));
    }

    proptest! {
        #[test]
        fn lists_are_joined(texts in prop::collection::vec("[a-c|]{0,3}", 0..6)) {
            let expected = (!texts.is_empty()).then(|| texts.join("|"));
            prop_assert_eq!(json("a", json!({"a": &texts})).unwrap(), expected.clone());
            let mut list = ListBuilder::new(StringBuilder::new());
            list.append_value(texts.iter().map(Some));
            prop_assert_eq!(arrow("a", Arc::new(list.finish()), 0).unwrap(), expected);
        }
    }
}
