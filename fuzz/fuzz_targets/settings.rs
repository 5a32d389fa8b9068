#![no_main]
//! Input: a TOML file of settings.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = ngen3_train::parse_settings(text) {
        assert!(!error.is_empty() && !error.contains('\n'), "{error}");
    }
});
