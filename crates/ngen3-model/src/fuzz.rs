//! Readers of bytes in memory, for fuzz targets: files and folders would take most of the time of an input.
//!
//! Only the feature `fuzz` compiles this. Each function runs the code that reads a file, and nothing else.

use std::io::Cursor;

use serde_json::Map;

use crate::checkpoint::{header, safetensors, torch};
use crate::tensors::pickle::Pickle;
use crate::tensors::torch::state_dict;
use crate::{Checkpoint, Config, gguf, hf};

/// Reads a whole `.pt` or `.safetensors`.
///
/// # Errors
/// The reason alone.
pub fn checkpoint(bytes: &[u8]) -> Result<Checkpoint, String> {
    let (file, len) = (Cursor::new(bytes), bytes.len() as u64);
    let read = if bytes.starts_with(b"PK") { torch::read(file, len) } else { safetensors::read(file, len) };
    read.map(|(checkpoint, _)| checkpoint)
}

/// Reads a pickle, its state dict and the entries of a checkpoint. Returns the number of tensors.
///
/// # Errors
/// The reason alone.
pub fn pickle(bytes: &[u8]) -> Result<usize, String> {
    let pickle = Pickle::parse(bytes)?;
    let entries = pickle.entries(pickle.root()).ok_or("not a dictionary")?;
    let mut plain = Map::new();
    for name in header::NAMES {
        if let Some(&id) = entries.get(name) {
            plain.extend(pickle.to_json(id)?.map(|value| (name.to_owned(), value)));
        }
    }
    let model = entries.get("model").and_then(|&model| pickle.entries(model));
    let tensors = model.map_or(Ok(0), |model| state_dict(&pickle, model).map(|tensors| tensors.len()))?;
    header::parse(plain)?;
    Ok(tensors)
}

/// Reads the header of a GGUF file. Returns the number of its tensors.
///
/// # Errors
/// The reason alone.
pub fn gguf_header(bytes: &[u8]) -> Result<usize, String> {
    gguf::read_header(bytes)
}

/// Reads a config.json.
///
/// # Errors
/// The reason alone.
pub fn config_json(text: &str) -> Result<Config, String> {
    hf::config::parse(text).map(|parsed| parsed.config)
}
