//! SHA-256 in hexadecimal.

use sha2::{Digest, Sha256};

/// Returns the SHA-256 of bytes.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// Finishes a hash and returns it.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_two_digits() {
        // The example of FIPS 180-4, with a byte below 16.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((sha256("abc"), hex(Sha256::new_with_prefix("abc"))), (expected.into(), expected.into()));
    }
}
