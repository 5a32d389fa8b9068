//! Plain text: every line is a row of the one column `text`, without its line break (`\n`, `\r\n` or `\r`).

use std::io::BufRead;
use std::ops::ControlFlow;

use super::file::{Row, Rows, Take};
use super::record::Record;
use crate::Error;
use crate::hf::column::Column;

const COLUMN: &str = "text";

/// All rows.
pub(super) fn records(rows: &Rows) -> Result<Vec<Record>, Error> {
    let column = Column::parse(COLUMN, "")?;
    let mut records = Vec::new();
    read(&Rows { column: Some(&column), skip: 0, ..*rows }, &mut |row| {
        records.push(Record::from_iter([(COLUMN.to_owned(), row.text.into())]));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(records)
}

pub(super) fn read(rows: &Rows, take: &mut Take) -> Result<(), Error> {
    if let Some(column) = rows.column.filter(|column| column.full != COLUMN) {
        return Err(rows.failed(column.missing([COLUMN])));
    }
    let mut stream = rows.stream()?;
    let (mut bytes, mut number, mut row) = (Vec::new(), 0u64, 0u64);
    loop {
        bytes.clear();
        let n = stream.bytes.read_until(b'\n', &mut bytes).map_err(|error| stream.failed(&error))?;
        if n == 0 {
            return Ok(());
        }
        number += 1;
        let line = std::str::from_utf8(&bytes).map_err(|_| rows.failed(format!("line {number} is not UTF-8")))?;
        let line = if number == 1 { line.strip_prefix('\u{feff}').unwrap_or(line) } else { line };
        let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        // A lone \r is a line break too; at the very end there is no further line after it.
        let line = line.strip_suffix('\r').filter(|_| !bytes.ends_with(b"\n")).unwrap_or(line);
        for text in line.split('\r') {
            row += 1;
            if row > rows.skip && take(Row { text: Some(text), consumed: stream.consumed() })?.is_break() {
                return Ok(());
            }
        }
    }
}
