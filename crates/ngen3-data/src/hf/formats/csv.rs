//! CSV and TSV: a header line, then delimited fields, optionally in `"`.

use std::cell::Cell;
use std::io::{self, Cursor, Read};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use ::csv::{ByteRecord, Reader, ReaderBuilder};
use ngen3_model::words::count;
use serde_json::Value;

use super::file::{BUFFER, DataFileReader, FileRecord, FileRecordFn, RecordStream, Wanted};
use crate::Error;
use crate::hf::record::Record;
use crate::source::bytes::limited::MAX_LINE;
use crate::source::bytes::open::peek;
use crate::source::bytes::read_error::read_error;

/// Fields that are null, as for pandas and thus `datasets`.
const NULL_VALUES: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// Separators that are tried if none is given.
const SEPARATORS: [u8; 4] = [b',', b'\t', b';', b'|'];
/// Bytes of the file in which its header is looked for.
const LOOK: usize = 1 << 16;

/// Maximum number of columns: wide tables have thousands.
const MAX_COLUMNS: usize = 1 << 16;

/// A record after the last one, which shows whether a quote is still open there.
const END: &[u8] = b"\n\x1eend of file\x1e\n";

/// Describes a CSV error, with its line.
fn failed(input: &DataFileReader, compressed: bool, error: ::csv::Error) -> Error {
    let place = error.position().map_or_else(String::new, |position| format!("line {}: ", position.line()));
    match error.into_kind() {
        ::csv::ErrorKind::Io(error) => read_error(input.name, compressed, &error),
        other => input.failed(format!("{place}{}", ::csv::Error::from(io::Error::other(format!("{other:?}"))))),
    }
}

fn reader<R: Read>(separator: u8, bytes: R) -> Reader<R> {
    // Lengths are checked here, where a record can be skipped.
    ReaderBuilder::new().delimiter(separator).flexible(true).buffer_capacity(BUFFER).from_reader(bytes)
}

pub(super) fn read(input: &DataFileReader, usual: u8, given: bool, take: &mut FileRecordFn) -> Result<(), Error> {
    let RecordStream { mut bytes, compressed, bytes_read, .. } = input.stream()?;
    let start = peek(&mut bytes, LOOK);
    let start = start.map_err(|error| read_error(input.name, compressed, &error))?;
    if start.trim_ascii().is_empty() {
        return Err(input.failed("empty: expected a header line with the names of the columns"));
    }
    let separator = input.options.csv_separator.unwrap_or_else(|| match given {
        true => usual,
        false => separator_of(input.wanted, usual, &start),
    });
    if separator != usual && input.options.csv_separator.is_none() {
        let shown = char::from(separator).escape_default();
        input.report.note(format!("{}: fields are separated by '{shown}'; --csv_separator sets another", input.name));
    }
    let failed = |error| failed(input, compressed, error);
    let bytes = Limited { inner: Cursor::new(start).chain(bytes).chain(END), left: Rc::new(Cell::new(MAX_LINE)) };
    let left = Rc::clone(&bytes.left);
    let mut reader = reader(separator, bytes);
    let names = reader.byte_headers().map_err(failed)?.clone();
    if names.len() > MAX_COLUMNS {
        return Err(input.failed(format!("line 1: expected at most {MAX_COLUMNS} columns, got {}", names.len())));
    }
    let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let open = |line: u64| {
        let reason = "a quote (\") opens a field and is never closed";
        input.failed(format!("line {line}: {reason}; close it or double it (\"\")"))
    };
    if names.iter().any(|name| name.as_bytes().ends_with(END)) {
        return Err(open(1));
    }
    let wanted = input.wanted.among(&names).map_err(|reason| input.failed(reason))?;
    let (mut fields, mut number) = (ByteRecord::new(), 0);
    loop {
        left.set(MAX_LINE);
        let line = reader.position().line();
        let more = reader.read_byte_record(&mut fields).map_err(|error| match error.kind() {
            ::csv::ErrorKind::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<TooLong>()) => open(line),
            _ => failed(error),
        })?;
        let last = fields.iter().next_back().unwrap_or_default();
        if !more || fields.len() == 1 && last == END.trim_ascii() {
            return Ok(());
        }
        let line = fields.position().map_or(line, ::csv::Position::line);
        if last.ends_with(END) {
            return Err(open(line));
        }
        number += 1;
        if number <= input.skip {
            continue;
        }
        let columns = record(input, &names, &wanted, &fields, line).map(Some).or_else(|error| input.skip_bad(error))?;
        let bytes_read = bytes_read.load(Ordering::Relaxed);
        if take(FileRecord { columns, bytes_read })?.is_break() {
            return Ok(());
        }
    }
}

/// Returns the wanted columns of a record.
fn record(
    input: &DataFileReader,
    names: &[String],
    wanted: &[usize],
    fields: &ByteRecord,
    line: u64,
) -> Result<Record, Error> {
    if fields.len() != names.len() {
        let (fields, columns) = (count(fields.len(), "field"), count(names.len(), "column"));
        return Err(input.failed(format!("line {line}: expected {columns} as in the header, got {fields}")));
    }
    let value = |&index: &usize| {
        let text = input.text(&fields[index], || format!("line {line}: column {}", names[index]))?;
        let value = if NULL_VALUES.contains(&&*text) { Value::Null } else { text.into_owned().into() };
        Ok((names[index].clone(), value))
    };
    wanted.iter().map(value).collect()
}

/// Returns the separator with which the header has the wanted column; or else the usual one, unless it gives a single column and
/// another more.
fn separator_of(wanted: Wanted, usual: u8, start: &[u8]) -> u8 {
    let header = |separator: u8| -> Vec<String> {
        let names = reader(separator, start).byte_headers().cloned().unwrap_or_default();
        names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    };
    let rank = |&separator: &u8| {
        let names = header(separator);
        let has = !matches!(wanted, Wanted::Nothing | Wanted::Everything) && wanted.among(&names).is_ok();
        (has, separator == usual && names.len() > 1, names.len(), separator == usual)
    };
    SEPARATORS.into_iter().max_by_key(rank).unwrap_or(usual)
}

/// Bytes of which only a limited number may be read at a time, since an open quote makes the rest of the file one field.
struct Limited<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

#[derive(Debug, thiserror::Error)]
#[error("a record is too long")]
struct TooLong;

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left.set(self.left.get().checked_sub(n as u64).ok_or_else(|| io::Error::other(TooLong))?);
        Ok(n)
    }
}
