//! Plain text: every line, without its line break (`\n`, `\r\n` or `\r`), is a record of the only column `text`.

use super::file::{DataFileReader, FileRecord, FileRecordFn};
use crate::Error;

const COLUMN: &str = "text";

pub(super) fn read(input: &DataFileReader, take: &mut FileRecordFn) -> Result<(), Error> {
    let wanted = input.wanted.among(&[COLUMN.to_owned()]).map_err(|reason| input.failed(reason))?;
    let mut stream = input.stream()?;
    let (mut bytes, mut number, mut record) = (Vec::new(), 0u64, 0u64);
    loop {
        if !stream.read_line(&mut bytes, &mut number)? {
            return Ok(());
        }
        let line =
            match input.text(&bytes, || format!("line {number}")).map(Some).or_else(|error| input.skip_bad(error))? {
                Some(line) => line,
                None => {
                    record += 1;
                    let bad = FileRecord { columns: None, bytes_read: stream.bytes_read() };
                    if record > input.skip && take(bad)?.is_break() {
                        return Ok(());
                    }
                    continue;
                }
            };
        let line = &*line;
        let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        // A lone \r is a line break too; one at the very end does not begin another line.
        let line = line.strip_suffix('\r').filter(|_| !bytes.ends_with(b"\n")).unwrap_or(line);
        for text in line.split('\r') {
            record += 1;
            if record > input.skip {
                let columns = Some(wanted.iter().map(|_| (COLUMN.to_owned(), text.into())).collect());
                if take(FileRecord { columns, bytes_read: stream.bytes_read() })?.is_break() {
                    return Ok(());
                }
            }
        }
    }
}
