//! Changes values inside JSON, so that an input stays JSON and gets past the parser.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Number, Value, json};

/// Numbers at which checks fail.
const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "-1",
    "2",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "-1e-320",
    "0.5",
];

/// Changes one value of the JSON in `data[..size]`, or some of its bytes; returns the new size. For `fuzz_mutator!`.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    // One change in four may be of any kind, so that damaged JSON is reached too.
    if seed % 4 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let Ok(mut value) = serde_json::from_slice::<Value>(&data[..size]) else {
        return fuzzer_mutate(data, size, max_size);
    };
    let mut random = seed / 4;
    let count = nodes(&value);
    change(&mut value, &mut (next(&mut random) as usize % count), &mut random);
    let text = value.to_string();
    if text.len() > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[..text.len()].copy_from_slice(text.as_bytes());
    text.len()
}

/// Returns the next number of a sequence (xorshift).
fn next(random: &mut u32) -> u32 {
    *random = (*random).max(1);
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5;
    *random
}

/// Returns the number of values in a value, itself included.
fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(nodes).sum(),
        Value::Object(entries) => entries.values().map(nodes).sum(),
        _ => 0,
    }
}

/// Changes the value at a position in the order of [`nodes`]; `at` counts down.
fn change(value: &mut Value, at: &mut usize, random: &mut u32) {
    if *at == 0 {
        *value = changed(std::mem::take(value), random);
        *at = usize::MAX;
        return;
    }
    *at -= 1;
    let inner: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(entries) => entries.values_mut().collect(),
        _ => return,
    };
    for value in inner {
        if *at == usize::MAX {
            return;
        }
        change(value, at, random);
    }
}

fn changed(value: Value, random: &mut u32) -> Value {
    let number = |random: &mut u32| {
        let text = NUMBERS[next(random) as usize % NUMBERS.len()];
        text.parse::<Number>().map_or(Value::Null, Value::Number)
    };
    match (value, next(random) % 8) {
        // JSON in a text, as in a header's metadata.
        (Value::String(text), 0..5) if serde_json::from_str::<Value>(&text).is_ok() => {
            let mut inner: Value = serde_json::from_str(&text).unwrap_or_default();
            let count = nodes(&inner);
            change(&mut inner, &mut (next(random) as usize % count), random);
            inner.to_string().into()
        }
        (Value::Number(old), 0..3) => match old.as_u64() {
            Some(old) => json!(old.wrapping_add(u64::from(next(random) % 5)).wrapping_sub(2)),
            None => number(random),
        },
        (Value::Number(_), _) => number(random),
        (Value::Array(mut items), 0..3) if !items.is_empty() => {
            let at = next(random) as usize % items.len();
            let item = items[at].clone();
            items.insert(at, item);
            items.into()
        }
        (Value::Array(mut items), 3..=5) if !items.is_empty() => {
            items.remove(next(random) as usize % items.len());
            items.into()
        }
        (Value::Object(mut entries), 0..3) if !entries.is_empty() => {
            let at = next(random) as usize % entries.len();
            let name = entries.keys().nth(at).cloned().unwrap_or_default();
            entries.shift_remove(&name);
            entries.into()
        }
        (Value::Object(mut entries), 3..=5) if !entries.is_empty() => {
            let at = next(random) as usize % entries.len();
            let (name, value) =
                entries.iter().nth(at).map(|(name, value)| (name.clone(), value.clone())).unwrap_or_default();
            entries.insert(format!("{name}x"), value);
            entries.into()
        }
        (Value::String(text), 5) => format!("{text}{text}").into(),
        (Value::Bool(value), 0..4) => (!value).into(),
        (old, 6) => json!([old]),
        (old, 7) => json!({"a": old}),
        (_, kind) => match kind {
            0 => Value::Null,
            1 => json!([]),
            2 => json!({}),
            3 => json!(""),
            _ => number(random),
        },
    }
}
