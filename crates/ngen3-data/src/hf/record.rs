//! A record of a dataset, whatever its format.

use serde_json::{Map, Value};

/// A record: the value of each column, by name.
pub type Record = Map<String, Value>;
