//! Identity of a file that a teacher fills over several runs, compared with that of a run.

use serde::Serialize;
use serde_json::{Map, Value};

/// Describes the first field in which what a file holds differs from this run's identity: `expected NAME X, got Y`. Fields in
/// `free` may differ.
pub(super) fn difference(found: &Map<String, Value>, wanted: &impl Serialize, free: &[&str]) -> Option<String> {
    // Compared as text, as it was written: 1.2 has the same digits in f32 and f64.
    let text = serde_json::to_string(wanted).expect("names and numbers serialise");
    let wanted: Map<String, Value> = serde_json::from_str(&text).expect("what serialises is JSON");
    let differs =
        |(name, wanted): &(&String, &Value)| !free.contains(&name.as_str()) && found.get(*name) != Some(wanted);
    let (name, wanted) = wanted.iter().find(differs)?;
    Some(format!("expected {name} {}, got {}", brief(wanted), found.get(name).map_or("nothing".into(), brief)))
}

/// Formats a value for messages; hashes are shortened.
fn brief(value: &Value) -> String {
    match value.as_str() {
        Some(text) if text.len() >= 64 && text.is_ascii() => format!("{}…{}", &text[..8], &text[64..]),
        _ => value.to_string(),
    }
}
