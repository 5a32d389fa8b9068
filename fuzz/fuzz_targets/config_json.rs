#![no_main]
//! Input: a config.json, changed value by value.

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ngen3_fuzz::json::mutate(data, size, max_size, seed)
});

fuzz_target!(|text: &str| {
    if let Ok(config) = ngen3_model::fuzz::config_json(text) {
        config.validate().expect("a checked shape");
    }
});
