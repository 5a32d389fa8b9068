//! JSON lines, one object each; or one array of objects, recognised by its `[`. Only the requested column of an object is kept.

use std::fmt;
use std::io::BufRead;
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::file::{DataFileReader, RecordStream, TextRecord, TextRecordFn};
use super::record::Record;
use crate::Error;
use crate::hf::column::Column;

/// Records after which a column that none of them had is reported as missing.
const MAX_RECORDS_WITHOUT_COLUMN: u64 = 1000;
/// Column names kept for an error message.
const MAX_NAMES: usize = 50;

pub(super) fn read(input: &DataFileReader, take: &mut TextRecordFn) -> Result<(), Error> {
    let mut stream = input.stream()?;
    let mut reading =
        RecordScan { input, take, number: 0, seen: false, names: Vec::new(), text: String::new(), bytes_read: 0 };
    let outcome = if first_byte(&mut stream)? == Some(b'[') {
        read_array(&mut stream, &mut reading)?
    } else {
        read_lines(&mut stream, &mut reading)?
    };
    // Columns may be missing only from a file that was read to its end.
    if outcome.is_continue() { reading.check_seen() } else { Ok(()) }
}

/// Reads all records, with all their columns.
pub(super) fn records(input: &DataFileReader) -> Result<Vec<Record>, Error> {
    let mut stream = input.stream()?;
    if first_byte(&mut stream)? == Some(b'[') {
        return serde_json::from_reader(&mut stream.bytes).map_err(|error| match error.is_io() {
            true => stream.failed(&error.into()),
            false => input.failed(error),
        });
    }
    let (mut line, mut number, mut records) = (Vec::new(), 0u64, Vec::new());
    while stream.read_line(&mut line, &mut number)? {
        if !line.trim_ascii().is_empty() {
            let record = serde_json::from_slice(&line);
            records.push(record.map_err(|error| input.failed(format!("line {number}: {}", without_place(&error))))?);
        }
    }
    Ok(records)
}

/// Returns the first byte that is not white space, without consuming it; skips a UTF-8 byte order mark.
fn first_byte(stream: &mut RecordStream) -> Result<Option<u8>, Error> {
    let mut start = true;
    loop {
        let buffer = match stream.bytes.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) => return Err(stream.failed(&error)),
        };
        let Some(&byte) = buffer.first() else { return Ok(None) };
        let mark = start && buffer.starts_with(&[0xef, 0xbb, 0xbf]);
        start = false;
        match byte {
            _ if mark => stream.bytes.consume(3),
            byte if byte.is_ascii_whitespace() => stream.bytes.consume(1),
            byte => return Ok(Some(byte)),
        }
    }
}

fn read_lines(stream: &mut RecordStream, reading: &mut RecordScan) -> Result<ControlFlow<()>, Error> {
    let (mut line, mut number) = (Vec::new(), 0u64);
    while stream.read_line(&mut line, &mut number)? {
        if line.trim_ascii().is_empty() {
            continue;
        }
        reading.bytes_read = stream.bytes_read();
        let value = match reading.column() {
            None => None,
            Some(column) => {
                let mut json = serde_json::Deserializer::from_slice(&line);
                let value = ColumnSeed { column, names: reading.names() }.deserialize(&mut json);
                let value = value.and_then(|value| json.end().map(|()| value));
                value.map_err(|error| reading.input.failed(format!("line {number}: {}", without_place(&error))))?
            }
        };
        if reading.record(value)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn read_array(stream: &mut RecordStream, reading: &mut RecordScan) -> Result<ControlFlow<()>, Error> {
    let mut outcome = Ok(());
    let bytes_read = stream.bytes_read.clone();
    let (compressed, name) = (stream.compressed, stream.name.clone());
    let mut json = serde_json::Deserializer::from_reader(&mut stream.bytes);
    let elements = Elements { reading, outcome: &mut outcome, bytes_read: &bytes_read };
    let result = json.deserialize_seq(elements).and_then(|()| json.end());
    let input = reading.input;
    match (outcome, result) {
        (Err(EarlyEnd::Error(error)), _) => Err(error),
        (Err(EarlyEnd::Enough), _) => Ok(ControlFlow::Break(())),
        (Ok(()), Ok(())) => Ok(ControlFlow::Continue(())),
        (Ok(()), Err(error)) if error.is_io() => {
            Err(crate::source::utf8::read_error(&name, compressed, &std::io::Error::from(error)))
        }
        (Ok(()), Err(error)) => Err(input.failed(error)),
    }
}

/// Formats an error within one line: with its column, but not serde_json's line, which is always 1.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) => format!("{} (column {})", &text[..at], error.column()),
        None => text,
    }
}

/// State of reading the records of a file.
struct RecordScan<'a, 'b> {
    input: &'a DataFileReader<'a>,
    take: &'a mut TextRecordFn<'b>,
    number: u64,
    /// True once a record had the column.
    seen: bool,
    /// Column names of the records, as long as none had the requested one.
    names: Vec<String>,
    text: String,
    bytes_read: u64,
}

impl<'a> RecordScan<'a, '_> {
    /// Returns the requested column; `None` for a record that is skipped.
    fn column(&self) -> Option<&'a Column> {
        self.input.column.filter(|_| self.number >= self.input.skip)
    }

    /// Returns where to collect column names, as long as they may be needed.
    fn names(&mut self) -> Option<&mut Vec<String>> {
        (!self.seen).then_some(&mut self.names)
    }

    /// Handles a record; `value` is the value of its top-level column.
    fn record(&mut self, value: Option<(Value, bool)>) -> Result<ControlFlow<()>, Error> {
        self.number += 1;
        if self.number <= self.input.skip {
            return Ok(ControlFlow::Continue(()));
        }
        self.text.clear();
        let mut has = false;
        if let (Some(column), Some((value, exact))) = (self.input.column, &value) {
            self.seen = true;
            let below = if *exact { &[] } else { &column.path[1..] };
            has = column
                .json_text(value, below, &mut self.text)
                .map_err(|reason| self.input.failed(format!("record {}: {reason}", self.number)))?;
        }
        if self.number == self.input.skip + MAX_RECORDS_WITHOUT_COLUMN {
            self.check_seen()?;
        }
        (self.take)(TextRecord { text: has.then_some(&self.text), bytes_read: self.bytes_read })
    }

    fn check_seen(&self) -> Result<(), Error> {
        match self.input.column {
            Some(column) if !self.seen && self.number > self.input.skip => {
                Err(self.input.failed(column.missing(&self.names)))
            }
            _ => Ok(()),
        }
    }
}

/// Deserializes an object to its requested column, and whether the key is the column's whole name; `None` without it.
struct ColumnSeed<'a> {
    column: &'a Column,
    names: Option<&'a mut Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for ColumnSeed<'_> {
    type Value = Option<(Value, bool)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ColumnSeed<'_> {
    type Value = Option<(Value, bool)>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object whose keys are the columns")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found: Option<(Value, bool)> = None;
        while let Some(wanted) =
            map.next_key_seed(ColumnNameSeed { column: self.column, names: self.names.as_deref_mut() })?
        {
            match (wanted, &found) {
                // The whole name takes precedence over the start of a path; of duplicates the last counts.
                (Some(exact), None) => found = Some((map.next_value()?, exact)),
                (Some(exact), Some((_, before))) if exact >= *before => found = Some((map.next_value()?, exact)),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// Deserializes a key: `Some` for the requested column, true for its whole name.
struct ColumnNameSeed<'a> {
    column: &'a Column,
    names: Option<&'a mut Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for ColumnNameSeed<'_> {
    type Value = Option<bool>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for ColumnNameSeed<'_> {
    type Value = Option<bool>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a column name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        if let Some(names) = self.names.filter(|names| names.len() < MAX_NAMES)
            && !names.iter().any(|known| known == name)
        {
            names.push(name.to_owned());
        }
        Ok(self.column.below(name).map(<[String]>::is_empty))
    }
}

/// Reason to stop within an array.
enum EarlyEnd {
    Enough,
    Error(Error),
}

/// Reads the elements of an array and handles each at once.
struct Elements<'a, 'b, 'c> {
    reading: &'a mut RecordScan<'b, 'c>,
    outcome: &'a mut Result<(), EarlyEnd>,
    bytes_read: &'a std::sync::atomic::AtomicU64,
}

impl<'de> Visitor<'de> for Elements<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<(), S::Error> {
        let Self { reading, outcome, bytes_read } = self;
        loop {
            let value = match reading.column() {
                Some(column) => seq.next_element_seed(ColumnSeed { column, names: reading.names() })?,
                None => seq.next_element::<IgnoredAny>()?.map(|_| None),
            };
            let Some(value) = value else { return Ok(()) };
            reading.bytes_read = bytes_read.load(std::sync::atomic::Ordering::Relaxed);
            match reading.record(value) {
                Ok(ControlFlow::Continue(())) => continue,
                Ok(ControlFlow::Break(())) => *outcome = Err(EarlyEnd::Enough),
                Err(error) => *outcome = Err(EarlyEnd::Error(error)),
            }
            return Err(S::Error::custom("enough"));
        }
    }
}
