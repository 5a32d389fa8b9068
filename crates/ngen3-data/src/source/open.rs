//! Opens a document as a stream of decompressed bytes.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;

use crate::Error;

/// Magic bytes of a gzip member (RFC 1952) and of a zstd frame (RFC 8878). Neither can begin UTF-8 text.
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// An open document.
pub(crate) struct ByteSource {
    /// Its bytes, decompressed.
    pub(crate) bytes: Box<dyn Read + Send>,
    /// True if the stored bytes are compressed.
    pub(crate) compressed: bool,
    /// Stored bytes read so far, compressed or not.
    pub(crate) bytes_read: Arc<AtomicU64>,
}

/// Opens bytes that may be gzip or zstd, by their magic bytes. `name` is for errors; if it has a compressed extension and
/// `name_binds`, plain bytes are an error.
pub(crate) fn open(name: &str, stored: impl Read + Send + 'static, name_binds: bool) -> Result<ByteSource, Error> {
    let bytes_read = Arc::new(AtomicU64::new(0));
    let mut counted = Counted { inner: stored, count: Arc::clone(&bytes_read) };
    let failed = |error: &io::Error| Error::read(name, error);
    let start = peek(&mut counted, ZSTD.len()).map_err(|error| failed(&error))?;
    let (gzip, zstd) = (start.starts_with(GZIP), start.starts_with(ZSTD));
    let promised = [".gz", ".zst"].into_iter().find(|ending| name.to_ascii_lowercase().ends_with(ending));
    if let Some(ending) = promised.filter(|_| name_binds && !gzip && !zstd && !start.is_empty()) {
        let reason = format!("expected {ending} data, but the file is not compressed; rename it if it is plain text");
        return Err(Error::read(name, reason));
    }
    let stored = Cursor::new(start).chain(counted);
    let bytes: Box<dyn Read + Send> = if gzip {
        Box::new(MultiGzDecoder::new(stored))
    } else if zstd {
        Box::new(zstd::Decoder::new(stored).map_err(|error| failed(&error))?)
    } else {
        Box::new(stored)
    };
    Ok(ByteSource { bytes, compressed: gzip || zstd, bytes_read })
}

/// Opens a file on disk.
pub(crate) fn open_file(name: &str, path: &std::path::Path) -> Result<ByteSource, Error> {
    let file = File::open(path).map_err(|error| Error::open(path, &error))?;
    open(name, file, true)
}

/// Reads up to `n` bytes from the start of a stream; fewer only at its end.
pub(crate) fn peek(reader: &mut impl Read, n: usize) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(n);
    reader.by_ref().take(n as u64).read_to_end(&mut start)?;
    Ok(start)
}

struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    fn read(name: &str, stored: Vec<u8>) -> Result<Vec<u8>, String> {
        let size = stored.len() as u64;
        let mut opened = open(name, Cursor::new(stored), true).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        opened.bytes.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        assert_eq!(opened.bytes_read.load(Ordering::Relaxed), size, "all stored bytes are counted");
        Ok(bytes)
    }

    #[test]
    fn packed_bytes_are_unpacked_whatever_the_name_and_all_members_count() {
        assert_eq!(read("a.txt", b"plain".to_vec()).unwrap(), b"plain");
        assert_eq!(read("a.txt", gzip(b"packed")).unwrap(), b"packed");
        assert_eq!(read("a.gz", [gzip(b"one "), gzip(b""), gzip(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(read("a.zst", [zstd_frame(b"one "), zstd_frame(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(read("a", Vec::new()).unwrap(), b"");
        assert_eq!(read("a.gz", Vec::new()).unwrap(), b"");
    }

    #[test]
    fn damage_is_an_error_and_so_is_a_name_that_lies() {
        let text = b"some text that is long enough to be cut short".repeat(9);
        for packed in [gzip(&text), zstd_frame(&text)] {
            for end in 5..packed.len() {
                assert!(read("a", packed[..end].to_vec()).is_err(), "cut at {end} of {}", packed.len());
            }
            let mut flipped = packed.clone();
            *flipped.last_mut().unwrap() ^= 1;
            assert!(read("a", flipped).is_err() || packed.starts_with(ZSTD), "zstd frames need not have a checksum");
        }
        assert!(read("a.GZ", b"plain".to_vec()).unwrap_err().contains("not compressed"));
    }
}
