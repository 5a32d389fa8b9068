//! JSON lines, one object each; or one array of objects, recognised by its `[`. Only the wanted columns of an object are kept; in the
//! others anything is accepted that does not hide where the object ends.

use std::borrow::Cow;
use std::fmt;
use std::io::BufRead;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::file::{DataFileReader, FileRecord, FileRecordFn, MAX_RECORDS_WITHOUT_COLUMN, RecordStream, Wanted};
use crate::Error;
use crate::hf::column::MAX_NAMES;
use crate::hf::record::Record;
use crate::json_scan::{JsonScan, with_null_for_nan};
use crate::source::bytes::limited::MAX_LINE;

pub(super) fn read(input: &DataFileReader, take: &mut FileRecordFn) -> Result<(), Error> {
    let mut objects = Objects::open(input)?;
    let mut names = Vec::new();
    let (mut number, mut seen, mut bytes) = (0, false, Vec::new());
    let check_seen = |seen: bool, names: &[String]| match input.wanted.missing(names) {
        Some(reason) if !seen => Err(input.failed(reason)),
        _ => Ok(()),
    };
    while let Some(place) = objects.next(&mut bytes)? {
        number += 1;
        if number <= input.skip {
            continue;
        }
        let columns = match input.wanted {
            Wanted::Nothing => Some(Record::new()),
            wanted => {
                let names = (!seen).then_some(&mut names);
                parse(input, wanted, names, &bytes, &place).map(Some).or_else(|error| input.skip_bad(error))?
            }
        };
        // A bad record has the column or not.
        seen = seen || columns.as_ref().is_none_or(|columns| input.wanted.missing(columns.keys()).is_none());
        if number == input.skip + MAX_RECORDS_WITHOUT_COLUMN {
            check_seen(seen, &names)?;
        }
        if take(FileRecord { columns, bytes_read: objects.stream.bytes_read() })?.is_break() {
            // Columns may be missing only from a file that was read to its end.
            return Ok(());
        }
    }
    if number > input.skip { check_seen(seen, &names) } else { Ok(()) }
}

/// Parses an object. Adds the names of its columns to `names`.
fn parse(
    input: &DataFileReader,
    wanted: Wanted,
    mut names: Option<&mut Vec<String>>,
    bytes: &[u8],
    place: &str,
) -> Result<Record, Error> {
    let mut parse = |bytes: &[u8]| {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let seed = ColumnsSeed { wanted, names: names.as_deref_mut() };
        seed.deserialize(&mut json).and_then(|columns| json.end().map(|()| columns))
    };
    let error = match parse(bytes) {
        Ok(columns) => return Ok(columns),
        Err(error) => error,
    };
    // Rare, and so not worth a look at every record.
    let numbers = with_null_for_nan(bytes);
    if let Some(columns) = numbers.as_deref().and_then(|bytes| parse(bytes).ok()) {
        return Ok(columns);
    }
    let bytes = numbers.as_deref().unwrap_or(bytes);
    if std::str::from_utf8(bytes).is_err() {
        let text = input.text(bytes, || place.to_owned())?;
        return parse(text.as_bytes()).map_err(|error| input.failed(format!("{place}: {}", without_place(&error))));
    }
    Err(input.failed(format!("{place}: {}", without_place(&error))))
}

/// Formats an error within one object: with its column, but not serde_json's line, which counts from the object's start.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) => format!("{} (column {})", &text[..at], error.column()),
        None => text,
    }
}

/// The objects of a file, as bytes.
struct Objects<'a> {
    input: &'a DataFileReader<'a>,
    stream: RecordStream,
    /// True for the elements of an array.
    array: bool,
    /// True after the array's end.
    ended: bool,
    /// Number of the last line or element.
    number: u64,
}

impl<'a> Objects<'a> {
    fn open(input: &'a DataFileReader) -> Result<Self, Error> {
        let mut objects = Self { input, stream: input.stream()?, array: false, ended: false, number: 0 };
        objects.array = objects.first_byte()? == Some(b'[');
        if objects.array {
            objects.stream.bytes.consume(1);
        }
        Ok(objects)
    }

    /// Returns the first byte that is not white space, without consuming it.
    fn first_byte(&mut self) -> Result<Option<u8>, Error> {
        loop {
            let buffer = match self.stream.bytes.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) => return Err(self.stream.failed(&error)),
            };
            let Some(&byte) = buffer.first() else { return Ok(None) };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            if !self.array && !self.ended {
                // Errors name lines.
                self.number += buffer[..blank].iter().filter(|&&byte| byte == b'\n').count() as u64;
            }
            self.stream.bytes.consume(blank);
        }
    }

    /// Puts the next object into `bytes`; returns its place, or `None` at the end.
    fn next(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Cow<'static, str>>, Error> {
        if !self.array {
            while self.stream.read_line(bytes, &mut self.number)? {
                if !bytes.trim_ascii().is_empty() {
                    return Ok(Some(format!("line {}", self.number).into()));
                }
            }
            return Ok(None);
        }
        bytes.clear();
        if self.ended {
            return Ok(None);
        }
        let end = self.element(bytes)?;
        self.ended = end == b']';
        let blank = bytes.trim_ascii().is_empty();
        if self.ended {
            if let Some(byte) = self.first_byte()? {
                let found = char::from(byte).escape_default();
                return Err(self.input.failed(format!("expected nothing after the JSON array, got '{found}'")));
            }
            if blank && self.number == 0 {
                return Ok(None);
            }
        }
        self.number += 1;
        Ok(Some(format!("record {}", self.number).into()))
    }

    /// Reads up to the comma or bracket after an element; returns that.
    fn element(&mut self, bytes: &mut Vec<u8>) -> Result<u8, Error> {
        let (mut scan, number) = (JsonScan::default(), self.number + 1);
        loop {
            let buffer = match self.stream.bytes.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.stream.failed(&error)),
            };
            if buffer.is_empty() {
                let reason = format!("record {number}: the JSON array ends early; the file may be truncated");
                return Err(self.input.failed(reason));
            }
            let end = buffer.iter().position(|&byte| scan.take(byte));
            let n = end.unwrap_or(buffer.len());
            bytes.extend_from_slice(&buffer[..n]);
            let found = end.map(|end| buffer[end]);
            self.stream.bytes.consume(n + usize::from(end.is_some()));
            if bytes.len() as u64 > MAX_LINE {
                let reason = format!("record {number} is longer than the limit of {MAX_LINE} bytes");
                return Err(self.input.failed(reason));
            }
            match found {
                Some(b'}') => return Err(self.input.failed(format!("record {number}: invalid JSON: unexpected '}}'"))),
                Some(byte) => return Ok(byte),
                None => {}
            }
        }
    }
}

/// Deserializes an object to its wanted columns; of duplicate keys the last counts.
struct ColumnsSeed<'a> {
    wanted: Wanted<'a>,
    /// Collects column names, as long as they may be needed.
    names: Option<&'a mut Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for ColumnsSeed<'_> {
    type Value = Record;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Record, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ColumnsSeed<'_> {
    type Value = Record;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object whose keys are the columns")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<Record, M::Error> {
        let mut columns = Record::new();
        while let Some(name) =
            map.next_key_seed(ColumnNameSeed { wanted: self.wanted, names: self.names.as_deref_mut() })?
        {
            match name {
                Some(name) => drop(columns.insert(name, map.next_value()?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(columns)
    }
}

/// Deserializes a key; `None` for a column that is not wanted.
struct ColumnNameSeed<'a> {
    wanted: Wanted<'a>,
    names: Option<&'a mut Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for ColumnNameSeed<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for ColumnNameSeed<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a column name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        if let Some(names) = self.names.filter(|names| names.len() < MAX_NAMES)
            && !names.iter().any(|known| known == name)
        {
            names.push(name.to_owned());
        }
        Ok(self.wanted.has(name).then(|| name.to_owned()))
    }
}
