//! Decodes a stream of bytes as UTF-8.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use super::encoding::TextSource;
use crate::Error;
use crate::source::bytes::read_error::read_error;

/// Bytes requested from the source at a time.
const BUFFER: usize = 1 << 18;

/// Decodes the text of one document.
pub(in crate::source) struct Utf8Reader<'a> {
    name: String,
    bytes: Box<dyn Read + 'a>,
    compressed: bool,
    lossy: bool,
    /// The first `pending` bytes are an incomplete character.
    buffer: Vec<u8>,
    pending: usize,
    /// Offset of `buffer` in the document, in bytes.
    offset: u64,
    /// Invalid sequences replaced by U+FFFD here, and while converting the encoding.
    replaced: u64,
    converted: Rc<Cell<u64>>,
}

impl<'a> Utf8Reader<'a> {
    pub(in crate::source) fn new(name: &str, text: TextSource<'a>, lossy: bool) -> Self {
        let TextSource { bytes, compressed, skipped: offset, replaced: converted, .. } = text;
        let (name, buffer) = (name.into(), vec![0; BUFFER]);
        Self { name, bytes, compressed, lossy, buffer, pending: 0, offset, replaced: 0, converted }
    }

    /// Number of invalid sequences replaced by U+FFFD so far.
    pub(in crate::source) fn replaced(&self) -> u64 {
        self.replaced + self.converted.get()
    }

    /// Appends the next part of the text to `text`; returns `false` at the end.
    ///
    /// # Errors
    /// [`Error::Utf8`] at the first invalid byte, unless `lossy`; [`Error::Read`].
    pub(in crate::source) fn read(&mut self, text: &mut String) -> Result<bool, Error> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::bytes::open::open;
    use crate::source::text::encoding::{TextOptions, open_text};

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
        let opened = open_text("a.txt", opened, TextOptions::default())?;
        let mut reader = Utf8Reader::new("a.txt", opened, lossy);
        let mut text = String::new();
        while reader.read(&mut text)? {}
        Ok((text, reader.replaced()))
    }

    #[test]
    fn the_first_wrong_byte_is_named_across_buffers() {
        for at in [0, 1, BUFFER - 1, BUFFER, 2 * BUFFER + 7] {
            let mut bytes = "é".repeat(at / 2).into_bytes();
            bytes.resize(at, b'x');
            bytes.extend_from_slice(b"\xffrest");
            let error = read(&bytes, usize::MAX, false).unwrap_err().to_string();
            let expected = format!("a.txt: invalid UTF-8 at byte {at} (0xff); convert the file, or pass --encoding");
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn a_character_cut_short_at_the_end_is_wrong() {
        let error = read("ab€".as_bytes().split_last().unwrap().1, 1, false).unwrap_err();
        assert!(matches!(error, Error::Utf8 { offset: 2, byte: 0xe2, .. }), "{error}");
    }

    #[test]
    fn signatures_are_dropped() {
        assert_eq!(read(b"\xef\xbb\xbfab\xef\xbb\xbf", 1, false).unwrap().0, "ab\u{feff}", "only at the start");
        let error = read(b"\xef\xbb\xbfab\xff", 1, false).unwrap_err();
        assert!(matches!(error, Error::Utf8 { offset: 5, .. }), "the offset counts from the file's start: {error}");
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
