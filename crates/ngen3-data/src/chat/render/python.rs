//! Values as Python prints them, since templates are written for Jinja in Python: `True`, `None`, `['a']`, `1e+20`, and `tojson`,
//! which is Python's `json.dumps`.

use std::fmt::Write as _;
use std::io::{self, Write};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};
use serde::Serialize;
use serde_json::ser::Formatter;

/// Depth of nested values that are printed; serde_json accepts no more either.
const MAX_DEPTH: usize = 128;

/// Prints a value where a template has `{{ value }}`, as Python's `str` does.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let printed = match value.as_str() {
        Some(text) => out.write_str(text),
        None => match value.kind() {
            ValueKind::Undefined => return Ok(()),
            _ => {
                let mut text = String::new();
                repr(state, value, 0, &mut text)?;
                out.write_str(&text)
            }
        },
    };
    printed.map_err(|_| Error::new(ErrorKind::WriteFailure, "cannot write"))
}

/// Implements the filter `string`: Python's `str`.
pub(super) fn string(state: &State, value: &Value) -> Result<String, Error> {
    let mut text = value.as_str().unwrap_or_default().to_owned();
    if value.as_str().is_none() && !value.is_undefined() {
        repr(state, value, 0, &mut text)?;
    }
    Ok(text)
}

/// Appends Python's `repr` of a value. A list may hold another many times, so the text may be far larger than the value: the work is
/// charged to the template, as that of the engine is.
fn repr(state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply"));
    }
    let before = out.len();
    if let Some(text) = value.as_str() {
        quoted(text, out);
        return state.consume_fuel(cost(out.len() - before));
    }
    state.consume_fuel(1)?;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.push_str(&float(number)),
            Err(_) => drop(write!(out, "{value}")),
        },
        // The sum of two lists is iterable, and no list to the engine.
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                repr(state, &item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => drop(write!(out, "{value}")),
    }
    Ok(())
}

/// Fuel for making a text of so many bytes, as the engine charges it.
fn cost(bytes: usize) -> u64 {
    const BYTES: u64 = 64;
    1 + bytes as u64 / BYTES
}

/// Appends a quoted string: with `"` only if it has `'` and no `"`.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.reserve(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Formats a number as Python does: the shortest digits that round-trip, with an exponent from 1e16 and below 1e-4.
fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() { "nan".into() } else { format!("{number}") };
    }
    let digits = format!("{number:e}");
    let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent @ (16.. | ..=-5)) => {
            format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

/// Implements the filter of `transformers`: `json.dumps` with `ensure_ascii=False`.
pub(super) fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    let wrong = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
    let [item, key] = match separators {
        Some(given) => given.try_into().map_err(|_| wrong("expected two separators".into()))?,
        None if indent.is_some() => [",".to_owned(), ": ".to_owned()],
        None => [", ".to_owned(), ": ".to_owned()],
    };
    let formatter = PythonJson { indent, ensure_ascii, item, key, level: 0, is_empty: true };
    let mut json = Charged { state, bytes: Vec::new() };
    let mut written = {
        let mut writer = serde_json::Serializer::with_formatter(&mut json, formatter.clone());
        value.serialize(&mut writer)
    };
    if sort_keys && written.is_ok() {
        // serde_json's own map keeps the order; this one sorts. The work for a value of this size has been charged.
        json.bytes.clear();
        let mut writer = serde_json::Serializer::with_formatter(&mut json, formatter);
        written = serde_json::to_value(value).and_then(|value| sorted(value).serialize(&mut writer));
    }
    written.map_err(|error| wrong(error.to_string()))?;
    Ok(String::from_utf8(json.bytes).expect("serde_json writes UTF-8"))
}

/// JSON being written, whose work is charged to the template: see [`repr`].
struct Charged<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    bytes: Vec<u8>,
}

impl Write for Charged<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.state.consume_fuel(cost(bytes.len())).map_err(|error| io::Error::other(error.to_string()))?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sorts the keys of all objects.
fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Array(items) => items.into_iter().map(sorted).collect(),
        serde_json::Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            fields.into_iter().collect()
        }
        other => other,
    }
}

/// JSON as Python writes it.
#[derive(Clone)]
struct PythonJson {
    /// Spaces of a level; `None` for a single line.
    indent: Option<usize>,
    ensure_ascii: bool,
    /// Separators of items, and of a key and its value.
    item: String,
    key: String,
    level: usize,
    /// True until the current list or object has an item.
    is_empty: bool,
}

impl PythonJson {
    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(writer, "\n{:1$}", "", indent.min(64) * self.level),
            None => Ok(()),
        }
    }

    fn begin<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn end<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if !self.is_empty {
            self.line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.is_empty = false;
        self.line(writer)
    }
}

impl Formatter for PythonJson {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ensure_ascii || fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        fragment.chars().try_for_each(|c| match c.is_ascii() {
            true => write!(writer, "{c}"),
            false => c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}")),
        })
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_strings_are_pythons() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.5, "-0.5"),
            (1.0, "1.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (0.0001, "0.0001"),
            (0.000_012, "1.2e-05"),
            (1e-300, "1e-300"),
        ] {
            assert_eq!(float(number), text);
        }
        for (text, shown) in [("a'b\n", "\"a'b\\n\""), ("a'\"\\", "'a\\'\"\\\\'")] {
            let mut out = String::new();
            quoted(text, &mut out);
            assert_eq!(out, shown);
        }
    }
}
