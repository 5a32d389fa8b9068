//! Plain text: every line, without its line break (`\n`, `\r\n` or `\r`), is a record of the only column `text`.

use std::io::BufRead;
use std::ops::ControlFlow;

use super::file::{DataFileReader, TextRecord, TextRecordFn};
use super::record::Record;
use crate::Error;
use crate::hf::column::Column;

const COLUMN: &str = "text";

/// Reads all records.
pub(super) fn records(input: &DataFileReader) -> Result<Vec<Record>, Error> {
    let column = Column::parse(COLUMN, "")?;
    let mut records = Vec::new();
    read(&DataFileReader { column: Some(&column), skip: 0, ..*input }, &mut |record| {
        records.push(Record::from_iter([(COLUMN.to_owned(), record.text.into())]));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(records)
}

pub(super) fn read(input: &DataFileReader, take: &mut TextRecordFn) -> Result<(), Error> {
    if let Some(column) = input.column.filter(|column| column.full != COLUMN) {
        return Err(input.failed(column.missing([COLUMN])));
    }
    let mut stream = input.stream()?;
    let (mut bytes, mut number, mut record) = (Vec::new(), 0u64, 0u64);
    loop {
        bytes.clear();
        let n = stream.bytes.read_until(b'\n', &mut bytes).map_err(|error| stream.failed(&error))?;
        if n == 0 {
            return Ok(());
        }
        number += 1;
        let line = std::str::from_utf8(&bytes)
            .map_err(|_| input.failed(format!("line {number}: invalid UTF-8; convert the file")))?;
        let line = if number == 1 { line.strip_prefix('\u{feff}').unwrap_or(line) } else { line };
        let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        // A lone \r is a line break too; one at the very end does not begin another line.
        let line = line.strip_suffix('\r').filter(|_| !bytes.ends_with(b"\n")).unwrap_or(line);
        for text in line.split('\r') {
            record += 1;
            if record > input.skip && take(TextRecord { text: Some(text), bytes_read: stream.bytes_read() })?.is_break()
            {
                return Ok(());
            }
        }
    }
}
