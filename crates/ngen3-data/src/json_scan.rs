//! JSON byte by byte: where a value ends, and Python's numbers that JSON lacks.

/// Numbers that Python writes and JSON lacks; the longer ones first.
const NOT_NUMBERS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// Replaces NaN and infinities by null; `None` if there are none.
pub(crate) fn with_null_for_nan(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut at, mut copied, mut out) = (0, 0, Vec::new());
    let mut state = JsonScan::default();
    while at < bytes.len() {
        let number = NOT_NUMBERS.iter().find(|word| !state.in_string && bytes[at..].starts_with(word));
        match number {
            Some(word) => {
                out.extend_from_slice(&bytes[copied..at]);
                out.extend_from_slice(b"null");
                at += word.len();
                copied = at;
            }
            None => {
                state.take(bytes[at]);
                at += 1;
            }
        }
    }
    (copied > 0).then(|| {
        out.extend_from_slice(&bytes[copied..]);
        out
    })
}

/// A position in JSON, as far as needed to find where a value ends.
#[derive(Debug, Default)]
pub(crate) struct JsonScan {
    in_string: bool,
    escaped: bool,
    /// Number of objects and arrays that are open.
    depth: u64,
}

impl JsonScan {
    /// Goes on by one byte. Returns true if it ends a value of the outermost array: a comma or a bracket.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth == 0 => return true,
            b'}' | b']' => self.depth -= 1,
            b',' => return self.depth == 0,
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_become_null_outside_strings() {
        let replaced = |text: &str| with_null_for_nan(text.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(replaced(r#"{"a": NaN, "b": [-Infinity, Infinity]}"#).unwrap(), r#"{"a": null, "b": [null, null]}"#);
        assert_eq!(replaced(r#"{"a": "NaN \" NaN", "NaN": 1}"#), None);
    }
}
