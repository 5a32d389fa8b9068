#![no_main]
//! Input: a pickle, read as that of a `.pt`.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|pickle: &[u8]| {
    let _ = ngen3_model::fuzz::pickle(pickle);
});
