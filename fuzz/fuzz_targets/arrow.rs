#![no_main]
//! Input: an Arrow file or stream.

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: ngen3_fuzz::allow_panics_of_libraries(),
    |bytes: &[u8]| ngen3_fuzz::read_rows("x.arrow", bytes, &["text", "messages", "meta.tags"])
);
