//! SHA-256 of data too large for memory.

use std::io::{self, Read, Write};

use ngen3_model::hash::hex;
use sha2::{Digest, Sha256};

struct Hasher(Sha256);

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads to the end; returns the number of bytes and their SHA-256 in hexadecimal.
pub(super) fn sha256(reader: &mut impl Read) -> io::Result<(u64, String)> {
    let mut hasher = Hasher(Sha256::new());
    let size = io::copy(&mut io::BufReader::with_capacity(1 << 18, reader), &mut hasher)?;
    Ok((size, hex(hasher.0)))
}
