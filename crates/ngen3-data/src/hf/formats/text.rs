//! Plain text: every line, without its line break (`\n`, `\r\n` or `\r`), is a record of the only column `text`.

use std::io::BufRead;

use super::file::{DataFileReader, FileRecord, FileRecordFn};
use crate::Error;

const COLUMN: &str = "text";

pub(super) fn read(input: &DataFileReader, take: &mut FileRecordFn) -> Result<(), Error> {
    let wanted = input.wanted.among(&[COLUMN.to_owned()]).map_err(|reason| input.failed(reason))?;
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
            if record > input.skip {
                let columns = wanted.iter().map(|_| (COLUMN.to_owned(), text.into())).collect();
                if take(FileRecord { columns, bytes_read: stream.bytes_read() })?.is_break() {
                    return Ok(());
                }
            }
        }
    }
}
