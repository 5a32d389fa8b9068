#![no_main]
//! Input: the header of a `.safetensors` file, whose JSON is changed value by value. Its correct length precedes it, and as many
//! bytes as its largest number (up to 65,536) follow it.

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ngen3_model::ParamList;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ngen3_fuzz::json::mutate(data, size, max_size, seed)
});

fuzz_target!(|header: &str| {
    if let Ok(found) = ngen3_model::fuzz::checkpoint(&ngen3_fuzz::safetensors(header)) {
        assert_eq!(found.params.len(), ParamList::new(&found.config).total());
    }
});
