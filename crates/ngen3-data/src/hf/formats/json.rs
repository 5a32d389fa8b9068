//! JSON lines, one object each; or one array of objects, recognised by its `[`. Only the wanted columns of an object are kept.

use std::fmt;
use std::io::BufRead;
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::file::{DataFileReader, FileRecord, FileRecordFn, MAX_RECORDS_WITHOUT_COLUMN, RecordStream, Wanted};
use crate::Error;
use crate::hf::column::MAX_NAMES;
use crate::hf::record::Record;

pub(super) fn read(input: &DataFileReader, take: &mut FileRecordFn) -> Result<(), Error> {
    let mut stream = input.stream()?;
    let mut reading = RecordScan { input, take, number: 0, seen: false, names: Vec::new(), bytes_read: 0 };
    let outcome = if first_byte(&mut stream)? == Some(b'[') {
        read_array(&mut stream, &mut reading)?
    } else {
        read_lines(&mut stream, &mut reading)?
    };
    // Columns may be missing only from a file that was read to its end.
    if outcome.is_continue() { reading.check_seen() } else { Ok(()) }
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
        let columns = match reading.seed() {
            None => Record::new(),
            Some(seed) => {
                let mut json = serde_json::Deserializer::from_slice(&line);
                let columns = seed.deserialize(&mut json).and_then(|columns| json.end().map(|()| columns));
                columns.map_err(|error| reading.input.failed(format!("line {number}: {}", without_place(&error))))?
            }
        };
        if reading.record(columns)?.is_break() {
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
    take: &'a mut FileRecordFn<'b>,
    number: u64,
    /// True once a record had the column.
    seen: bool,
    /// Column names of the records, as long as none had the requested one.
    names: Vec<String>,
    bytes_read: u64,
}

impl<'a> RecordScan<'a, '_> {
    /// Returns how to deserialize the next record; `None` for one that is skipped or only counted.
    fn seed(&mut self) -> Option<ColumnsSeed<'_>> {
        let wanted = self.input.wanted;
        let skipped = self.number < self.input.skip || matches!(wanted, Wanted::Nothing);
        let names = (!self.seen).then_some(&mut self.names);
        (!skipped).then_some(ColumnsSeed { wanted, names })
    }

    fn record(&mut self, columns: Record) -> Result<ControlFlow<()>, Error> {
        self.number += 1;
        if self.number <= self.input.skip {
            return Ok(ControlFlow::Continue(()));
        }
        self.seen = self.seen || self.input.wanted.missing(columns.keys()).is_none();
        if self.number == self.input.skip + MAX_RECORDS_WITHOUT_COLUMN {
            self.check_seen()?;
        }
        (self.take)(FileRecord { columns, bytes_read: self.bytes_read })
    }

    fn check_seen(&self) -> Result<(), Error> {
        let reached = !self.seen && self.number > self.input.skip;
        match self.input.wanted.missing(&self.names).filter(|_| reached) {
            Some(reason) => Err(self.input.failed(reason)),
            None => Ok(()),
        }
    }
}

/// Deserializes an object to its wanted columns; of duplicate keys the last counts.
struct ColumnsSeed<'a> {
    wanted: Wanted<'a>,
    /// Where to collect column names, as long as they may be needed.
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
            let columns = match reading.seed() {
                Some(seed) => seq.next_element_seed(seed)?,
                None => seq.next_element::<IgnoredAny>()?.map(|_| Record::new()),
            };
            let Some(columns) = columns else { return Ok(()) };
            reading.bytes_read = bytes_read.load(std::sync::atomic::Ordering::Relaxed);
            match reading.record(columns) {
                Ok(ControlFlow::Continue(())) => continue,
                Ok(ControlFlow::Break(())) => *outcome = Err(EarlyEnd::Enough),
                Err(error) => *outcome = Err(EarlyEnd::Error(error)),
            }
            return Err(S::Error::custom("enough"));
        }
    }
}
