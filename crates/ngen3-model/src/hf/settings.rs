//! Settings of a folder's tokenizer: `tokenizer_config.json`, and `special_tokens_map.json` of older versions of `transformers`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;
use crate::files::read_object;

/// Size limit of each file, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Entries of both files.
pub(super) struct Settings {
    settings: Map<String, Value>,
    special: Map<String, Value>,
}

impl Settings {
    /// Reads the files that exist.
    ///
    /// # Errors
    /// [`Error::Read`] if a file is too large or not a JSON object.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let settings = read_object(&folder.join("tokenizer_config.json"), MAX_BYTES)?;
        // As in `transformers`, the older file takes precedence, unless the settings are of the newer kind that lists all tokens.
        let listed = settings.contains_key("added_tokens_decoder");
        let special =
            if listed { Map::new() } else { read_object(&folder.join("special_tokens_map.json"), MAX_BYTES)? };
        Ok(Self { settings, special })
    }

    /// Entry of `tokenizer_config.json`.
    pub fn entry(&self, name: &str) -> Option<&Value> {
        self.settings.get(name)
    }

    /// Entry of a special token such as `eos_token`.
    pub fn token(&self, name: &str) -> Option<&Value> {
        self.special.get(name).or_else(|| self.settings.get(name))
    }
}

/// Returns the text of a token: a string, or an object's `content`.
pub(super) fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}
