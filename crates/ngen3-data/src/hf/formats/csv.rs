//! CSV and TSV: a header line, then delimited fields, optionally in `"`.

use ::csv::{ByteRecord, ReaderBuilder};
use ngen3_model::words::count;
use serde_json::Value;

use super::file::{DataFileReader, FileRecord, FileRecordFn};
use crate::Error;

/// Fields that are null, as for pandas and thus `datasets`.
const NULL_VALUES: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
];

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

pub(super) fn read(input: &DataFileReader, delimiter: u8, take: &mut FileRecordFn) -> Result<(), Error> {
    let stream = input.stream()?;
    let (bytes_read, compressed) = (stream.bytes_read.clone(), stream.compressed);
    let failed = |error| failed(input, compressed, error);
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(stream.bytes);
    let names = reader.byte_headers().map_err(failed)?.clone();
    let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let wanted = input.wanted.among(&names).map_err(|reason| input.failed(reason))?;
    let (mut fields, mut number) = (ByteRecord::new(), 0);
    while reader.read_byte_record(&mut fields).map_err(failed)? {
        number += 1;
        if number <= input.skip {
            continue;
        }
        let value = |&index: &usize| {
            let text = std::str::from_utf8(&fields[index]).map_err(|_| {
                let line = fields.position().map_or(0, ::csv::Position::line);
                input.failed(format!("line {line}: invalid UTF-8 in column {}; convert the file", names[index]))
            })?;
            let value = if NULL_VALUES.contains(&text) { Value::Null } else { text.into() };
            Ok((names[index].clone(), value))
        };
        let columns = wanted.iter().map(value).collect::<Result<_, Error>>()?;
        let bytes_read = bytes_read.load(std::sync::atomic::Ordering::Relaxed);
        if take(FileRecord { columns, bytes_read })?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}
