//! Text files, read up to a limit.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;

/// Makes the error that a file cannot be read, from the reason. A reason may quote the file, which can hold anything: its line breaks and its
/// length stay out of the error.
pub(crate) fn read_error(path: &Path) -> impl FnOnce(String) -> Error {
    |reason| {
        let reason = reason.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(300).collect();
        Error::Read { path: path.into(), reason }
    }
}

/// Reads a text file of at most `max` bytes; `None` if there is no such file.
///
/// # Errors
/// [`Error::Read`] naming the file, if it is larger, not UTF-8, or cannot be read.
pub fn read_text(path: &Path, max: u64) -> Result<Option<String>, Error> {
    let failed = |error: io::Error| read_error(path)(error.to_string());
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.is_file() {
        return Err(read_error(path)("it is not a file".into()));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(read_error(path)(format!("it is larger than {max} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| read_error(path)(format!("it is not UTF-8: {error}")))
}

/// Reads a file of at most `max` bytes that holds a JSON object; an empty one if there is no such file.
pub(crate) fn read_object(path: &Path, max: u64) -> Result<Map<String, Value>, Error> {
    let text = read_text(path, max)?;
    text.map_or_else(|| Ok(Map::new()), |text| parse_json(&text).map_err(read_error(path)))
}

/// Parses JSON that must be of the type `T`. The error is the reason alone.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not what it should be: {error}"))
}

/// JSON for people to read, with a line break at its end.
pub(crate) fn pretty_json(value: &Value) -> String {
    format!("{value:#}\n")
}
