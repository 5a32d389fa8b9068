//! Entries of a config.json by name.

use serde_json::{Map, Value};

/// Entries of a config.json.
pub(super) struct Entries(pub Map<String, Value>);

impl Entries {
    /// Returns an entry that is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Returns the size that one of these entries gives.
    pub fn size_of(&self, names: &[&str]) -> Result<Option<usize>, String> {
        let Some((name, value)) = names.iter().find_map(|name| Some((name, self.get(name)?))) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| format!("{name}: expected a size, got {value}"))
    }

    pub fn size(&self, names: &[&str], default: usize) -> Result<usize, String> {
        Ok(self.size_of(names)?.unwrap_or(default))
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| format!("{name}: expected a number, got {value}"))
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| format!("{name}: expected true or false, got {value}"))
    }

    pub fn check_architectures(&self, known: &[&str]) -> Result<(), String> {
        let Some(named) = self.get("architectures") else { return Ok(()) };
        let is_known = |name: &Value| known.iter().any(|known| name == known);
        if named.as_array().is_some_and(|names| names.iter().all(is_known)) {
            return Ok(());
        }
        Err(format!("unsupported architectures {named}: expected {}", known.join(" or ")))
    }

    /// Checks that entries that would change the results are missing or have these values.
    pub fn check_harmless(&self, entries: &[(&str, Value)]) -> Result<(), String> {
        // A number is the same with and without a fraction of 0.
        let same = |one: &Value, other: &Value| one == other || (one.is_number() && one.as_f64() == other.as_f64());
        for (name, harmless) in entries {
            if let Some(value) = self.get(name).filter(|value| !same(value, harmless)) {
                return Err(format!("unsupported {name} {value}: expected {harmless}"));
            }
        }
        Ok(())
    }
}
