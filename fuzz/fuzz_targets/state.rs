#![no_main]
//! Input: the header of a run's state, whose JSON is changed value by value, framed as in `safetensors.rs`.

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ngen3_fuzz::json::mutate(data, size, max_size, seed)
});

fuzz_target!(|header: &str| {
    if let Ok(state) = ngen3_train::fuzz::state(&ngen3_fuzz::safetensors(header)) {
        assert_eq!(state.params.len(), state.exp_avg.len());
    }
});
