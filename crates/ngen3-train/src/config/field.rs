//! The fields of a list: how one is asked for, by a key of a TOML file or by a flag.
//!
//! [`settings.rs`](crate::TrainSettings) and [`shape.rs`](crate::Shape) each hold one list; `optional_fields!` makes of
//! it everything that reads a field.

use std::collections::BTreeMap;
use std::fmt::Display;

use ngen3_engine::Dtype;
use ngen3_model::Activation;
use serde::de::DeserializeOwned;
use toml::de::DeTable;

/// A field as a flag of the command line.
pub struct Flag<T> {
    /// Name of the field, the flag and the TOML key.
    pub name: &'static str,
    /// Placeholder of its value in the help text.
    pub value_name: &'static str,
    /// Meaning of the field, without its default.
    pub help: &'static str,
    /// The value, or in words the rule, that holds when nobody asks.
    pub default: &'static (dyn Display + Sync),
    /// `true` for a field that is true or false: the flag alone means true.
    pub is_switch: bool,
    /// Reads a value as the command line has it, into a list of which only this field is asked for.
    pub parse: fn(&str) -> Result<T, String>,
}

/// A type that a field can have.
pub(crate) trait FieldType: DeserializeOwned {
    /// Words for the values that are accepted.
    const EXPECTED: &str;
    /// `true` if a flag of this type needs no value.
    const IS_SWITCH: bool = false;
}

impl FieldType for u64 {
    const EXPECTED: &str = "a whole number, 0 or more";
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
    const EXPECTED: &str = "\"gelu_new\" or \"gelu\"";
}

/// Writes a list of fields down as a struct in which each may be `None`: not asked for.
///
/// An entry is `name: type;`, with `, alias "NAME"` if a TOML file may call it something else, and `, flag (VALUE_NAME,
/// HELP, DEFAULT)` if the command line has it.
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
            /// Names of the fields, which are the keys of a TOML file.
            pub const KEYS: &[&str] = &[$(stringify!($name)),*];

            /// Other keys of a TOML file, each with the field that it means.
            pub const ALIASES: &[(&str, &str)] = &[$($(($alias, stringify!($name)),)?)*];

            /// Flags of the command line, in the order in which help shows them.
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

            /// These fields, each from `below` where it is `None` here.
            pub fn or(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)* }
            }

            /// Takes the fields out of the entries of a TOML file.
            pub(crate) fn take_from(entries: &mut crate::config::field::Entries) -> Result<Self, String> {
                Ok(Self { $($name: entries.take(stringify!($name))?,)* })
            }
        }
    };
}

pub(crate) use optional_fields;

/// The text of an error, of whichever type reading a value has.
pub(crate) fn message(error: &impl Display) -> String {
    error.to_string()
}

/// Entries of a TOML file, by the names of the fields.
pub(crate) struct Entries(BTreeMap<String, Entry>);

struct Entry {
    /// As the file calls it.
    key: String,
    /// From 1.
    line: usize,
    value: toml::Value,
}

impl Entries {
    /// Reads a TOML file whose keys may also be called by their `aliases`.
    pub(crate) fn parse(text: &str, aliases: &[(&str, &str)]) -> Result<Self, String> {
        let line_at = |at: usize| 1 + text[..at].matches('\n').count();
        let not_toml = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| line_at(span.start));
            format!("line {line} is not TOML: {}", error.message().replace('\n', ", "))
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

    /// Takes a field out; `None` if the file does not have it.
    pub(crate) fn take<T: FieldType>(&mut self, name: &str) -> Result<Option<T>, String> {
        let Some(Entry { key, line, value }) = self.0.remove(name) else { return Ok(None) };
        let found = in_one_line(&value);
        let expected = T::EXPECTED;
        value.try_into().map(Some).map_err(|_| format!("line {line}: {key} is {found}; it must be {expected}"))
    }

    /// The first line with an entry that nobody took, and its key.
    pub(crate) fn first_left(self) -> Option<(usize, String)> {
        self.0.into_iter().map(|(key, Entry { line, .. })| (line, key)).min_by_key(|(line, _)| *line)
    }
}

/// A value as an error quotes it, on one line.
fn in_one_line(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) if text.chars().count() > 40 => "a long text".into(),
        toml::Value::String(text) => format!("{text:?}"),
        toml::Value::Array(_) => "a list".into(),
        toml::Value::Table(_) => "a table".into(),
        value => value.to_string(),
    }
}
