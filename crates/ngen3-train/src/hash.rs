//! SHA-256 of data and models, by which a resumed run recognises its own.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ngen3_model::Checkpoint;
use ngen3_model::hash::hex;
use sha2::{Digest, Sha256};

use crate::Error;

/// Returns the SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub fn sha256(path: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut bytes).map_err(Error::io("read", path))?;
        if read == 0 {
            break;
        }
        hash.update(&bytes[..read]);
    }
    Ok(hex(hash))
}

/// Returns the SHA-256 of a model's shape and weights, in hexadecimal, whatever the file format.
pub fn sha256_of_model(model: &Checkpoint) -> String {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&model.config).expect("numbers and names serialise"));
    add(&mut hash, &model.params);
    hex(hash)
}

/// Returns the SHA-256 of numbers, in hexadecimal.
pub fn sha256_of(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    add(&mut hash, values);
    hex(hash)
}

/// Hashes numbers as little-endian f32, as files store them.
fn add(hash: &mut Sha256, values: &[f32]) {
    for some in values.chunks(1 << 12) {
        hash.update(some.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
}
