//! Optional fields, given by a key of a TOML file or by a flag.
//!
//! [`settings.rs`](crate::TrainSettings) and [`shape.rs`](crate::Shape) each have one list of fields; `optional_fields!`
//! generates the code that reads them.

use std::collections::BTreeMap;
use std::fmt::Display;

use ngen3_engine::Dtype;
use ngen3_model::hf::rope_scaling;
use ngen3_model::{Activation, Family, RopeScaling};
use serde::de::DeserializeOwned;
use toml::de::DeTable;

/// Command-line flag of a field.
pub struct Flag<T> {
    /// Name of the field, flag and TOML key.
    pub name: &'static str,
    /// Placeholder of the value in the help text.
    pub value_name: &'static str,
    /// Help text, without the default.
    pub help: &'static str,
    /// Default value, or a description of it, for the help text.
    pub default: &'static (dyn Display + Sync),
    /// `true` for a boolean field; the flag without a value means true.
    pub is_switch: bool,
    /// Parses a value of the command line into a list with only this field set.
    pub parse: fn(&str) -> Result<T, String>,
}

/// Type of a field.
pub(crate) trait FieldType: DeserializeOwned {
    /// Accepted values, for error messages.
    const EXPECTED: &str;
    /// `true` if the flag needs no value.
    const IS_SWITCH: bool = false;

    /// Converts a value of a TOML file. The error is the reason, if it is more than that another value was expected.
    fn read(value: toml::Value) -> Result<Self, Option<String>> {
        value.try_into().map_err(|_| None)
    }
}

impl FieldType for u64 {
    const EXPECTED: &str = "a non-negative integer";
}

impl FieldType for usize {
    const EXPECTED: &str = u64::EXPECTED;
}

impl FieldType for f32 {
    const EXPECTED: &str = "a number";
}

impl FieldType for f64 {
    const EXPECTED: &str = "a number";
}

impl FieldType for bool {
    const EXPECTED: &str = "true or false";
    const IS_SWITCH: bool = true;
}

impl FieldType for Dtype {
    const EXPECTED: &str = "\"auto\", \"f32\" or \"bf16\"";
}

impl FieldType for Activation {
    const EXPECTED: &str = "\"gelu_new\" or \"gelu\" (gpt2), or \"swiglu\" (the other families)";
}

impl FieldType for Family {
    const EXPECTED: &str = "\"gpt2\", \"llama\", \"mistral\", \"qwen2\" or \"qwen3\"";
}

impl FieldType for RopeScaling {
    const EXPECTED: &str = "a table such as { rope_type = \"linear\", factor = 2.0 }";

    fn read(value: toml::Value) -> Result<Self, Option<String>> {
        let json = serde_json::to_value(value).map_err(|_| None)?;
        let serde_json::Value::Object(entries) = json else { return Err(None) };
        rope_scaling(entries).map_err(Some)
    }
}

/// Defines a struct whose fields are all optional.
///
/// An entry is `name: type;`, with `, alias "NAME"` for another key in TOML, and `, flag (VALUE_NAME, HELP, DEFAULT)` for a
/// flag of the command line.
macro_rules! optional_fields {
    (
        $(#[$meta:meta])*
        $list:ident {
            $(
                $(#[doc = $doc:literal])*
                $name:ident: $type:ty
                    $(, alias $alias:literal)?
                    $(, flag ($value_name:literal, $help:literal, $default:expr))?;
            )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $list {
            $($(#[doc = $doc])* pub $name: Option<$type>,)*
        }

        impl $list {
            /// Names of the fields, as TOML keys.
            pub const KEYS: &[&str] = &[$(stringify!($name)),*];

            /// Other TOML keys: (alias, field).
            pub const ALIASES: &[(&str, &str)] = &[$($(($alias, stringify!($name)),)?)*];

            /// Flags of the command line, in the order of the help text.
            pub const FLAGS: &[crate::config::field::Flag<Self>] = &[$($(crate::config::field::Flag {
                name: stringify!($name),
                value_name: $value_name,
                help: $help,
                default: $default,
                is_switch: <$type as crate::config::field::FieldType>::IS_SWITCH,
                parse: |text| {
                    let value: $type = text.parse().map_err(|error| crate::config::field::message(&error))?;
                    Ok(Self { $name: Some(value), ..Self::default() })
                },
            },)?)*];

            /// Fills fields that are `None` from `below`.
            pub fn or(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)* }
            }

            /// Takes the fields out of the entries of a TOML file. The error names the line and the key.
            pub(crate) fn take_from(entries: &mut crate::config::field::Entries) -> Result<Self, String> {
                Ok(Self { $($name: entries.take(stringify!($name))?,)* })
            }
        }
    };
}

pub(crate) use optional_fields;

/// Text of a parse error of any type.
pub(crate) fn message(error: &impl Display) -> String {
    error.to_string()
}

/// Entries of a TOML file, by field name.
pub(crate) struct Entries(BTreeMap<String, Entry>);

struct Entry {
    /// The key as written, which may be an alias.
    key: String,
    /// Line number, from 1.
    line: usize,
    value: toml::Value,
}

impl Entries {
    /// Parses TOML whose keys may be `aliases` (alias, field). The error names the line.
    pub(crate) fn parse(text: &str, aliases: &[(&str, &str)]) -> Result<Self, String> {
        let line_at = |at: usize| 1 + text[..at].matches('\n').count();
        let not_toml = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| line_at(span.start));
            format!("line {line}: invalid TOML: {}", error.message().replace('\n', ", "))
        };
        let mut values: toml::Table = text.parse().map_err(not_toml)?;
        let places = DeTable::parse(text).map_err(not_toml)?;
        let mut entries = BTreeMap::new();
        let mut places: Vec<_> = places.get_ref().keys().collect();
        places.sort_by_key(|place| place.span().start);
        for place in places {
            let (key, line) = (place.get_ref().to_string(), line_at(place.span().start));
            let Some(value) = values.remove(&key) else { continue };
            let name = aliases.iter().find(|(alias, _)| *alias == key).map_or(key.as_str(), |(_, name)| name);
            if let Some(Entry { key: other, .. }) =
                entries.insert(name.to_owned(), Entry { key: key.clone(), line, value })
            {
                return Err(format!("line {line}: {key} and {other} are the same setting; keep one"));
            }
        }
        Ok(Self(entries))
    }

    /// Takes a field out; `None` if it is not set. The error names the line and the key.
    pub(crate) fn take<T: FieldType>(&mut self, name: &str) -> Result<Option<T>, String> {
        let Some(Entry { key, line, value }) = self.0.remove(name) else { return Ok(None) };
        let found = in_one_line(&value);
        let expected = T::EXPECTED;
        T::read(value).map(Some).map_err(|reason| match reason {
            Some(reason) => format!("line {line}: {key}: {reason}"),
            None => format!("line {line}: {key}: expected {expected}, got {found}"),
        })
    }

    /// Returns line and key of the first entry that was not taken.
    pub(crate) fn first_left(self) -> Option<(usize, String)> {
        self.0.into_iter().map(|(key, Entry { line, .. })| (line, key)).min_by_key(|(line, _)| *line)
    }
}

/// Describes a value on one line, for error messages.
fn in_one_line(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) if text.chars().count() > 40 => "a long string".into(),
        toml::Value::String(text) => format!("{text:?}"),
        toml::Value::Array(_) => "a list".into(),
        toml::Value::Table(_) => "a table".into(),
        value => value.to_string(),
    }
}
