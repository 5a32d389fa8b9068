#![no_main]
//! Input: a teacher's texts.jsonl.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match ngen3_train::parse_texts(bytes) {
        Ok(texts) => assert!(texts.len() <= bytes.len()),
        Err(error) => assert!(!error.is_empty() && !error.contains('\n'), "{error}"),
    }
});
