//! Size limits of files and lines that are read into memory.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

use super::read_error::read_error;
use crate::Error;

/// Reads a small file. One larger than `max` bytes, which should be far above any in use, is an error.
pub(crate) fn read_at_most(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::other(format!("the file is larger than the limit of {max} bytes")));
    }
    Ok(bytes)
}

/// Longest line accepted, in bytes; a longer one means that the file is not made of lines.
pub(crate) const MAX_LINE: u64 = 64 << 20;

/// Reads the next line, with its line break, into `line` and increments `number`; returns `false` at the end.
///
/// # Errors
/// [`Error::Read`] for a line that is too long or cannot be read.
pub(crate) fn read_line(
    name: &str,
    compressed: bool,
    bytes: &mut impl BufRead,
    line: &mut Vec<u8>,
    number: &mut u64,
) -> Result<bool, Error> {
    line.clear();
    let read =
        bytes.take(MAX_LINE + 1).read_until(b'\n', line).map_err(|error| read_error(name, compressed, &error))?;
    if read == 0 {
        return Ok(false);
    }
    *number += 1;
    if read as u64 > MAX_LINE {
        let reason = format!("line {number} is longer than the limit of {MAX_LINE} bytes");
        return Err(Error::read(name, reason));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, repeat};

    use super::*;

    #[test]
    fn lines_are_counted_and_one_without_end_is_refused() {
        let mut bytes = BufReader::new(b"a\r\n\nb".chain(&b"\n"[..]).chain(repeat(b'c')));
        let (mut line, mut number) = (b"before".to_vec(), 0);
        for expected in ["a\r\n", "\n", "b\n"] {
            assert!(read_line("x", true, &mut bytes, &mut line, &mut number).unwrap());
            assert_eq!(line, expected.as_bytes());
        }
        let error = read_line("x", true, &mut bytes, &mut line, &mut number).unwrap_err().to_string();
        assert_eq!(error, "x: line 4 is longer than the limit of 67108864 bytes");
        assert!(!read_line("x", false, &mut &b""[..], &mut line, &mut number).unwrap());
    }
}
