//! CSV and TSV: a header line, then delimited fields, optionally in `"`.

use ::csv::{ByteRecord, ReaderBuilder};
use ngen3_model::words::count;
use serde_json::Value;

use super::file::{DataFileReader, TextRecord, TextRecordFn};
use super::record::Record;
use crate::Error;

/// Fields that are null, as for pandas and thus `datasets`.
const NULL_VALUES: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// Reads all records, with all their columns.
pub(super) fn records(input: &DataFileReader, delimiter: u8) -> Result<Vec<Record>, Error> {
    let stream = input.stream()?;
    let compressed = stream.compressed;
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(stream.bytes);
    let names = reader.headers().map_err(|error| failed(input, compressed, error))?.clone();
    let input = reader.into_records().map(|record| {
        let record = record.map_err(|error| failed(input, compressed, error))?;
        let value = |field: &str| if NULL_VALUES.contains(&field) { Value::Null } else { field.into() };
        Ok(names.iter().zip(&record).map(|(name, field)| (name.to_owned(), value(field))).collect())
    });
    input.collect()
}

/// Describes a CSV error, with its line.
fn failed(input: &DataFileReader, compressed: bool, error: ::csv::Error) -> Error {
    let place = error.position().map_or_else(String::new, |position| format!("line {}: ", position.line()));
    match error.into_kind() {
        ::csv::ErrorKind::Io(error) => crate::source::utf8::read_error(input.name, compressed, &error),
        ::csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let (fields, columns) = (count(len, "field"), count(expected_len, "column"));
            input.failed(format!("{place}expected {columns} as in the header, got {fields}"))
        }
        ::csv::ErrorKind::Utf8 { .. } => input.failed(format!("{place}invalid UTF-8; convert the file")),
        other => input.failed(format!("{place}{}", ::csv::Error::from(std::io::Error::other(format!("{other:?}"))))),
    }
}

pub(super) fn read(input: &DataFileReader, delimiter: u8, take: &mut TextRecordFn) -> Result<(), Error> {
    let stream = input.stream()?;
    let (bytes_read, compressed) = (stream.bytes_read.clone(), stream.compressed);
    let failed = |error| failed(input, compressed, error);
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(stream.bytes);
    let names = reader.byte_headers().map_err(failed)?.clone();
    let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let index = match input.column {
        None => None,
        Some(column) => {
            let index = names.iter().position(|name| *name == column.full);
            Some(index.ok_or_else(|| input.failed(column.missing(&names)))?)
        }
    };
    let (mut record, mut number) = (ByteRecord::new(), 0);
    while reader.read_byte_record(&mut record).map_err(failed)? {
        number += 1;
        if number <= input.skip {
            continue;
        }
        let field = match index {
            None => "",
            Some(index) => std::str::from_utf8(&record[index]).map_err(|_| {
                let line = record.position().map_or(0, ::csv::Position::line);
                input.failed(format!("line {line}: invalid UTF-8 in column {}; convert the file", names[index]))
            })?,
        };
        let text = (!NULL_VALUES.contains(&field)).then_some(field);
        let bytes_read = bytes_read.load(std::sync::atomic::Ordering::Relaxed);
        if take(TextRecord { text, bytes_read })?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}
