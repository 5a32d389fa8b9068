//! Parameters of a request, taken from its JSON one by one. A parameter that is left over at the end is refused by name.

use std::ops::RangeInclusive;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::error::ApiError;

/// Parameters not taken yet; `null` counts as missing.
#[derive(Debug)]
pub(crate) struct Params(Map<String, Value>);

impl Params {
    /// Parses the body of a request.
    ///
    /// # Errors
    /// Unless it is a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let invalid = |message: String| ApiError::new(StatusCode::BAD_REQUEST, message).with_code("invalid_json");
        match serde_json::from_slice(body) {
            Ok(Value::Object(mut fields)) => {
                fields.retain(|_, value| !value.is_null());
                Ok(Self(fields))
            }
            Ok(other) => Err(invalid(format!("expected a JSON object, got {}", kind_of(&other)))),
            Err(error) => Err(invalid(format!("invalid JSON: {error}"))),
        }
    }

    /// Takes a parameter of any type.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.value(name)
            .map(|value| match value {
                Value::String(text) => Ok(text),
                other => Err(wrong(name, "a string", &other)),
            })
            .transpose()
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.value(name).map(|value| value.as_bool().ok_or_else(|| wrong(name, "true or false", &value))).transpose()
    }

    /// Takes a number; its range is checked where it is used.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        let number = |value: Value| value.as_f64().ok_or_else(|| wrong(name, "a number", &value));
        Ok(self.value(name).map(number).transpose()?.map(|number| number as f32))
    }

    pub fn whole(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let whole = |value: Value| match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(number),
            _ => {
                let expected = match (*range.start(), *range.end()) {
                    (start, u64::MAX) => format!("a whole number of at least {start}"),
                    (start, end) => format!("a whole number from {start} to {end}"),
                };
                Err(wrong(name, &expected, &value))
            }
        };
        self.value(name).map(whole).transpose()
    }

    /// Takes a string or a list of strings.
    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(wrong(name, "a string or a list of strings", &other)),
        };
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values.into_iter().map(text).collect(),
            Some(value) => Ok(vec![text(value)?]),
        }
    }

    /// Drops parameters that do not change the answer.
    pub fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.value(name)));
    }

    /// Refuses a parameter that the server does not implement, unless its value changes nothing.
    pub fn refuse(&mut self, name: &str, changes_nothing: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        match self.value(name) {
            Some(value) if !changes_nothing(&value) => {
                Err(ApiError::param(name, "not supported by this server").with_code("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }

    /// Returns an error if a parameter is left.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => {
                let shown: String = name.chars().take(80).collect();
                Err(ApiError::param(&shown, "unknown parameter").with_code("unknown_parameter"))
            }
        }
    }
}

/// An error for a value of another type or range.
pub(crate) fn wrong(name: &str, expected: &str, value: &Value) -> ApiError {
    const SHOWN: usize = 40;
    let got = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("{:?}", text.chars().take(SHOWN).collect::<String>()),
        other => kind_of(other).into(),
    };
    ApiError::param(name, format_args!("expected {expected}, got {got}"))
}

/// Names the type of a value for messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(true) => "true",
        Value::Bool(false) => "false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<impl std::fmt::Debug, ApiError>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn values_are_taken_by_type_and_the_rest_is_refused_by_name() {
        let body = br#"{"a": 1, "b": "x", "c": null, "d": ["y", "z"], "e": -1, "f": true, "g": 0.5}"#;
        let mut params = Params::parse(body).unwrap();
        assert_eq!(params.whole("a", 0..=5).unwrap(), Some(1));
        assert_eq!(params.texts("b").unwrap(), ["x"]);
        assert_eq!(params.number("c").unwrap(), None);
        assert_eq!(params.texts("d").unwrap(), ["y", "z"]);
        assert_eq!(message(params.whole("e", 0..=u64::MAX)), "e: expected a whole number of at least 0, got -1");
        assert_eq!(message(params.text("f")), "f: expected a string, got true");
        let error = params.finish().unwrap_err();
        assert_eq!((error.message.as_str(), error.param.as_deref()), ("g: unknown parameter", Some("g")));
    }

    #[test]
    fn other_bodies_are_errors() {
        assert_eq!(message(Params::parse(b"[1]")), "expected a JSON object, got a list");
        assert!(message(Params::parse(b"{\"a\": ")).starts_with("invalid JSON: EOF while parsing"));
        assert!(message(Params::parse(b"{\"a\": \"\xff\"}")).starts_with("invalid JSON: "));
        assert!(message(Params::parse("[".repeat(100_000).as_bytes())).contains("recursion limit"));
    }

    #[test]
    fn a_refused_parameter_may_have_its_neutral_value() {
        let mut params = Params::parse(br#"{"a": 0, "b": 2}"#).unwrap();
        let is_zero = |value: &Value| value.as_f64() == Some(0.0);
        params.refuse("a", is_zero).unwrap();
        assert_eq!(message(params.refuse("b", is_zero)), "b: not supported by this server");
    }
}
