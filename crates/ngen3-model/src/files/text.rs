//! Size-limited reads of text files.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;

/// Makes an [`Error::Read`] from its reason. A reason may quote a file, which can hold anything: control characters are
/// replaced, and its length is limited.
pub(crate) fn read_error(path: &Path) -> impl FnOnce(String) -> Error {
    |reason| {
        let reason = reason.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(300).collect();
        Error::Read { path: path.into(), reason }
    }
}

/// Reads a text file of at most `max` bytes; `None` if it does not exist.
///
/// # Errors
/// [`Error::Read`] naming the file, if it is larger, not UTF-8 or unreadable.
pub fn read_text(path: &Path, max: u64) -> Result<Option<String>, Error> {
    let failed = |error: io::Error| read_error(path)(error.to_string());
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.is_file() {
        return Err(read_error(path)("not a file".into()));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(read_error(path)(format!("larger than {max} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| read_error(path)(format!("not UTF-8: {error}")))
}

/// Reads a JSON object from a file of at most `max` bytes; empty if the file does not exist.
pub(crate) fn read_object(path: &Path, max: u64) -> Result<Map<String, Value>, Error> {
    let text = read_text(path, max)?;
    text.map_or_else(|| Ok(Map::new()), |text| parse_json(&text).map_err(read_error(path)))
}

/// Parses JSON as a `T`. The error is the reason alone.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("invalid JSON: {error}"))
}

/// Formats JSON with indentation and a final line break.
pub(crate) fn pretty_json(value: &Value) -> String {
    format!("{value:#}\n")
}
