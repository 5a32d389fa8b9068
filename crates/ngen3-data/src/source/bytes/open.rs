//! Opens a document as a stream of decompressed bytes.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;

use crate::Error;

/// Compression of stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

/// Each compression with its magic bytes (RFC 1952, RFC 8878, the .xz format 1.2, bzip2's first block) and its extension. No text
/// begins like this.
const COMPRESSIONS: [(Compression, &[u8], &str); 5] = [
    (Compression::Gzip, &[0x1f, 0x8b], ".gz"),
    (Compression::Zstd, &[0x28, 0xb5, 0x2f, 0xfd], ".zst"),
    (Compression::Xz, &[0xfd, b'7', b'z', b'X', b'Z', 0], ".xz"),
    (Compression::Bzip2, b"1AY&SY", ".bz2"),
    // A file without data.
    (Compression::Bzip2, &[0x17, 0x72, 0x45, 0x38, 0x50, 0x90], ".bz2"),
];
/// Bytes before the magic bytes of bzip2: `BZh` and a digit.
const BZIP2_OFFSET: usize = 4;
/// Bytes that tell every compression.
const MAGIC_BYTES: usize = 10;
/// Memory of an .xz decoder in KiB: the strongest preset of xz needs 65 MiB, and a header may ask for 4 GiB.
pub(crate) const XZ_MEMORY_KIB: u32 = 100 << 10;

/// An open document.
pub(crate) struct ByteSource<'a> {
    /// Its bytes, decompressed.
    pub(crate) bytes: Box<dyn Read + 'a>,
    /// True if the stored bytes are compressed.
    pub(crate) compressed: bool,
    /// Stored bytes read so far, compressed or not.
    pub(crate) bytes_read: Arc<AtomicU64>,
    /// The file of the stored bytes, if they are on disk; it shares its position with `bytes`.
    pub(crate) file: Option<File>,
}

/// Returns a lower-case file name without the extension of a compression.
pub(crate) fn without_compression(name: &str) -> &str {
    COMPRESSIONS.iter().find_map(|(_, _, ending)| name.strip_suffix(ending)).unwrap_or(name)
}

fn compression_of(start: &[u8]) -> Option<Compression> {
    let is = |compression, magic: &[u8]| match compression {
        Compression::Bzip2 => {
            start.starts_with(b"BZh") && start.get(BZIP2_OFFSET..).is_some_and(|rest| rest.starts_with(magic))
        }
        _ => start.starts_with(magic),
    };
    COMPRESSIONS.iter().find(|(compression, magic, _)| is(*compression, magic)).map(|(compression, ..)| *compression)
}

/// Opens bytes that may be compressed, by their magic bytes. `name` is for errors; if it has a compressed extension and
/// `name_binds`, plain bytes are an error.
pub(crate) fn open<'a>(name: &str, stored: impl Read + 'a, name_binds: bool) -> Result<ByteSource<'a>, Error> {
    let bytes_read = Arc::new(AtomicU64::new(0));
    let mut counted = Counted { inner: stored, count: Arc::clone(&bytes_read) };
    let failed = |error: &io::Error| Error::read(name, error);
    let start = peek(&mut counted, MAGIC_BYTES).map_err(|error| failed(&error))?;
    let compression = compression_of(&start);
    let lower = name.to_ascii_lowercase();
    let promised = COMPRESSIONS.iter().map(|(_, _, ending)| *ending).find(|ending| lower.ends_with(ending));
    if let Some(ending) = promised.filter(|_| name_binds && compression.is_none() && !start.is_empty()) {
        let reason = format!("expected {ending} data, but the file is not compressed; rename it if it is plain text");
        return Err(Error::read(name, reason));
    }
    let stored = Cursor::new(start).chain(counted);
    let bytes: Box<dyn Read + 'a> = match compression {
        Some(Compression::Gzip) => Box::new(MultiGzDecoder::new(stored)),
        Some(Compression::Zstd) => Box::new(zstd::Decoder::new(stored).map_err(|error| failed(&error))?),
        // Reads bytes one by one where a block begins.
        Some(Compression::Xz) => Box::new(XzReader::new_mem_limit(BufReader::new(stored), true, XZ_MEMORY_KIB)),
        Some(Compression::Bzip2) => Box::new(MultiBzDecoder::new(stored)),
        None => Box::new(stored),
    };
    Ok(ByteSource { bytes, compressed: compression.is_some(), bytes_read, file: None })
}

/// Opens a file on disk that the user named.
pub(crate) fn open_file(name: &str, path: &std::path::Path) -> Result<ByteSource<'static>, Error> {
    let file = File::open(path).map_err(|error| Error::open(path, &error))?;
    open_stored(name, file, true)
}

/// Opens a file, as [`open`] does.
pub(crate) fn open_stored(name: &str, file: File, name_binds: bool) -> Result<ByteSource<'static>, Error> {
    let again = file.try_clone().map_err(|error| Error::read(name, error))?;
    Ok(ByteSource { file: Some(again), ..open(name, file, name_binds)? })
}

/// Reads up to `n` bytes from the start of a stream; fewer only at its end.
pub(crate) fn peek(reader: &mut impl Read, n: usize) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(n);
    reader.by_ref().take(n as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// A reader that counts the bytes read.
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

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
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
        assert_eq!(read("a", [bzip2(b"one "), bzip2(b""), bzip2(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(read("a", bzip2(b"")).unwrap(), b"");
        assert_eq!(read("a", b"BZh is how some text begins".to_vec()).unwrap(), b"BZh is how some text begins");
        assert_eq!(read("a", Vec::new()).unwrap(), b"");
        assert_eq!(read("a.gz", Vec::new()).unwrap(), b"");
    }

    #[test]
    fn damage_is_an_error_and_so_is_a_name_that_lies() {
        let text = b"some text that is long enough to be cut short".repeat(9);
        for packed in [gzip(&text), zstd_frame(&text), bzip2(&text)] {
            for end in MAGIC_BYTES..packed.len() {
                assert!(read("a", packed[..end].to_vec()).is_err(), "cut at {end} of {}", packed.len());
            }
            let mut flipped = packed.clone();
            *flipped.last_mut().unwrap() ^= 1;
            assert!(
                read("a", flipped).is_err() || !packed.starts_with(&[0x1f]),
                "zstd frames need not have a checksum, and bzip2 ends with bits that do not count"
            );
        }
        assert!(read("a.GZ", b"plain".to_vec()).unwrap_err().contains("not compressed"));
    }
}
