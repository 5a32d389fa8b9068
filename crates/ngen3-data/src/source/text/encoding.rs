//! Converts bytes in any encoding to UTF-8, as a stream.

use std::cell::Cell;
use std::io::{self, Cursor, Read};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use crate::Error;
use crate::source::bytes::open::{ByteSource, peek};
use crate::source::bytes::read_error::{InvalidText, read_error};

/// Bytes inspected to detect UTF-16.
const LOOK: usize = 4096;
/// Bytes converted at a time.
const BUFFER: usize = 1 << 16;
/// Byte order marks.
const UTF8_MARK: &[u8] = &[0xef, 0xbb, 0xbf];
const UTF16LE_MARK: &[u8] = &[0xff, 0xfe];
const UTF16BE_MARK: &[u8] = &[0xfe, 0xff];
const UTF32_MARKS: [&[u8]; 2] = [&[0xff, 0xfe, 0, 0], &[0, 0, 0xfe, 0xff]];

/// Encoding of text, by any of its names in the WHATWG standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextEncoding(&'static Encoding);

impl FromStr for TextEncoding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Encoding::for_label_no_replacement(text.as_bytes());
        found.map(Self).ok_or_else(|| {
            format!("unknown encoding {text:?}: expected for example cp1252, latin1, utf-16, shift_jis, gbk or koi8-r")
        })
    }
}

impl std::fmt::Display for TextEncoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

/// Options for reading the bytes of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextOptions {
    /// True to replace invalid bytes by U+FFFD; otherwise they are an error.
    pub lossy: bool,
    /// Encoding; `None` for UTF-8, or UTF-16 if the text begins with its byte order mark.
    pub encoding: Option<TextEncoding>,
}

/// An open text: bytes that should be UTF-8, without a byte order mark.
pub(crate) struct TextSource<'a> {
    pub(crate) bytes: Box<dyn Read + 'a>,
    /// True if the stored bytes are compressed.
    pub(crate) compressed: bool,
    /// Stored bytes read so far.
    pub(crate) bytes_read: Arc<AtomicU64>,
    /// Bytes of the byte order mark before the text.
    pub(crate) skipped: u64,
    /// Invalid sequences replaced by U+FFFD while converting.
    pub(crate) replaced: Rc<Cell<u64>>,
    /// A note about the encoding, if it was detected.
    pub(crate) note: Option<String>,
}

/// Opens a text.
///
/// # Errors
/// [`Error::Read`] for UTF-32, UTF-16 without a byte order mark, and bytes that cannot be read.
pub(crate) fn open_text<'a>(name: &str, source: ByteSource<'a>, options: TextOptions) -> Result<TextSource<'a>, Error> {
    let ByteSource { mut bytes, compressed, bytes_read, .. } = source;
    let mut start = peek(&mut bytes, LOOK).map_err(|error| read_error(name, compressed, &error))?;
    let (mut skipped, mut note, mut encoding) = (0, None, options.encoding.map(|encoding| encoding.0));
    if encoding.is_none() {
        let unmarked = UTF32_MARKS.iter().any(|mark| start.starts_with(mark));
        let (expected, convert) = ("expected UTF-8", "convert it with iconv -f UTF-32 -t UTF-8");
        if unmarked {
            return Err(Error::read(name, format!("{expected}, got UTF-32; {convert}")));
        }
        encoding = if start.starts_with(UTF16LE_MARK) {
            Some(UTF_16LE)
        } else if start.starts_with(UTF16BE_MARK) {
            Some(UTF_16BE)
        } else {
            None
        };
        if let Some(encoding) = encoding {
            note = Some(format!("{name}: read as {}, by its byte order mark", encoding.name()));
        } else if let Some(guess) = utf16_of(&start) {
            let guess = guess.name().to_ascii_lowercase();
            let reason =
                format!("{expected}, got what looks like UTF-16 (every second byte is 0); pass --encoding {guess}");
            return Err(Error::read(name, reason));
        }
    }
    if encoding.is_none_or(|encoding| encoding == UTF_8) && start.starts_with(UTF8_MARK) {
        start.drain(..UTF8_MARK.len());
        skipped = UTF8_MARK.len() as u64;
    }
    let bytes = Cursor::new(start).chain(bytes);
    let replaced = Rc::new(Cell::new(0));
    let bytes: Box<dyn Read + 'a> = match encoding.filter(|&encoding| encoding != UTF_8) {
        None => Box::new(bytes),
        Some(encoding) => Box::new(Utf8Bytes {
            bytes,
            decoder: encoding.new_decoder(),
            lossy: options.lossy,
            replaced: Rc::clone(&replaced),
            input: Vec::new(),
            taken: 0,
            offset: 0,
            ended: false,
            finished: false,
            output: vec![0; BUFFER].into_boxed_slice(),
            ready: 0..0,
        }),
    };
    Ok(TextSource { bytes, compressed, bytes_read, skipped, replaced, note })
}

/// Returns the byte order of text in UTF-16 without a mark: in most scripts' spaces, digits and line breaks one byte is 0.
fn utf16_of(start: &[u8]) -> Option<&'static Encoding> {
    let pairs = start.len() / 2;
    let zeros = |at: usize| start.chunks_exact(2).filter(|pair| pair[at] == 0).count();
    let (first, second) = (zeros(0), zeros(1));
    let most = |zeros: usize, others: usize| pairs >= 2 && 2 * zeros > pairs && 20 * others <= pairs;
    if most(second, first) {
        Some(UTF_16LE)
    } else if most(first, second) {
        Some(UTF_16BE)
    } else {
        None
    }
}

/// Bytes in some encoding, read as UTF-8.
struct Utf8Bytes<R> {
    bytes: R,
    decoder: Decoder,
    lossy: bool,
    replaced: Rc<Cell<u64>>,
    /// Bytes read, of which the first `taken` are converted.
    input: Vec<u8>,
    taken: usize,
    /// Bytes converted before `input`.
    offset: u64,
    /// True once the last bytes were read.
    ended: bool,
    /// True once the decoder has seen their end.
    finished: bool,
    /// Converted text, of which `ready` was not returned yet.
    output: Box<[u8]>,
    ready: std::ops::Range<usize>,
}

impl<R: Read> Utf8Bytes<R> {
    /// Converts some bytes; leaves `ready` empty at the end of the text.
    fn convert(&mut self) -> io::Result<()> {
        while self.ready.is_empty() && !self.finished {
            if self.taken == self.input.len() && !self.ended {
                self.offset += self.input.len() as u64;
                self.input.resize(BUFFER, 0);
                let read = self.bytes.read(&mut self.input);
                self.input.truncate(*read.as_ref().unwrap_or(&0));
                self.taken = 0;
                self.ended = read? == 0;
            }
            let rest = &self.input[self.taken..];
            let (result, taken, written) =
                self.decoder.decode_to_utf8_without_replacement(rest, &mut self.output, self.ended);
            self.taken += taken;
            self.ready = 0..written;
            match result {
                DecoderResult::InputEmpty if self.ended => self.finished = true,
                DecoderResult::InputEmpty | DecoderResult::OutputFull => {}
                DecoderResult::Malformed(length, after) if !self.lossy => {
                    let end = self.offset + self.taken as u64;
                    let at = end.saturating_sub(u64::from(length) + u64::from(after));
                    let name = self.decoder.encoding().name();
                    let reason = format!("invalid {name} at byte {at}; check --encoding, or pass --lossy");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, InvalidText(reason)));
                }
                DecoderResult::Malformed(..) => {
                    self.replaced.set(self.replaced.get() + 1);
                    let mark = char::REPLACEMENT_CHARACTER.len_utf8();
                    // The decoder leaves room only for what it wrote.
                    if written + mark > self.output.len() {
                        let mut longer = std::mem::take(&mut self.output).into_vec();
                        longer.resize(longer.len() + mark, 0);
                        self.output = longer.into_boxed_slice();
                    }
                    char::REPLACEMENT_CHARACTER.encode_utf8(&mut self.output[written..]);
                    self.ready.end += mark;
                }
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Utf8Bytes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            self.convert()?;
        }
        let n = buffer.len().min(self.ready.len());
        buffer[..n].copy_from_slice(&self.output[self.ready.start..self.ready.start + n]);
        self.ready.start += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::bytes::open::open;

    /// Yields at most `step` bytes at a time.
    struct Trickle(Cursor<Vec<u8>>, usize);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = buffer.len().min(self.1);
            self.0.read(&mut buffer[..n])
        }
    }

    /// Returns the text, the number of replaced sequences and the note.
    fn read(bytes: &[u8], step: usize, options: TextOptions) -> Result<(String, u64, Option<String>), String> {
        let opened = open("x", Trickle(Cursor::new(bytes.to_vec()), step), true).unwrap();
        let mut opened = open_text("x", opened, options).map_err(|error| error.to_string())?;
        let mut text = String::new();
        opened.bytes.read_to_string(&mut text).map_err(|error| read_error("x", false, &error).to_string())?;
        Ok((text, opened.replaced.get(), opened.note))
    }

    fn options(encoding: &str, lossy: bool) -> TextOptions {
        TextOptions { lossy, encoding: Some(encoding.parse().unwrap()) }
    }

    fn utf16(text: &str, big: bool) -> Vec<u8> {
        text.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    }

    #[test]
    fn encodings_are_converted() {
        assert_eq!(read(b"caf\xe9 \x80", 1, options("cp1252", false)).unwrap().0, "café €");
        assert_eq!(read(b"\x83n", 1, options("shift_jis", false)).unwrap().0, "ハ");
        assert_eq!(read("\u{feff}é".as_bytes(), 1, options("utf-8", false)).unwrap().0, "é");
        for big in [false, true] {
            let name = if big { "UTF-16BE" } else { "UTF-16LE" };
            let bytes = utf16("\u{feff}Grüße 😀\n", big);
            let (text, _, note) = read(&bytes, 1, TextOptions::default()).unwrap();
            assert_eq!(
                (text.as_str(), note),
                ("Grüße 😀\n", Some(format!("x: read as {name}, by its byte order mark")))
            );
            let error = read(&utf16("plain text", big), 1, TextOptions::default()).unwrap_err();
            let expected = "x: expected UTF-8, got what looks like UTF-16 (every second byte is 0); pass --encoding ";
            assert_eq!(error, format!("{expected}{}", name.to_lowercase()));
            assert_eq!(read(&utf16("plain", big), 1, options(name, false)).unwrap().0, "plain");
        }
        assert!(read(b"\xff\xfe\0\0a\0\0\0", 1, TextOptions::default()).unwrap_err().contains("got UTF-32"));
        assert_eq!(read(b"ab\0\0cd", 1, TextOptions::default()).unwrap().0, "ab\0\0cd");
        assert!("nonsense".parse::<TextEncoding>().unwrap_err().contains("expected for example cp1252"));
    }

    #[test]
    fn invalid_sequences_are_named_or_replaced() {
        let lone = [utf16("ab", false), vec![0x00, 0xd8], utf16("c", false)].concat();
        let error = read(&lone, 1, options("utf-16", false)).unwrap_err();
        assert_eq!(error, "x: invalid UTF-16LE at byte 4; check --encoding, or pass --lossy");
        let (text, replaced, _) = read(&lone, 1, options("utf-16", true)).unwrap();
        assert_eq!((text.as_str(), replaced), ("ab\u{fffd}c", 1));
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(text in "\\PC{0,40}", step in 1usize..7, big: bool) {
            let bytes = utf16(&format!("\u{feff}{text}"), big);
            prop_assert_eq!(read(&bytes, step, TextOptions::default()).unwrap().0, text);
        }

        #[test]
        fn any_bytes_are_converted(bytes in prop::collection::vec(any::<u8>(), 0..60), label in 0usize..5) {
            let label = ["cp1252", "gbk", "shift_jis", "euc-kr", "utf-16be"][label];
            prop_assume!(!bytes.starts_with(&[0x1f, 0x8b]));
            let expected = Encoding::for_label(label.as_bytes()).unwrap().decode(&bytes).0.into_owned();
            prop_assert_eq!(read(&bytes, 3, options(label, true)).unwrap().0, expected);
        }
    }
}
