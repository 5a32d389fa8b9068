//! Decodes a stream of bytes as UTF-8.

use std::io::{self, Read};

use super::open::{ByteSource, peek};
use crate::Error;

/// Bytes requested from the source at a time.
const BUFFER: usize = 1 << 18;

/// Decodes the text of one document.
///
/// A UTF-8 byte order mark at the start is dropped. A UTF-16 one is an error, since such a file would decode to garbage.
pub(super) struct Utf8Reader {
    name: String,
    bytes: Box<dyn Read + Send>,
    compressed: bool,
    lossy: bool,
    /// The first `pending` bytes are an incomplete character.
    buffer: Vec<u8>,
    pending: usize,
    /// Offset of `buffer` in the document, in bytes.
    offset: u64,
    /// Invalid sequences replaced by U+FFFD.
    pub(super) replaced: u64,
}

impl Utf8Reader {
    pub(super) fn new(name: &str, opened: ByteSource, lossy: bool) -> Result<Self, Error> {
        let ByteSource { mut bytes, compressed, .. } = opened;
        let start = peek(&mut bytes, 3).map_err(|error| read_error(name, compressed, &error))?;
        if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
            let reason = "expected UTF-8, got UTF-16; convert it with iconv -f UTF-16 -t UTF-8";
            return Err(Error::read(name, reason));
        }
        let signature = start == [0xef, 0xbb, 0xbf];
        let (offset, start) = if signature { (3, Vec::new()) } else { (0, start) };
        let bytes = Box::new(io::Cursor::new(start).chain(bytes));
        let buffer = vec![0; BUFFER];
        Ok(Self { name: name.into(), bytes, compressed, lossy, buffer, pending: 0, offset, replaced: 0 })
    }

    /// Appends the next part of the text to `text`; returns `false` at the end.
    ///
    /// # Errors
    /// [`Error::Utf8`] at the first invalid byte, unless `lossy`; [`Error::Read`].
    pub(super) fn read(&mut self, text: &mut String) -> Result<bool, Error> {
        let n = loop {
            match self.bytes.read(&mut self.buffer[self.pending..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(|error| read_error(&self.name, self.compressed, &error))?,
            }
        };
        let (mut start, end) = (0, self.pending + n);
        loop {
            let error = match std::str::from_utf8(&self.buffer[start..end]) {
                Ok(rest) => {
                    text.push_str(rest);
                    start = end;
                    break;
                }
                Err(error) => error,
            };
            let bad = start + error.valid_up_to();
            text.push_str(std::str::from_utf8(&self.buffer[start..bad]).expect("valid up to here"));
            start = bad;
            let length = match error.error_len() {
                Some(length) => length,
                // An incomplete character: the rest may follow, unless this is the end.
                None if n > 0 => break,
                None => end - bad,
            };
            if !self.lossy {
                let (name, byte) = (self.name.clone(), self.buffer[bad]);
                return Err(Error::Utf8 { name, offset: self.offset + bad as u64, byte, compressed: self.compressed });
            }
            text.push(char::REPLACEMENT_CHARACTER);
            self.replaced += 1;
            start += length;
        }
        self.buffer.copy_within(start..end, 0);
        self.pending = end - start;
        self.offset += start as u64;
        Ok(n > 0)
    }
}

/// Makes the error of a failed read; `compressed` is true if the stored bytes are compressed.
pub(crate) fn read_error(name: &str, compressed: bool, error: &io::Error) -> Error {
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof if compressed => "compressed data ends early; the file may be truncated".into(),
        _ if compressed => format!("compressed data is damaged ({error})"),
        _ => error.to_string(),
    };
    Error::read(name, reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::open::open;

    /// Yields at most `step` bytes at a time.
    struct Trickle(io::Cursor<Vec<u8>>, usize);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = buffer.len().min(self.1);
            self.0.read(&mut buffer[..n])
        }
    }

    /// Returns the text and the number of replaced sequences.
    fn read(bytes: &[u8], step: usize, lossy: bool) -> Result<(String, u64), Error> {
        let opened = open("a.txt", Trickle(io::Cursor::new(bytes.to_vec()), step), true)?;
        let mut reader = Utf8Reader::new("a.txt", opened, lossy)?;
        let mut text = String::new();
        while reader.read(&mut text)? {}
        Ok((text, reader.replaced))
    }

    #[test]
    fn the_first_wrong_byte_is_named_across_buffers() {
        for at in [0, 1, BUFFER - 1, BUFFER, 2 * BUFFER + 7] {
            let mut bytes = "é".repeat(at / 2).into_bytes();
            bytes.resize(at, b'x');
            bytes.extend_from_slice(b"\xffrest");
            let error = read(&bytes, usize::MAX, false).unwrap_err().to_string();
            let expected = format!("a.txt: invalid UTF-8 at byte {at} (0xff); convert the file, or pass --lossy");
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn a_character_cut_short_at_the_end_is_wrong() {
        let error = read("ab€".as_bytes().split_last().unwrap().1, 1, false).unwrap_err();
        assert!(matches!(error, Error::Utf8 { offset: 2, byte: 0xe2, .. }), "{error}");
    }

    #[test]
    fn signatures_are_dropped_or_refused() {
        assert_eq!(read(b"\xef\xbb\xbfab\xef\xbb\xbf", 1, false).unwrap().0, "ab\u{feff}", "only at the start");
        let error = read(b"\xef\xbb\xbfab\xff", 1, false).unwrap_err();
        assert!(matches!(error, Error::Utf8 { offset: 5, .. }), "the offset counts from the file's start: {error}");
        for bytes in [b"\xff\xfea\0b\0", b"\xfe\xff\0a\0b"] {
            for lossy in [false, true] {
                assert!(read(bytes, 1, lossy).unwrap_err().to_string().contains("UTF-16"));
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_read_as_the_standard_library_reads_them(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xe2), Just(0x82), Just(0xac), 0x61..0x7au8], 0..60),
            step in 1usize..9,
        ) {
            let start_is_special = [&[0xff, 0xfe][..], &[0xfe, 0xff], &[0xef, 0xbb, 0xbf], &[0x1f, 0x8b]];
            prop_assume!(!start_is_special.iter().any(|special| bytes.starts_with(special)));
            let (text, replaced) = read(&bytes, step, true).unwrap();
            prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes));
            match std::str::from_utf8(&bytes) {
                Ok(right) => {
                    prop_assert_eq!(replaced, 0);
                    prop_assert_eq!(read(&bytes, step, false).unwrap().0, right);
                }
                Err(wrong) => {
                    prop_assert!(replaced > 0);
                    let at = wrong.valid_up_to();
                    match read(&bytes, step, false) {
                        Err(Error::Utf8 { offset, byte, .. }) => prop_assert_eq!((offset, byte), (at as u64, bytes[at])),
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
            }
        }
    }
}
